"""A node's home folder: where its files lie, and how they are written so that a kill leaves no half.

A home belongs to one node. Its files are for its user's eyes only: folders are 0700, keys 0600.
"""

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import platformdirs

__all__ = [
    "DaemonNote",
    "Home",
    "TEMP_SUFFIX",
    "create_atomically",
    "default_home",
    "replace_atomically",
    "sync_folder",
    "write_atomically",
]

TEMP_SUFFIX = ".tmp"
"""Ends the name of a file that is not complete yet. After a kill such files remain and mean nothing."""


@dataclass(frozen=True, slots=True)
class DaemonNote:
    """What a daemon that is ready leaves for clients of this machine, in ``daemon.json``."""

    pid: int
    url: str
    """Where its API answers, such as ``http://127.0.0.1:40123``."""


@dataclass(frozen=True, slots=True)
class Home:
    """The folder at ``path``, which need not exist yet. Properties are paths, named after their files."""

    path: Path

    @property
    def config_toml(self) -> Path:
        """Settings, TOML, written by people."""
        return self.path / "config.toml"

    @property
    def identity_key(self) -> Path:
        """The node's RSA key, as a libp2p ``PrivateKey`` protobuf."""
        return self.path / "identity.key"

    @property
    def api_key(self) -> Path:
        """The bearer key of the API, one line of text."""
        return self.path / "api.key"

    @property
    def lock(self) -> Path:
        """Locked while a daemon runs; its existence alone means nothing."""
        return self.path / "meshnode.lock"

    @property
    def daemon_json(self) -> Path:
        """The `DaemonNote` of the daemon that is ready; stale after a kill."""
        return self.path / "daemon.json"

    @property
    def state(self) -> Path:
        """What the daemon must not lose."""
        return self.path / "state"

    @property
    def ledger(self) -> Path:
        """What the node hosts, has learned and has been told: SQLite."""
        return self.state / "ledger.sqlite"

    @property
    def blobs(self) -> Path:
        """Immutable bytes, each file named by its digest."""
        return self.state / "blobs"

    @property
    def trainer(self) -> Path:
        """What the trainer process keeps; the daemon does not look inside."""
        return self.path / "trainer"

    def create(self) -> None:
        """Make the folders that are absent, mode 0700. Raises OSError if the disk does not let it."""
        for folder in (self.path, self.state, self.blobs, self.trainer):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def read_daemon_note(self) -> DaemonNote | None:
        """What the last daemon that was ready wrote, or None if none did since a stop in good order.

        The process may be gone: only the lock tells for sure.
        """
        try:
            note = json.loads(self.daemon_json.read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        if not isinstance(note, Mapping):
            return None
        pid, url = note.get("pid"), note.get("url")
        return DaemonNote(pid, url) if isinstance(pid, int) and isinstance(url, str) else None

    def write_daemon_note(self, note: DaemonNote) -> None:
        """Tell clients that the daemon is ready, and where."""
        document = {"schema": "meshnode.daemon/1", "pid": note.pid, "url": note.url}
        write_atomically(self.daemon_json, json.dumps(document).encode(), 0o600)

    def remove_daemon_note(self) -> None:
        """Take the note back; nothing to do if there is none."""
        self.daemon_json.unlink(missing_ok=True)


def default_home() -> Home:
    """``$MESHNODE_HOME`` if it is set, else the platform's folder for an application's data."""
    chosen = os.environ.get("MESHNODE_HOME")
    return Home(Path(chosen).expanduser() if chosen else platformdirs.user_data_path("modulemesh"))


def write_atomically(path: Path, data: bytes | memoryview, mode: int = 0o600) -> None:
    """Make ``path`` hold ``data``, on the disk when this returns.

    After a kill at any point the path holds its old content (or still does not exist), or the new.

    Args:
        path: In a folder that exists.
        data: The whole new content.
        mode: Permission bits of the file, whatever the umask.

    Raises:
        OSError: The disk is full or fails; the path is then unchanged.
    """
    replace_atomically(path, data, mode)
    sync_folder(path.parent)


def replace_atomically(path: Path, data: bytes | memoryview, mode: int = 0o600) -> None:
    """As `write_atomically`, but for the name, which is on the disk only once its folder is synced.

    Raises:
        OSError: The disk is full or fails; the path is then unchanged.
    """
    temporary = _write_temporary(path, data, mode)
    try:
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def create_atomically(path: Path, data: bytes, mode: int = 0o600) -> bool:
    """As `write_atomically`, but never replaces a file: of several writers at once, one wins.

    Returns:
        Whether this call made the file; False if it was there already.

    Raises:
        OSError: The disk is full or fails.
    """
    temporary = _write_temporary(path, data, mode)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True


def sync_folder(folder: Path) -> None:
    """Put the folder's names themselves on the disk: a rename is not durable before this."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_temporary(path: Path, data: bytes | memoryview, mode: int) -> Path:
    """A new file beside ``path`` that holds ``data`` durably."""
    temporary = path.parent / f".{path.name}.{secrets.token_hex(8)}{TEMP_SUFFIX}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            if data:
                os.posix_fallocate(descriptor, 0, len(data))  # a full disk is found before a byte is written
            file.write(data)
            file.flush()
            os.fsync(descriptor)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary
