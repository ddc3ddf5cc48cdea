"""Files that a kill leaves behind and that mean nothing any more: control sockets, and files half written."""

import os
import re
import socket
import stat
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from meshnode.doctor.finding import Finding, Remedy
from meshnode.doctor.holder import keeping_daemons_out
from meshnode.doctor.subject import Subject
from meshnode.home import TEMP_SUFFIX, Home

__all__ = ["SOCKET_FOLDER", "check_leftovers", "stale_sockets"]

SOCKET_FOLDER = Path("/tmp")  # noqa: S108 - hivemind's choice (P2P._UNIX_SOCKET_PREFIX), whatever TMPDIR says
SOCKETS = ("hivemind-p2pd-*.sock", "hivemind-p2pclient-*.sock")

TEMPORARY = re.compile(rf"\..+\.[0-9a-f]{{16}}{re.escape(TEMP_SUFFIX)}")
"""How `meshnode.home` names a file until it is complete; another program's are not ours to remove."""

WRITING_S = 60.0
"""A file that was begun this long ago is not being written any more."""


def check_leftovers(subject: Subject) -> Sequence[Finding]:
    """Stale sockets at any time; temporary files only while no daemon runs."""
    findings = []
    if sockets := stale_sockets(SOCKET_FOLDER):
        what = f"sockets in {SOCKET_FOLDER} on which no p2pd and no daemon listens any more: {len(sockets)}"
        findings.append(_finding(what, partial(_remove_sockets, sockets)))
    if subject.holder is None and (files := _temporary_files(subject.home)):
        what = f"files in {subject.home.path} that were never written to the end: {len(files)}"
        findings.append(_finding(what, partial(_remove_files, subject.home, files)))
    return findings or [Finding("leftovers", "ok", "nothing is left behind")]


def _finding(message: str, remove: partial[None]) -> Finding:
    return Finding("leftovers", "note", message, "`meshnode doctor --fix` removes them.", Remedy("removed", remove))


def stale_sockets(folder: Path) -> list[Path]:
    """hivemind's sockets in ``folder`` that belong to this user and that nobody listens on."""
    found = [path for pattern in SOCKETS for path in folder.glob(pattern) if _is_own_socket(path)]
    # Read after the folder: a socket is bound, and so listed here, before its file can be seen. One that is listed is
    # not even tried, for a connection is something its owner notices.
    bound = _bound_sockets()
    return sorted(path for path in found if str(path) not in bound and _refuses(path))


def _is_own_socket(path: Path) -> bool:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISSOCK(found.st_mode) and found.st_uid == os.geteuid()


def _bound_sockets() -> set[str]:
    """Paths of the unix sockets that some process has open."""
    lines = Path("/proc/net/unix").read_text(encoding="utf-8", errors="surrogateescape").splitlines()[1:]
    return {fields[7] for fields in (line.split(maxsplit=7) for line in lines) if len(fields) == 8}


def _refuses(path: Path) -> bool:
    """Whether nobody listens, as in a network namespace whose sockets are not listed here somebody might."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


def _remove_sockets(sockets: Iterable[Path]) -> None:
    for path in sockets:
        if str(path) not in _bound_sockets():
            path.unlink(missing_ok=True)


def _temporary_files(home: Home) -> list[Path]:
    begun_before = time.time() - WRITING_S
    folders = (home.path, home.state, home.blobs, home.trainer)
    files = (file for folder in folders if folder.is_dir() for file in folder.iterdir())
    return [file for file in files if TEMPORARY.fullmatch(file.name) and file.lstat().st_mtime < begun_before]


def _remove_files(home: Home, files: Iterable[Path]) -> None:
    with keeping_daemons_out(home):
        for file in files:
            file.unlink(missing_ok=True)
