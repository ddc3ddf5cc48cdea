"""Of each family of experts exactly one is current, the same one for all who have read the same records."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st
from mesh_in_memory import form

from meshnode.listings import ExpertListing, Replica, current_ones
from protocol.identifiers import ExpertUid, digest_of, peer_id_of
from protocol.records import ExpertAdvert

FORM, CLASSES = form("linear"), ("0", "1")
UIDS = sorted(ExpertUid(digest_of(bytes([number]))) for number in range(8))
A, B, C, D = UIDS[:4]
"""In the order of their uids."""


def listing(
    uid: ExpertUid, *ancestors: ExpertUid, replicas: int = 1, classes: tuple[str, ...] = CLASSES
) -> ExpertListing:
    advert = ExpertAdvert(
        uid=uid,
        form=FORM,
        classes=classes,
        since=0.0,
        round=0,
        generation=1,
        weights=digest_of(uid.encode()),
        ancestors=ancestors,
        lineage=digest_of(uid.encode()) if ancestors else None,
    )
    held = [
        Replica(peer_id=peer_id_of(bytes([number])), peer_name=str(number), advert=advert) for number in range(replicas)
    ]
    return ExpertListing(uid=uid, classes=classes, replicas=tuple(held), ancestors=ancestors)


def current(*listings: ExpertListing) -> dict[ExpertUid, list[ExpertUid]]:
    """Each current expert, with the older ones."""
    found = current_ones({one.uid: one for one in listings})
    assert list(found) == sorted(found)
    return {uid: [older.uid for older in one.older] for uid, one in found.items()}


def test_experts_without_ancestors_are_all_current() -> None:
    assert current(listing(A), listing(B)) == {A: [], B: []}


def test_a_successor_supersedes_all_its_ancestors_however_many_hold_them() -> None:
    assert current(listing(A, replicas=5), listing(B, A, replicas=2), listing(C, A, B)) == {C: [B, A]}


def test_it_supersedes_the_oldest_also_where_nobody_holds_those_between() -> None:
    assert current(listing(A, replicas=5), listing(C, A, B)) == {C: [A]}


def test_of_two_successors_the_one_that_more_peers_hold_is_current() -> None:
    assert current(listing(A), listing(B, A), listing(C, A, replicas=2)) == {C: [A, B]}
    assert current(listing(B, A), listing(C, A, replicas=2)) == {C: [B]}, "that both come of one is known all the same"


def test_of_two_that_equally_many_hold_it_is_the_one_with_the_lower_uid() -> None:
    assert current(listing(A), listing(C, A), listing(B, A)) == {B: [A, C]}


def test_a_longer_line_does_not_win_over_more_replicas() -> None:
    assert current(listing(D, A, B), listing(C, A, replicas=2), listing(B, A)) == {C: [D, B]}


def test_an_expert_of_other_classes_supersedes_nothing() -> None:
    assert current(listing(A), listing(B, A, classes=("0", "2"))) == {A: [], B: []}


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 3)), max_size=7), st.integers(0, 1000).map(Random))
def test_whatever_the_order_each_expert_is_current_or_an_older_one_of_one_current(
    steps: list[tuple[int, int]], rng: Random
) -> None:
    """Experts made one after another, each of one that was there or of none."""
    made: list[ExpertListing] = []
    for uid, (parent, replicas) in zip(UIDS, steps, strict=False):
        line = (*made[parent].ancestors, made[parent].uid) if parent < len(made) else ()
        made.append(listing(uid, *line, replicas=replicas))
    found = current(*made)
    assert current(*rng.sample(made, len(made))) == found
    listed = [uid for one, older in found.items() for uid in (one, *older)]
    assert sorted(listed) == sorted(one.uid for one in made)
    superseded = {ancestor for one in made for ancestor in one.ancestors}
    assert not superseded & found.keys()
