"""Whether there is room for what a node keeps."""

from collections.abc import Sequence

import psutil

from meshnode.doctor.finding import Finding
from meshnode.doctor.subject import Subject

__all__ = ["check_disk"]

MIN_FREE_BYTES = 10**9
"""Trunk, teachers and generations of experts take a few hundred megabytes; a full disk ends a node."""


def check_disk(subject: Subject) -> Sequence[Finding]:
    """Room on the disk where the home is, or would be made."""
    path = subject.home.path.absolute()
    folder = next(place for place in (path, *path.parents) if place.is_dir())
    free_bytes = psutil.disk_usage(str(folder)).free
    message = f"{free_bytes / 1e9:.3g} GB free at {folder}"
    if free_bytes < MIN_FREE_BYTES:
        hint = "A node needs 1 GB. Make room, or take a folder on another disk with --home."
        return [Finding("disk", "problem", message, hint)]
    return [Finding("disk", "ok", message)]
