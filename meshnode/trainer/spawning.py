"""How a node spawns an expert: which form it has, where it begins, and that no peer has done it meanwhile.

The form follows from the mesh's spec, so that nodes which spawn for the same classes agree without talking. Where the
mesh has experts, both beginnings are tried in the worker: with the random weights that the uid determines, or with the
knowledge of the nearest expert. The latter is taken only where it measures better by a margin, since only the former is
what every other node would begin with; it is another expert, which says in its lineage what it began as. What two nodes
spawn while apart becomes one again: `meshnode.settling`.
"""

import asyncio
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from experts.architectures.base import Architecture
from experts.continual.decision import StartEvidence
from experts.errors import ExpertsError
from experts.preservation.transfer import TransferConfig
from meshnode.forms import form_of
from meshnode.hosted import BEGUN, Descent
from meshnode.logs import get_logger
from meshnode.trainer.messages import Begin, Begun, ExpertWeights, LearningFailed, Seek, Sought, TaskFile
from meshnode.trainer.parts import TrainerParts
from meshnode.trainer.process import TrainerProcess
from protocol.errors import ModuleMeshError
from protocol.identifiers import Digest, ExpertUid, digest_of
from protocol.lineage import Accuracy, Lineage, Source, Succession, TransferMethod, encode_lineage
from protocol.spec import ExpertForm

__all__ = ["Spawned", "Spawning"]

MARGIN = 0.01
"""By which a beginning as another expert has to be better, as a share of the images it is judged by: such an expert is
one that other nodes do not come to by themselves."""

log = get_logger(__name__)


