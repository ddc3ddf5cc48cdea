"""The state machine of a round. The rules and the driver's part are in the package's docstring."""

from collections.abc import Sequence
from enum import StrEnum

from protocol.limits import OUTCOME_GRACE_S
from protocol.membership import group_digest
from protocol.messages import Outcome, RoundId
from protocol.rounds.actions import (
    Abandon,
    AbandonReason,
    Action,
    AskOutcome,
    Commit,
    RunAllReduce,
    SendAttestation,
    SendProposal,
)
from protocol.rounds.events import (
    AttestationDelivered,
    AttestationReceived,
    DeadlinePassed,
    Event,
    ExchangeFinished,
    OutcomeAsked,
    OutcomeLearned,
    OutcomeUnanswered,
    PeerEvent,
    ProposalReceived,
)
from protocol.wiretypes import PeerId

__all__ = ["Phase", "Round"]


class Phase(StrEnum):
    """Where a round stands at this member."""

    PROPOSING = "proposing"
    REDUCING = "reducing"
    ATTESTING = "attesting"
    ASKING = "asking"
    COMMITTED = "committed"
    ABANDONED = "abandoned"


class Round:
    """One attempt of a round at the member ``me``.

    Events that come before `start` are kept; events after the end do nothing.

    Attributes:
        round_id: Which expert, round and attempt.
        phase: Where it stands.
        deadline_s: When to deliver `DeadlinePassed`, by the clock that ``now_s`` is of. It moves when the
            others are asked for the outcome; a delivery before it has no effect.
    """

    def __init__(
        self,
        round_id: RoundId,
        me: PeerId,
        members: Sequence[PeerId],
        deadline_s: float,
        grace_s: float = OUTCOME_GRACE_S,
    ) -> None:
        """Prepares the round; `start` begins it.

        Args:
            round_id: Which expert, round and attempt.
            me: The member that this object is of.
            members: The group, ``me`` included.
            deadline_s: The moment until which the others are awaited.
            grace_s: How much longer, in seconds, answers about the outcome are awaited.
        """
        assert me in members
        self.round_id = round_id
        self.phase = Phase.PROPOSING
        self.deadline_s = deadline_s
        self._grace_s = grace_s
        self._group_digest = group_digest(round_id.expert, round_id.number, round_id.attempt, members)
        self._me = me
        self._others = frozenset(members) - {me}
        self._proposals: dict[PeerId, ProposalReceived] = {}
        self._attested: set[PeerId] = set()
        self._delivered: set[PeerId] = set()
        self._answered: set[PeerId] = set()
        self._unanswered: set[PeerId] = set()

    @property
    def outcome(self) -> Outcome:
        """What to answer a member that asks: "pending" until the end, and then the same for ever."""
        if self.phase is Phase.COMMITTED:
            return "committed"
        return "aborted" if self.phase is Phase.ABANDONED else "pending"

    @property
    def acknowledges(self) -> bool:
        """Whether an attestation is acknowledged, rather than answered with the outcome."""
        return self.phase not in {Phase.ASKING, Phase.ABANDONED}

    @property
    def ended(self) -> bool:
        """Whether the round was committed or abandoned here."""
        return self.phase in {Phase.COMMITTED, Phase.ABANDONED}

    def start(self, now_s: float, *, ready: bool = True, dirty: bool = True) -> list[Action]:
        """Proposes the group, and does what proposals that came early call for. Called once.

        Args:
            now_s: The moment, by the clock that ``deadline_s`` is of.
            ready: Whether this member can take part.
            dirty: Whether it trained since it last averaged.
        """
        if self.ended:
            return []
        assert self._me not in self._proposals, "a round starts once"
        self._proposals[self._me] = ProposalReceived(self._me, self._group_digest, ready, dirty)
        if now_s >= self.deadline_s:
            return self._on_deadline(now_s)
        return [SendProposal(self._group_digest, ready, dirty), *self._weigh_proposals()]

    def handle(self, event: Event, now_s: float) -> list[Action]:
        """What to do about ``event``, in order. Events from peers outside the group do nothing."""
        if self.ended or (isinstance(event, PeerEvent) and event.peer not in self._others):
            return []
        match event:
            case ProposalReceived():
                self._proposals[event.peer] = event
                actions = self._weigh_proposals()
            case ExchangeFinished():
                actions = self._on_exchange(event.full)
            case AttestationReceived():
                actions = self._on_attestation(event)
            case AttestationDelivered():
                self._delivered.add(event.peer)
                actions = self._commit_if_unanimous()
            case OutcomeAsked():
                actions = self._doubt(now_s)
            case OutcomeLearned():
                actions = self._on_outcome(event, now_s)
            case OutcomeUnanswered():
                self._unanswered.add(event.peer)
                actions = self._conclude_if_all_asked()
            case DeadlinePassed():
                actions = self._on_deadline(now_s)
        return actions

    def _weigh_proposals(self) -> list[Action]:
        if self.phase is not Phase.PROPOSING or self._me not in self._proposals:
            return []
        all_in = self._others <= self._proposals.keys()
        objection = self._objection(all_in)
        if objection is not None:
            return self._abandon(objection)
        if not all_in:
            return []
        self.phase = Phase.REDUCING
        return [RunAllReduce()]

    def _objection(self, all_in: bool) -> AbandonReason | None:
        """What rules the round out, by the proposals so far."""
        proposals = self._proposals.values()
        if any(proposal.group_digest != self._group_digest for proposal in proposals):
            return AbandonReason.DIFFERING_VIEWS
        if not all(proposal.ready for proposal in proposals):
            return AbandonReason.NOT_READY
        if not self._others or (all_in and not any(proposal.dirty for proposal in proposals)):
            return AbandonReason.NOTHING_TO_DO
        return None

    def _on_exchange(self, full: bool) -> list[Action]:
        if self.phase is not Phase.REDUCING:
            return []
        if not full:
            return [SendAttestation(full=False), *self._abandon(AbandonReason.INCOMPLETE)]
        self.phase = Phase.ATTESTING
        return [SendAttestation(full=True), *self._commit_if_unanimous()]

    def _on_attestation(self, attestation: AttestationReceived) -> list[Action]:
        if not attestation.full:
            return self._abandon(AbandonReason.INCOMPLETE)
        self._attested.add(attestation.peer)
        return self._commit_if_unanimous()

    def _commit_if_unanimous(self) -> list[Action]:
        if self.phase is Phase.ATTESTING and self._others <= self._attested & self._delivered:
            return self._commit()
        return []

    def _on_outcome(self, learned: OutcomeLearned, now_s: float) -> list[Action]:
        if learned.outcome == "committed":
            # Only a member that itself attested full can be behind one that committed.
            return self._commit() if self.phase in {Phase.ATTESTING, Phase.ASKING} else []
        self._answered.add(learned.peer)
        return self._conclude_if_all_asked() if self.phase is Phase.ASKING else self._doubt(now_s)

    def _doubt(self, now_s: float) -> list[Action]:
        """A member will not commit by itself any more, so this one cannot either."""
        if self.phase in {Phase.PROPOSING, Phase.REDUCING}:
            # Without our attestation nobody has committed, and nobody will.
            return self._abandon(AbandonReason.PARTNER_ABANDONED)
        return self._ask(now_s) if self.phase is Phase.ATTESTING else []

    def _ask(self, now_s: float) -> list[Action]:
        self.phase = Phase.ASKING
        self.deadline_s = now_s + self._grace_s
        unasked = tuple(sorted(self._others - self._answered))
        return [AskOutcome(unasked)] if unasked else self._conclude_if_all_asked()

    def _conclude_if_all_asked(self) -> list[Action]:
        if self.phase is not Phase.ASKING or not self._others <= self._answered | self._unanswered:
            return []
        return self._abandon_unanswered()

    def _abandon_unanswered(self) -> list[Action]:
        silent = self._others - self._answered
        return self._abandon(AbandonReason.PARTNER_SILENT if silent else AbandonReason.PARTNER_ABANDONED, silent)

    def _on_deadline(self, now_s: float) -> list[Action]:
        if now_s < self.deadline_s:
            return []
        match self.phase:
            case Phase.PROPOSING:
                silent = self._others - self._proposals.keys()
                # Nobody else is missing: it is we who have not started in time.
                return self._abandon(AbandonReason.PARTNER_SILENT if silent else AbandonReason.NOT_READY, silent)
            case Phase.REDUCING:
                return self._abandon(AbandonReason.INCOMPLETE)
            case Phase.ATTESTING:
                return self._ask(now_s)
            case _:
                return self._abandon_unanswered()

    def _commit(self) -> list[Action]:
        self.phase = Phase.COMMITTED
        return [Commit()]

    def _abandon(self, reason: AbandonReason, silent: frozenset[PeerId] = frozenset()) -> list[Action]:
        self.phase = Phase.ABANDONED
        return [Abandon(reason, silent)]
