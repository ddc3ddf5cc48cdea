"""Whole groups of rounds over a network that reorders, loses and kills, in schedules drawn by hypothesis."""

import dataclasses
from random import Random

import msgspec
from hypothesis import event as note
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import rounds
from protocol.identifiers import digest_of, peer_id_of
from protocol.messages import RoundId, RoundProposal
from protocol.rounds import Phase, Round

ROUND = RoundId(digest_of(b"expert"), 1, 0)
PEERS = tuple(peer_id_of(bytes([i])) for i in range(5))
DEADLINE_S = 10.0
GRACE_S = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Faults:
    lost_attestations: float = 0.0
    """Share of attestations and of their acknowledgements."""
    lost_queries: float = 0.0
    """Share of outcome queries and of their answers."""
    early_deadlines: float = 0.0
    """How often a deadline passes although messages are still on their way."""
    answers_in_time: bool = True
    """Whether answers that are on their way arrive before their wait runs out."""
    incomplete: frozenset[int] = frozenset()
    """Members whose exchange is not full."""
    victim: int | None = None
    """A member that dies..."""
    dies_at_step: int = 0


class Network:
    """Drives one `Round` a member as its package asks of a driver, message by message."""

    def __init__(self, num_members: int, faults: Faults, seed: int) -> None:
        self.members = PEERS[:num_members]
        self.faults = faults
        self.random = Random(seed)
        self.rounds = {peer: Round(peer, self.view, DEADLINE_S, GRACE_S) for peer in self.members}
        self.dead: set[str] = set()
        self.ends: dict[str, rounds.Action] = {}
        self.asked: set[str] = set()
        self.answered: set[tuple[str, str]] = set()
        """(who asked, who answered) of queries whose answer arrived while it was awaited."""
        self.in_flight: list[tuple] = [("start", peer, peer) for peer in self.members]

    def run(self) -> "Network":
        for step in range(10_000):
            if self.faults.victim is not None and step == self.faults.dies_at_step:
                self.dead.add(self.members[self.faults.victim % len(self.members)])
            waiting = [peer for peer in self.members if self.may_run_out(peer)]
            if self.in_flight and not (waiting and self.happens(self.faults.early_deadlines)):
                self.deliver(*self.in_flight.pop(self.random.randrange(len(self.in_flight))))
            elif waiting:
                peer = self.random.choice(waiting)
                self.handle(peer, rounds.DeadlinePassed(), self.rounds[peer].deadline_s)
            else:
                return self
        raise AssertionError("a round did not end")

    @property
    def view(self) -> RoundProposal:
        """All members see the same."""
        return RoundProposal(
            round=ROUND,
            members=tuple(sorted(self.members)),
            whole=True,
            ready=True,
            dirty=True,
            base=0,
            origin=digest_of(b"initial"),
            settings="none",
            reference=None,
            weight=1.0,
        )

    def happens(self, rate: float) -> bool:
        return self.random.random() < rate

    def may_run_out(self, peer: str) -> bool:
        if peer in self.dead or self.rounds[peer].ended:
            return False
        awaited = any(
            kind in {"query", "answer"} and peer in {source, target} for kind, source, target, *_ in self.in_flight
        )
        return not (awaited and self.rounds[peer].phase is Phase.ASKING and self.faults.answers_in_time)

    def send(self, kind: str, source: str, target: str, *content: object, lost: float = 0.0) -> None:
        if not self.happens(lost):
            self.in_flight.append((kind, source, target, *content))
        elif kind in {"query", "answer"}:
            asker, other = (source, target) if kind == "query" else (target, source)
            self.handle(asker, rounds.OutcomeUnanswered(other))

    def deliver(self, kind: str, source: str, target: str, *content) -> None:
        if source in self.dead or target in self.dead:
            self.send(kind, source, target, lost=1.0)
            return
        round_ = self.rounds[target]
        if kind == "start":
            self.act(target, round_.start(0.0))
            return
        if kind == "answer" and not round_.ended:
            self.answered.add((target, source))
        self.handle(target, EVENTS[kind](source, *content))
        if kind == "query":
            self.send("answer", target, source, round_.outcome, lost=self.faults.lost_queries)
        elif kind == "attestation" and round_.acknowledges:
            self.send("acknowledgement", target, source, lost=self.faults.lost_attestations)
        elif kind == "attestation":
            self.send("refusal", target, source, round_.outcome, lost=self.faults.lost_attestations)

    def handle(self, peer: str, event: rounds.Event, now_s: float = 1.0) -> None:
        if peer not in self.dead:
            self.act(peer, self.rounds[peer].handle(event, now_s))

    def act(self, peer: str, actions: list[rounds.Action]) -> None:
        for action in actions:
            assert peer not in self.ends, "an action after the end"
            match action:
                case rounds.SendProposal():
                    self.send_all("proposal", peer, self.view)
                case rounds.Exchange():
                    self.send("exchanged", peer, peer, self.members.index(peer) not in self.faults.incomplete)
                case rounds.SendAttestation():
                    self.send_all("attestation", peer, action.full, lost=self.faults.lost_attestations)
                case rounds.AskOutcome():
                    self.asked.add(peer)
                    for other in action.peers:
                        self.send("query", peer, other, lost=self.faults.lost_queries)
                case rounds.Commit() | rounds.Abandon():
                    self.ends[peer] = action

    def send_all(self, kind: str, peer: str, *content: object, lost: float = 0.0) -> None:
        for other in set(self.members) - {peer}:
            self.send(kind, peer, other, *content, lost=lost)

    @property
    def committed(self) -> set[str]:
        return {peer for peer, end in self.ends.items() if isinstance(end, rounds.Commit)}


