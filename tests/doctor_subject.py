"""A home to examine, and what is known of it, put together for a test of one check."""

from typing import Any

from meshnode.doctor.examine import Check, run_check
from meshnode.doctor.finding import Finding
from meshnode.doctor.holder import Holder
from meshnode.doctor.subject import Subject
from meshnode.errors import NodeError
from meshnode.home import Home
from meshnode.settings.config import load_config

__all__ = ["about", "outcomes"]


def about(
    home: Home,
    settings: dict[str, object] | None = None,
    *,
    holder: Holder | None = None,
    status: dict[str, Any] | None = None,
    silence: NodeError | None = None,
) -> Subject:
    """A subject with these settings; a daemon runs if it has said something or is said to be silent."""
    if status is not None or silence is not None:
        holder = holder or Holder(1)
    return Subject(
        home=home,
        config=load_config(home, settings),
        config_error=None,
        holder=holder,
        status=status,
        silence=silence,
    )


def outcomes(check: Check, subject: Subject, *, fix: bool = False) -> list[tuple[str, str]]:
    """Outcome and message of each finding."""
    findings: list[Finding] = list(run_check("check", check, subject, fix=fix))
    return [(finding.outcome, finding.message) for finding in findings]
