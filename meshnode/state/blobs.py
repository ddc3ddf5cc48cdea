"""Immutable bytes by digest, one file each: weights, statistics, trunks, mesh specs.

A file appears under its name only whole and on the disk. What is read is checked against its name, so bytes
that the disk has changed are never taken for what was stored.
"""

import os
import threading
from collections.abc import Collection, Sequence
from pathlib import Path

from meshnode.home import TEMP_SUFFIX, replace_atomically, sync_folder
from meshnode.state.partials import PartialBlob, PartialBlobs
from protocol.errors import BlobCorrupt, MalformedIdentifier, UnknownBlob
from protocol.identifiers import Digest, digest_of, parse_digest

__all__ = ["BlobStore", "is_digest"]


class BlobStore:
    """The blobs in one existing folder. Safe to use from several threads of one process.

    Every method that takes a digest raises MalformedIdentifier for text that is none: what a peer sends as a
    digest can never become another path.

    Attributes:
        partials: Those that have not come whole yet.
    """

    def __init__(self, path: Path) -> None:
        self.partials = PartialBlobs(path / "partial")
        self._path = path
        self._changing = threading.Lock()
        self._recent: set[Digest] = set()

    def put(self, data: bytes | memoryview) -> Digest:
        """Store ``data`` and return its digest; when this returns, the bytes are on the disk.

        A stored copy that has become corrupt is replaced.

        Raises:
            OSError: The disk is full or fails; nothing is stored then.
        """
        (digest,) = self.put_all([data])
        return digest

    def put_all(self, blobs: Sequence[bytes | memoryview]) -> tuple[Digest, ...]:
        """As `put`, of several, whose names are put on the disk together.

        Raises:
            OSError: The disk is full or fails; some may be stored then, as nobody's.
        """
        digests = tuple(map(digest_of, blobs))
        with self._changing:
            self._recent.update(digests)
            for digest, data in zip(digests, blobs, strict=True):
                if not self.is_whole(digest):
                    replace_atomically(self._path / digest, data)
            sync_folder(self._path)  # also for one that is there: its writer may have been killed before this
        return digests

    def adopt(self, partial: PartialBlob) -> None:
        """Store a blob that has come whole and right; when this returns, the bytes are on the disk.

        A reference to it may never come, so until there is one `collect` takes it for what it is: unreferenced.

        Raises:
            OSError: The disk fails; nothing is stored then.
        """
        assert partial.is_right(), "other bytes than its name says"
        partial.sync()
        os.replace(partial.path, self._path / partial.digest)
        sync_folder(self._path)

    def get(self, digest: Digest) -> bytes:
        """The bytes of this digest.

        Raises:
            UnknownBlob: None are stored.
            BlobCorrupt: What the disk gives is not what was put. It stays where it is, until a `put` of the
                right bytes replaces it.
        """
        try:
            data = self._file(digest).read_bytes()
        except FileNotFoundError as exc:
            raise UnknownBlob(digest) from exc
        except OSError as exc:
            raise BlobCorrupt(digest) from exc
        if digest_of(data) != digest:
            raise BlobCorrupt(digest)
        return data

    def has(self, digest: Digest) -> bool:
        """Whether a blob of this digest is stored, whole or not."""
        return self._file(digest).is_file()

    def is_whole(self, digest: Digest) -> bool:
        """Whether `get` would return; it costs as much."""
        try:
            self.get(digest)
        except (UnknownBlob, BlobCorrupt):
            return False
        return True

    def size(self, digest: Digest) -> int:
        """Length of the stored blob in bytes. Raises UnknownBlob if there is none."""
        try:
            return self._file(digest).stat().st_size
        except FileNotFoundError as exc:
            raise UnknownBlob(digest) from exc

    def read_range(self, digest: Digest, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes from ``offset`` on, none past the end. Not checked: only the whole can be.

        Args:
            digest: The blob.
            offset: First byte, at least 0.
            length: At least 0; the caller bounds it.

        Raises:
            UnknownBlob: None is stored.
            BlobCorrupt: The disk does not give it.
        """
        try:
            with self._file(digest).open("rb") as file:
                file.seek(offset)
                return file.read(length)
        except FileNotFoundError as exc:
            raise UnknownBlob(digest) from exc
        except OSError as exc:
            raise BlobCorrupt(digest) from exc

    def delete(self, digest: Digest) -> None:
        """Forget a blob; nothing to do if there is none."""
        with self._changing:
            self._delete(digest)

    def digests(self) -> tuple[Digest, ...]:
        """Of every stored blob, sorted; files of other names are none of ours."""
        return tuple(sorted(Digest(file.name) for file in self._path.iterdir() if is_digest(file.name)))

    def sweep(self) -> None:
        """Remove what writes that a kill interrupted have left. Only while no other process writes here."""
        self.partials.sweep()
        for file in self._path.glob(f".*{TEMP_SUFFIX}"):
            file.unlink(missing_ok=True)

    def collect(self, referenced: Collection[Digest], *, superseded: Collection[Digest]) -> tuple[Digest, ...]:
        """Delete blobs that nothing refers to any more.

        A blob put since this store was made is spared although nothing refers to it yet, for its reference
        may be about to be written; unless it is ``superseded``: then its reference is known to be gone.

        Args:
            referenced: Digests to keep in any case.
            superseded: Digests that were referred to until now.

        Returns:
            What was deleted, sorted.
        """
        with self._changing:
            spared = self._recent.difference(superseded).union(referenced)
            deleted = tuple(digest for digest in self.digests() if digest not in spared)
            for digest in deleted:
                self._delete(digest)
        return deleted

    def _delete(self, digest: Digest) -> None:
        self._file(digest).unlink(missing_ok=True)
        self._recent.discard(digest)

    def _file(self, digest: Digest) -> Path:
        return self._path / parse_digest(digest)


def is_digest(text: str) -> bool:
    """Whether ``text`` has the form of a digest."""
    try:
        parse_digest(text)
    except MalformedIdentifier:
        return False
    return True
