"""What a round asks its driver to do, and why it may end without effect."""

from dataclasses import dataclass
from enum import StrEnum

from protocol.wiretypes import Digest, PeerId

__all__ = [
    "Abandon",
    "AbandonReason",
    "Action",
    "AskOutcome",
    "Commit",
    "RunAllReduce",
    "SendAttestation",
    "SendProposal",
]


class AbandonReason(StrEnum):
    """Why a round had no effect here."""

    DIFFERING_VIEWS = "differing_views"
    """A member sees another group."""
    INCOMPLETE = "incomplete"
    """The exchange did not finish, or finished without some part of some member."""
    NOTHING_TO_DO = "nothing_to_do"
    """Nobody trained since the last average, or there is nobody to average with."""
    NOT_READY = "not_ready"
    """A member cannot take part now."""
    PARTNER_ABANDONED = "partner_abandoned"
    """A member has abandoned the round, or is about to."""
    PARTNER_SILENT = "partner_silent"
    """A member was not heard in time."""


@dataclass(frozen=True, slots=True)
class SendProposal:
    """Tell every other member what this one sees."""

    group_digest: Digest
    ready: bool
    dirty: bool


@dataclass(frozen=True, slots=True)
class RunAllReduce:
    """Start the exchange with all members; report `ExchangeFinished`."""


@dataclass(frozen=True, slots=True)
class SendAttestation:
    """Tell every other member how the exchange went here."""

    full: bool


@dataclass(frozen=True, slots=True)
class AskOutcome:
    """Ask each of these members once how the round ended there."""

    peers: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class Commit:
    """Apply the average. The round has ended."""


@dataclass(frozen=True, slots=True)
class Abandon:
    """Discard what was exchanged. The round has ended.

    ``silent``: the members to leave out of another attempt.
    """

    reason: AbandonReason
    silent: frozenset[PeerId] = frozenset()


Action = SendProposal | RunAllReduce | SendAttestation | AskOutcome | Commit | Abandon
