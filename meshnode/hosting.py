"""The experts this node hosts: what it serves, what it advertises and what averaging and training change.

An expert's parameters change in two ways that overlap in time: the trainer reports a checkpoint, and a committed round
adds a delta. A checkpoint says how many deltas the trainer had already taken in, and those it had not are added again
on top of it; nothing that either side learned is lost.

Legend: P parameters, B batch, D feature, C the expert's classes.
"""

import asyncio
import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import nn

from experts.architectures.base import Architecture, probabilities
from experts.architectures.registry import architecture_from_config
from experts.checkpoint import flat_parameters, load_flat, load_weights, weights_to_bytes
from experts.errors import ExpertsError
from meshnode.compute import Compute
from meshnode.forms import form_of
from meshnode.logs import get_logger
from meshnode.state.rows import Reached
from meshnode.state.state import State
from protocol.errors import UnknownExpert
from protocol.identifiers import Digest, ExpertUid
from protocol.records import ExpertAdvert

__all__ = ["Answer", "ExpertHost", "HostedExpert"]

log = get_logger(__name__)

TRAINED = "trained"
"""Cause of generations that the group does not have yet; what a restart finds of this cause is still to be averaged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """An expert's output for a batch, and which generation gave it."""

    probabilities: np.ndarray
    """float32 ``(B, C)`` over ``classes``."""
    classes: tuple[str, ...]
    generation: int
    weights: Digest


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
    reached: Reached | None = None
    """The last training run that these parameters hold: what an interrupted one goes on from."""
    dirty: bool = False
    """Whether it has learned anything since its last committed round."""
    deltas: list[np.ndarray] | None = None
    """Deltas committed since the current training run began, float32 ``(P,)`` each; None while none is under way."""
    changed: asyncio.Lock = field(default_factory=asyncio.Lock)

    def advert(self) -> ExpertAdvert:
        return ExpertAdvert(
            uid=self.uid,
            form=form_of(self.architecture),
            classes=self.classes,
            generation=self.generation,
            weights=self.weights,
        )


class ExpertHost:
    """Hosts replicas: loads them at the start, serves them, commits each change as a new generation.

    Args:
        state: Where generations are kept.
        compute: The threads that torch runs in.
        device: Where the modules live.
    """

    def __init__(self, state: State, compute: Compute, *, device: str = "cpu") -> None:
        self._state = state
        self._compute = compute
        self._device = device
        self._experts: dict[ExpertUid, HostedExpert] = {}
        self._unusable: dict[ExpertUid, str] = {}
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
                load_weights(module, self._state.blobs.get(generation.digest))
            except ExpertsError as failure:
                self._unusable[row.uid] = str(failure)
                log.warning("a kept expert cannot be served", expert=row.uid, reason=str(failure))
                continue
            module.to(self._device)
            self._experts[row.uid] = HostedExpert(
                uid=row.uid,
                classes=row.classes,
                architecture=architecture,
                module=module,
                generation=generation.number,
                weights=generation.digest,
                committed_at=generation.created_at,
                reached=generation.reached,
                dirty=generation.cause == TRAINED,
            )

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
        self, uid: ExpertUid, classes: tuple[str, ...], architecture: Architecture, weights: bytes | None
    ) -> HostedExpert:
        """Host an expert from now on: with the given weights, or with the initial ones that its uid determines.

        Raises:
            UnknownArchitecture: No peer could be told of its form.
            CorruptWeights: The weights are not its own.
        """
        form_of(architecture)  # what could not be advertised would end every record of this node
        module = architecture.build(uid)
        if weights is not None:
            load_weights(module, weights)
        self._state.add_expert(uid, architecture=architecture.to_config(), classes=classes)
        expert = HostedExpert(
            uid=uid,
            classes=classes,
            architecture=architecture,
            module=module,
            generation=0,
            weights=Digest(""),
            committed_at=0.0,
        )
        await self._commit(expert, flat_parameters(module).numpy(), cause="adopted" if weights else "initial")
        self._experts[uid] = expert
        return expert

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
            await self._commit(expert, vector + sum(missed, np.zeros_like(vector)), cause=TRAINED, reached=reached)
            expert.dirty = True

    async def apply_delta(self, uid: ExpertUid, delta: np.ndarray, *, generation: int) -> bool:
        """Commit the outcome of a round.

        Args:
            delta: The group's mean minus the snapshot that went into it, float32 ``(P,)``.
            generation: The generation that the snapshot was of.

        Returns: Whether a training run is under way that has to take the delta in. One that begins later, or began
            while this was being committed, starts from weights that contain it.
        """
        expert = self.get(uid)
        async with expert.changed:
            run = expert.deltas
            if run is not None:
                run.append(delta)
            # What was committed since the snapshot, a checkpoint for instance, is in no mean yet.
            expert.dirty = expert.generation != generation
            await self._commit(expert, self.snapshot(uid) + delta, cause="averaged", reached=expert.reached)
            return run is not None and run is expert.deltas

    def snapshot(self, uid: ExpertUid) -> np.ndarray:
        """The served parameters as one vector, float32 ``(P,)``."""
        return np.asarray(flat_parameters(self.get(uid).module).numpy())

    def _built(self, expert: HostedExpert, vector: np.ndarray) -> tuple[nn.Module, bytes]:
        """The expert's module with these parameters, and its weights as bytes."""
        # Copied and not built: initial weights, which are drawn one by one, would be overwritten at once.
        module = copy.deepcopy(expert.module).cpu()
        load_flat(module, torch.from_numpy(vector))
        data = weights_to_bytes(module)
        return module.to(self._device), data

    async def _commit(
        self, expert: HostedExpert, vector: np.ndarray, *, cause: str, reached: Reached | None = None
    ) -> None:
        """Write a generation, then serve it: what is advertised can be served, and survives a kill."""
        # Beside the loop: a checkpoint comes several times a second, and answers must not wait for it.
        module, data = await self._compute.run_own(self._built, expert, vector)
        generation = await asyncio.to_thread(
            self._state.commit_generation, expert.uid, data, cause=cause, reached=reached
        )
        expert.module, expert.generation, expert.weights = module, generation.number, generation.digest
        expert.committed_at, expert.reached = generation.created_at, reached
        self.changed.set()
