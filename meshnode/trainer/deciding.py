"""Which experts learn a task, and why: the decision, made on what the worker finds in the task and on what it tries.

Experts are of the whole mesh: those that the directory lists, and those that are hosted here. One that is to be tried
is pulled first. Each expert is tried by itself, so that of several that stand for a task's classes only those learn
that gain by it; the others are reused. One that has learned nothing yet, as when two nodes make the same expert at the
same time, has nothing to be held against and always learns.
"""

import asyncio
import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from experts.checkpoint import weights_to_bytes
from experts.continual.assessment import assign_classes
from experts.continual.decision import Decision, ExpectedGain, decide_by_class
from experts.errors import CorruptState, SettingOutOfRange
from meshnode.hosted import HostedExpert
from meshnode.trainer.assess_messages import Assess, Assessed, ExpertTrial
from meshnode.trainer.messages import LearningFailed
from meshnode.trainer.parts import TrainerParts
from meshnode.trainer.process import TrainerProcess
from meshnode.trainer.task_file import TaskFile
from protocol.identifiers import Digest, ExpertUid

__all__ = ["ALWAYS", "Decided", "Decider", "decide"]

ALWAYS = -1.0
"""The least gain with which nothing is tried: every update is made."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decided:
    """A decision, and the evidence of it that concerns single experts and batches."""

    decision: Decision
    trained: tuple[str, ...] = ()
    """Uids of the known experts that learn, sorted; the others of ``decision.update`` are reused."""
    gains: Mapping[str, ExpectedGain] = field(default_factory=dict)
    """Of the experts that were tried, by uid."""
    batches: Mapping[str, int] = field(default_factory=dict)
    """Batches by the verdict on each, by its distance alone."""

    @property
    def awaits_labels(self) -> bool:
        """Whether nothing can be done with the data before it has labels, or more is known."""
        return self.decision.action == "undecided"

    def to_dict(self) -> dict[str, object]:
        """Ready for JSON."""
        return {
            **self.decision.to_dict(),
            "trained": list(self.trained),
            "gains": {uid: dataclasses.asdict(gain) for uid, gain in self.gains.items()},
            "batches": dict(self.batches),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Decided":
        """The inverse of `to_dict`, also after JSON.

        Raises:
            CorruptState: If it is not what `to_dict` writes.
        """
        try:
            fields = dict(data)
            trained, gains, batches = fields.pop("trained"), fields.pop("gains"), fields.pop("batches")
            return cls(
                decision=Decision.from_dict(fields),
                trained=tuple(trained),
                gains={uid: ExpectedGain(**gain) for uid, gain in gains.items()},
                batches=dict(batches),
            )
        except (KeyError, TypeError, ValueError, AttributeError, SettingOutOfRange) as exc:
            raise CorruptState("decision", reason=str(exc)) from exc


class Decider:
    """Decides on tasks with what the node and its mesh know.

    Args:
        parts: What of the node it works with.
        min_gain: What a trial has to bring, as a share of accuracy; `ALWAYS` tries nothing.
    """

    def __init__(self, parts: TrainerParts, min_gain: float) -> None:
        self._parts = parts
        self._min_gain = min_gain

    def known_experts(self) -> dict[str, tuple[str, ...]]:
        """The classes of each expert that a task's classes may go to, by uid."""
        hosted = self._parts.host.experts
        known: dict[str, tuple[str, ...]] = {
            # A node that has not followed a successor goes on with what it has, listed or not: pulled, the successor
            # would take its place unjudged.
            uid: listing.classes
            for uid, listing in self._parts.directory.current().items()
            if hosted.keys().isdisjoint((*listing.ancestors, *(older.uid for older in listing.older)))
        }
        return known | {uid: expert.classes for uid, expert in hosted.items()}

    def still_holds(self, decided: Decided) -> bool:
        """Whether a decision from before a restart can be gone on with: whom it trains is still hosted here."""
        return all(uid in self._parts.host.experts for uid in decided.trained)

    async def decide(
        self, process: TrainerProcess, task: TaskFile, learned: Sequence[TaskFile]
    ) -> Decided | LearningFailed:
        """What is to be done with a task; or why it cannot be learned as it is.

        Args:
            process: The worker, which has nothing else to do.
            task: Readable, not learned yet.
            learned: Those that were, whose files are there.

        Raises:
            CallFailed: An expert to be updated could not be had.
            Refused: Likewise.
            TrainerDied: The worker ended meanwhile.
        """
        known = self.known_experts()
        fresh, trials = set(), []
        for uid in assign_classes(task.classes, known).update if task.classes else ():
            expert = await self._parts.replicas.pull(ExpertUid(Digest(uid)))
            if await asyncio.to_thread(_has_learned_nothing, expert):
                fresh.add(uid)
            elif self._min_gain > ALWAYS:
                trials.append(await asyncio.to_thread(_trial, expert))
        await process.send(
            Assess(
                task=task.name,
                statistics=await self._parts.contributions.statistics(),
                known=tuple(sorted({name for classes in known.values() for name in classes})),
                learned=tuple(one for one in learned if one.name != task.name),
                experts=tuple(trials),
            )
        )
        answer = await process.receive()
        if isinstance(answer, LearningFailed):
            return answer
        assert isinstance(answer, Assessed)
        return decide(answer, task.classes, known, fresh=fresh, min_gain=self._min_gain)


