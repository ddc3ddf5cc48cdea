"""Processes that should have ended with their daemon and have not: this home's p2pd, and trainers.

A p2pd without its daemon answers peers in the node's name and keeps its port; a trainer keeps the processor.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from meshnode.doctor.finding import Finding, Remedy
from meshnode.doctor.holder import find_holder
from meshnode.doctor.subject import Subject
from meshnode.home import Home

__all__ = ["check_orphans"]

TRAINER = ["-m", "meshnode.trainer.worker"]
"""How `meshnode.trainer.process` starts the trainer; the next argument is its daemon's process."""

END_S = 2.0
"""How long a process may take to end when it is asked to, and again when it is killed."""

POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class _Seen:
    """A process as it was when the processes were listed."""

    process: psutil.Process
    parent_pid: int
    line: Sequence[str]
    """Its command line."""
    folder: Path
    """Its working directory."""


def check_orphans(subject: Subject) -> Sequence[Finding]:
    """A process of a daemon that lives, here or in another container, is never among the findings."""
    seen = list(_own_processes())
    findings = [
        _finding(one, f"p2pd, process {one.process.pid}, answers with this home's identity, and its daemon is gone")
        for one in _p2pd_orphans(subject.home, seen)
    ]
    findings += [
        _finding(one, f"a trainer, process {one.process.pid}, has outlived its daemon (process {one.line[3]})")
        for one in seen
        if len(one.line) == 4 and one.line[1:3] == TRAINER and one.line[3] != str(one.parent_pid)
    ]
    return findings or [Finding("orphans", "ok", "no process has outlived its daemon")]


def _finding(orphan: _Seen, message: str) -> Finding:
    remedy = Remedy("ended", partial(_end, orphan))
    return Finding("orphans", "problem", message, "`meshnode doctor --fix` ends it.", remedy)


def _p2pd_orphans(home: Home, seen: Sequence[_Seen]) -> list[_Seen]:
    found = [one for one in seen if _is_p2pd_of(home, one)]
    # Asked after the processes were listed, not before: a daemon that starts in between is then the holder of the
    # lock, and a p2pd listed while its daemon lived is at worst one that is ending already.
    holder = find_holder(home)
    if holder is None:
        return found
    return [] if holder.pid is None else [one for one in found if one.parent_pid != holder.pid]


def _is_p2pd_of(home: Home, one: _Seen) -> bool:
    identities = [word.removeprefix("-id=") for word in one.line[1:] if word.startswith("-id=")]
    if Path(one.line[0]).name != "p2pd" or not identities:
        return False
    # Relative to where its daemon was started.
    return (one.folder / identities[-1]).resolve() == home.identity_key.resolve()


def _own_processes() -> Iterator[_Seen]:
    """This user's processes that run.

    Not those of other containers: they know their parents by other numbers than are seen from here.
    """
    here = os.readlink("/proc/self/ns/pid")
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # it has ended meanwhile, or is not ours to look at
            if process.uids().real == os.geteuid() and os.readlink(f"/proc/{process.pid}/ns/pid") == here:
                line = process.cmdline()
                if line and process.status() != psutil.STATUS_ZOMBIE:
                    yield _Seen(process, process.ppid(), line, Path(process.cwd()))


def _end(orphan: _Seen) -> None:
    """SIGTERM, and SIGKILL if that is not enough; to this very process only, never to another of its number.

    Raises:
        PermissionError: It may not be ended.
    """
    process = orphan.process
    try:
        # psutil compares the time at which the process began, and knows no process where another has its number.
        if process.ppid() == orphan.parent_pid:
            process.terminate()
            if not _ends_in_time(process):
                process.kill()
                _ends_in_time(process)
    except psutil.NoSuchProcess:
        pass  # it has ended by itself
    except psutil.AccessDenied as exc:
        raise PermissionError(f"process {process.pid} may not be ended") from exc


def _ends_in_time(process: psutil.Process) -> bool:
    deadline = time.monotonic() + END_S
    while _lives(process):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
