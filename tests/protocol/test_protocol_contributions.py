"""A contribution is its signer's own, whoever passes it on; an index is the same for the same set."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import limits
from protocol.codec import encode
from protocol.errors import FrameTooLarge, MalformedMessage, RecordRefusal, RecordRefused
from protocol.identifiers import digest_of
from protocol.records import (
    RouterContribution,
    Withdrawal,
    decode_contribution_index,
    encode_contribution_index,
    open_contribution,
    open_withdrawal,
    seal_contribution,
    seal_withdrawal,
)
from protocol.signing import seal

NOW_S = 1_700_000_000.0
DIGEST = digest_of(b"x")


@pytest.fixture
def contribution(key, mesh_id) -> RouterContribution:
    return RouterContribution(mesh_id, key.peer_id, "task-1", 2, DIGEST, {"cat": 10, "dog": 1}, NOW_S)


def forced(contribution: RouterContribution, key, **fields: object) -> bytes:
    return seal(key, "contribution", encode(msgspec.structs.replace(contribution, **fields)))


def test_a_contribution_survives_sealing_and_does_not_age(contribution, key, mesh_id):
    sealed = seal_contribution(contribution, key)
    assert open_contribution(sealed, mesh_id=mesh_id, now_s=NOW_S + 1e8) == contribution


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"mesh_id": DIGEST}, RecordRefusal.WRONG_MESH),
        ({"issued_at": NOW_S + 60}, RecordRefusal.FROM_FUTURE),
        ({"samples": {}}, RecordRefusal.MALFORMED),
        ({"samples": {"cat": 0}}, RecordRefusal.MALFORMED),
        ({"samples": {"cat": 1.5}}, RecordRefusal.MALFORMED),
        ({"samples": {"": 1}}, RecordRefusal.MALFORMED),
        ({"task": ""}, RecordRefusal.MALFORMED),
        ({"version": -1}, RecordRefusal.MALFORMED),
        ({"issued_at": float("nan")}, RecordRefusal.MALFORMED),
    ],
)
def test_what_contradicts_the_bounds_is_refused(contribution, key, mesh_id, fields, reason):
    with pytest.raises(RecordRefused) as refused:
        open_contribution(forced(contribution, key, **fields), mesh_id=mesh_id, now_s=NOW_S)
    assert refused.value.reason is reason


def test_nobody_contributes_in_anothers_name(contribution, key, other_key, mesh_id):
    with pytest.raises(RecordRefused) as refused:
        open_contribution(forced(contribution, other_key), mesh_id=mesh_id, now_s=NOW_S)
    assert refused.value.reason is RecordRefusal.WRONG_OWNER
    with pytest.raises(RecordRefused):
        seal_contribution(contribution, other_key)
    with pytest.raises(RecordRefused) as refused:
        open_contribution(seal(key, "record", encode(contribution)), mesh_id=mesh_id, now_s=NOW_S)
    assert refused.value.reason is RecordRefusal.FORGED


def test_a_contribution_of_the_most_classes_fits(contribution, key, mesh_id):
    samples = {f"{i:04}" + "x" * 60: limits.MAX_COUNTER for i in range(limits.MAX_CLASSES_PER_TASK)}
    largest = msgspec.structs.replace(contribution, samples=samples)
    assert open_contribution(seal_contribution(largest, key), mesh_id=mesh_id, now_s=NOW_S) == largest


CONTRIBUTION_PAYLOAD = (
    "87a76d6573685f6964d940"
    + digest_of(b"a mesh").encode().hex()
    + "a7706565725f6964d92e"
    + ("Qm" + "a" * 44).encode().hex()
    + "a47461736ba67461736b2d31a776657273696f6e02aa73746174697374696373d940"
    + DIGEST.encode().hex()
    + "a773616d706c657382a36361740aa3646f6701a96973737565645f6174cb41d954fc40000000"
)


def test_a_contribution_has_the_bytes_it_always_had(contribution):
    assert encode(msgspec.structs.replace(contribution, peer_id="Qm" + "a" * 44)).hex() == CONTRIBUTION_PAYLOAD


@pytest.fixture
def withdrawal(key, mesh_id) -> Withdrawal:
    return Withdrawal(mesh_id, key.peer_id, "task-1", 3, NOW_S)


def test_a_withdrawal_survives_sealing_and_does_not_age(withdrawal, key, mesh_id):
    sealed = seal_withdrawal(withdrawal, key)
    assert open_withdrawal(sealed, mesh_id=mesh_id, now_s=NOW_S + 1e8) == withdrawal


def test_only_its_contributor_withdraws_a_contribution(withdrawal, key, other_key, mesh_id):
    with pytest.raises(RecordRefused):
        seal_withdrawal(withdrawal, other_key)
    forged = seal(other_key, "withdrawal", encode(withdrawal))
    with pytest.raises(RecordRefused) as refused:
        open_withdrawal(forged, mesh_id=mesh_id, now_s=NOW_S)
    assert refused.value.reason is RecordRefusal.WRONG_OWNER


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"mesh_id": DIGEST}, RecordRefusal.WRONG_MESH),
        ({"issued_at": NOW_S + 60}, RecordRefusal.FROM_FUTURE),
        ({"task": ""}, RecordRefusal.MALFORMED),
        ({"version": -1}, RecordRefusal.MALFORMED),
        ({"version": limits.MAX_COUNTER + 1}, RecordRefusal.MALFORMED),
    ],
)
def test_a_withdrawal_that_contradicts_the_bounds_is_refused(withdrawal, key, mesh_id, fields, reason):
    sealed = seal(key, "withdrawal", encode(msgspec.structs.replace(withdrawal, **fields)))
    with pytest.raises(RecordRefused) as refused:
        open_withdrawal(sealed, mesh_id=mesh_id, now_s=NOW_S)
    assert refused.value.reason is reason


def test_neither_is_taken_for_the_other(contribution, withdrawal, key, mesh_id):
    for sealed, read in (
        (seal_contribution(contribution, key), open_withdrawal),
        (seal_withdrawal(withdrawal, key), open_contribution),
    ):
        with pytest.raises(RecordRefused) as refused:
            read(sealed, mesh_id=mesh_id, now_s=NOW_S)
        assert refused.value.reason is RecordRefusal.FORGED


@given(st.lists(st.binary(max_size=20), max_size=8), st.randoms())
def test_an_index_depends_on_the_set_only(sealed, random):
    shuffled = [*sealed, *sealed[:2]]
    random.shuffle(shuffled)
    assert encode_contribution_index(shuffled) == encode_contribution_index(sealed)
    assert decode_contribution_index(encode_contribution_index(sealed)) == sorted(set(sealed))


@given(st.binary(max_size=100))
def test_garbage_is_no_index(data):
    try:
        entries = decode_contribution_index(data)
    except MalformedMessage:
        return
    assert all(isinstance(entry, bytes) for entry in entries)


def test_an_index_is_bounded_on_both_sides():
    with pytest.raises(FrameTooLarge):
        encode_contribution_index([i.to_bytes(2, "big") for i in range(limits.MAX_CONTRIBUTIONS_PER_INDEX + 1)])
    with pytest.raises(FrameTooLarge):
        decode_contribution_index(bytes(limits.MAX_CONTRIBUTION_INDEX_BYTES + 1))
    with pytest.raises(MalformedMessage):
        decode_contribution_index(encode([b""] * (limits.MAX_CONTRIBUTIONS_PER_INDEX + 1)))
    with pytest.raises(MalformedMessage):
        decode_contribution_index(encode([bytes(limits.MAX_CONTRIBUTION_BYTES + 1)]))
