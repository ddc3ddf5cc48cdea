"""Blobs on their way: what has come of each, from its beginning on, in a file that outlives a kill.

Nothing here is believed. Only the digest of the whole says whether the bytes are right, so a file that a crash of the
machine has torn is found like one that a peer has lied into.
"""

import hashlib
import os
import threading
import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from protocol.identifiers import Digest, digest_of, parse_digest
from protocol.limits import MAX_BLOB_BYTES

__all__ = ["PartialBlob", "PartialBlobs"]

KEPT_S: Final = 7 * 86_400.0
"""What nobody has gone on with for so long is given up: by then the mesh has other weights."""

MAX_KEPT_BYTES: Final = MAX_BLOB_BYTES
"""Of all partial blobs that nobody is writing; beyond it those longest untouched are given up."""

_READ_BYTES: Final = 1024 * 1024


class PartialBlob:
    """The beginning of one blob. It waits for the disk, so an event loop leaves it to threads; any of them may use it.

    Attributes:
        digest: What the whole is to have.
        path: The file.
        num_bytes: Its length.
    """

    def __init__(self, path: Path, digest: Digest) -> None:
        self.path = path
        self.digest = digest
        self.num_bytes = 0
        self._using = threading.Lock()
        # Written at the end only; readable for the part that an earlier process left. Unbuffered: after a failure
        # nothing is left to be written later.
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        self._file = os.fdopen(descriptor, "r+b", buffering=0)
        self._sha = hashlib.sha256()
        while data := self._file.read(_READ_BYTES):
            self._sha.update(data)
            self.num_bytes += len(data)

    def append(self, pieces: Iterable[memoryview]) -> None:
        """Write what follows, in pieces of bytes.

        Raises:
            OSError: The disk is full or fails; what was written whole stays.
        """
        with self._using:
            for piece in pieces:
                try:
                    self._write(piece)
                except OSError:
                    with suppress(OSError):
                        self._file.truncate(self.num_bytes)
                    raise
                self._sha.update(piece)
                self.num_bytes += len(piece)

    def _write(self, piece: memoryview) -> None:
        while piece:
            piece = piece[self._file.write(piece) :]

    def is_right(self) -> bool:
        """Whether these bytes are the whole blob."""
        return self._sha.hexdigest() == self.digest

    def read(self) -> bytes:
        """All that is here, also when the file has another name by now. Raises OSError if the disk does not give it."""
        with self._using:
            return os.pread(self._file.fileno(), self.num_bytes, 0)

    def digests(self, spans: Sequence[tuple[int, int]]) -> list[Digest]:
        """Of each span, an offset and a length, of what is here now."""
        with self._using:
            return [digest_of(os.pread(self._file.fileno(), length, offset)) for offset, length in spans]

    def clear(self) -> None:
        """Begin anew."""
        with self._using:
            self._file.truncate(0)
            self._sha = hashlib.sha256()
            self.num_bytes = 0

    def sync(self) -> None:
        """Put on the disk what is here, while others may append. Raises OSError if that fails."""
        with self._using:
            descriptor = os.dup(self._file.fileno())
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Leave the file as it is; a second time does nothing."""
        with self._using:
            self._file.close()


class PartialBlobs:
    """The partial blobs in one folder, which need not exist before there are any."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._changing = threading.Lock()
        self._open: set[Digest] = set()

    def num_bytes(self, digest: Digest) -> int:
        """How much is there of a blob; 0 if nothing is."""
        try:
            return self._file(digest).stat().st_size
        except FileNotFoundError:
            return 0

    def open(self, digest: Digest) -> PartialBlob:
        """What is there of a blob, to go on with; nobody else may have it open. Others may be given up for it.

        Raises:
            OSError: The disk fails.
        """
        with self._changing:
            assert digest not in self._open, "two would write one file"
            self._folder.mkdir(mode=0o700, exist_ok=True)
            self._make_room(spared={*self._open, digest})
            self._open.add(digest)
        return PartialBlob(self._file(digest), digest)

    def close(self, partial: PartialBlob) -> None:
        """Leave it as it is, for whoever goes on with it."""
        partial.close()
        with self._changing:
            self._open.discard(partial.digest)

    def sweep(self) -> None:
        """Give up what is old or too much."""
        with self._changing:
            if self._folder.is_dir():
                self._make_room(spared=self._open)

    def _make_room(self, *, spared: Collection[str]) -> None:
        idle = [(file.stat(), file) for file in self._folder.iterdir() if file.name not in spared]
        given_up_before, kept_bytes = time.time() - KEPT_S, 0
        for found, file in sorted(idle, key=lambda entry: entry[0].st_mtime, reverse=True):
            kept_bytes += found.st_size
            if found.st_mtime < given_up_before or kept_bytes > MAX_KEPT_BYTES:
                file.unlink()

    def _file(self, digest: Digest) -> Path:
        return self._folder / parse_digest(digest)
