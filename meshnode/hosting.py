"""The experts this node hosts: what it serves, and what averaging, training and succession change.

An expert's parameters change in two ways that overlap in time: the trainer reports a checkpoint, and a committed round
adds a delta. A checkpoint says how many deltas the trainer had already taken in, and those it had not are added again
on top of it; nothing that either side learned is lost.

Legend: P parameters, B batch, D feature, C the expert's classes.
"""

import asyncio
import copy
import time
from collections.abc import Callable, Collection
from functools import partial

import numpy as np
import torch
from torch import nn

from experts.architectures.base import Architecture, probabilities
from experts.averaging import Averaged
from experts.checkpoint import flat_parameters, load_weights, weights_to_bytes
from meshnode.beside import beside
from meshnode.commits import Commits, serve
from meshnode.compute import Compute
from meshnode.errors import NoAncestorHere, Refused
from meshnode.forms import form_of
from meshnode.generations import build_first, digest_of_vector
from meshnode.hosted import (
    FOLLOWED,
    IMPORTED,
    MERGED,
    MIGRATED,
    PLACED,
    REDISTILLED,
    TRAINED,
    Answer,
    Descent,
    HostedExpert,
)
from meshnode.roster import Roster, check_idle
from meshnode.state.rows import ExpertRow, Reached
from meshnode.state.state import State
from protocol.errors import MalformedLineage
from protocol.identifiers import Digest, ExpertUid, digest_of
from protocol.lineage import decode_lineage

__all__ = ["ExpertHost"]

ADOPTED = Descent()


