"""The state machine of a round. The rules and the driver's part are in the package's docstring."""

from enum import StrEnum

from protocol.limits import MAX_ROUNDS_BEHIND
from protocol.messages import Outcome, RoundId, RoundProposal
from protocol.rounds.actions import (
    Abandon,
    AbandonReason,
    Action,
    AskOutcome,
    Commit,
    Exchange,
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
from protocol.rounds.fitness import are_one, unfit_members
from protocol.wiretypes import PeerId

__all__ = ["Phase", "Round"]


class Phase(StrEnum):
    """Where a round stands at this member."""

    PROPOSING = "proposing"
    EXCHANGING = "exchanging"
    ATTESTING = "attesting"
    ASKING = "asking"
    COMMITTED = "committed"
    ABANDONED = "abandoned"


class Round:
    """One attempt of a round at the member ``me``.

    Events that come before `start` are kept; events after the end do nothing.

    Attributes:
        proposal: What this member sees: which round, who takes part, and what it brings.
        phase: Where it stands.
        deadline_s: When to deliver `DeadlinePassed`, by the clock that ``now_s`` is of. It moves when all have
            proposed, and when the others are asked for the outcome; a delivery before it has no effect.
    """

    def __init__(
        self,
        me: PeerId,
        proposal: RoundProposal,
        deadline_s: float,
        grace_s: float,
        *,
        proposals_by_s: float | None = None,
    ) -> None:
        """Prepares the round; `start` begins it.

        Args:
            me: The member that this object is of.
            proposal: What it sees; ``me`` is among the members.
            deadline_s: The moment until which the others are awaited.
            grace_s: How much longer, in seconds, answers about the outcome are awaited.
            proposals_by_s: The moment until which proposals are awaited, before ``deadline_s``: who lacks one must say
                so before those that have all of them take its silence for a fault of its own. None: as long.
        """
        assert me in proposal.members
        self.proposal = proposal
        self.phase = Phase.PROPOSING
        self.deadline_s = deadline_s if proposals_by_s is None else proposals_by_s
        self._exchanged_by_s = deadline_s
        self._grace_s = grace_s
        self._me = me
        self._others = frozenset(proposal.members) - {me}
        self._proposals: dict[PeerId, RoundProposal] = {}
        self._attested: set[PeerId] = set()
        self._delivered: set[PeerId] = set()
        self._answered: set[PeerId] = set()
        self._unanswered: set[PeerId] = set()

    @property
    def round_id(self) -> RoundId:
        return self.proposal.round

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

    def start(self, now_s: float) -> list[Action]:
        """Proposes the group, and does what proposals that came early call for. Called once.

        Args:
            now_s: The moment, by the clock that ``deadline_s`` is of.
        """
        if self.ended:
            return []
        self._proposals[self._me] = self.proposal
        if now_s >= self.deadline_s:
            return self._on_deadline(now_s)
        return [SendProposal(), *self._weigh_proposals()]

    def handle(self, event: Event, now_s: float) -> list[Action]:
        """What to do about ``event``, in order. Events from peers outside the group do nothing."""
        if self.ended or (isinstance(event, PeerEvent) and event.peer not in self._others):
            return []
        match event:
            case ProposalReceived():
                self._proposals.setdefault(event.peer, event.proposal)
                actions = self._weigh_proposals()
            case ExchangeFinished():
                actions = self._on_exchange(event)
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
        if not self.proposal.ready:
            return self._abandon(AbandonReason.NOT_READY, frozenset({self._me}))
        if not self._others <= self._proposals.keys():
            return []
        reason, unfit = unfit_members(self._me, self._proposals, rounds_behind=MAX_ROUNDS_BEHIND)
        if reason is not None:
            return self._abandon(reason, unfit)
        if not self._others or are_one(self._proposals.values()):
            return self._abandon(AbandonReason.NOTHING_TO_DO)
        self.phase, self.deadline_s = Phase.EXCHANGING, self._exchanged_by_s
        return [Exchange(tuple(self._proposals[member] for member in self.proposal.members))]

    def _on_exchange(self, exchange: ExchangeFinished) -> list[Action]:
        if self.phase is not Phase.EXCHANGING:
            return []
        if not exchange.full and not exchange.missing:
            # Somebody else has given up, or nobody can be told to be at fault from here: who can tell will attest it.
            return []
        if not exchange.full:
            attestation = SendAttestation(full=False, missing=exchange.missing)
            return [attestation, *self._abandon(AbandonReason.INCOMPLETE, exchange.missing)]
        self.phase = Phase.ATTESTING
        return [SendAttestation(full=True), *self._commit_if_unanimous()]

    def _on_attestation(self, attestation: AttestationReceived) -> list[Action]:
        if not attestation.full:
            # Whoever has not attested is not needed to abandon; it hears of this the same way.
            missing = attestation.missing & frozenset(self.proposal.members)
            was_early = self.phase is Phase.PROPOSING  # so it is a proposal that somebody lacks
            return self._abandon(AbandonReason.PARTNER_SILENT if was_early else AbandonReason.INCOMPLETE, missing)
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
        if self.phase in {Phase.PROPOSING, Phase.EXCHANGING}:
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
        reason = AbandonReason.PARTNER_SILENT if silent else AbandonReason.PARTNER_ABANDONED
        return self._abandon(reason, silent, doubtful=bool(silent))

    def _on_deadline(self, now_s: float) -> list[Action]:
        if now_s < self.deadline_s:
            return []
        match self.phase:
            case Phase.PROPOSING:
                return self._abandon_unproposed()
            case Phase.EXCHANGING:
                return self._abandon(AbandonReason.INCOMPLETE)
            case Phase.ATTESTING:
                return self._ask(now_s)
            case _:
                return self._abandon_unanswered()

    def _abandon_unproposed(self) -> list[Action]:
        silent = self._others - self._proposals.keys()
        if not silent:  # nobody else is missing: it is we who have not started in time
            return self._abandon(AbandonReason.NOT_READY)
        heard = {self._me: self.proposal} | self._proposals
        _, unfit = unfit_members(self._me, heard, rounds_behind=MAX_ROUNDS_BEHIND)
        # Some may have heard what this one has not, and wait for its part.
        attestation = SendAttestation(full=False, missing=silent | unfit)
        return [attestation, *self._abandon(AbandonReason.PARTNER_SILENT, silent | unfit)]

    def _commit(self) -> list[Action]:
        self.phase = Phase.COMMITTED
        return [Commit()]

    def _abandon(
        self, reason: AbandonReason, left_out: frozenset[PeerId] = frozenset(), *, doubtful: bool = False
    ) -> list[Action]:
        self.phase = Phase.ABANDONED
        return [Abandon(reason, left_out, doubtful)]
