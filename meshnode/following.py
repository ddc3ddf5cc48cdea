"""Following: a peer has carried an expert over that is hosted here too, and this node takes the new form over.

Not on the peer's word where it can be helped: what this node has of the expert's classes is asked about both forms, and
the margin is the same as for a form made here. Only where it has nothing of them do the lineage's own figures count.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

from experts.architectures.base import Architecture
from experts.errors import ExpertsError
from meshnode.directory import Directory
from meshnode.errors import NodeError, SuccessorDeclined
from meshnode.forms import form_of
from meshnode.hosted import FOLLOWED, HostedExpert
from meshnode.hosting import ExpertHost
from meshnode.judging import objection_to
from meshnode.logs import get_logger
from meshnode.mesh import Mesh
from meshnode.replicas import Replicas
from meshnode.state.state import State
from meshnode.telemetry import Telemetry
from meshnode.trainer.messages import Compare, Compared, ExpertWeights, MigrationFailed
from meshnode.trainer.process import TrainerDied, TrainerProcess
from meshnode.trainer.service import Trainer
from protocol.errors import ModuleMeshError
from protocol.identifiers import ExpertUid
from protocol.lineage import Accuracy, Lineage, decode_lineage

__all__ = ["Following"]

log = get_logger(__name__)

RETRY_S = 60.0
"""What could not be taken over is left alone for so long: each try pulls its weights, which are its peer's to choose,
and keeps the trainer from its tasks."""


class _Failure(NamedTuple):
    reason: str
    again_at_s: float


@dataclass(kw_only=True, slots=True)
class Following:
    """Takes over the successors of what is hosted here, while `run` runs.

    Attributes:
        trainer: Asks both forms about this node's images; None where training is off, and with it all use of them.
        margin: How far a new form's accuracy may be below the old one's.
        now_s: A clock of any origin.
    """

    mesh: Mesh
    state: State
    host: ExpertHost
    directory: Directory
    replicas: Replicas
    trainer: Trainer | None
    margin: float
    telemetry: Telemetry = field(default_factory=Telemetry)
    now_s: Callable[[], float] = time.monotonic
    _looked: asyncio.Event = field(default_factory=asyncio.Event)
    _failed: dict[ExpertUid, _Failure] = field(default_factory=dict)
    """Why a successor could not be taken over when that was last tried: said once, not with every try."""

    def look_again(self) -> None:
        """The directory was read anew."""
        self._looked.set()

    async def run(self) -> None:
        """Follow for ever."""
        while True:
            await self._looked.wait()
            self._looked.clear()
            for uid in tuple(self.host.experts):
                successor = self.successor_of(uid)
                if successor is not None:
                    await self._try(uid, successor)

    def successor_of(self, uid: ExpertUid) -> ExpertUid | None:
        """What the mesh has in the place of an expert hosted here; None if nothing, or what was declined here.

        Nor is another beginning of the same expert: it knows nothing of what this one has learned, and which of the two
        is left is for `meshnode.settling`.
        """
        expert = self.host.experts.get(uid)
        for listing in self.directory.current().values():
            if expert and uid in listing.ancestors and listing.classes == expert.classes:
                begun = self.mesh.uid_of_begun(expert.classes, form_of(expert.architecture))
                return None if listing.uid == begun or self.state.is_declined(listing.uid) else listing.uid
        return None

    async def follow(self, uid: ExpertUid, successor: ExpertUid, *, margin: float | None = None) -> Accuracy:
        """Host a peer's successor in the place of the expert `uid`.

        Args:
            margin: Instead of this node's own.

        Returns: How both did: here, or by the lineage's word.

        Raises:
            SuccessorDeclined: It would lose too much.
            ModuleMeshError, ExpertsError: It cannot be had, or is not what it was advertised as.
        """
        advert, architecture, weights, lineage = await self.replicas.fetch(successor)
        assert lineage is not None, "an expert with ancestors has one"
        async with self.trainer.borrow("comparing") if self.trainer else nullcontext() as worker:
            old = self.host.get(uid)
            accuracy = None
            if self.trainer is not None and worker is not None:
                accuracy = await self._measured(self.trainer, worker, old, architecture, weights)
            if accuracy is None:
                accuracy = _by_its_word(uid, decode_lineage(lineage))
            reason = objection_to(accuracy, self.margin if margin is None else margin)
            if reason is not None:
                raise SuccessorDeclined(reason, accuracy=accuracy)
            await self.host.succeed(
                uid,
                architecture=architecture,
                weights=weights,
                lineage=lineage,
                cause=FOLLOWED,
                round=advert.round,
            )
        return accuracy

    async def _measured(
        self, trainer: Trainer, worker: TrainerProcess, old: HostedExpert, architecture: Architecture, weights: bytes
    ) -> Accuracy | None:
        """How both do on what this node holds out; None if it has nothing of these classes."""
        old_weights = await asyncio.to_thread(self.state.blobs.get, old.weights)
        await worker.send(
            Compare(
                classes=old.classes,
                old=ExpertWeights(architecture=dict(old.architecture.to_config()), weights=old_weights),
                new=ExpertWeights(architecture=dict(architecture.to_config()), weights=weights),
                tasks=trainer.learned_files,
            )
        )
        answer = await worker.receive()
        if isinstance(answer, MigrationFailed):
            raise NodeError(f"the two forms cannot be compared: {answer.reason}")
        assert isinstance(answer, Compared)
        return answer.accuracy

    async def _try(self, uid: ExpertUid, successor: ExpertUid) -> None:
        """Follow a successor if it can be followed now."""
        failed = self._failed.get(successor)
        if failed is not None and self.now_s() < failed.again_at_s:
            return
        try:
            accuracy = await self._follow_or_decline(uid, successor)
        except (ModuleMeshError, NodeError, ExpertsError, TrainerDied, OSError) as failure:
            # Its peer may be gone, or lie, where another one does not: it is tried again.
            self._failed[successor] = _Failure(str(failure), self.now_s() + RETRY_S)
            if failed is None or failed.reason != str(failure):
                log.warning("a successor cannot be followed yet", expert=uid, successor=successor, reason=str(failure))
            return
        self._failed.pop(successor, None)
        if accuracy is not None:
            self.telemetry.events.emit(
                "expert_succeeded",
                expert=successor,
                succeeds=uid,
                cause=FOLLOWED,
                old_accuracy=accuracy.old,
                new_accuracy=accuracy.new,
            )

    async def _follow_or_decline(self, uid: ExpertUid, successor: ExpertUid) -> Accuracy | None:
        """How both forms did; None if the successor is declined from now on."""
        try:
            return await self.follow(uid, successor)
        except SuccessorDeclined as refusal:
            await asyncio.to_thread(self.state.decline, successor)
            facts = {"expert": uid, "successor": successor}
            self.telemetry.events.emit("successor_declined", level="warning", reason=refusal.message, **facts)
            return None


def _by_its_word(uid: ExpertUid, lineage: Lineage) -> Accuracy:
    """What the lineage says of the worst of the steps that were made since this expert.

    Raises:
        SuccessorDeclined: It does not say it of all of them.
    """
    since = lineage.steps[lineage.ancestors.index(uid) :]
    told = [step.accuracy for step in since if step.accuracy is not None]
    if len(told) < len(since):
        reason = "this node has no image of these classes to judge by, and the lineage tells of no accuracy"
        raise SuccessorDeclined(reason, accuracy=None)
    return max(told, key=lambda accuracy: accuracy.old - accuracy.new)
