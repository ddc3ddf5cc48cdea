"""A simulated node: one replica, its part in every round, its record and its look-ups. What it decides, and in which
order, is taken from `meshnode.averaging.averager`, `meshnode.advertiser` and `meshnode.directory`; what it says and how
rounds end is the protocol's own code."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from simulate_attempt import Attempt
from simulate_exchange import REFUSED, Exchange
from simulate_network import Call, Host
from simulate_sizes import EXPERT, ORIGIN, peer_named
from simulate_views import Group

from experts.averaging import Averaged
from meshnode.averaging.averager import MAX_ATTEMPTS
from protocol.identifiers import Digest, digest_of
from protocol.messages import (
    Ack,
    RoundAttestation,
    RoundId,
    RoundOutcome,
    RoundOutcomeQuery,
    RoundProposal,
    RoundWord,
)
from protocol.rounds import Abandon, AbandonReason, AttestationReceived, OutcomeAsked, ProposalReceived
from protocol.wiretypes import PeerId

if TYPE_CHECKING:
    from simulate_mesh import Mesh

__all__ = ["Node"]

REMEMBERED_ROUNDS = 2
"""Rounds back that are still answered about; a real node keeps 512. A doubt is resolved in the next round or two."""

Key = tuple[int, int]
"""Number and attempt of a round."""


class _Doubt(NamedTuple):
    """A round that ended here in silence: others may have committed it."""

    round_id: RoundId
    members: tuple[PeerId, ...]
    averaged: Averaged


class Node(Host):
    """One replica.

    Args:
        mesh: What all nodes share.
        number: Which of them it is.
        vector: Its parameters, float32 ``(P,)``: a row that is changed in place.
        weight: What its replica counts for in a mean.
    """

    def __init__(self, mesh: "Mesh", number: int, vector: np.ndarray, weight: float) -> None:
        super().__init__()
        self.mesh = mesh
        self.peer_id = peer_named(number)
        self.vector = vector
        self.weight = weight
        self.reference: np.ndarray | None = None
        self.reference_digest: Digest | None = None
        self.base = 0
        self.since = 0.0
        self.seen = 0
        """How many of the mesh's records it has read."""
        self.committed_s = 0.0
        """When it last held a fresh average; the beginning counts as one."""
        self.exchanges: dict[Key, Exchange] = {}
        self.early_parts: dict[Key, list[tuple[Call, PeerId, np.ndarray]]] = {}
        self._attempts: dict[Key, Attempt] = {}
        self._early: dict[Key, dict[PeerId, ProposalReceived]] = {}
        self._group = Group((), 0, is_whole=False)
        self._is_under_way = False
        self._moving_until = 0
        self._doubt: _Doubt | None = None
        self._leases = 0

    # --- records ---

    def publish(self, *, leaving: bool = False) -> None:
        """Renew the lease, now and again at a third of its life."""
        self._leases += 1
        self.mesh.store(self, leaving=leaving)
        if not leaving:
            self.mesh.clock.after(self.mesh.record_ttl_s / 3, self.renew, self.life, self._leases)

    def renew(self, life: int, lease: int) -> None:
        """Publish again, unless the node has stopped or published since this lease."""
        if self.alive and life == self.life and lease == self._leases:
            self.publish()

    def refresh(self, life: int) -> None:
        """Read the mesh's records, now and ever again."""
        if self.alive and life == self.life:
            self.mesh.look_up(self)

    # --- rounds ---

    def run_round(self, number: int, life: int) -> None:
        """Begin the round of this number, if there is a group for it and the last one is over."""
        if not self.alive or life != self.life:
            return
        self._forget(number - REMEMBERED_ROUNDS)
        group = self.mesh.views.group(self.peer_id, self.side, self.seen, number)
        if self._is_under_way:
            self.mesh.tally.sat_out += 1
        elif len(group.members) > 1:
            self._is_under_way = True
            self._group = group
            self._began_as = number
            self.mesh.tally.begun += 1
            if self._doubt is None:
                self._attempt(group.members, 0)
            else:
                self._resolve(self._doubt)

    def _attempt(self, members: tuple[PeerId, ...], attempt: int) -> None:
        key = self._began_as, attempt
        proposal = RoundProposal(
            round=RoundId(EXPERT, *key),
            members=members,
            whole=self._group.is_whole,
            ready=True,
            dirty=self._is_dirty(self._began_as),
            base=self.base,
            origin=ORIGIN,
            settings=self.mesh.averaging.agreement,
            reference=self.reference_digest,
            weight=self.weight,
        )
        self._attempts[key] = Attempt(self, proposal)
        self._attempts[key].begin(list(self._early.pop(key, {}).values()))

    def attempt_over(self, attempt: Attempt) -> None:
        """Go on to another attempt where that is worth it; otherwise the round is over."""
        abandoned, round_id = attempt.abandoned, attempt.round.round_id
        self.mesh.tally.ended(attempt.round.proposal, abandoned)
        members = attempt.round.proposal.members
        if abandoned is not None:
            lonely = abandoned.doubtful and len(abandoned.left_out) == len(members) - 1
            if lonely and attempt.averaged is not None:
                self._doubt = _Doubt(round_id, members, attempt.averaged)
            left = tuple(member for member in members if member not in abandoned.left_out)
            if self._goes_on(abandoned) and len(left) > 1 and round_id.attempt + 1 < MAX_ATTEMPTS:
                self._attempt(left, round_id.attempt + 1)
                return
            if self.peer_id in abandoned.left_out and abandoned.reason is AbandonReason.STALE:
                self.mesh.catch_up(self, members)
            self.mesh.tally.lost(abandoned.reason)
        self._is_under_way = False

    def _goes_on(self, abandoned: Abandon) -> bool:
        if self.peer_id in abandoned.left_out:
            return False
        return bool(abandoned.left_out) or abandoned.reason is AbandonReason.DIFFERING_VIEWS

    def _is_dirty(self, number: int) -> bool:
        return number < self._moving_until or self._drift() >= self.mesh.averaging.min_drift

    def _drift(self) -> float:
        if self.reference is None:
            return math.inf
        return float(np.linalg.norm(self.vector - self.reference)) / float(np.linalg.norm(self.reference))

    def apply(self, averaged: Averaged, number: int) -> None:
        """Commit what a round came to, and advertise it."""
        self.vector += averaged.delta
        self.reference, self.reference_digest = averaged.mean, digest_of(averaged.mean.tobytes())
        self.base = number
        self.committed_s = self.mesh.clock.now_s
        moved = np.linalg.norm(averaged.delta) >= self.mesh.averaging.min_drift * np.linalg.norm(averaged.mean)
        if moved:
            self._moving_until = number + self._group.cycle
        self.mesh.tally.committed += 1
        self.publish()

    def reference_of(self, proposals: Sequence[RoundProposal]) -> np.ndarray | None:
        """What coded differences are relative to: the last mean if all members hold it, else the initial weights."""
        if self.mesh.averaging.compression == "none":
            return None
        shared = {proposal.reference for proposal in proposals}
        return self.reference if len(shared) == 1 and None not in shared else self.mesh.initial

    def _resolve(self, doubt: _Doubt) -> None:
        """Find out how a round ended that this node heard nothing more of; while nobody answers, this one is lost."""
        others = [member for member in doubt.members if member != self.peer_id]
        answers: list[Any] = []

        def answered(answer: Any) -> None:
            answers.append(answer)
            if len(answers) < len(others):
                return
            outcomes = {answer.outcome for answer in answers if isinstance(answer, RoundOutcome)}
            if not outcomes:
                self._is_under_way = False
                self.mesh.tally.lost(AbandonReason.PARTNER_SILENT)
                return
            self._doubt = None
            if "committed" in outcomes:
                self.apply(doubt.averaged, doubt.round_id.number)
            self._attempt(self._group.members, 0)

        for other in others:
            self.ask_outcome(other, doubt.round_id, answered)

    # --- what peers say ---

    def hear(self, call: Call, sender: PeerId, word: RoundWord) -> None:
        """Answer a member's word, as `Averager._hear` does."""
        network, sizes = self.mesh.network, self.mesh.sizes
        key = word.round.number, word.round.attempt
        attempt = self._attempts.get(key)
        match word:
            case RoundProposal() if attempt is not None:
                attempt.feed(ProposalReceived(sender, word))
                mine = attempt.round.proposal
                network.answer(call, sizes.proposal(len(mine.members))[1], mine)
                return
            case RoundProposal():
                self._early.setdefault(key, {})[sender] = ProposalReceived(sender, word)
            case RoundAttestation() if attempt is not None:
                attempt.feed(AttestationReceived(sender, word.full, frozenset(word.missing)))
                if not attempt.round.acknowledges:
                    network.answer(call, sizes.outcome, RoundOutcome(round=word.round, outcome=attempt.round.outcome))
                    return
            case _:
                if attempt is not None:
                    attempt.feed(OutcomeAsked(sender))
                outcome = "unknown" if attempt is None else attempt.round.outcome
                network.answer(call, sizes.outcome, RoundOutcome(round=word.round, outcome=outcome))
                return
        network.answer(call, sizes.ack, Ack())

    def ask_outcome(self, peer: PeerId, round_id: RoundId, answered: Callable[[Any], None]) -> None:
        """Ask a member how a round ended there."""
        mesh, other = self.mesh, self.mesh.node_of[peer]
        call = Call(self, other, "words", mesh.clock.now_s + mesh.averaging.attempt_s / 2)
        word = RoundOutcomeQuery(round=round_id)
        mesh.network.ask(call, mesh.sizes.query, lambda call: other.hear(call, self.peer_id, word), answered)

    def hear_part(self, call: Call, sender: PeerId, key: Key, part: np.ndarray) -> None:
        """Take a member's part in, or keep it until this node has come so far."""
        exchange = self.exchanges.get(key)
        if exchange is None:
            self.early_parts.setdefault(key, []).append((call, sender, part))
        else:
            exchange.take(call, sender, part)

    def refuse(self, call: Call) -> None:
        """Answer with an error."""
        self.mesh.network.answer(call, self.mesh.sizes.refusal, REFUSED)

    # --- lives ---

    def stop(self) -> None:
        """Fall silent; what is on the disk stays: the parameters and what they hold."""
        self.alive = False
        self.life += 1
        self._is_under_way = False
        for memory in (self._attempts, self._early, self.exchanges, self.early_parts):
            memory.clear()
        self._doubt = None
        self._moving_until = 0

    def _forget(self, number: int) -> None:
        for memory in (self._attempts, self._early, self.early_parts):
            for key in [key for key in memory if key[0] < number]:
                del memory[key]
