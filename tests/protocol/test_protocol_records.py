"""A record counts only if its writer signed it for this mesh, subkey and time, and if it is the newest."""

import math

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol import limits
from protocol.codec import decode_as, encode
from protocol.errors import RecordRefusal, RecordRefused
from protocol.identifiers import digest_of
from protocol.records import (
    ExpertAdvert,
    PeerRecord,
    RecordBook,
    SpareExpert,
    fitting,
    inspect_record,
    open_record,
    record_key,
    seal_record,
)
from protocol.signing import seal
from protocol.spec import ExpertForm

NOW_S = 1_700_000_000.0
DIGEST = digest_of(b"x")
FORM = ExpertForm("mlp", {"feature_dim": 640, "hidden": 8, "input_scale": 0.3})
unshared = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)


@pytest.fixture
def record(key, mesh_id) -> PeerRecord:
    advert = ExpertAdvert(
        uid=DIGEST, form=FORM, classes=("cat", "dog"), since=5.0, round=2, generation=3, weights=DIGEST
    )
    return PeerRecord(
        mesh_id=mesh_id,
        peer_id=key.peer_id,
        peer_name="ada",
        issued_at=NOW_S,
        expires_at=NOW_S + 60,
        leaving=False,
        experts=(advert,),
        contributions=DIGEST,
    )


def changed(record: PeerRecord, **fields: object) -> PeerRecord:
    return msgspec.structs.replace(record, **fields)


def forced(record: msgspec.Struct, key) -> bytes:
    """Sealed as a hostile peer would: without the checks of `seal_record`."""
    return seal(key, "record", encode(record))


def reason_of(data: bytes, record: PeerRecord, now_s: float = NOW_S + 1) -> RecordRefusal:
    with pytest.raises(RecordRefused) as refused:
        open_record(data, mesh_id=record.mesh_id, subkey=record.peer_id, now_s=now_s)
    return refused.value.reason


def test_a_record_survives_sealing(record, key):
    sealed = seal_record(record, key)
    assert open_record(sealed, mesh_id=record.mesh_id, subkey=key.peer_id, now_s=NOW_S + 59.9) == record
    assert inspect_record(sealed, subkey=key.peer_id) == record


ADVERT_BYTES = (
    "87a3756964d94032643731313634326237323662303434303136323763613966626163333266356338353330666231393033636334646230"
    "323235383731373932316134383831a4666f726d82a46b696e64a36d6c70a6636f6e66696783ab666561747572655f64696dcd0280a66869"
    "6464656e08ab696e7075745f7363616c65cb3fd3333333333333a7636c617373657392a3636174a3646f67a573696e6365cb401400000000"
    "0000a5726f756e6402aa67656e65726174696f6e03a777656967687473d94032643731313634326237323662303434303136323763613966"
    "626163333266356338353330666231393033636334646230323235383731373932316134383831"
)


def test_an_advert_without_ancestors_has_the_bytes_it_always_had(record):
    (advert,) = record.experts
    assert encode(advert).hex() == ADVERT_BYTES
    assert decode_as(bytes.fromhex(ADVERT_BYTES), ExpertAdvert, max_bytes=1000) == advert


def test_an_advert_with_ancestors_says_two_things_more(record):
    (advert,) = record.experts
    successor = changed(advert, ancestors=(DIGEST,), lineage=DIGEST)
    text = b"\xd9\x40" + DIGEST.encode()
    more = b"\xa9ancestors\x91" + text + b"\xa7lineage" + text
    assert encode(successor) == b"\x89" + encode(advert)[1:] + more
    assert decode_as(encode(successor), ExpertAdvert, max_bytes=1000) == successor


@pytest.mark.parametrize(
    "change",
    [
        {"ancestors": (DIGEST,)},
        {"lineage": DIGEST},
        {"ancestors": (DIGEST, DIGEST), "lineage": DIGEST},
        {"ancestors": ("abc",), "lineage": DIGEST},
        {"ancestors": tuple(digest_of(bytes([n])) for n in range(limits.MAX_LINEAGE + 1)), "lineage": DIGEST},
    ],
    ids=["no lineage", "no ancestors", "twice", "no uid", "too many"],
)
def test_ancestors_that_contradict_their_bounds_or_the_lineage_are_refused(record, key, change):
    document = msgspec.to_builtins(record)
    advert = document["experts"][0] | change
    data = seal(key, "record", encode(document | {"experts": [advert]}))
    assert reason_of(data, record) is RecordRefusal.MALFORMED


