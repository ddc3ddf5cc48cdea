"""What a check found, and how it can be mended."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "Outcome", "Remedy"]

Outcome = Literal["ok", "note", "problem", "fixed"]
"""As it should be; worth knowing; to be changed; was one of the two before, and is no more."""


@dataclass(frozen=True, slots=True)
class Remedy:
    """What ``--fix`` does about a finding."""

    done: str
    """Told afterwards, behind the finding's message: "removed"."""
    apply: Callable[[], None]
    """Looks again before it acts. Raises OSError or NodeError if it cannot; whether it helped, the check tells."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a check can tell of this home or machine."""

    check: str
    outcome: Outcome
    message: str
    hint: str | None = None
    """What a person can do about it."""
    remedy: Remedy | None = None
    """None where the program cannot, or must not, change it by itself."""

    def document(self) -> dict[str, str | None]:
        """Its fields, for programs."""
        return {"check": self.check, "outcome": self.outcome, "message": self.message, "hint": self.hint}
