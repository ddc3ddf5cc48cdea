"""What can happen to a round at one member."""

from dataclasses import dataclass

from protocol.messages import Outcome, RoundProposal
from protocol.wiretypes import PeerId

__all__ = [
    "AttestationDelivered",
    "AttestationReceived",
    "DeadlinePassed",
    "Event",
    "ExchangeFinished",
    "OutcomeAsked",
    "OutcomeLearned",
    "OutcomeUnanswered",
    "PeerEvent",
    "ProposalReceived",
]


@dataclass(frozen=True, slots=True)
class ProposalReceived:
    """What ``peer`` sees at the round's start."""

    peer: PeerId
    proposal: RoundProposal


@dataclass(frozen=True, slots=True)
class ExchangeFinished:
    """The exchange ended; fields as in ``RoundAttestation``."""

    full: bool
    missing: frozenset[PeerId] = frozenset()


@dataclass(frozen=True, slots=True)
class AttestationReceived:
    """``peer`` says how the exchange went there; fields as in ``RoundAttestation``."""

    peer: PeerId
    full: bool
    missing: frozenset[PeerId] = frozenset()


@dataclass(frozen=True, slots=True)
class AttestationDelivered:
    """``peer`` acknowledged our attestation."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class OutcomeAsked:
    """``peer`` wants to know the outcome: its wait has run out. Answer with `Round.outcome` afterwards."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class OutcomeLearned:
    """``peer`` said how the round stands there, asked or instead of acknowledging an attestation."""

    peer: PeerId
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class OutcomeUnanswered:
    """``peer`` could not be asked for the outcome, or did not answer."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """It is `Round.deadline_s` or later."""


PeerEvent = (
    ProposalReceived | AttestationReceived | AttestationDelivered | OutcomeAsked | OutcomeLearned | OutcomeUnanswered
)
Event = PeerEvent | ExchangeFinished | DeadlinePassed