def test_a_record_says_of_withdrawals_only_where_there_are_some(record):
    plain = encode(record)
    assert plain[:1] == b"\x88"
    assert b"withdrawals" not in plain
    telling = changed(record, withdrawals=DIGEST)
    assert encode(telling) == b"\x89" + plain[1:] + b"\xabwithdrawals\xd9\x40" + DIGEST.encode()
    assert decode_as(plain, PeerRecord, max_bytes=2000) == record
    assert decode_as(encode(telling), PeerRecord, max_bytes=2000) == telling


def test_the_dht_key_names_the_mesh(mesh_id):
    assert record_key(mesh_id) == f"modulemesh/1/{mesh_id}/peers"


def test_a_record_of_another_peer_is_refused(record, key, other_key):
    assert reason_of(forced(record, other_key), record) is RecordRefusal.WRONG_OWNER
    theirs = changed(record, peer_id=other_key.peer_id)
    assert reason_of(forced(theirs, other_key), record) is RecordRefusal.WRONG_OWNER
    assert reason_of(forced(theirs, key), record) is RecordRefusal.WRONG_OWNER


def test_a_record_signed_for_another_purpose_is_refused(record, key):
    assert reason_of(seal(key, "contribution", encode(record)), record) is RecordRefusal.FORGED


def test_a_record_of_another_mesh_is_refused(record, key):
    assert reason_of(forced(changed(record, mesh_id=DIGEST), key), record) is RecordRefusal.WRONG_MESH


@pytest.mark.parametrize(
    ("issued_at", "expires_at", "now_s", "reason"),
    [
        (NOW_S, NOW_S + 60, NOW_S + 60, RecordRefusal.EXPIRED),
        (NOW_S, NOW_S + 60, NOW_S + 1e6, RecordRefusal.EXPIRED),
        (NOW_S, NOW_S + limits.MAX_RECORD_TTL_S + 1, NOW_S, RecordRefusal.TTL_TOO_LONG),
        (0.0, NOW_S + 60, NOW_S, RecordRefusal.TTL_TOO_LONG),
        (NOW_S + 3.5, NOW_S + 60, NOW_S, RecordRefusal.FROM_FUTURE),
        (NOW_S, NOW_S, NOW_S, RecordRefusal.MALFORMED),
        (NOW_S, NOW_S - 60, NOW_S - 100, RecordRefusal.MALFORMED),
        (NOW_S, math.inf, NOW_S, RecordRefusal.MALFORMED),
        (NOW_S, math.nan, NOW_S, RecordRefusal.MALFORMED),
        (math.nan, NOW_S + 60, NOW_S, RecordRefusal.MALFORMED),
        (-math.inf, NOW_S + 60, NOW_S, RecordRefusal.MALFORMED),
    ],
)
def test_times_that_make_no_lease_are_refused(record, key, issued_at, expires_at, now_s, reason):
    data = forced(changed(record, issued_at=issued_at, expires_at=expires_at), key)
    assert reason_of(data, record, now_s) is reason


@unshared
@given(issued_at=st.floats(1e9, 1e10))
def test_the_longest_lease_is_accepted_at_any_time_of_this_era(record, key, issued_at):
    # The span is computed from two large moments; an honest record must not fall to rounding.
    longest = changed(record, issued_at=issued_at, expires_at=issued_at + limits.MAX_RECORD_TTL_S)
    assert inspect_record(forced(longest, key), subkey=key.peer_id) == longest


def test_the_tolerated_skew_passes(record, key):
    sealed = seal_record(record, key)
    assert open_record(sealed, mesh_id=record.mesh_id, subkey=key.peer_id, now_s=NOW_S - 3) == record


def test_an_expert_advertised_twice_is_refused(record, key):
    twice = changed(record, experts=record.experts * 2)
    assert reason_of(forced(twice, key), record) is RecordRefusal.DUPLICATE_EXPERTS


def test_an_overlong_record_is_refused_by_reader_and_writer(record, key):
    adverts = tuple(
        ExpertAdvert(
            digest_of(bytes([i])), FORM, tuple(f"{i:02}-{j:03}" + "x" * 50 for j in range(9)), 0.0, 0, 0, DIGEST
        )
        for i in range(40)
    )
    large = changed(record, experts=adverts)
    data = seal(key, "record", encode(large), max_bytes=10**6)
    assert len(data) > limits.MAX_RECORD_BYTES
    assert reason_of(data, record) is RecordRefusal.TOO_LARGE
    with pytest.raises(RecordRefused) as refused:
        seal_record(large, key)
    assert refused.value.reason is RecordRefusal.TOO_LARGE


