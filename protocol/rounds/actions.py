"""What a round asks its driver to do, and why it may end without effect."""

from dataclasses import dataclass
from enum import StrEnum

from protocol.messages import RoundProposal
from protocol.wiretypes import PeerId

__all__ = [
    "Abandon",
    "AbandonReason",
    "Action",
    "AskOutcome",
    "Commit",
    "Exchange",
    "SendAttestation",
    "SendProposal",
]


class AbandonReason(StrEnum):
    """Why a round had no effect here."""

    DIFFERING_ORIGINS = "differing_origins"
    """A member's replica descends from other initial weights: entries of the two do not mean the same."""
    DIFFERING_SETTINGS = "differing_settings"
    """A member averages in another way."""
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
    STALE = "stale"
    """A member's replica has missed rounds that the others hold; it has to pull first."""


@dataclass(frozen=True, slots=True)
class SendProposal:
    """Tell every other member what this one sees: `Round.proposal`."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """Exchange parts with all members, by their proposals; report `ExchangeFinished`."""

    proposals: tuple[RoundProposal, ...]
    """In the order of the members."""


@dataclass(frozen=True, slots=True)
class SendAttestation:
    """Tell every other member how the exchange went here."""

    full: bool
    missing: frozenset[PeerId] = frozenset()


@dataclass(frozen=True, slots=True)
class AskOutcome:
    """Ask each of these members once how the round ended there."""

    peers: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class Commit:
    """Apply the average. The round has ended."""


@dataclass(frozen=True, slots=True)
class Abandon:
    """Discard what was exchanged, unless it is ``doubtful``. The round has ended."""

    reason: AbandonReason
    left_out: frozenset[PeerId] = frozenset()
    """The members to leave out of another attempt; if there are none, another would end the same, unless it was only
    the others that saw more members than this one."""
    doubtful: bool = False
    """Whether a member that did not answer may have committed."""


Action = SendProposal | Exchange | SendAttestation | AskOutcome | Commit | Abandon