class Spawned(NamedTuple):
    """An expert that is hosted here from now on."""

    uid: ExpertUid
    start: StartEvidence | None
    """How its beginning was chosen; None where nothing was tried, as without experts to begin as, or where a peer had
    spawned it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Parent:
    """What may be carried over."""

    source: Source
    architecture: Architecture
    weights: bytes
    tasks: tuple[str, ...] | None
    """Of this node, that it has learned; None where unknown."""


class Spawning:
    """Spawns experts for the tasks of one node."""

    def __init__(self, parts: TrainerParts) -> None:
        self._parts = parts

    async def spawn(self, worker: TrainerProcess, task: TaskFile, classes: tuple[str, ...]) -> Spawned:
        """Host an expert for classes that none answers for.

        Args:
            worker: Tries beginnings; nothing else is asked of it meanwhile.
            task: Whose images it is for.
            classes: Sorted.

        Raises:
            TrainerDied: The worker ended.
            CallFailed, Refused: A peer has spawned it meanwhile, and its weights cannot be had just now.
            ExpertsError: The mesh's budget has no room for so many classes.
        """
        mesh, host = self._parts.mesh, self._parts.host
        form = mesh.form_for(len(classes))
        plain, begun = mesh.uid_of(classes, form), mesh.uid_of_begun(classes, form)
        here = self._hosted(plain, begun)
        if here is not None:  # as after a kill while it learned
            return Spawned(here, None)
        # What was rolled back here is not to come back by itself.
        may_begin = host.find(begun) is None and not self._parts.state.is_declined(begun)
        parent = await self._nearest(worker, task, classes) if may_begin else None
        tried = None if parent is None else await self._tried(worker, task, classes, form, parent)
        theirs = next((uid for uid in (plain, begun) if self._is_elsewhere(uid) and host.find(uid) is None), None)
        if theirs is not None:  # found by the records that came while beginnings were tried
            await self._parts.replicas.pull(theirs)
            return Spawned(theirs, None)
        start = None if tried is None else tried.evidence
        facts: dict[str, Any] = {} if start is None else {"start": asdict(start)}
        async with self._parts.replicas.adopting:  # placement may have adopted it just now
            here = self._hosted(plain, begun)
            if here is not None:
                return Spawned(here, None)
            architecture = mesh.architecture(form, len(classes))
            if parent is not None and tried is not None and tried.evidence.chosen == "transferred":
                descent = self._descent(task, classes, form, parent, tried)
                uid = (await host.adopt(begun, classes, architecture, tried.weights, descent)).uid
            else:
                uid = (await host.adopt(plain, classes, architecture, None)).uid
        self._parts.telemetry.events.emit("expert_hosted", expert=uid, classes=classes, cause="new", **facts)
        return Spawned(uid, start)

    def _hosted(self, *uids: ExpertUid) -> ExpertUid | None:
        return next((uid for uid in uids if uid in self._parts.host.experts), None)

    def _is_elsewhere(self, uid: ExpertUid) -> bool:
        listing = self._parts.directory.experts().get(uid)
        me = self._parts.transport.peer_id
        return listing is not None and any(replica.peer_id != me for replica in listing.replicas)

    async def _nearest(self, worker: TrainerProcess, task: TaskFile, classes: tuple[str, ...]) -> _Parent | None:
        """The expert that the task is most like, with its weights; None if there is none, or they cannot be had."""
        try:
            uid = await self._sought(worker, task, classes)
            return None if uid is None else await self._parent(uid)
        except (ModuleMeshError, ExpertsError, OSError) as failure:
            log.info("there is no expert to begin as", task=task.name, reason=str(failure))
            return None

    async def _sought(self, worker: TrainerProcess, task: TaskFile, classes: tuple[str, ...]) -> ExpertUid | None:
        """Raises ExpertsError if the router's statistics say nothing."""
        experts: dict[str, tuple[str, ...]] = {
            uid: listing.classes for uid, listing in self._parts.directory.current().items()
        }
        experts |= {uid: expert.classes for uid, expert in self._parts.host.experts.items()}
        statistics = await self._parts.contributions.merged() if experts else None
        if statistics is None:
            return None
        data = await asyncio.to_thread(statistics.to_bytes)
        await worker.send(Seek(task=task, classes=classes, statistics=data, experts=experts))
        sought = await worker.receive()
        if isinstance(sought, LearningFailed):
            sought = Sought(nearest=None, reason=sought.reason)
        assert isinstance(sought, Sought)
        if sought.nearest is None:
            log.debug("there is no expert to begin as", task=task.name, reason=sought.reason)
            return None
        return ExpertUid(Digest(sought.nearest))

    async def _parent(self, uid: ExpertUid) -> _Parent:
        """Raises ModuleMeshError if nobody delivers its weights."""
        state, expert = self._parts.state, self._parts.host.experts.get(uid)
        if expert is None:
            advert, architecture, weights, _ = await self._parts.replicas.fetch(uid)
            source = Source(uid=uid, form=advert.form, classes=advert.classes, weights=digest_of(weights))
            return _Parent(source=source, architecture=architecture, weights=weights, tasks=())
        digest = expert.weights
        weights = await asyncio.to_thread(state.blobs.get, digest)
        newest = state.ledger.generations(uid)[:1]
        return _Parent(
            source=Source(uid=uid, form=form_of(expert.architecture), classes=expert.classes, weights=digest),
            architecture=expert.architecture,
            weights=weights,
            tasks=newest[0].tasks if newest else (),
        )

    async def _tried(
        self, worker: TrainerProcess, task: TaskFile, classes: tuple[str, ...], form: ExpertForm, parent: _Parent
    ) -> Begun | None:
        mesh, source = self._parts.mesh, parent.source
        await worker.send(
            Begin(
                task=task,
                uid=mesh.uid_of(classes, form),
                classes=classes,
                architecture=dict(mesh.architecture(form, len(classes)).to_config()),
                nearest=source.uid,
                nearest_classes=source.classes,
                nearest_weights=ExpertWeights(
                    architecture=dict(parent.architecture.to_config()), weights=parent.weights
                ),
                margin=MARGIN,
            )
        )
        answer = await worker.receive()
        if isinstance(answer, LearningFailed):
            log.info("beginnings could not be tried", task=task.name, reason=answer.reason)
            return None
        assert isinstance(answer, Begun)
        return answer

    def _descent(
        self, task: TaskFile, classes: tuple[str, ...], form: ExpertForm, parent: _Parent, tried: Begun
    ) -> Descent:
        mesh, evidence, config = self._parts.mesh, tried.evidence, TransferConfig()
        assert evidence.accuracy_transferred is not None
        step = Succession(
            parent=mesh.uid_of(classes, form),
            parent_form=form,
            parent_weights=Digest(tried.initial),
            uid=mesh.uid_of_begun(classes, form),
            form=form,
            classes=classes,
            weights=digest_of(tried.weights),
            method=TransferMethod(
                similarity=config.similarity,
                score=config.score,
                beta=config.beta,
                refit=config.refit,
                distillation_steps=0,
            ),
            layers=tried.layers,
            accuracy=Accuracy(
                old=evidence.accuracy_random, new=evidence.accuracy_transferred, samples=evidence.num_items
            ),
            made_at=self._parts.transport.now_s(),
            peer_id=self._parts.transport.peer_id,
            source=parent.source,
        )
        return Descent(
            cause=BEGUN,
            lineage=encode_lineage(Lineage(steps=(step,))),
            # The task's images say what of the parent's knowledge goes where; what it learned from is in it as well.
            tasks=None if parent.tasks is None else tuple(sorted({task.name, *parent.tasks})),
        )