def decide(
    found: Assessed,
    classes: Collection[str],
    known: Mapping[str, Collection[str]],
    *,
    fresh: Collection[str],
    min_gain: float,
) -> Decided:
    """The decision that the evidence leads to.

    Args:
        found: By the worker.
        classes: Names on the task's labels; empty if it has none.
        known: The classes of each expert, by uid.
        fresh: Uids of those that have learned nothing yet.
        min_gain: As `Decider`'s.
    """
    decision = decide_by_class(found.assessment, classes, known)
    if not classes:
        if decision.action == "spawn":
            reason = "it is unlike what is known, and waits for labels: without them its classes have no names"
            decision = dataclasses.replace(decision, action="undecided", reason=reason)
        return Decided(decision=decision, batches=_counted(found))
    gaining = {uid: gain for uid, gain in found.gains.items() if gain.gain >= min_gain}
    trained = tuple(sorted(uid for uid in decision.update if uid in fresh or uid in gaining or min_gain <= ALWAYS))
    if gaining:
        gain = _together(list(gaining.values()))
        # Of several, a weighted mean of what passed may be below the least by a rounding.
        decision = decision.weighed(gain, min_gain=min(min_gain, gain.gain))
    elif found.gains and not trained:
        decision = decision.weighed(_together(list(found.gains.values())), min_gain=min_gain)
    return Decided(decision=decision, trained=trained, gains=dict(found.gains), batches=_counted(found))


def _counted(found: Assessed) -> dict[str, int]:
    return dict(Counter(batch.verdict for batch in found.batches))


def _together(gains: Sequence[ExpectedGain]) -> ExpectedGain:
    """Over the items of all of them."""
    if len(gains) == 1:
        return gains[0]
    number = sum(gain.num_items for gain in gains)
    return ExpectedGain(
        accuracy_now=sum(gain.accuracy_now * gain.num_items for gain in gains) / number,
        accuracy_updated=sum(gain.accuracy_updated * gain.num_items for gain in gains) / number,
        num_items=number,
    )


def _has_learned_nothing(expert: HostedExpert) -> bool:
    """Whether its weights are those that its uid determines."""
    return weights_to_bytes(expert.module) == weights_to_bytes(expert.architecture.build(expert.uid))


def _trial(expert: HostedExpert) -> ExpertTrial:
    return ExpertTrial(
        uid=expert.uid,
        classes=expert.classes,
        architecture=dict(expert.architecture.to_config()),
        weights=weights_to_bytes(expert.module),
    )
