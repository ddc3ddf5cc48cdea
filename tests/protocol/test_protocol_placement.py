"""Placement: who adopts what follows from the records alone, and moves no more than it has to."""

import dataclasses
import hashlib
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from protocol.identifiers import ExpertUid, PeerId, digest_of
from protocol.placement import KeptExpert, adopters, adoptions, surplus_turn, turn_among, wait_s

PEERS = tuple(PeerId(f"Qm{chr(97 + number) * 44}") for number in range(20) if chr(97 + number) != "l")
UIDS = tuple(ExpertUid(digest_of(b"%d" % number)) for number in range(60))
SIZE = 100

peers = st.sets(st.sampled_from(PEERS), max_size=8)


def kept(uid: ExpertUid, holders: Iterable[PeerId] = (), num_bytes: int = SIZE) -> KeptExpert:
    return KeptExpert(uid=uid, num_bytes=num_bytes, holders=frozenset(holders))


def roomy(able: Iterable[PeerId], room: int = SIZE) -> dict[PeerId, int]:
    return dict.fromkeys(able, room)


def at_once(experts: Iterable[KeptExpert], rooms: Mapping[PeerId, int], replicas: int) -> dict[ExpertUid, set[PeerId]]:
    """Who adopts what now, each by its own reckoning."""
    found: dict[ExpertUid, set[PeerId]] = {}
    experts = tuple(experts)
    for me in PEERS:
        for adoption in adoptions(me, experts, rooms, replicas=replicas):
            if adoption.turn == 0:
                found.setdefault(adoption.uid, set()).add(me)
    return found


@given(holders=peers, able=peers, replicas=st.integers(1, 4))
def test_with_one_view_exactly_as_many_adopt_at_once_as_are_missing(
    holders: set[PeerId], able: set[PeerId], replicas: int
) -> None:
    chosen = at_once([kept(UIDS[0], holders)], roomy(able), replicas).get(UIDS[0], set())
    missing = max(0, replicas - len(holders))
    assert len(chosen) == min(missing, len(able - holders))
    assert not chosen & holders


@given(views=st.lists(st.tuples(peers, peers), min_size=1, max_size=5), replicas=st.integers(1, 3))
def test_with_differing_views_each_view_lets_no_more_adopt_than_it_misses(
    views: list[tuple[set[PeerId], set[PeerId]]], replicas: int
) -> None:
    chosen = set[PeerId]()
    for holders, able in views:
        chosen |= at_once([kept(UIDS[0], holders)], roomy(able), replicas).get(UIDS[0], set())
    assert len(chosen) <= len(views) * replicas


@given(able=st.sets(st.sampled_from(PEERS), min_size=1, max_size=8), gone=st.data())
def test_a_peer_that_goes_moves_only_what_fell_to_it(able: set[PeerId], gone: st.DataObject) -> None:
    left = gone.draw(st.sampled_from(sorted(able)))
    for uid in UIDS:
        before, after = (adopters(kept(uid), roomy(some)) for some in (able, able - {left}))
        assert tuple(peer for peer in before if peer != left) == after


def test_experts_are_dealt_out_about_evenly() -> None:
    first = [adopters(kept(uid), roomy(PEERS[:4]))[0] for uid in UIDS]
    assert min(first.count(peer) for peer in PEERS[:4]) >= len(UIDS) / 4 / 2


def test_the_order_is_that_of_digests_which_any_program_can_compute() -> None:
    def weight(peer: PeerId) -> bytes:  # of the MessagePack array [domain, uid, peer id]
        return hashlib.sha256(b"\x93\xb0modulemesh/place\xd9\x40%b\xd9\x2e%b" % (uid.encode(), peer.encode())).digest()

    for uid in UIDS[:10]:
        assert adopters(kept(uid), roomy(PEERS[:4])) == tuple(sorted(PEERS[:4], key=weight, reverse=True))


