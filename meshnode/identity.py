"""The node's two secrets: the key that makes it the peer it is, and the key that opens its API.

Each is made once, in one step that a kill cannot halve, and never replaced by the program: a peer that loses
its identity key is another peer to everybody else.
"""

import os
import re
import secrets
import stat
from pathlib import Path

from meshnode.errors import IdentityUnusable
from meshnode.home import Home, create_atomically
from protocol.errors import MalformedIdentifier
from protocol.signing import SigningKey

__all__ = ["api_key", "load_or_create_identity"]

_API_KEY = re.compile(rb"[\x21-\x7e]{16,}")
"""What can stand in an HTTP header, and too long to guess."""


def load_or_create_identity(home: Home) -> SigningKey:
    """The node's RSA key, made if the home has none yet; of several processes at once all get the same.

    Args:
        home: Its folder exists.

    Raises:
        IdentityUnusable: The key file is no key, or others can read it.
        OSError: The disk is full or fails.
    """
    path = home.identity_key
    if not path.exists():
        create_atomically(path, SigningKey.generate().to_libp2p())
    try:
        return SigningKey.from_libp2p(_read_secret(path))
    except MalformedIdentifier as exc:
        raise IdentityUnusable(
            path, exc.reason, hint="Restore it from a backup, or move it away to start anew as another peer."
        ) from exc


def api_key(home: Home) -> str:
    """The API's bearer key, made if the home has none yet; of several processes at once all get the same.

    Args:
        home: Its folder exists.

    Raises:
        IdentityUnusable: The key file is empty or holds what no HTTP header can, or others can read it.
        OSError: The disk is full or fails.
    """
    path = home.api_key
    if not path.exists():
        create_atomically(path, secrets.token_urlsafe(32).encode() + b"\n")
    key = _read_secret(path).strip()
    if not _API_KEY.fullmatch(key):
        raise IdentityUnusable(
            path,
            "16 or more printable characters are expected",
            hint="Remove it: the next start makes a new one.",
        )
    return key.decode()


def _read_secret(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise IdentityUnusable(
                    path, f"its mode is {mode:04o}, so others can read or change it", hint=f"chmod 600 {path}"
                )
            return file.read()
    except OSError as exc:
        raise IdentityUnusable(path, str(exc.strerror), hint="It must be a file of the user that runs this.") from exc
