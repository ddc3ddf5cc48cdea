"""What can happen to a round at one member."""

from dataclasses import dataclass

from protocol.messages import Outcome
from protocol.wiretypes import Digest, PeerId

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
    """What ``peer`` sees at the round's start; fields as in ``RoundProposal``."""

    peer: PeerId
    group_digest: Digest
    ready: bool
    dirty: bool


@dataclass(frozen=True, slots=True)
class ExchangeFinished:
    """The all-reduce ended; ``full`` as in ``RoundAttestation``."""

    full: bool


@dataclass(frozen=True, slots=True)
class AttestationReceived:
    """``peer`` says how the exchange went there; ``full`` as in ``RoundAttestation``."""

    peer: PeerId
    full: bool


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