EVENTS = {
    "proposal": rounds.ProposalReceived,
    "exchanged": lambda _, full: rounds.ExchangeFinished(full),
    "attestation": rounds.AttestationReceived,
    "acknowledgement": rounds.AttestationDelivered,
    "refusal": rounds.OutcomeLearned,
    "query": rounds.OutcomeAsked,
    "answer": rounds.OutcomeLearned,
}

sizes = st.integers(2, 5)
seeds = st.integers(0, 2**64)
rates = st.sampled_from([0.0, 0.05, 0.2])
faults = st.builds(Faults, lost_attestations=rates, early_deadlines=rates)
harsh_faults = st.builds(
    Faults,
    lost_attestations=rates,
    lost_queries=st.sampled_from([0.0, 0.2, 0.6]),
    early_deadlines=rates,
    answers_in_time=st.booleans(),
    victim=st.none() | st.integers(0, 4),
    dies_at_step=st.integers(0, 120),
)
thorough = settings(max_examples=500, deadline=None)


@thorough
@given(sizes, seeds)
def test_in_any_order_without_loss_all_commit(size, seed):
    network = Network(size, Faults(), seed).run()
    assert network.committed == set(network.members)


@thorough
@given(sizes, harsh_faults, st.sets(st.integers(0, 4), min_size=1), seeds)
def test_one_incomplete_exchange_and_nobody_commits(size, faults, incomplete, seed):
    faults = dataclasses.replace(faults, incomplete=frozenset(i % size for i in incomplete))
    assert Network(size, faults, seed).run().committed == set()


@thorough
@given(sizes, faults, seeds)
def test_members_that_can_ask_one_another_end_alike_whatever_else_is_lost(size, faults, seed):
    network = Network(size, faults, seed).run()
    assert network.committed in (set(), set(network.members))
    note("all commit" if network.committed else "none commits")


@thorough
@given(sizes, harsh_faults, seeds)
def test_beside_a_commit_only_a_member_without_that_members_answer_abandons(size, faults, seed):
    network = Network(size, faults, seed).run()
    assert set(network.ends) >= set(network.members) - network.dead, "every living member's round ends"
    for peer in set(network.ends) - network.committed:
        if network.committed:
            assert peer in network.asked
            assert any((peer, other) not in network.answered for other in network.committed)
            note("divided")


@thorough
@given(sizes, harsh_faults, seeds)
def test_after_the_end_nothing_happens_any_more(size, faults, seed):
    network = Network(size, faults, seed).run()
    for peer in network.ends:
        round_ = network.rounds[peer]
        outcome = round_.outcome
        for other in set(network.members) - {peer}:
            for event in (
                rounds.ProposalReceived(other, msgspec.structs.replace(network.view, ready=False)),
                rounds.ExchangeFinished(full=False),
                rounds.AttestationReceived(other, full=False),
                rounds.AttestationDelivered(other),
                rounds.OutcomeAsked(other),
                rounds.OutcomeLearned(other, "committed"),
                rounds.OutcomeLearned(other, "aborted"),
                rounds.OutcomeUnanswered(other),
                rounds.DeadlinePassed(),
            ):
                assert round_.handle(event, now_s=1e9) == []
        assert round_.outcome == outcome
