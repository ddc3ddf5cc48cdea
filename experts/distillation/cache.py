"""A teacher's logits kept on disk, so that neither another epoch nor another run asks the teacher again.

An entry is one file, named by the digest of the data and the digest of the teacher: neither can change without
changing the name, so an entry is never out of date. It is only a copy of what can be computed again; whatever is
wrong with a file, or with the disk, costs time and nothing else, and the caller is told.

Legend: N items, B batch, K class (the teacher's own), H height, W width.
"""

import contextlib
import hashlib
import json
import os
import re
import tempfile
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import torch
from torch import Tensor

from experts.errors import CorruptState, SettingOutOfRange, ShapeMismatch
from experts.sealed import seal, tensors_digest, unseal
from experts.teachers.base import Teacher

__all__ = ["CacheOutcome", "CachedLogits", "LogitCache", "data_digest"]


class CacheOutcome(StrEnum):
    """What the cache had to offer."""

    HIT = "hit"
    """The logits; the teacher did not run."""
    ABSENT = "absent"
    """Nothing under this name."""
    CORRUPT = "corrupt"
    """A file that cannot be read, or was damaged."""
    FOREIGN = "foreign"
    """A sound file under this name of other data, another teacher, other classes or another number of items."""


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class CachedLogits:
    """A teacher's logits, and how they were come by."""

    logits_NK: Tensor
    """float32 ``(N, K)``, columns as the teacher's classes, on the device of the images."""
    outcome: CacheOutcome
    """Whether they were read; if not, why not."""
    reason: str
    """What was wrong with the file, for people; empty after a hit and where there was none."""
    kept: bool
    """Whether the cache holds them now; False if they alone exceed its size, or the disk refused them."""


