"""The experts this node hosts: what it serves, what it advertises and what averaging and training change.

An expert's parameters change in two ways that overlap in time: the trainer reports a checkpoint, and a committed round
adds a delta. A checkpoint says how many deltas the trainer had already taken in, and those it had not are added again
on top of it; nothing that either side learned is lost.

Legend: P parameters, B batch, D feature, C the expert's classes.
"""

import asyncio
import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from experts.architectures.base import Architecture, probabilities
from experts.architectures.registry import architecture_from_config
from experts.averaging import Averaged
from experts.checkpoint import flat_parameters, load_weights, weights_to_array, weights_to_bytes, with_parameters
from experts.errors import ExpertsError
from meshnode.batches import Batches
from meshnode.beside import beside
from meshnode.compute import Compute
from meshnode.errors import Refused
from meshnode.forms import form_of
from meshnode.logs import get_logger
from meshnode.state.rows import Generation, NewWeights, Reached
from meshnode.state.state import State
from protocol.errors import BlobCorrupt, UnknownBlob, UnknownExpert
from protocol.identifiers import Digest, ExpertUid, digest_of
from protocol.records import ExpertAdvert

__all__ = ["Answer", "Descent", "ExpertHost", "HostedExpert", "IMPORTED"]

log = get_logger(__name__)

TRAINED, IMPORTED = "trained", "imported"
"""Causes of generations that hold something which no other replica has."""

MAX_BATCH_BYTES = 16 * 1024 * 1024
"""Weights that are built, and that are written, in one go: more would only be held in memory for longer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """An expert's output for a batch, and which generation gave it."""

    probabilities: np.ndarray
    """float32 ``(B, C)`` over ``classes``."""
    classes: tuple[str, ...]
    generation: int
    weights: Digest


@dataclass(frozen=True, kw_only=True, slots=True)
class Descent:
    """Where weights come from that an expert is to be hosted with."""

    cause: str = "adopted"
    """From a peer, or `IMPORTED`: then the group does not have them yet."""
    round: int = 0
    """Number of the last averaging round that they hold."""
    origin: Digest | None = None
    """Of the weights that they descend from, if not from the initial ones."""


ADOPTED = Descent()


@dataclass(slots=True)
class HostedExpert:
    """One replica. `module` is replaced, never changed, so whoever holds it can go on using it."""

    uid: ExpertUid
    classes: tuple[str, ...]
    architecture: Architecture
    module: nn.Module
    generation: int
    weights: Digest
    committed_at: float
    """When these parameters were committed, in seconds since the epoch."""
    since: float
    """From when on it has been hosted without a break, in seconds since the epoch by the DHT's clock."""
    origin: Digest
    """Of the weights that these descend from."""
    round: int = 0
    """Number of the last averaging round that these parameters hold; 0 before any."""
    reference: np.ndarray | None = None
    """What the replica has learned since is its own alone: the mean of the last round, or what it was adopted with,
    float32 ``(P,)``; None if it is not known any more."""
    reference_digest: Digest | None = None
    drift: float = math.inf
    """Distance of the parameters from the reference, relative to its norm; infinite without one."""
    reached: Reached | None = None
    """The last training run that these parameters hold: what an interrupted one goes on from."""
    deltas: list[np.ndarray] | None = None
    """Deltas committed since the current training run began, float32 ``(P,)`` each; None while none is under way."""
    changed: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def num_parameters(self) -> int:
        return self.architecture.num_parameters

    def advert(self) -> ExpertAdvert:
        return ExpertAdvert(
            uid=self.uid,
            form=form_of(self.architecture),
            classes=self.classes,
            since=self.since,
            round=self.round,
            generation=self.generation,
            weights=self.weights,
        )


