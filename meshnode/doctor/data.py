"""Whether there is something to learn from. Task files are counted here, never opened: that is the trainer's alone."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from meshnode.doctor.finding import Finding
from meshnode.doctor.subject import Subject

__all__ = ["check_data"]


def check_data(subject: Subject) -> Sequence[Finding]:
    """The folder that the daemon learns from, or the one that its next start would."""
    training = subject.told("training")
    if subject.status is not None:
        enabled, data = training.get("state") != "disabled", training.get("data")
    elif subject.config is not None:
        enabled, data = subject.config.train.enabled, subject.config.train.data
    else:
        return []
    if not enabled:
        return [Finding("data", "ok", "this node is set not to learn")]
    if data is None:
        hint = "A node without one serves and averages. To learn: `meshnode run --data DIR`, or data in [train]."
        return [Finding("data", "note", "no data folder is set", hint)]
    unlearned = [
        *_each(training.get("unreadable"), "cannot be read"),
        *_each(training.get("failed"), "could not be learned"),
    ]
    return unlearned or [_folder(Path(data))]


def _each(files: object, what: str) -> list[Finding]:
    if not isinstance(files, Mapping):
        return []
    hint = "Mend the file or remove it; one that has changed is tried again."
    return [Finding("data", "problem", f"task file {name} {what}: {reason}", hint) for name, reason in files.items()]


def _folder(folder: Path) -> Finding:
    try:
        number = sum(name.endswith(".npz") for name in os.listdir(folder))
    except OSError as exc:
        hint = "Make it, or name another with --data or data in [train]."
        return Finding("data", "problem", f"the data folder {folder} cannot be read: {exc.strerror}", hint)
    if not number:
        hint = "Put task files there, named in the order in which they are to be learned."
        return Finding("data", "note", f"there is no task file (*.npz) in {folder}", hint)
    return Finding("data", "ok", f"task files in {folder}: {number}")
