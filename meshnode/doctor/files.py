"""Whether the home and its secrets are its user's alone, and whether the keys are keys."""

import os
import stat
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from meshnode.doctor.finding import Finding, Remedy
from meshnode.doctor.subject import Subject
from meshnode.errors import IdentityUnusable
from meshnode.home import Home
from meshnode.identity import api_key
from protocol.errors import MalformedIdentifier
from protocol.signing import SigningKey

__all__ = ["check_files"]

FOLDER_MODE, KEY_MODE = 0o700, 0o600


def check_files(subject: Subject) -> Sequence[Finding]:
    """Owner and mode of folders and keys first; a key is opened only if these are right."""
    home = subject.home
    if not home.path.exists():
        return [_note(f"there is no folder {home.path} yet", "`meshnode init` makes it, and so does `meshnode run`.")]
    if not home.path.is_dir():
        return [_problem(f"{home.path} is no folder", "Move it away, or give another folder with --home.")]
    if not _is_home(home):
        # Nothing of it may be changed: as root, the mode of /tmp would be.
        return [_problem(f"{home.path} is not a node's folder: it holds other things", "Give another one with --home.")]
    if findings := _access(home.path, FOLDER_MODE):
        return findings  # what lies inside cannot be judged before
    findings = [
        *_access(home.state, FOLDER_MODE),
        *_access(home.trainer, FOLDER_MODE),
        *(_key_access(home.identity_key) or _identity(home)),
        *(_key_access(home.api_key) or _api_key(home)),
    ]
    return findings or [Finding("files", "ok", f"{home.path} and its keys are their user's alone")]


def _is_home(home: Home) -> bool:
    """Whether something in the folder is a node's, or nothing is in it at all."""
    try:
        names = {path.name for path in home.path.iterdir()}
    except PermissionError:
        return home.path.stat().st_uid == os.geteuid()  # closed to its own user, which is for the mode to mend
    own = {path.name for path in (home.config_toml, home.identity_key, home.api_key, home.lock, home.state)}
    return not names or bool(names & own)


def _access(path: Path, mode: int) -> list[Finding]:
    """What is wrong with owner and mode; what does not exist is right."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return []
    if found.st_uid != os.geteuid():
        hint = f"As its owner or as root: chown -R {os.geteuid()} {path}"
        return [_problem(f"{path} belongs to another user (uid {found.st_uid})", hint)]
    actual = stat.S_IMODE(found.st_mode)
    needed = mode & 0o500  # a key need not be writable
    if not actual & 0o077 and actual & needed == needed:
        return []
    whose = "is open to others" if actual & 0o077 else "is closed to its own user"
    remedy = Remedy(f"now {mode:04o}", partial(path.chmod, mode))
    return [_problem(f"{path} {whose} (mode {actual:04o})", f"`meshnode doctor --fix` sets {mode:04o}.", remedy)]


def _key_access(path: Path) -> list[Finding]:
    # A folder in its place is not mended by a mode.
    return _access(path, KEY_MODE) if path.is_file() else []


def _identity(home: Home) -> list[Finding]:
    path = home.identity_key
    try:
        SigningKey.from_libp2p(path.read_bytes())
    except FileNotFoundError:
        return [_note(f"there is no {path} yet", "The first start makes it, and so does `meshnode init`.")]
    except OSError as exc:
        return [_problem(f"{path} cannot be read: {exc.strerror}", "It must be a file.")]
    except MalformedIdentifier as exc:
        # Never removed here: whoever loses this key is another peer to everybody else.
        hint = "Restore it from a backup, or move it away to start anew as another peer."
        return [_problem(f"{path} is no key: {exc.reason}", hint)]
    return []


def _api_key(home: Home) -> list[Finding]:
    if not home.api_key.exists():
        return []  # made by the next start
    try:
        api_key(home)
    except IdentityUnusable as exc:
        return [_problem(exc.message, exc.hint)]
    return []


def _note(message: str, hint: str) -> Finding:
    return Finding("files", "note", message, hint)


def _problem(message: str, hint: str | None, remedy: Remedy | None = None) -> Finding:
    return Finding("files", "problem", message, hint, remedy)