def test_without_enough_room_nobody_adopts_and_holders_do_not_adopt_again() -> None:
    rooms = {PEERS[0]: SIZE - 1, PEERS[1]: SIZE, PEERS[2]: 10 * SIZE}
    assert set(adopters(kept(UIDS[0], {PEERS[2]}), rooms)) == {PEERS[1]}


def test_the_rarest_comes_first_and_turns_are_counted_behind_those_that_adopt_at_once() -> None:
    experts = [kept(UIDS[0], PEERS[5:7]), kept(UIDS[1], PEERS[5:6]), kept(UIDS[2])]
    found = adoptions(PEERS[0], experts, roomy(PEERS[:4]), replicas=3)
    assert [(one.uid, one.num_holders) for one in found] == [(UIDS[2], 0), (UIDS[1], 1), (UIDS[0], 2)]
    for expert in experts:
        turns = sorted(one.turn for me in PEERS[:4] for one in adoptions(me, [expert], roomy(PEERS[:4]), replicas=3))
        missing = 3 - len(expert.holders)
        assert turns == [0] * missing + list(range(1, 5 - missing))


@given(holders=st.lists(peers, min_size=4, max_size=4), worths=st.lists(st.integers(0, 3), min_size=4, max_size=4))
def test_worth_orders_equally_rare_ones_and_never_whose_turn_it_is(
    holders: list[set[PeerId]], worths: list[int]
) -> None:
    rooms = roomy(PEERS[8:])
    plain = [kept(UIDS[number], held) for number, held in enumerate(holders)]
    worthy = [dataclasses.replace(one, worth=float(worth)) for one, worth in zip(plain, worths, strict=True)]
    found = adoptions(PEERS[9], worthy, rooms, replicas=4)
    assert {*found} == {*adoptions(PEERS[9], plain, rooms, replicas=4)}
    worth_of = {one.uid: one.worth for one in worthy}
    order = [(one.num_holders, -worth_of[one.uid]) for one in found]
    assert order == sorted(order)


@given(among=peers)
def test_what_is_to_be_done_once_has_an_order_that_all_agree_on(among: set[PeerId]) -> None:
    turns = [turn_among(me, UIDS[0], among) for me in among]
    assert sorted(turn for turn in turns if turn is not None) == list(range(len(among)))
    assert all(turn_among(me, UIDS[0], among) is None for me in set(PEERS) - among)


@given(holders=peers, replicas=st.integers(1, 4))
def test_what_is_too_much_is_given_back_by_those_that_would_adopt_last(holders: set[PeerId], replicas: int) -> None:
    expert = kept(UIDS[0], holders)
    turns = {me: surplus_turn(me, expert, replicas=replicas) for me in PEERS}
    at_once = {me for me, turn in turns.items() if turn == 0}
    assert len(at_once) == max(0, len(holders) - replicas)
    stay = set(adopters(kept(UIDS[0]), roomy(holders))[:replicas])
    assert not at_once & stay
    assert all(turns[me] is None for me in set(PEERS) - holders)


@given(turn=st.integers(0, 10), jitter=st.floats(0, 1, exclude_max=True), other=st.floats(0, 1, exclude_max=True))
def test_between_two_turns_there_is_time_to_see_what_was_done(turn: int, jitter: float, other: float) -> None:
    apart = wait_s(turn + 1, slot_s=3.0, jitter=jitter) - wait_s(turn, slot_s=3.0, jitter=other)
    assert apart >= 2.0 - 1e-9


# --- a mesh in time ---