class ExpertHost(Roster):
    """Hosts replicas: serves them, commits each change as a new generation, puts one in another's place.

    Args:
        state: Where generations are kept.
        compute: The threads that torch runs in.
        device: Where the modules live.
        now_s: The DHT's clock, in seconds since the epoch.
    """

    def __init__(
        self, state: State, compute: Compute, *, device: str = "cpu", now_s: Callable[[], float] = time.time
    ) -> None:
        super().__init__(state, device=device, now_s=now_s)
        self._compute = compute
        self._commits = Commits(state, compute, device=device)

    async def answer(self, uid: ExpertUid, features_BD: np.ndarray) -> Answer:
        """E_i(h) for a batch of trunk features, float32 ``(B, D)``, which may be computed together with others.

        Raises:
            UnknownExpert: The expert is not hosted here.
            Busy: The compute queue is full.
        """
        expert = self.get(uid)
        module, generation, weights = expert.module, expert.generation, expert.weights
        # By generation: an answer says which one it is of, and a new one may begin to serve while this one waits.
        output_BC = await self._compute.run_rows((uid, generation), partial(self._probabilities, module), features_BD)
        return Answer(probabilities=output_BC, classes=expert.classes, generation=generation, weights=weights)

    def _probabilities(self, module: nn.Module, features_BD: np.ndarray) -> np.ndarray:
        # Read-only memory, as of bytes from the network, torch cannot wrap.
        features = torch.from_numpy(features_BD if features_BD.flags.writeable else features_BD.copy())
        output_BC = probabilities(module, features.to(self._device))
        return np.asarray(output_BC.cpu().numpy())

    async def adopt(
        self,
        uid: ExpertUid,
        classes: tuple[str, ...],
        architecture: Architecture,
        weights: bytes | None,
        descent: Descent = ADOPTED,
    ) -> HostedExpert:
        """Host an expert from now on: with the given weights, or with the initial ones that its uid determines.

        Args:
            uid: The expert.
            classes: What it answers for, sorted.
            architecture: Its form.
            weights: As safetensors; None for the initial ones.
            descent: Where given weights come from.

        Raises:
            UnknownArchitecture: No peer could be told of its form.
            CorruptWeights: The weights are not its own.
            MalformedLineage: Its lineage is none.
            Refused: As `check_welcome`.
        """
        self.check_welcome(uid)
        form_of(architecture)  # what could not be advertised would end every record of this node
        lineage = None if descent.lineage is None else decode_lineage(descent.lineage)
        ancestors, origin = () if lineage is None else lineage.ancestors, descent.origin
        if origin is None and lineage is not None:
            origin = lineage.last.weights
        module = architecture.build(uid)
        initial = digest_of(weights_to_bytes(module))
        if weights is not None:
            load_weights(module, weights)
        self._state.add_expert(
            uid,
            architecture=architecture.to_config(),
            classes=classes,
            origin=origin,
            ancestors=ancestors,
            lineage=descent.lineage,
            placed=descent.cause == PLACED,
        )
        vector = flat_parameters(module).numpy()
        expert = HostedExpert(
            uid=uid,
            classes=classes,
            architecture=architecture,
            module=module,
            generation=0,
            weights=Digest(""),
            committed_at=0.0,
            since=self._now_s(),
            origin=origin or initial,
            ancestors=ancestors,
            lineage=None if descent.lineage is None else digest_of(descent.lineage),
            placed=descent.cause == PLACED,
            round=descent.round,
            reference=None if descent.cause == IMPORTED else vector,
        )
        expert.reference_digest = digest_of_vector(expert.reference)
        await self._commit(expert, vector, cause=descent.cause if weights else "initial", tasks=descent.tasks)
        self._experts[uid] = expert
        return expert

    async def replace(self, uid: ExpertUid, weights: bytes) -> None:
        """Serve other weights of a hosted expert from now on; the group has them after the next round.

        Raises:
            UnknownExpert: It is not hosted here.
            Refused: It is in training, whose next checkpoint would take their place.
            CorruptWeights: The weights are not its own.
        """
        expert = self._current(uid)
        async with expert.changed:
            check_idle(expert)
            vector = _vector_in(copy.deepcopy(expert.module).cpu(), weights)
            await self._commit(expert, vector, cause=IMPORTED)
            await self.keep(uid)

    async def learn_from(self, uid: ExpertUid, weights: bytes, *, before: bytes, tasks: Collection[str] | None) -> None:
        """Serve weights that have learned what another expert knows; the group has them after the next rounds.

        Args:
            uid: A current one.
            weights: As safetensors.
            before: The weights that these were made from; what has been averaged since is kept.
            tasks: Names of this node's tasks that they owe something to, those of the other expert among them; None
                where unknown.

        Raises:
            UnknownExpert: It is not hosted here, or not as current.
            Refused: It is in training.
            CorruptWeights: The weights are not its own.
        """
        expert = self._current(uid)
        learned = await self.vector_of(uid, weights) - await self.vector_of(uid, before)
        async with expert.changed:
            self._current(uid)
            check_idle(expert)
            await self._commit(expert, self.snapshot(uid) + learned, cause=MERGED, tasks=tasks)
            await self.keep(uid)

    async def succeed(  # noqa: PLR0913  # an argument a fact
        self,
        old_uid: ExpertUid,
        *,
        architecture: Architecture,
        weights: bytes,
        lineage: bytes,
        cause: str,
        round: int = 0,  # noqa: A002 - as everywhere else
        tasks: Collection[str] | None = (),
    ) -> HostedExpert:
        """Put a new expert in the place of a current one, which is retired: one transaction, and one step of the loop.

        Whoever asks is answered by the old one until then, by the new one afterwards, and by the old one still where
        it asks for it by its uid.

        Args:
            old_uid: The one to succeed.
            architecture: The new one's form.
            weights: Its parameters, as safetensors.
            lineage: The document whose last step made it; says its uid, and the weights it descends from.
            cause: `MIGRATED`, `FOLLOWED` or `IMPORTED`.
            round: Number of the last averaging round that the weights hold; 0 before any.
            tasks: This node's tasks that it was made with the images of; None where unknown.

        Raises:
            UnknownExpert: `old_uid` is not hosted here, or not as current.
            Refused: It is in training, or the new one is current here already.
            MalformedLineage: The lineage is none, or not that of such a successor.
            UnknownArchitecture: No peer could be told of the form.
            CorruptWeights: The weights are not those of the form.
        """
        old, document = self._current(old_uid), decode_lineage(lineage)
        last, uid = document.last, document.last.uid
        if old_uid not in document.ancestors or last.classes != old.classes:
            raise MalformedLineage(f"{uid} does not succeed {old_uid}")
        if form_of(architecture) != last.form:
            raise MalformedLineage("it is of another form")

        is_shared = cause != IMPORTED
        built = await self._compute.run_own(
            partial(build_first, uid, architecture, weights, device=self._device, is_shared=is_shared)
        )
        if cause == MIGRATED and digest_of(built.data) != last.weights:
            raise MalformedLineage("its first weights are others")
        row = ExpertRow(
            uid=uid,
            architecture=architecture.to_config(),
            classes=old.classes,
            origin=last.weights,
            ancestors=document.ancestors,
            lineage=digest_of(lineage),
            placed=cause == FOLLOWED and old.placed,
        )
        async with old.changed:
            self._current(old_uid)
            check_idle(old)
            if uid in self._experts:
                raise Refused(f"the expert {uid} is hosted here already")
            new = HostedExpert(
                uid=uid,
                classes=old.classes,
                architecture=architecture,
                module=built.module,
                generation=0,
                weights=Digest(""),
                committed_at=0.0,
                since=0.0,
                origin=last.weights,
                ancestors=document.ancestors,
                lineage=row.lineage,
                placed=row.placed,
                round=round,
                reference=built.reference,
                reference_digest=built.digest,
                drift=built.drift,
            )
            write = partial(
                self._state.succeed, old_uid, row, built.data, lineage, cause=cause, round_=round, tasks=tasks
            )
            return await self._exchange(old, new, "retired", write)

    async def roll_back(self, uid: ExpertUid) -> HostedExpert:
        """Give a successor's place back to the newest of its ancestors that is retired here; it is declined.

        Returns: The ancestor, current again as it was when it was retired.

        Raises:
            UnknownExpert: The expert is not hosted here, or not as current.
            NoAncestorHere: None of its ancestors is.
            Refused: It is in training.
        """
        expert = self._current(uid)
        async with expert.changed:
            self._current(uid)
            check_idle(expert)
            ancestor = self._ancestor(expert.ancestors)
            if ancestor is None:
                raise NoAncestorHere(uid)
            write = partial(self._state.roll_back, uid, ancestor.uid)
            await self._exchange(expert, ancestor, "declined", write)
            await self.keep(ancestor.uid)
            return ancestor

    async def start_over(
        self,
        uid: ExpertUid,
        weights: bytes,
        *,
        tasks: Collection[str] | None,
        round: int,  # noqa: A002 - as everywhere else
    ) -> None:
        """Serve weights that owe nothing to what the expert has been since it learned something; that is forgotten.

        Args:
            uid: A current one.
            weights: As safetensors, of the expert's origin.
            tasks: Names of this node's tasks that they were trained on; None where unknown.
            round: Number of the last averaging round that they hold; 0 before any.

        Raises:
            UnknownExpert: It is not hosted here, or not as current.
            Refused: It is in training.
            CorruptWeights: The weights are not its own.
        """
        expert = self._current(uid)
        async with expert.changed:
            self._current(uid)
            check_idle(expert)
            made = partial(build_first, uid, expert.architecture, weights, device=self._device, is_shared=False)
            built = await self._compute.run_own(made)
            write = partial(self._state.start_over, uid, built.data, cause=REDISTILLED, tasks=tasks, round_=round)
            serve(expert, built, await asyncio.to_thread(write))
            self.changed.set()

    async def begin_training(self, uid: ExpertUid) -> bytes:
        """Weights to start a training run from; deltas committed from now on are that run's to take in.

        Raises:
            UnknownExpert: It is not hosted here, or not as current.
        """
        expert = self._current(uid)
        async with expert.changed:  # a commit under way belongs to these weights
            self._current(uid)  # it may have been succeeded meanwhile
            expert.deltas = []
            weights = weights_to_bytes(expert.module)
            await self.keep(uid)
            return weights

    def end_training(self, uid: ExpertUid) -> None:
        """The run is over or lost; its last checkpoint stands."""
        if uid in self._experts:
            self._experts[uid].deltas = None

    async def checkpoint(
        self,
        uid: ExpertUid,
        vector: np.ndarray,
        *,
        deltas_applied: int,
        reached: Reached,
        tasks: Collection[str] | None = (),
    ) -> None:
        """Commit what the trainer has reached.

        Args:
            vector: Flat parameters, float32 ``(P,)``.
            deltas_applied: How many of this run's deltas the trainer had added by then.
            reached: The run, and its steps so far.
            tasks: Names of the tasks that the run learns from; None where unknown.
        """
        expert = self.get(uid)
        async with expert.changed:
            missed = (expert.deltas or [])[deltas_applied:]
            learned = vector + sum(missed, np.zeros_like(vector))
            await self._commit(expert, learned, cause=TRAINED, reached=reached, tasks=tasks)

    async def apply_round(self, uid: ExpertUid, averaged: Averaged, *, number: int, cause: str = "averaged") -> bool:
        """Commit what a round came to.

        Args:
            averaged: The delta is added to what the parameters are by now: steps taken meanwhile are kept.
            number: The round's.
            cause: What made it, in a word.

        Returns: Whether a training run is under way that has to take the delta in. One that begins later, or began
            while this was being committed, starts from weights that contain it.
        """
        expert = self.get(uid)
        async with expert.changed:
            run = expert.deltas
            if run is not None:
                run.append(averaged.delta)
            await self._commit(expert, averaged, cause=cause, reached=expert.reached, number=number)
            return run is not None and run is expert.deltas

    def snapshot(self, uid: ExpertUid) -> np.ndarray:
        """The served parameters as one vector, float32 ``(P,)``."""
        return np.asarray(flat_parameters(self.get(uid).module).numpy())

    async def snapshot_beside(self, uid: ExpertUid) -> np.ndarray:
        """As `snapshot`, of a large expert in a thread: it takes longer than an answer should wait."""
        return await beside(self.get(uid).num_parameters, self.snapshot, uid)

    async def vector_of(self, uid: ExpertUid, weights: bytes) -> np.ndarray:
        """Weights of this expert as one vector, float32 ``(P,)``.

        Raises:
            CorruptWeights: They are not its.
        """
        return await self._compute.run_own(_vector_in, copy.deepcopy(self.get(uid).module).cpu(), weights)

    def initial(self, uid: ExpertUid) -> np.ndarray:
        """The parameters that all replicas of the expert began with, float32 ``(P,)``; built anew each time."""
        return np.asarray(flat_parameters(self.get(uid).architecture.build(uid)).numpy())

    async def _commit(
        self,
        expert: HostedExpert,
        change: np.ndarray | Averaged,
        *,
        cause: str,
        reached: Reached | None = None,
        number: int | None = None,
        tasks: Collection[str] | None = (),
    ) -> None:
        await self._commits.commit(expert, change, cause=cause, reached=reached, number=number, tasks=tasks)
        self.changed.set()


def _vector_in(module: nn.Module, weights: bytes) -> np.ndarray:
    load_weights(module, weights)
    return np.asarray(flat_parameters(module).numpy())
