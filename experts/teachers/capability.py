"""A capability: some of a teacher's classes, under the names that the mesh has for them.

    p(m | x) proportional to sum_{t -> m} p_teacher(t | x)
    logit_m = log sum_{t -> m} exp(logit_t)

A teacher of ImageNet tells 120 breeds of dogs apart; a mesh wants `dog`. Teacher classes that map to one mesh class
add their probabilities, which for logits is a logsumexp; those that map to none are left out, so that what remains is
the teacher's distribution given that the answer is among them.

Distillation softens after the sum, not before: at T > 1 a class made of many does not weigh more than one made of one
with the same probability.

Legend: B batch, C class (the mesh's names), K class (the teacher's own), H height, W width.
"""

import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch

from experts.errors import MalformedCapability, ShapeMismatch, UnknownClasses
from experts.teachers.base import Teacher

__all__ = ["Capability", "TeacherWithDigest", "read_mapping"]

_TABLE = "classes"


class TeacherWithDigest(Teacher, Protocol):
    """A teacher that says what its answers depend on."""

    @property
    def digest(self) -> str:
        """SHA-256 of its weights and all else its answer depends on, 64 lowercase hex characters."""


class Capability:
    """A teacher that answers for part of what another knows, by the mesh's names; a `Teacher`.

    Args:
        teacher: Who answers.
        of: For some of its classes, the mesh's name; several may have the same.
        mesh_classes: Names that the mesh knows, to refuse a misspelt one; None takes any.
    Raises: MalformedCapability: If nothing is mapped, or a name is empty. UnknownClasses: If a class is not the
        teacher's, or not the mesh's.
    """

    def __init__(
        self, teacher: TeacherWithDigest, of: Mapping[str, str], *, mesh_classes: Iterable[str] | None = None
    ) -> None:
        if not of or not all(of.values()):
            raise MalformedCapability("capability", reason="it maps no class, or one to a name without letters")
        _require_known(of.keys(), teacher.classes)
        if mesh_classes is not None:
            _require_known(of.values(), tuple(mesh_classes))
        self.teacher = teacher
        """Who answers."""
        self.of = dict(sorted(of.items()))
        """The mapping, from the teacher's names to the mesh's."""
        self._classes = tuple(sorted(set(of.values())))
        column_of = {name: column for column, name in enumerate(teacher.classes)}
        self._columns = [
            torch.tensor([column_of[theirs] for theirs, ours in self.of.items() if ours == name])
            for name in self._classes
        ]

    @property
    def classes(self) -> tuple[str, ...]:
        """The sorted names of the mesh's classes it scores."""
        return self._classes

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the teacher's digest and the mapping, 64 lowercase hex characters."""
        declared = json.dumps([self.teacher.digest, self.of], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(declared.encode()).hexdigest()

    def logits(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Unnormalised scores ``(B, C)`` without a graph for gradients; -inf where the teacher gives it to all.

        Raises: ShapeMismatch: If the images are not of the teacher's form, or its answer not of its classes.
        """
        logits_BK = self.teacher.logits(images_BCHW)
        expected = (len(images_BCHW), len(self.teacher.classes))
        if logits_BK.shape != expected:
            raise ShapeMismatch("teacher logits", expected=expected, got=logits_BK.shape)
        merged = [logits_BK[:, columns.to(logits_BK.device)].logsumexp(dim=1) for columns in self._columns]
        return torch.stack(merged, dim=1)


def read_mapping(path: Path) -> dict[str, str]:
    """Reads a capability's mapping from a TOML file with one table, teacher's names on the left:

        [classes]
        "Egyptian cat" = "cat"
        "tabby" = "cat"
        "beagle" = "dog"

    Returns: The mesh's name for each of the teacher's.
    Raises: MalformedCapability: If the file cannot be read or is not of that form.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise MalformedCapability(str(path), reason=str(exc)) from exc
    table = document.get(_TABLE)
    if document.keys() != {_TABLE} or not isinstance(table, dict):
        raise MalformedCapability(str(path), reason=f"not one table [{_TABLE}] and nothing else")
    wrong = sorted(theirs for theirs, ours in table.items() if not isinstance(ours, str) or not ours)
    if wrong or not table:
        raise MalformedCapability(str(path), reason=f"no name for {', '.join(wrong) or 'any class'}")
    return table


def _require_known(names: Iterable[str], known: tuple[str, ...]) -> None:
    unknown = set(names) - set(known)
    if unknown:
        raise UnknownClasses(unknown, known=known)
