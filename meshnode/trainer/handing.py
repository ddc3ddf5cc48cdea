"""The daemon's side of handing on: two experts are held against each other in the worker, and the one learns from the
other if nothing is lost by it."""

import asyncio
from dataclasses import dataclass
from typing import Any

from meshnode.errors import NodeError
from meshnode.state.rows import all_tasks
from meshnode.trainer.messages import LearningFailed
from meshnode.trainer.parts import TrainerParts
from meshnode.trainer.process import TrainerProcess
from meshnode.trainer.service import Trainer
from meshnode.trainer.tidy_messages import HandedOn, HandOn, KnownExpert
from protocol.identifiers import ExpertUid
from protocol.lineage import Accuracy

__all__ = ["Handed", "Handing"]

_ROUNDING = 1e-9
"""A margin of one image in a hundred is to let one image in a hundred pass."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Handed:
    """What came of it, before anybody decides by it."""

    found: HandedOn
    max_difference: float | None

    @property
    def has_learned(self) -> bool:
        """Whether the one that stays is another one now, if it may be."""
        return self.found.weights is not None

    def objection(self, margin: float) -> str | None:
        """Why the one that stays cannot stand for the other one; None if it can.

        Args:
            margin: Accuracy that may be lost, as a share.
        """
        found = self.found
        if found.told is None:
            return "this node has too few images of the classes to judge by"
        if self.max_difference is not None and (found.difference or 0.0) > self.max_difference:
            return f"they differ: by {found.difference:.3f} in mean total variation"
        if _falls(found.told, margin):
            return f"of {found.told.samples} images it knows {found.told.new:.1%}, the other one {found.told.old:.1%}"
        if found.kept is not None and _falls(found.kept, margin):
            return f"it would fall from {found.kept.old:.1%} to {found.kept.new:.1%} of {found.kept.samples} images"
        return None

    def facts(self) -> dict[str, Any]:
        """The evidence, for the event."""
        told = self.found.told
        assert told is not None
        return {
            "difference": None if self.found.difference is None else round(self.found.difference, 4),
            "old_accuracy": round(told.old, 4),
            "new_accuracy": round(told.new, 4),
            "samples": told.samples,
        }


class Handing:
    """Gives orders to the worker of one node's trainer, between two tasks.

    Args:
        parts: What of the node it works with.
        trainer: Whose worker is borrowed.
        margin: Accuracy that an expert may lose by learning from another one, as a share.
    """

    def __init__(self, parts: TrainerParts, trainer: Trainer, margin: float) -> None:
        self._parts = parts
        self._trainer = trainer
        self._margin = margin

    async def compare(self, goes: ExpertUid, stays: ExpertUid) -> Handed:
        """How one expert does in another one's place, as both are.

        Raises:
            NodeError: The worker says that they cannot be compared.
            ModuleMeshError: One of them cannot be had.
            TrainerDied: The worker ended.
        """
        async with self._trainer.borrow("tidying") as worker:
            return await self._asked(worker, await self._known(goes), await self._known(stays), None, False)

    async def hand_on(self, goes: ExpertUid, stays: ExpertUid, *, max_difference: float | None = None) -> Handed:
        """Have one expert learn what another one knows, and serve it so if `Handed.objection` has nothing against it.

        Args:
            goes: Shares two or more classes with `stays`.
            stays: Hosted here from then on, if it has learned.
            max_difference: By which the two may differ in mean total variation; None for any.

        Raises:
            As `compare`.
        """
        host = self._parts.host
        async with self._trainer.borrow("tidying") as worker:
            before = await self._known(stays)
            done = await self._asked(worker, await self._known(goes), before, max_difference, True)
            if done.found.weights is not None and done.objection(self._margin) is None:
                known = self._parts.state.ledger.generations(goes)[:1] if host.find(goes) else ()
                tasks = all_tasks(done.found.tasks, *(one.tasks for one in known))
                await self._parts.replicas.pull(stays)
                await host.learn_from(stays, done.found.weights, before=before.weights, tasks=tasks)
        return done

    async def _asked(
        self,
        worker: TrainerProcess,
        goes: KnownExpert,
        stays: KnownExpert,
        max_difference: float | None,
        learns: bool,
    ) -> Handed:
        tasks = self._trainer.learned_files
        await worker.send(HandOn(goes=goes, stays=stays, max_difference=max_difference, learns=learns, tasks=tasks))
        answer = await worker.receive()
        if isinstance(answer, LearningFailed):
            raise NodeError(f"the two experts cannot be compared: {answer.reason}")
        assert isinstance(answer, HandedOn)
        return Handed(found=answer, max_difference=max_difference)

    async def _known(self, uid: ExpertUid) -> KnownExpert:
        """An expert with its weights, from here or from a peer."""
        expert = self._parts.host.find(uid)
        if expert is None:
            advert, architecture, weights, _ = await self._parts.replicas.fetch(uid)
            classes = advert.classes
        else:
            classes, architecture = expert.classes, expert.architecture
            weights = await asyncio.to_thread(self._parts.state.blobs.get, expert.weights)
        config = dict(architecture.to_config())
        return KnownExpert(uid=uid, classes=classes, architecture=config, weights=weights)


def _falls(accuracy: Accuracy, margin: float) -> bool:
    return accuracy.old - accuracy.new > margin + _ROUNDING