def test_what_fits_a_record_can_be_sealed_and_nothing_that_would_fit_is_left_out(record, key):
    long = tuple(f"{number:02}" + "x" * 60 for number in range(20))
    adverts = [ExpertAdvert(digest_of(bytes([i])), FORM, long, 1e9, 2**50, 2**50, DIGEST) for i in range(100)]
    told = fitting(adverts)
    assert told == tuple(adverts[: len(told)])
    largest = changed(record, experts=told, peer_name="\N{OWL}" * 64)
    sealed = seal_record(largest, key)
    assert limits.MAX_RECORD_BYTES - 3 * len(encode(adverts[0])) < len(sealed)
    short = [msgspec.structs.replace(advert, classes=("cat", "dog")) for advert in adverts]
    assert len(fitting(short)) == limits.MAX_EXPERTS_PER_RECORD


def test_a_form_is_written_in_one_way_only(record, key):
    for config in ({"b": 1, "a": 1}, {"kind": "mlp"}, {"num_classes": 2}):
        with pytest.raises(ValueError, match=r"order|setting of a form"):
            ExpertForm("mlp", config)
    plain = msgspec.to_builtins(record)
    for form in (
        {"kind": "mlp", "config": {"b": 1, "a": 1}},
        {"kind": "mlp"},
        {"kind": "k", "config": {"a": math.nan}},
    ):
        plain["experts"][0]["form"] = form
        assert reason_of(seal(key, "record", encode(plain)), record) is RecordRefusal.MALFORMED


@pytest.mark.parametrize(
    "fields",
    [
        {"peer_name": ""},
        {"peer_name": "x" * 65},
        {"contributions": "zz"},
        {"leaving": 1},
        {"expires_at": NOW_S + 301},
    ],
)
def test_a_record_that_others_would_refuse_is_not_sealed(record, key, fields):
    with pytest.raises(RecordRefused):
        seal_record(changed(record, **fields), key)


def test_anothers_record_cannot_be_sealed(record, other_key):
    with pytest.raises(RecordRefused):
        seal_record(record, other_key)


@pytest.mark.parametrize("classes", [("dog", "cat"), ("cat", "cat")])
def test_classes_are_sorted_and_named_once(classes):
    with pytest.raises(ValueError, match="sorted"):
        ExpertAdvert(DIGEST, FORM, classes, 0.0, 0, 0, DIGEST)


@unshared
@given(data=st.data())
def test_no_changed_byte_of_a_record_is_accepted(record, key, data):
    damaged = bytearray(seal_record(record, key))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    assert reason_of(bytes(damaged), record) in {
        RecordRefusal.FORGED,
        RecordRefusal.MALFORMED,
        RecordRefusal.WRONG_OWNER,
    }


@unshared
@given(payload=st.binary(max_size=300))
def test_signed_garbage_is_refused_as_malformed(record, key, payload):
    assert reason_of(seal(key, "record", payload), record) is RecordRefusal.MALFORMED
    assert reason_of(payload, record) is RecordRefusal.MALFORMED


# --- the book ---


def test_the_newest_record_of_a_peer_survives_a_replay(record, key, mesh_id):
    book = RecordBook(mesh_id)
    old = seal_record(record, key)
    newest = changed(record, issued_at=NOW_S + 5, expires_at=NOW_S + 30, peer_name="ada2")
    book.accept(old, key.peer_id, NOW_S)
    book.accept(seal_record(newest, key), key.peer_id, NOW_S + 5)
    with pytest.raises(RecordRefused) as refused:
        book.accept(old, key.peer_id, NOW_S + 6)
    assert refused.value.reason is RecordRefusal.REPLAYED
    assert book.live(NOW_S + 6) == (newest,)


def test_the_newest_record_again_is_accepted_quietly_but_no_other_of_the_same_moment(record, key, mesh_id):
    book = RecordBook(mesh_id)
    for _ in range(2):  # sealed anew each time: the same record under another signature
        assert book.accept(seal_record(record, key), key.peer_id, NOW_S) == record
    with pytest.raises(RecordRefused) as refused:
        book.accept(seal_record(changed(record, peer_name="eve"), key), key.peer_id, NOW_S)
    assert refused.value.reason is RecordRefusal.REPLAYED


