"""Every member computes the same group from the same records, alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.identifiers import digest_of, peer_id_of
from protocol.membership import replicas_of, round_number, round_start
from protocol.records import ExpertAdvert, PeerRecord
from protocol.spec import ExpertForm

UID, OTHER_UID, MESH = digest_of(b"expert"), digest_of(b"other"), digest_of(b"mesh")


def record(name: str, *, uid=UID, since=50.0, issued_at=95.0, expires_at=155.0, leaving=False) -> PeerRecord:
    advert = ExpertAdvert(
        uid, ExpertForm("linear", {"feature_dim": 8}), ("cat", "dog"), since, 0, 0, digest_of(b"weights")
    )
    return PeerRecord(MESH, peer_id_of(name.encode()), name, issued_at, expires_at, leaving, (advert,), None)


@given(st.floats(0, 1e10), st.floats(0.1, 3600))
def test_a_round_lasts_one_period(dht_time_s, period_s):
    number = round_number(dht_time_s, period_s)
    tolerance_s = 1e-9 * dht_time_s
    assert round_start(number, period_s) <= dht_time_s + tolerance_s
    assert dht_time_s < round_start(number + 1, period_s) + tolerance_s


def test_the_number_changes_at_the_start_of_a_period():
    assert [round_number(moment, 10.0) for moment in (0.0, 9.999, 10.0, 25.0)] == [0, 0, 1, 2]


@pytest.mark.parametrize(
    "left_out",
    [
        record("x", uid=OTHER_UID),
        record("x", issued_at=90.0, leaving=True),
        record("x", expires_at=100.0),
        record("x", expires_at=99.0),
        record("x", since=90.5),
    ],
    ids=["another expert", "leaving", "lease ends at the start", "lease ended before", "hosted too late"],
)
def test_a_peer_that_cannot_be_counted_on_is_not_in_the_group(left_out):
    a, b = record("a"), record("b")
    group = replicas_of(UID, [a, left_out, b], number=10, period_s=10.0)
    assert group == tuple(sorted([a.peer_id, b.peer_id]))


def test_a_peer_that_has_only_just_said_that_it_leaves_still_counts():
    assert len(replicas_of(UID, [record("a", issued_at=90.5, leaving=True)], number=10, period_s=10.0)) == 1


def test_a_lease_refreshed_after_the_start_keeps_the_peer_in_the_group():
    assert len(replicas_of(UID, [record("a", issued_at=103.0, expires_at=163.0)], number=10, period_s=10.0)) == 1


@given(st.lists(st.text(max_size=3), unique=True, max_size=6), st.randoms())
def test_the_order_of_records_does_not_matter(names, random):
    records = [record(name) for name in names]
    shuffled = list(records)
    random.shuffle(shuffled)
    group = replicas_of(UID, shuffled, number=10, period_s=10.0)
    assert group == replicas_of(UID, records, number=10, period_s=10.0) == tuple(sorted(group))
