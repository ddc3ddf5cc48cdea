"""All checks one after another; with ``fix``, what can be mended is, and then checked again."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from meshnode.doctor.daemon import check_daemon
from meshnode.doctor.data import check_data
from meshnode.doctor.disk import check_disk
from meshnode.doctor.files import check_files
from meshnode.doctor.finding import Finding
from meshnode.doctor.gpu import check_gpu
from meshnode.doctor.leftovers import check_leftovers
from meshnode.doctor.orphans import check_orphans
from meshnode.doctor.peers import check_peers
from meshnode.doctor.ports import check_ports
from meshnode.doctor.settings import check_config
from meshnode.doctor.subject import Ask, Subject
from meshnode.errors import NodeError
from meshnode.home import Home

__all__ = ["Check", "examine", "run_check"]

Check = Callable[[Subject], Sequence[Finding]]

# Orphans before ports: what an orphan holds is free once it has ended.
CHECKS: dict[str, Check] = {
    "config": check_config,
    "files": check_files,
    "daemon": check_daemon,
    "orphans": check_orphans,
    "leftovers": check_leftovers,
    "port": check_ports,
    "peers": check_peers,
    "data": check_data,
    "gpu": check_gpu,
    "disk": check_disk,
}


def examine(home: Home, ask: Ask, *, fix: bool) -> tuple[Finding, ...]:
    """Look a home and its machine over.

    Args:
        home: Need not exist; nothing is made in it.
        ask: Gets the daemon's status; called only if the home's lock is held.
        fix: Whether to mend what the program can mend by itself.
    """
    subject = Subject.take_in(home, ask)
    return tuple(finding for name, check in CHECKS.items() for finding in run_check(name, check, subject, fix=fix))


def run_check(name: str, check: Check, subject: Subject, *, fix: bool) -> Sequence[Finding]:
    """The findings of one check; after mending, what was mended and then what the check finds now."""
    findings = list(_checked(name, check, subject))
    mended: list[Finding] = []
    failed: dict[str, str | None] = {}
    # Again and again: a folder that was closed hides what is wrong with what lies in it.
    while fix and (curable := [one for one in findings if one.remedy is not None and one.message not in failed]):
        failed |= {one.message: _mending_error(one) for one in curable}
        findings = list(_checked(name, check, subject))
        # What is still found was not mended, whatever its remedy believes.
        still = {one.message for one in findings}
        mended += [_mended(one) for one in curable if one.message not in still]
    return [*mended, *(replace(one, hint=failed.get(one.message) or one.hint) for one in findings)]


def _mending_error(finding: Finding) -> str | None:
    assert finding.remedy is not None
    try:
        finding.remedy.apply()
    except (OSError, NodeError) as exc:
        return f"--fix could not: {exc}"
    return None


def _mended(finding: Finding) -> Finding:
    assert finding.remedy is not None
    return Finding(finding.check, "fixed", f"{finding.message}: {finding.remedy.done}")


def _checked(name: str, check: Check, subject: Subject) -> Sequence[Finding]:
    try:
        return check(subject)
    except OSError as exc:
        return [Finding(name, "problem", f"this cannot be checked: {exc}", "See the permissions of the path.")]
