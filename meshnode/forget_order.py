"""An order to forget: what is asked for, and what came of it, or would."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import msgspec

from protocol.identifiers import ExpertUid
from protocol.limits import MAX_NAME_CHARS

__all__ = ["Fate", "ForgetReport", "ForgetRequest", "Gone", "Left"]


class ForgetRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a user asks for; a task or a peer."""

    task: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME_CHARS)] | None = None
    peer: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME_CHARS)] | None = None
    """A node's name, or a peer id or how one begins."""
    undo: bool = False
    """Let it come back, instead."""
    keep_experts: bool = False
    """Leave the experts that have learned from the task as they are, and only name them."""
    dry_run: bool = False
    """Only say what would become of everything."""

    def __post_init__(self) -> None:
        if (self.task is None) == (self.peer is None):
            raise ValueError("a task or a peer is expected")
        if self.undo and (self.keep_experts or self.dry_run):
            raise ValueError("undo takes no other option")


@dataclass(frozen=True, kw_only=True, slots=True)
class Gone:
    """Something that is deleted."""

    kind: Literal[
        "contribution", "replay images", "teacher", "teachers' answers", "interrupted runs", "file found in a stream"
    ]
    name: str
    """Of the task."""
    count: int
    """Samples of a contribution, else how many there are of the kind."""
    note: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Fate:
    """What becomes of an expert that has learned from a task."""

    uid: ExpertUid
    classes: tuple[str, ...]
    reason: str
    tasks: tuple[str, ...] = ()
    """Of one that is distilled again: this node's tasks that it knows then, or those that are to be tried."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Left:
    """Something that is not forgotten."""

    kind: Literal["expert", "replicas", "copies", "weights", "trunk", "teachers", "trainer", "file"]
    name: str
    reason: str


@dataclass(kw_only=True, slots=True)
class ForgetReport:
    """What came of an order, or would."""

    request: ForgetRequest
    dropped: list[Gone] = field(default_factory=list)
    retired: list[Fate] = field(default_factory=list)
    redistilled: list[Fate] = field(default_factory=list)
    not_forgotten: list[Left] = field(default_factory=list)
