"""Whether there is something to learn from, and somebody who teaches it.

Task files are counted here, never opened: that is the trainer's alone, as is loading teachers.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from meshnode.doctor.finding import Finding
from meshnode.doctor.subject import Subject

__all__ = ["check_data"]

_MEND_FILE = "Mend the file or remove it; one that has changed is tried again."
_MEND_TEACHER = "Mend it, or remove it from teachers in [train] and start again; `meshnode train now` tries again."


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
    problems = [
        *_each(training.get("unreadable"), "task file {} cannot be read", _MEND_FILE),
        *_each(training.get("failed"), "task file {} could not be learned", _MEND_FILE),
        *_each(training.get("unusable_teachers"), "nothing is learned without the teacher {}", _MEND_TEACHER),
    ]
    return problems or [_folder(Path(data))]


def _each(entries: object, what: str, hint: str) -> list[Finding]:
    """A problem an entry: its name in what is wrong with it, then the reason."""
    if not isinstance(entries, Mapping):
        return []
    return [Finding("data", "problem", f"{what.format(name)}: {reason}", hint) for name, reason in entries.items()]


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
