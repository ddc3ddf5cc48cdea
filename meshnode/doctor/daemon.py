"""Whether the home's daemon runs and answers, and what one that was killed has left."""

import time
from collections.abc import Sequence
from functools import partial

import psutil

from meshnode.doctor.finding import Finding, Remedy
from meshnode.doctor.holder import Holder, keeping_daemons_out
from meshnode.doctor.subject import Subject
from meshnode.errors import DaemonNotRunning, NodeError, Timeout
from meshnode.home import Home

__all__ = ["check_daemon"]

START_S = 60.0
"""A start takes a few seconds; on the slowest machine it takes less than this."""


def check_daemon(subject: Subject) -> Sequence[Finding]:
    """A lock file without a holder is no finding: it always stays."""
    home, holder, status = subject.home, subject.holder, subject.status
    if holder is None:
        return _without_daemon(home)
    if status is not None:
        return [Finding("daemon", "ok", f"{holder} runs ({status.get('state')}) and answers at {status.get('url')}")]
    assert subject.silence is not None
    return [_silent(holder, subject.silence)]


def _without_daemon(home: Home) -> Sequence[Finding]:
    if not home.daemon_json.exists():
        return [Finding("daemon", "ok", f"no daemon runs for {home.path}")]
    note = home.read_daemon_note()
    left_by = f"process {note.pid}, which was killed" if note else "a daemon that was killed"
    message = f"no daemon runs, and {home.daemon_json} is left from {left_by}"
    hint = "The next start replaces it; `meshnode doctor --fix` removes it."
    return [Finding("daemon", "note", message, hint, Remedy("removed", partial(_remove_note, home)))]


def _remove_note(home: Home) -> None:
    with keeping_daemons_out(home):
        home.remove_daemon_note()


def _silent(holder: Holder, silence: NodeError) -> Finding:
    pid = "PID" if holder.pid is None else holder.pid
    end = f"`kill {pid}` ends it in order, `kill -9 {pid}` at once"
    match silence:
        case Timeout():
            message = f"{holder} holds the home, and its API has been silent for {silence.waited_s:.3g} s: it hangs"
            return Finding("daemon", "problem", message, f"{end}; then start it again.")
        case DaemonNotRunning():
            age_s = _age_s(holder)
            if age_s is not None and age_s < START_S:
                return Finding("daemon", "note", f"{holder} began {age_s:.0f} s ago and is still starting")
            message = f"{holder} holds the home and has not told where its API answers"
        case _ if silence.code == DaemonNotRunning.code:
            message = f"{holder} holds the home, but {silence.message}"
        case _:
            return Finding("daemon", "problem", f"{holder} holds the home, but: {silence.message}", silence.hint)
    return Finding("daemon", "problem", message, f"If it is not just about to end: {end}.")


def _age_s(holder: Holder) -> float | None:
    """None if the process cannot be seen: it has ended, or lives in another container."""
    try:
        return None if holder.pid is None else time.time() - float(psutil.Process(holder.pid).create_time())
    except psutil.Error:
        return None