def test_leaving_and_expired_peers_are_not_live(record, key, other_key, mesh_id):
    book = RecordBook(mesh_id)
    book.accept(seal_record(changed(record, leaving=True), key), key.peer_id, NOW_S)
    stays = changed(record, peer_id=other_key.peer_id)
    book.accept(seal_record(stays, other_key), other_key.peer_id, NOW_S)
    assert book.live(NOW_S) == (stays,)
    assert book.live(NOW_S + 60) == ()


def test_live_records_are_sorted_by_peer(record, key, other_key, mesh_id):
    book = RecordBook(mesh_id)
    for one in sorted((key, other_key), key=lambda one: one.peer_id, reverse=True):
        book.accept(seal_record(changed(record, peer_id=one.peer_id), one), one.peer_id, NOW_S)
    assert [live.peer_id for live in book.live(NOW_S)] == sorted([key.peer_id, other_key.peer_id])


def test_forgetting_an_expired_goodbye_does_not_let_the_peer_rise_again(record, key, mesh_id):
    # The goodbye's lease is short, the older record's is long: it must outlive its own expiry in memory.
    book = RecordBook(mesh_id)
    long_lease = seal_record(changed(record, expires_at=NOW_S + 300), key)
    goodbye = changed(record, issued_at=NOW_S + 1, expires_at=NOW_S + 11, leaving=True)
    book.accept(long_lease, key.peer_id, NOW_S)
    book.accept(seal_record(goodbye, key), key.peer_id, NOW_S + 1)
    book.forget_expired(NOW_S + 100)
    with pytest.raises(RecordRefused) as refused:
        book.accept(long_lease, key.peer_id, NOW_S + 100)
    assert refused.value.reason is RecordRefusal.REPLAYED
    assert book.live(NOW_S + 100) == ()


def test_a_full_book_takes_no_stranger_until_something_can_be_forgotten(record, key, other_key, mesh_id, monkeypatch):
    monkeypatch.setattr(limits, "MAX_PEERS_PER_BOOK", 1)
    book = RecordBook(mesh_id)
    book.accept(seal_record(record, key), key.peer_id, NOW_S)
    stranger = changed(record, peer_id=other_key.peer_id)
    with pytest.raises(RecordRefused) as refused:
        book.accept(seal_record(stranger, other_key), other_key.peer_id, NOW_S)
    assert refused.value.reason is RecordRefusal.TOO_MANY_PEERS
    later = changed(stranger, issued_at=NOW_S + 400, expires_at=NOW_S + 430)
    assert book.accept(seal_record(later, other_key), other_key.peer_id, NOW_S + 400) == later


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(6)), forget=st.booleans())
def test_in_any_order_of_arrival_the_newest_record_remains(sealed_history, key, mesh_id, order, forget):
    book = RecordBook(mesh_id)
    newest = -1
    for index in order:
        record, data = sealed_history[index]
        if index < newest:
            with pytest.raises(RecordRefused):
                book.accept(data, key.peer_id, NOW_S + 6)
        else:
            assert book.accept(data, key.peer_id, NOW_S + 6) == record
        newest = max(newest, index)
        if forget:
            book.forget_expired(NOW_S + 6)
        assert book.live(NOW_S + 6) == (sealed_history[newest][0],)


@pytest.fixture
def sealed_history(record, key):
    records = [changed(record, issued_at=NOW_S + i, expires_at=NOW_S + 100 - 10 * i) for i in range(6)]
    return [(one, seal_record(one, key)) for one in records]


def test_what_a_peer_could_do_without_is_told_in_few_bytes_and_within_a_bound(record, key, mesh_id) -> None:
    spare = tuple(SpareExpert(uid=digest_of(b"%d" % number), handed_on=True) for number in range(9))
    told = changed(record, spare=spare[: limits.MAX_SPARE_PER_RECORD])
    sealed = seal_record(told, key)
    assert open_record(sealed, mesh_id=mesh_id, subkey=key.peer_id, now_s=NOW_S + 1) == told
    assert len(encode(told)) - len(encode(record)) < 1000, "what a record has room for beside its adverts"
    assert reason_of(forced(changed(record, spare=spare), key), record) == RecordRefusal.MALFORMED
    assert b"spare" not in encode(record), "a record without any is as it was"