class ExpertHost:
    """Hosts replicas: loads them at the start, serves them, commits each change as a new generation.

    Args:
        state: Where generations are kept.
        compute: The threads that torch runs in.
        device: Where the modules live.
        now_s: The DHT's clock, in seconds since the epoch.
    """

    def __init__(
        self, state: State, compute: Compute, *, device: str = "cpu", now_s: Callable[[], float] = time.time
    ) -> None:
        self._state = state
        self._now_s = now_s
        self._compute = compute
        self._device = device
        self._experts: dict[ExpertUid, HostedExpert] = {}
        self._unusable: dict[ExpertUid, str] = {}
        # The rounds of many experts end at the same time.
        self._building = Batches(self._build_all, size=_change_bytes, most=MAX_BATCH_BYTES)
        self._writing = Batches(self._write_all, size=_weights_bytes, most=MAX_BATCH_BYTES)
        self.changed = asyncio.Event()
        """Set whenever a generation was committed; whoever waits clears it first."""

    async def load(self) -> None:
        """Take up every expert the state holds, at its newest intact generation."""
        for row in self._state.hosted_experts():
            generation = self._state.current(row.uid)
            if generation is None:
                continue
            try:
                architecture = architecture_from_config(row.architecture)
                module = architecture.build(row.uid)
                origin = row.origin or digest_of(weights_to_bytes(module))
                load_weights(module, self._state.blobs.get(generation.digest))
            except ExpertsError as failure:
                self._unusable[row.uid] = str(failure)
                log.warning("a kept expert cannot be served", expert=row.uid, reason=str(failure))
                continue
            reference = self._kept_reference(row.uid, architecture)
            module.to(self._device)
            self._experts[row.uid] = HostedExpert(
                uid=row.uid,
                classes=row.classes,
                architecture=architecture,
                module=module,
                generation=generation.number,
                weights=generation.digest,
                committed_at=generation.created_at,
                since=self._now_s(),
                origin=origin,
                round=generation.round,
                reference=reference,
                reference_digest=_digest_of_vector(reference),
                drift=_drift(flat_parameters(module).cpu().numpy(), reference),
                reached=generation.reached,
            )

    def _kept_reference(self, uid: ExpertUid, architecture: Architecture) -> np.ndarray | None:
        """The newest parameters still kept that were not learned here; None if there are none any more."""
        for generation in self._state.ledger.generations(uid):
            if generation.cause not in {TRAINED, IMPORTED}:
                module = architecture.build(uid)
                with suppress(ExpertsError, UnknownBlob, BlobCorrupt):
                    load_weights(module, self._state.blobs.get(generation.digest))
                    return np.asarray(flat_parameters(module).numpy())
        return None

    @property
    def unusable(self) -> Mapping[ExpertUid, str]:
        """Experts in the state that this machine cannot build, such as of a kind whose package is gone: why not."""
        return self._unusable

    @property
    def experts(self) -> Mapping[ExpertUid, HostedExpert]:
        return self._experts

    def get(self, uid: ExpertUid) -> HostedExpert:
        """The replica hosted here.

        Raises:
            UnknownExpert: It is not.
        """
        try:
            return self._experts[uid]
        except KeyError:
            raise UnknownExpert(uid) from None

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
        return Answer(
            probabilities=output_BC,
            classes=expert.classes,
            generation=generation,
            weights=weights,
        )

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
        """
        form_of(architecture)  # what could not be advertised would end every record of this node
        module = architecture.build(uid)
        initial = digest_of(weights_to_bytes(module))
        if weights is not None:
            load_weights(module, weights)
        self._state.add_expert(uid, architecture=architecture.to_config(), classes=classes, origin=descent.origin)
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
            origin=descent.origin or initial,
            round=descent.round,
            reference=None if descent.cause == IMPORTED else vector,
        )
        expert.reference_digest = _digest_of_vector(expert.reference)
        await self._commit(expert, vector, cause=descent.cause if weights else "initial")
        self._experts[uid] = expert
        return expert

    async def replace(self, uid: ExpertUid, weights: bytes) -> None:
        """Serve other weights of a hosted expert from now on; the group has them after the next round.

        Raises:
            UnknownExpert: It is not hosted here.
            Refused: It is in training, whose next checkpoint would take their place.
            CorruptWeights: The weights are not its own.
        """
        expert = self.get(uid)
        async with expert.changed:
            if expert.deltas is not None:
                raise Refused(f"the expert {uid} is in training", hint="`meshnode status` shows when it no longer is.")
            module = copy.deepcopy(expert.module).cpu()
            load_weights(module, weights)
            await self._commit(expert, flat_parameters(module).numpy(), cause=IMPORTED)

    async def begin_training(self, uid: ExpertUid) -> bytes:
        """Weights to start a training run from; deltas committed from now on are that run's to take in."""
        expert = self.get(uid)
        async with expert.changed:  # a commit under way belongs to these weights
            expert.deltas = []
            return weights_to_bytes(expert.module)

    def end_training(self, uid: ExpertUid) -> None:
        """The run is over or lost; its last checkpoint stands."""
        if uid in self._experts:
            self._experts[uid].deltas = None

    async def checkpoint(self, uid: ExpertUid, vector: np.ndarray, *, deltas_applied: int, reached: Reached) -> None:
        """Commit what the trainer has reached.

        Args:
            vector: Flat parameters, float32 ``(P,)``.
            deltas_applied: How many of this run's deltas the trainer had added by then.
            reached: The run, and its steps so far.
        """
        expert = self.get(uid)
        async with expert.changed:
            missed = (expert.deltas or [])[deltas_applied:]
            learned = vector + sum(missed, np.zeros_like(vector))
            await self._commit(expert, learned, cause=TRAINED, reached=reached)

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
        module = copy.deepcopy(self.get(uid).module).cpu()

        def read() -> np.ndarray:
            load_weights(module, weights)
            return np.asarray(flat_parameters(module).numpy())

        return await self._compute.run_own(read)

    def initial(self, uid: ExpertUid) -> np.ndarray:
        """The parameters that all replicas of the expert began with, float32 ``(P,)``; built anew each time."""
        return np.asarray(flat_parameters(self.get(uid).architecture.build(uid)).numpy())

    async def _build_all(self, changes: Sequence["_Change"]) -> "Sequence[_Built | Exception]":
        # Beside the loop, for answers must not wait for it.
        return await self._compute.run_own(lambda: [self._built_or_failure(change) for change in changes])

    def _built_or_failure(self, change: "_Change") -> "_Built | Exception":
        try:
            return self._built(*change)
        except Exception as failure:  # noqa: BLE001 - of this one expert, and no other's
            return failure

    async def _write_all(self, new: Sequence[NewWeights]) -> Sequence[Generation]:
        return await asyncio.to_thread(self._state.commit_generations, new)

    def _built(self, expert: HostedExpert, change: np.ndarray | Averaged) -> "_Built":
        """What becomes of the expert with new parameters, or with what a round adds to the present ones."""
        reference, digest = expert.reference, expert.reference_digest
        if isinstance(change, Averaged):
            vector = flat_parameters(expert.module).numpy()
            vector += change.delta
            reference, digest = change.mean, _digest_of_vector(change.mean)
        else:
            vector = change
        module = with_parameters(expert.module, torch.from_numpy(vector)).cpu()
        data = weights_to_array(module).data
        return _Built(module.to(self._device), data, reference, digest, _drift(vector, reference))

    async def _commit(
        self,
        expert: HostedExpert,
        change: np.ndarray | Averaged,
        *,
        cause: str,
        reached: Reached | None = None,
        number: int | None = None,
    ) -> None:
        """Write a generation, then serve it: what is advertised can be served, and survives a kill."""
        number = expert.round if number is None else number
        built = await self._building.do(_Change(expert, change))
        new = NewWeights(uid=expert.uid, weights=built.data, cause=cause, reached=reached, round=number)
        generation = await self._writing.do(new)
        expert.module, expert.generation, expert.weights = built.module, generation.number, generation.digest
        expert.committed_at, expert.reached, expert.round = generation.created_at, reached, number
        expert.reference, expert.reference_digest, expert.drift = built.reference, built.digest, built.drift
        self.changed.set()


class _Change(NamedTuple):
    """What an expert is to become."""

    expert: HostedExpert
    to: np.ndarray | Averaged
    """New parameters, or what a round adds to the present ones."""


class _Built(NamedTuple):
    """What a new generation consists of."""

    module: nn.Module
    data: memoryview
    reference: np.ndarray | None
    digest: Digest | None
    drift: float


def _change_bytes(change: _Change) -> int:
    return 4 * change.expert.num_parameters


def _weights_bytes(new: NewWeights) -> int:
    return len(new.weights)


def _digest_of_vector(vector: np.ndarray | None) -> Digest | None:
    return None if vector is None else digest_of(vector.data)


def _drift(vector: np.ndarray, reference: np.ndarray | None) -> float:
    if reference is None:
        return math.inf
    norm = float(np.linalg.norm(reference))
    return float(np.linalg.norm(vector - reference)) / norm if norm else math.inf
