"""One attempt of a round at one simulated node: does what the machine of `protocol.rounds` asks for, in the way and
with the pauses of `meshnode.averaging.driver`."""

from typing import TYPE_CHECKING, Any

from simulate_exchange import Exchange
from simulate_network import Call

from experts.averaging import Averaged
from meshnode.averaging.driver import EXCHANGE_SHARE, GRACE_SHARE, PROPOSALS_SHARE, RESEND_S
from protocol import rounds
from protocol.messages import (
    Ack,
    RoundAttestation,
    RoundOutcome,
    RoundProposal,
    RoundWord,
)
from protocol.rounds import Round
from protocol.wiretypes import PeerId

if TYPE_CHECKING:
    from simulate_node import Node

__all__ = ["Attempt"]


class Attempt:
    """Events in, messages out, until the round has ended and nothing of it is under way.

    Args:
        node: The member.
        proposal: What it sees at the start.
    """

    def __init__(self, node: "Node", proposal: RoundProposal) -> None:
        self._node = node
        self._clock = node.mesh.clock
        self._life = node.life
        self._began_s = self._clock.now_s
        self._attempt_s = node.mesh.averaging.attempt_s
        self._snapshot = node.vector.copy()
        self._exchanging: Exchange | None = None
        self._closed = False
        self.round = Round(
            node.peer_id,
            proposal,
            self._began_s + self._attempt_s,
            grace_s=GRACE_SHARE * self._attempt_s,
            proposals_by_s=self._began_s + PROPOSALS_SHARE * self._attempt_s,
        )
        self.averaged: Averaged | None = None
        self.abandoned: rounds.Abandon | None = None

    @property
    def key(self) -> tuple[int, int]:
        round_id = self.round.round_id
        return round_id.number, round_id.attempt

    def begin(self, early: list[rounds.ProposalReceived]) -> None:
        """Start the round, with what peers said before."""
        self._clock.at(self.round.deadline_s, self._on_deadline)
        self._perform(self.round.start(self._clock.now_s))
        for event in early:
            self._perform(self.round.handle(event, self._clock.now_s))
        self._close_if_over()

    def feed(self, event: rounds.Event) -> None:
        """Tell the round what happened, and do at once what it asks for."""
        self._perform(self.round.handle(event, self._clock.now_s))
        self._close_if_over()

    @property
    def _is_orphaned(self) -> bool:
        """Whether the node has stopped since."""
        return self._life != self._node.life or not self._node.alive

    def _on_deadline(self) -> None:
        if not self._is_orphaned and not self.round.ended:
            self.feed(rounds.DeadlinePassed())

    def _perform(self, actions: list[rounds.Action]) -> None:
        sizes = self._node.mesh.sizes
        for action in actions:
            match action:
                case rounds.SendProposal():
                    proposal = self.round.proposal
                    self._tell_all(proposal, sizes.proposal(len(proposal.members))[0])
                case rounds.Exchange():
                    self._clock.at(self.round.deadline_s, self._on_deadline)
                    self._exchange(action.proposals)
                case rounds.SendAttestation():
                    missing = tuple(sorted(action.missing))
                    word = RoundAttestation(round=self.round.round_id, full=action.full, missing=missing)
                    self._tell_all(word, sizes.attestation)
                case rounds.AskOutcome():
                    self._clock.at(self.round.deadline_s, self._on_deadline)
                    for peer in action.peers:
                        self._ask(peer)
                case rounds.Commit():
                    assert self.averaged is not None
                    self._node.apply(self.averaged, self.round.round_id.number)
                case rounds.Abandon():
                    self.abandoned = action

    def _tell_all(self, word: RoundWord, num_bytes: int) -> None:
        for peer in self.round.proposal.members:
            if peer != self._node.peer_id:
                self._say(peer, word, num_bytes)

    def _say(self, peer: PeerId, word: RoundWord, num_bytes: int) -> None:
        if self._is_orphaned:
            return
        node = self._node
        other = node.mesh.node_of[peer]
        call = Call(node, other, "words", self._clock.now_s + self._attempt_s / 2)
        node.mesh.network.ask(
            call,
            num_bytes,
            lambda call: other.hear(call, node.peer_id, word),
            lambda answer: self._said(peer, word, num_bytes, answer),
        )

    def _said(self, peer: PeerId, word: RoundWord, num_bytes: int, answer: Any) -> None:
        """Say it again until it is acknowledged or nobody cares any more."""
        if answer is None and not self.round.ended:
            self._clock.after(RESEND_S, self._say, peer, word, num_bytes)
            return
        match answer:
            case RoundOutcome():
                self._perform(self.round.handle(rounds.OutcomeLearned(peer, answer.outcome), self._clock.now_s))
            case RoundProposal():
                self._perform(self.round.handle(rounds.ProposalReceived(peer, answer), self._clock.now_s))
            case Ack() if isinstance(word, RoundAttestation):
                self._perform(self.round.handle(rounds.AttestationDelivered(peer), self._clock.now_s))
        self._close_if_over()

    def _ask(self, peer: PeerId) -> None:
        def answered(answer: Any) -> None:
            told = isinstance(answer, RoundOutcome)
            self.feed(rounds.OutcomeLearned(peer, answer.outcome) if told else rounds.OutcomeUnanswered(peer))

        self._node.ask_outcome(peer, self.round.round_id, answered)

    def _exchange(self, proposals: tuple[RoundProposal, ...]) -> None:
        self._exchanging = Exchange(
            self._node,
            self.key,
            self.round.proposal.members,
            [proposal.weight for proposal in proposals],
            max(self._clock.now_s, self._began_s + EXCHANGE_SHARE * self._attempt_s),
            self._on_exchanged,
        )
        self._exchanging.begin(self._snapshot, self._node.reference_of(proposals))

    def _on_exchanged(self, averaged: Averaged | None, missing: frozenset[PeerId]) -> None:
        if self._is_orphaned:
            return
        self.averaged = averaged
        self.feed(rounds.ExchangeFinished(averaged is not None, missing))

    def _close_if_over(self) -> None:
        if self.round.ended and not self._closed:
            self._closed = True
            if self._exchanging is not None:
                self._exchanging.cancel()  # of an attempt that somebody else has ended
            self._node.attempt_over(self)
