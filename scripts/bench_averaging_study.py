"""Replicas that learn apart and are averaged, beside one net that learns from all: the training of both.

Every member takes r steps of SGD on its shard, then all exchange as a node does (`experts.averaging.Share`) and go on
from what they come to: the mean, and what a code could not say of their own difference. Every member has the same
number of samples before every average, whatever its shard holds, and counts the same in it. Measured is the mean.

The central net sees as many samples as all members together, however many they are, in as many batches of the same
size: r averaged steps of four members stand against 4 r of its own. That is what one machine with all the data would
do. One with batches four times as large, which takes as many steps as each of four members, is measured beside it.

The teacher that all share, the anchor, is a head of 128 hidden units on the same trunk that has learned from as many
images as all peers have together, none of which is in a shard; a small one has learned from the first of them alone.

Legend: N images, D feature, C class, P parameters.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from bench_experts_data import Features, Ground
from numpy.typing import NDArray
from torch import Tensor, nn

from experts.architectures.mlp import MlpArchitecture
from experts.averaging import Codec, Share
from experts.checkpoint import flat_parameters, load_flat
from experts.distillation import DistillationConfig, DistillationData, DistillationRun
from experts.generators import torch_generator

__all__ = ["ALPHA", "Averaged", "Exchange", "HIDDEN", "Study", "StudyEffort", "TAP", "TEACHER_HIDDEN", "average_runs"]

TAP = "E5"
HIDDEN, TEACHER_HIDDEN = 16, 128
ALPHA = 0.3
"""Weight of the labels beside a teacher, where shards are skewed."""

Vector = NDArray[np.float32]


class StudyEffort(NamedTuple):
    """How much is trained: ``peers`` times ``steps`` by any group and by the central net."""

    peers: int
    steps: int
    round_steps: int
    teacher_steps: int
    small_teacher_images: int


class Exchange:
    """Rounds of a group, by the arithmetic of its nodes.

    Args:
        codec: How parts travel.
        feedback: Whether members keep what a code leaves out.
    """

    def __init__(self, codec: Codec, *, feedback: bool = True) -> None:
        self._codec = codec
        self._feedback = feedback
        self.sent_bytes = 0
        """Of all members, so far."""

    def average(self, vectors: Sequence[Vector], reference: Vector) -> tuple[Vector, list[Vector]]:
        """The mean that all come to, and what each goes on from.

        Args:
            vectors: The members' parameters, float32 ``(P,)``.
            reference: The last mean.
        """
        members = range(len(vectors))
        shares = [Share(vectors[index], reference, self._codec, [1.0] * len(vectors), index) for index in members]
        means = []
        for index in members:
            parts = {other: shares[other].part_for(index) for other in members if other != index}
            means.append(shares[index].reduce(parts))
            self.sent_bytes += sum(part.nbytes for part in parts.values()) + (len(vectors) - 1) * means[-1].nbytes
        results = [share.conclude(means) for share in shares]
        if not self._feedback:
            return results[0].mean, [averaged.mean for averaged in results]
        return results[0].mean, [vector + averaged.delta for vector, averaged in zip(vectors, results, strict=True)]


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Averaged:
    """What a group has come to."""

    parameters_P: Tensor
    """The mean of the last round."""
    by_round: list[Tensor] = field(repr=False)
    """The same after every average."""
    sent_bytes: int


def average_runs(
    modules: Sequence[nn.Module], runs: Sequence[DistillationRun], exchange: Exchange, *, round_steps: int
) -> Averaged:
    """Take all runs to their ends, averaged every so many steps.

    Args:
        modules: Of the members, all with the same parameters.
        runs: Each trains one of the modules; all take the same number of steps.
        round_steps: r; after the last step there is an average in any case.
    """
    common_P = flat_parameters(modules[0])
    by_round = []
    while not runs[0].done:
        for run in runs:
            for _ in range(round_steps):
                if next(run, None) is None:
                    break
        vectors = [flat_parameters(module).numpy() for module in modules]
        mean, new = exchange.average(vectors, common_P.numpy())
        common_P = torch.from_numpy(mean)
        for module, vector in zip(modules, new, strict=True):
            load_flat(module, torch.from_numpy(vector))
        by_round.append(common_P)
    return Averaged(parameters_P=common_P, by_round=by_round, sent_bytes=exchange.sent_bytes)


class Study:
    """Everything the runs share: features, labels, and the answers of the teachers.

    Args:
        ground: The pool is what peers share, the validation split what the teachers learn from.
        effort: How much is trained.
    """

    def __init__(self, ground: Ground, effort: StudyEffort) -> None:
        self.ground = ground
        self.effort = effort
        self.features: Features = ground.features(TAP)
        self.columns_N = ground.columns(ground.pool)
        self.architecture = self._head(HIDDEN)
        self.teachers: dict[str, dict[str, float]] = {}
        """Images and accuracy of each teacher, by name."""
        self._logits: dict[str, Tensor] = {}

    def add_teacher(self, name: str, num_images: int, seed: int) -> None:
        """Train a teacher on so many images of the validation split, the first of them."""
        self.ground.tell(f"the teacher of {num_images} images")
        module = self._head(TEACHER_HIDDEN).build(f"teacher-{seed}")
        data = DistillationData(
            features_ND=self.features.validation[:num_images],
            labels_N=self.ground.columns(self.ground.validation)[:num_images],
        )
        config = DistillationConfig(steps=self.effort.teacher_steps, alpha=1.0)
        for _ in DistillationRun(module, data, config, torch_generator(seed, "teacher batches")):
            pass
        with torch.no_grad():
            self._logits[name] = module(self.features.pool)
        self.teachers[name] = {"images": num_images, "accuracy": self._percent_right(module)}

    def averaged(
        self, shards: Sequence[Tensor], exchange: Exchange, *, seed: int, teacher: str | None, round_steps: int
    ) -> Averaged:
        """A group that learns from these shards, each member in an even part of the steps of `central`.

        Args:
            exchange: New.
            seed: Of initial weights and batches.
            teacher: One of `teachers`; None for labels alone.
            round_steps: r.
        """
        modules = [self.architecture.build(f"expert-{seed}") for _ in shards]
        config = self._config(teacher, self.effort.peers * self.effort.steps // len(shards))
        runs = [
            DistillationRun(module, self._data(rows, teacher), config, torch_generator(seed, f"batches of {member}"))
            for member, (module, rows) in enumerate(zip(modules, shards, strict=True))
        ]
        return average_runs(modules, runs, exchange, round_steps=round_steps)

    def central(self, *, seed: int, teacher: str | None, large_batches: bool) -> Tensor:
        """Parameters of a net that learns from all shards, at as many samples as the whole group."""
        module = self.architecture.build(f"expert-{seed}")
        peers, steps = self.effort.peers, self.effort.steps
        config = self._config(teacher, steps if large_batches else peers * steps)
        if large_batches:
            config = dataclasses.replace(config, batch_size=peers * config.batch_size)
        data = self._data(torch.arange(len(self.columns_N)), teacher)
        for _ in DistillationRun(module, data, config, torch_generator(seed, "batches of the central net")):
            pass
        return flat_parameters(module)

    def percent_right(self, parameters_P: Tensor) -> float:
        """Accuracy of an expert on the test set."""
        module = self.architecture.build("expert")
        load_flat(module, parameters_P)
        return self._percent_right(module)

    def _percent_right(self, module: nn.Module) -> float:
        with torch.no_grad():
            right_N = module(self.features.test).argmax(dim=1) == self.ground.columns(self.ground.test)
        return 100.0 * float(right_N.double().mean())

    def _head(self, hidden: int) -> MlpArchitecture:
        return MlpArchitecture(
            feature_dim=self.features.trunk.feature_dim, hidden=hidden, num_classes=len(self.ground.classes)
        )

    def _config(self, teacher: str | None, steps: int) -> DistillationConfig:
        return DistillationConfig(steps=steps, alpha=1.0 if teacher is None else ALPHA)

    def _data(self, rows: Tensor, teacher: str | None) -> DistillationData:
        return DistillationData(
            features_ND=self.features.pool[rows],
            labels_N=self.columns_N[rows],
            teacher_logits_NC=None if teacher is None else self._logits[teacher][rows],
        )