@dataclass
class Mesh:
    """Peers that each see, refresh by refresh, what was true a refresh ago or two; adopting takes them a refresh."""

    replicas: int
    rng: random.Random
    room: int = 40
    holds: dict[PeerId, set[ExpertUid]] = field(default_factory=dict)
    born: int = 0
    history: list[dict[PeerId, frozenset[ExpertUid]]] = field(default_factory=list)
    waiting: dict[tuple[PeerId, ExpertUid], tuple[int, int, float]] = field(default_factory=dict)
    """(turn, since when, jitter)."""
    adopted: int = 0
    now: int = 0

    SLOT = 3
    SURPLUS = 9

    def join(self) -> None:
        self.holds[PeerId("Qm" + digest_of(b"%d" % self.born)[:44])] = set()
        self.born += 1

    def numbers(self) -> dict[ExpertUid, int]:
        return {uid: sum(uid in held for held in self.holds.values()) for uid in UIDS}

    def step(self) -> None:
        self.now += 1
        self.history.append({peer: frozenset(held) for peer, held in self.holds.items()})
        decided = [act for peer in sorted(self.holds) for act in self._decide(peer)]
        for peer, uid, adopts in decided:
            self.adopted += adopts
            (self.holds[peer].add if adopts else self.holds[peer].discard)(uid)

    def _decide(self, me: PeerId) -> Iterable[tuple[PeerId, ExpertUid, bool]]:
        view = dict(self.history[-min(len(self.history), self.rng.choice((1, 2)))])
        view[me] = frozenset(self.holds[me])
        experts = [kept(uid, (peer for peer, held in view.items() if uid in held), 1) for uid in UIDS]
        rooms = {peer: self.room - len(held) for peer, held in view.items()}
        before, self.waiting = self.waiting, {key: turn for key, turn in self.waiting.items() if key[0] != me}
        adopting = adoptions(me, experts, rooms, replicas=self.replicas)
        for one in adopting:
            urgent = one.num_holders == 0
            if self._is_due(before, (me, one.uid), one.turn, 0, urgent=urgent) and len(self.holds[me]) < self.room:
                yield me, one.uid, True
        for expert in experts:
            turn = surplus_turn(me, expert, replicas=self.replicas)
            if turn is not None and self._is_due(before, (me, expert.uid), turn, self.SURPLUS, urgent=False):
                yield me, expert.uid, False

    def _is_due(
        self,
        before: Mapping[tuple[PeerId, ExpertUid], tuple[int, int, float]],
        key: tuple[PeerId, ExpertUid],
        turn: int,
        least: int,
        *,
        urgent: bool,
    ) -> bool:
        known = before.get(key)
        if known is None or known[0] != turn:
            known = (turn, self.now, self.rng.random())
        self.waiting[key] = known
        wait = wait_s(turn, slot_s=self.SLOT, jitter=0.0 if urgent else known[2])
        return self.now >= known[1] + least + wait


def mesh_of(num_peers: int, *, replicas: int, seed: int) -> Mesh:
    mesh = Mesh(replicas=replicas, rng=random.Random(seed))
    for _ in range(num_peers):
        mesh.join()
    first = next(iter(mesh.holds))
    mesh.holds[first] = set(UIDS[: mesh.room])
    for peer in list(mesh.holds)[1:3]:
        mesh.holds[peer] = set(UIDS[mesh.room :])
    return mesh


def test_the_wanted_number_is_reached_and_kept_under_churn_and_nothing_is_lost() -> None:
    for seed in range(3):
        mesh = mesh_of(10, replicas=3, seed=seed)
        for _ in range(40):
            mesh.step()
        assert set(mesh.numbers().values()) == {3}
        short = 0
        for tick in range(600):
            if tick % 20 == 0:  # a peer dies without a word, another one comes
                del mesh.holds[mesh.rng.choice(sorted(mesh.holds))]
                mesh.join()
            mesh.step()
            assert min(mesh.numbers().values()) >= 1
            short += sum(number < 3 for number in mesh.numbers().values())
        assert short / (600 * len(UIDS)) < 0.1
        for _ in range(60):
            mesh.step()
        assert set(mesh.numbers().values()) == {3}


def test_a_death_costs_about_as_many_adoptions_as_there_were_replicas() -> None:
    mesh = mesh_of(10, replicas=3, seed=7)
    for _ in range(60):
        mesh.step()
    before = mesh.adopted
    lost = len(mesh.holds.pop(max(mesh.holds, key=lambda peer: len(mesh.holds[peer]))))
    for _ in range(60):
        mesh.step()
    assert lost <= mesh.adopted - before <= 1.5 * lost
