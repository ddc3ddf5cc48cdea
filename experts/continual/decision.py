"""What is done with new data, and why (proposal, section 2.5, step b): reuse, update or spawn.

    spawn      a class, a domain or a task that no expert stands for: a new expert learns it
    update     experts stand for it, and learning more of it makes them better
    reuse      experts stand for it and have nothing to gain: they stay as they are
    undecided  nobody can tell yet; the data waits

Which it is depends on what is incremental. Classes and tasks are named by the data; domains are what assessment finds.
Whether an update is worth its steps is measured: `Decision.weighed`. The router's statistics take in labelled data
whatever is decided of experts.

Decisions are plain data with their evidence, so that a node can tell its user and its peers why it did what it did.
"""

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from experts.continual.assessment import assign_classes
from experts.continual.novelty import Assessment
from experts.errors import CorruptState, SettingOutOfRange

__all__ = [
    "Action",
    "Decision",
    "ExpectedGain",
    "Setting",
    "StartEvidence",
    "decide_by_class",
    "decide_by_domain",
    "decide_by_task",
]

Setting = Literal["class-incremental", "domain-incremental", "task-incremental"]
"""What later data brings."""

Action = Literal["reuse", "update", "spawn", "undecided"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpectedGain:
    """What a short update reached on items that it did not learn from."""

    accuracy_now: float
    """Of the experts as they are, in [0, 1]."""
    accuracy_updated: float
    """Of copies of them after a few steps on the other items."""
    num_items: int
    """Both were measured on."""

    def __post_init__(self) -> None:
        for name in ("accuracy_now", "accuracy_updated"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise SettingOutOfRange(name, getattr(self, name), allowed="in [0, 1]")

    @property
    def gain(self) -> float:
        """In [-1, 1]."""
        return self.accuracy_updated - self.accuracy_now


@dataclass(frozen=True, kw_only=True, slots=True)
class StartEvidence:
    """How a spawned expert's beginning was chosen: each way tried for the same few steps on the same items."""

    chosen: Literal["random", "transferred"]
    source: str | None
    """The nearest expert's uid; None if there was none to begin from."""
    accuracy_random: float
    """On items held out of those steps, in [0, 1]."""
    accuracy_transferred: float | None
    """Likewise; None if nothing could be carried over."""
    steps: int
    num_items: int
    """Held out."""
    reason: str
    """In words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What is done with a batch, an increment of a stream or a task."""

    action: Action
    """The most that is done: with classes both known and new it is spawn, and ``update`` is not empty."""
    reason: str
    """In words."""
    assessment: Assessment
    update: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Classes of the data by the uid of the expert that stands for them: those it learns more of, or is reused for."""
    spawn: tuple[str, ...] = ()
    """Classes of the expert to be made, sorted; empty if none is, or its classes are not known for want of labels."""
    context: str | None = None
    """The domain or task that the data is of; None where classes are what is told apart."""
    gain: ExpectedGain | None = None
    """None where nothing was tried."""
    start: StartEvidence | None = None
    """None where nothing was spawned."""

    def __post_init__(self) -> None:
        if self.action not in get_args(Action):
            raise SettingOutOfRange("action", self.action, allowed=", ".join(get_args(Action)))

    def weighed(self, gain: ExpectedGain, *, min_gain: float) -> "Decision":
        """The same with what an update was found to bring: too little, and experts are reused instead.

        Args:
            gain: Measured.
            min_gain: In points of accuracy as a share, such as .005; at or above it an update is worth its steps.
        """
        if self.action != "update":
            return dataclasses.replace(self, gain=gain)
        measured = f"{gain.accuracy_now:.3f} now, {gain.accuracy_updated:.3f} after a short update"
        if gain.gain >= min_gain:
            return dataclasses.replace(self, gain=gain, reason=f"{self.reason}; {measured}")
        return dataclasses.replace(
            self, action="reuse", gain=gain, reason=f"{self.reason}; nothing to gain: {measured}"
        )

    def to_dict(self) -> dict[str, object]:
        """Ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Decision":
        """The inverse of `to_dict`, also after JSON.

        Raises:
            CorruptState: If it is not what `to_dict` writes.
        """
        try:
            fields = dict(data)
            assessment = dict(fields.pop("assessment"))
            assessment["unseen_labels"] = tuple(assessment["unseen_labels"])
            gain, start = fields.pop("gain"), fields.pop("start")
            return cls(
                assessment=Assessment(**assessment),
                update={uid: tuple(names) for uid, names in fields.pop("update").items()},
                spawn=tuple(fields.pop("spawn")),
                gain=None if gain is None else ExpectedGain(**gain),
                start=None if start is None else StartEvidence(**start),
                **fields,
            )
        except (KeyError, TypeError, ValueError, AttributeError, SettingOutOfRange) as exc:
            raise CorruptState("decision", reason=str(exc)) from exc


def decide_by_class(
    assessment: Assessment, classes: Collection[str], experts: Mapping[str, Collection[str]]
) -> Decision:
    """Class-incremental: labels decide where there are any; distance, where there are none.

    Args:
        assessment: Of the data.
        classes: Names on its labels.
        experts: The classes of each expert, by uid.
    """
    if classes:
        plan = assign_classes(classes, experts)
        if plan.spawn:
            reason = f"no expert answers for {', '.join(plan.spawn)}"
            return Decision(action="spawn", reason=reason, assessment=assessment, update=plan.update, spawn=plan.spawn)
        return Decision(
            action="update", reason="experts answer for all of its classes", assessment=assessment, update=plan.update
        )
    if assessment.verdict == "new":
        reason = "it is unlike what is known; its classes are not named yet"
        return Decision(action="spawn", reason=reason, assessment=assessment)
    return _unlabelled(assessment)


def decide_by_domain(
    assessment: Assessment,
    classes: Collection[str],
    experts: Mapping[str, Collection[str]],
    *,
    nearest: str | None,
    name: str,
) -> Decision:
    """Domain-incremental: an expert a domain, and distance decides, since labels are the same in all of them.

    Args:
        assessment: Of the data.
        classes: Names on its labels.
        experts: The classes of each expert, by uid.
        nearest: The uid of the expert whose domain the data is most like; None if there is none.
        name: The domain's, should it be a new one.
    """
    if nearest is None or assessment.verdict == "new":
        reason = "nothing is known yet" if nearest is None else "it is unlike every domain known"
        return Decision(
            action="spawn", reason=reason, assessment=assessment, spawn=tuple(sorted(classes)), context=name
        )
    if assessment.verdict == "undecided" and classes:
        # An update of the wrong expert would make it forget; an expert too many is merged later.
        reason = f"{assessment.num_held_out} held-out rows are too few to tell its domain: it gets an expert of its own"
        return Decision(
            action="spawn", reason=reason, assessment=assessment, spawn=tuple(sorted(classes)), context=name
        )
    if assessment.verdict == "undecided":
        return _unlabelled(assessment)
    if not classes:
        return dataclasses.replace(_unlabelled(assessment), update={nearest: tuple(sorted(experts[nearest]))})
    new = set(classes) - set(experts[nearest])
    if new:
        reason = f"its domain is known, but not {', '.join(sorted(new))} in it"
        return Decision(
            action="spawn", reason=reason, assessment=assessment, spawn=tuple(sorted(classes)), context=name
        )
    reason = "it is like a known domain"
    return Decision(action="update", reason=reason, assessment=assessment, update={nearest: tuple(sorted(classes))})


def decide_by_task(
    assessment: Assessment, classes: Collection[str], experts_of: Mapping[str, Mapping[str, Collection[str]]], task: str
) -> Decision:
    """Task-incremental: the task is told, and its own experts are the only ones asked.

    Args:
        assessment: Of the data; for the record.
        classes: Names on its labels.
        experts_of: By task, the classes of each of its experts by uid.
        task: The data's.
    """
    if not classes:
        return dataclasses.replace(_unlabelled(assessment), context=task)
    own = decide_by_class(assessment, classes, experts_of.get(task, {}))
    reason = own.reason if task in experts_of else f"task {task} is new"
    return dataclasses.replace(own, context=task, reason=reason)


def _unlabelled(assessment: Assessment) -> Decision:
    if assessment.verdict == "known":
        reason = "it is like what is known, and without labels there is nothing to learn"
        return Decision(action="reuse", reason=reason, assessment=assessment)
    reason = f"{assessment.num_held_out} held-out rows are too few to tell"
    if assessment.verdict == "new":
        reason = "it is new, and without labels there is nothing to learn"
    return Decision(action="undecided", reason=reason, assessment=assessment)