class LogitCache:
    """Logits in a folder of bounded size; those unused for longest go first.

    Several processes may share the folder. Files that don't have the form of an entry's name are left alone.
    """

    def __init__(self, folder: Path, *, max_bytes: int, batch_size: int = 256) -> None:
        """
        Args:
            folder: Made when something is first written; for its owner alone, as logits tell of the data.
            max_bytes: Size of all entries together, at least 1; with several processes exceeded by no more than
                what they write at once.
            batch_size: Images shown to a teacher at a time, at least 1; bounds memory.

        Raises:
            SettingOutOfRange: If a size is not positive.
        """
        for name, value in (("max_bytes", max_bytes), ("batch_size", batch_size)):
            if value < 1:
                raise SettingOutOfRange(name, value, allowed="at least 1")
        self._folder = folder
        self._max_bytes = max_bytes
        self._batch_size = batch_size

    def logits(self, teacher: Teacher, images_NCHW: Tensor, *, data_digest: str, teacher_digest: str) -> CachedLogits:
        """The teacher's logits of all images: read if they are kept, else computed in batches and kept.

        Args:
            teacher: Runs only if it must.
            images_NCHW: As the teacher takes them.
            data_digest: SHA-256 of exactly these images in this order, 64 lowercase hex characters; see the
                function of this name.
            teacher_digest: SHA-256 of the teacher's weights and whatever else its answer depends on.

        Raises:
            SettingOutOfRange: If a digest is not one; nothing else may become the name of a file.
            ShapeMismatch: If the teacher does not take the images, or answers in another form than its classes.
        """
        for name, digest in (("data_digest", data_digest), ("teacher_digest", teacher_digest)):
            if not _DIGEST.fullmatch(digest):
                raise SettingOutOfRange(name, digest, allowed="64 lowercase hex characters")
        path = self._folder / f"{data_digest}-{teacher_digest}{_SUFFIX}"
        # Of the names' digest, since the names of 20,000 classes would not fit a header.
        classes = hashlib.sha256(json.dumps(teacher.classes).encode()).hexdigest()
        header = {"data": data_digest, "teacher": teacher_digest, "classes": classes}
        found = self._read(path, header, (len(images_NCHW), len(teacher.classes)))
        if isinstance(found, Tensor):
            return CachedLogits(logits_NK=found.to(images_NCHW.device), outcome=CacheOutcome.HIT, reason="", kept=True)
        outcome, reason = found
        logits_NK = self._run(teacher, images_NCHW)
        kept = self._write(path, seal({_LOGITS: logits_NK}, header))
        return CachedLogits(logits_NK=logits_NK, outcome=outcome, reason=reason, kept=kept)

    def __len__(self) -> int:
        """Entries kept."""
        return len(self._entries())

    def clear(self) -> None:
        """Delete all entries, and what interrupted writes have left of some; no error if one is deleted meanwhile."""
        for entry in self._entries():
            entry.unlink(missing_ok=True)
        for part in self._folder.glob(f"*{_PART}"):
            part.unlink(missing_ok=True)

    def _entries(self) -> list[Path]:
        return [path for path in self._folder.glob(f"*{_SUFFIX}") if _ENTRY_NAME.fullmatch(path.name)]

    def _run(self, teacher: Teacher, images_NCHW: Tensor) -> Tensor:
        batches: list[Tensor] = []
        for images_BCHW in torch.split(images_NCHW, self._batch_size):
            logits_BK = teacher.logits(images_BCHW)
            if logits_BK.shape != (len(images_BCHW), len(teacher.classes)):
                expected = (len(images_BCHW), len(teacher.classes))
                raise ShapeMismatch("teacher logits", expected=expected, got=tuple(logits_BK.shape))
            # In float32 at once, so that what is read later is what was computed now.
            batches.append(logits_BK.detach().float())
        return torch.cat(batches)

    def _read(self, path: Path, header: dict[str, str], shape: tuple[int, int]) -> Tensor | tuple[CacheOutcome, str]:
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return CacheOutcome.ABSENT, ""
        except OSError as exc:
            return CacheOutcome.CORRUPT, str(exc)
        _mark_used(path)
        try:
            tensors, found = unseal(data, "cached logits")
        except CorruptState as exc:
            return CacheOutcome.CORRUPT, exc.reason
        for name, value in header.items():
            if found.get(name) != value:
                return CacheOutcome.FOREIGN, f"of other {name}"
        logits_NK = tensors.get(_LOGITS)
        if logits_NK is None or logits_NK.shape != shape or logits_NK.dtype != torch.float32:
            return CacheOutcome.FOREIGN, f"not float32 logits of shape {shape}"
        return logits_NK

    def _write(self, path: Path, data: bytes) -> bool:
        """Whether the data is now at ``path``: all of it, or nothing of it."""
        if len(data) > self._max_bytes:
            return False
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._make_room(path, len(data))
            descriptor, name = tempfile.mkstemp(suffix=_PART, dir=self._folder)
            try:
                # Not synced to the disk: what a power cut leaves half-written is found corrupt and computed again.
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
                os.replace(name, path)
            finally:
                Path(name).unlink(missing_ok=True)
            _mark_used(path)
        except OSError:
            return False
        return True

    def _make_room(self, path: Path, num_bytes: int) -> None:
        """Delete what was unused for longest until ``num_bytes`` more fit, not counting what they replace."""
        entries: list[tuple[int, str, int]] = []
        for entry in self._folder.iterdir():
            is_part = entry.suffix == _PART
            if entry == path or not (is_part or _ENTRY_NAME.fullmatch(entry.name)):
                continue
            try:
                status = entry.stat()
            except FileNotFoundError:  # another process was faster
                continue
            # A writer that lives has replaced its part within the hour.
            if is_part and time.time() - status.st_mtime > _PART_LIFE_S:
                entry.unlink(missing_ok=True)
            elif not is_part:
                entries.append((status.st_mtime_ns, entry.name, status.st_size))
        total = sum(size for _, _, size in entries)
        for _, name, size in sorted(entries):
            if total + num_bytes <= self._max_bytes:
                return
            (self._folder / name).unlink(missing_ok=True)
            total -= size


def data_digest(images_NCHW: Tensor) -> str:
    """SHA-256 over type, shape and values of images as a teacher sees them: 64 lowercase hex characters."""
    return tensors_digest({"images": images_NCHW}, {})


def _mark_used(path: Path) -> None:
    # Use is told by the time of modification: many disks are mounted without times of access. It is given in full,
    # as the one the kernel takes by itself moves in steps of milliseconds.
    now_ns = time.time_ns()
    # A folder that may only be read still serves, and an entry that another process just deleted was still read.
    with contextlib.suppress(OSError):
        os.utime(path, ns=(now_ns, now_ns))


_DIGEST = re.compile(r"[0-9a-f]{64}")
_SUFFIX = ".safetensors"
_ENTRY_NAME = re.compile(rf"{_DIGEST.pattern}-{_DIGEST.pattern}{re.escape(_SUFFIX)}")
_PART = ".modulemesh-part"
_PART_LIFE_S = 3600.0
_LOGITS = "logits"
