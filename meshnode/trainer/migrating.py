"""Carrying an expert over into another form, on what this node still has of its classes.

The images are parted by a digest of each one: about a fifth is held out, the same on every run and in whichever file
an image turns up. From the rest, the buffer, units are scored and matched and what follows them is fitted; the
held-out part only judges. The old expert has mostly learned from those very images and the new one never has, so that
the comparison is strict: the new one seems to lose what the old one only remembers. It says nothing of other images
than this node has.

Legend: N images, D feature.
"""

import dataclasses
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from experts.architectures.registry import architecture_from_config
from experts.checkpoint import load_weights, weights_to_bytes
from experts.data.dataset import ImageDataset, class_columns
from experts.data.held_out import image_digest, is_held_out
from experts.distillation import DistillationConfig, DistillationData, DistillationRun, ProgressMeter
from experts.generators import torch_generator
from experts.preservation.report import LayerReport
from experts.preservation.transfer import Source, TransferConfig, transfer
from experts.trunk.base import Trunk, features_of
from meshnode.trainer.memory import ReplayMemory
from meshnode.trainer.messages import (
    Compare,
    Compared,
    ExpertWeights,
    FromTrainer,
    Migrate,
    Migrated,
    MigrationFailed,
    Progress,
    TaskFile,
)
from protocol.lineage import Accuracy, LayerTransfer

__all__ = ["LEAST_HELD_OUT", "Migrator", "told_layer"]

LEAST_HELD_OUT = 10
"""Fewer held-out images say nothing: of so many, one is ten points."""

IMAGES_IN_ALL = 20_000
"""Of more tasks than one, each gives its share: features of so many are held, 170 MB of a trunk of 2,160."""

PROGRESS_EVERY_STEPS = 100

_ROWS = 256
"""Of one forward pass: of the largest form that a peer may send, what its units answer is then 64 MiB."""


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class _Labelled:
    """Features and columns of some images."""

    features_ND: torch.Tensor
    labels_N: torch.Tensor

    def accuracy(self, module: nn.Module) -> float:
        """The share of them whose class has the largest logit."""
        right_N = _logits(module, self.features_ND).argmax(dim=1) == self.labels_N
        return float(right_N.double().mean())


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class _Material:
    """What this node has of an expert's classes, in two parts that have no image in common."""

    buffer: _Labelled
    held_out: _Labelled


class Migrator:
    """Carries experts over and compares them, with one trunk and one replay memory.

    Args:
        trunk: The mesh's, frozen; everything is computed on its device.
        memory: Images of what was learned before.
        load: Opens a task file of the data folder; None if it is gone or has other content by now.
        config: How to distil; its steps are those of an order.
        seed: What the drawing of batches follows from.
        send: Takes what the daemon is to know of the progress.
    """

    def __init__(
        self,
        trunk: Trunk,
        memory: ReplayMemory,
        load: Callable[[TaskFile], ImageDataset | None],
        config: DistillationConfig,
        *,
        seed: int,
        send: Callable[[FromTrainer], None],
    ) -> None:
        self._trunk = trunk
        self._device = trunk.mean_D.device
        self._memory = memory
        self._load = load
        self._config = config
        self._seed = seed
        self._send = send

    def migrate(self, order: Migrate) -> Migrated | MigrationFailed:
        """The expert in its new form, with how well both do on the held-out images.

        Raises:
            ExpertsError: It cannot be carried over: the forms have nothing in common, the weights are not its own, ...
        """
        self._say("transfer")
        material = self._material(order.classes, order.tasks)
        if (lack := _lack(material, order.classes)) is not None:
            return MigrationFailed(reason=lack)
        buffer = material.buffer
        old = _built(order.old)
        carried = transfer(
            Source.of(architecture_from_config(order.old.architecture), old, order.classes),
            architecture_from_config(order.new),
            order.classes,
            buffer.features_ND.cpu(),
            buffer.labels_N.cpu(),
            TransferConfig(**order.transfer),
            seed=order.successor,
            generator=self._generator("transfer", order),
        )
        old, new = old.to(self._device), carried.module.to(self._device)
        if order.steps:
            self._distil(order, old, new, buffer)
        self._say("judge")
        return Migrated(
            weights=weights_to_bytes(new),
            layers=tuple(told_layer(layer) for layer in carried.report.layers),
            accuracy=_accuracy(material.held_out, old, new),
            tasks=self._tasks_of(order),
        )

    def compare(self, order: Compare) -> Compared:
        """How well two experts do on the held-out images.

        Raises:
            ExpertsError: Weights are not those of their form.
        """
        held_out = self._material(order.classes, order.tasks).held_out
        old, new = (_built(expert).to(self._device) for expert in (order.old, order.new))
        return Compared(accuracy=_accuracy(held_out, old, new) if len(held_out.labels_N) else None)

    def _distil(self, order: Migrate, old: nn.Module, new: nn.Module, buffer: _Labelled) -> None:
        data = DistillationData(
            features_ND=buffer.features_ND,
            labels_N=buffer.labels_N,
            teacher_logits_NC=_logits(old, buffer.features_ND),
        )
        config = dataclasses.replace(self._config, steps=order.steps)
        run = DistillationRun(new, data, config, self._generator("distil", order))
        meter = ProgressMeter(total=order.steps, every_steps=PROGRESS_EVERY_STEPS, now_s=time.monotonic())
        while not run.done:
            progress = meter.after_step(run.step(), now_s=time.monotonic())
            if progress is not None:
                done, total, left_s = progress.step, progress.total, progress.left_s
                self._send(Progress(stage="distil", done=done, total=total, loss=progress.mean_loss, left_s=left_s))

    def _material(self, classes: Sequence[str], tasks: Sequence[TaskFile]) -> _Material:
        features, labels, held_out = [], [], []
        seen: set[bytes] = set()
        concerned = [task for task in tasks if task.classes.keys() & set(classes)]
        limit = max(1, IMAGES_IN_ALL // (len(concerned) + 1))
        for some in self._sources(classes, concerned):
            chosen = _not_seen(some, seen, limit)
            seen |= chosen.keys()
            rows = list(chosen.values())
            features.append(features_of(self._trunk, some.images[rows]))
            labels += [some.labels[row] for row in rows]
            held_out += [is_held_out(digest) for digest in chosen]
        features_ND = torch.cat(features) if features else torch.empty(0, self._trunk.feature_dim, device=self._device)
        labels_N = class_columns(labels, classes).to(self._device)
        held_out_N = torch.tensor(held_out, dtype=torch.bool, device=self._device)
        return _Material(
            buffer=_Labelled(features_ND=features_ND[~held_out_N], labels_N=labels_N[~held_out_N]),
            held_out=_Labelled(features_ND=features_ND[held_out_N], labels_N=labels_N[held_out_N]),
        )

    def _sources(self, classes: Collection[str], tasks: Sequence[TaskFile]) -> Iterator[ImageDataset]:
        """Images of these classes, one task file in memory at a time; files may have them in different sizes."""
        for task in tasks:
            images = self._load(task)
            if images is not None:
                yield images.of_classes(task.classes.keys() & set(classes))
        remembered, labels = self._memory.labelled(classes)
        if labels:
            yield ImageDataset(remembered, labels)

    def _tasks_of(self, order: Migrate) -> tuple[str, ...] | None:
        """Those of which an image may have been used; None where one is of unknown origin."""
        remembered = self._memory.tasks_of(order.classes)
        files = {task.name for task in order.tasks if task.classes.keys() & set(order.classes)}
        return None if remembered is None else tuple(sorted(files.union(remembered)))

    def _generator(self, purpose: str, order: Migrate) -> torch.Generator:
        return torch_generator(self._seed, f"migrate/{purpose}/{order.successor}")

    def _say(self, stage: str) -> None:
        self._send(Progress(stage=stage, done=0, total=0, loss=None, left_s=0.0))


def _logits(module: nn.Module, features_ND: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([module(rows_BD) for rows_BD in torch.split(features_ND, _ROWS)])


def _built(expert: ExpertWeights) -> nn.Module:
    # Of any seed: all that it decides is overwritten at once.
    module = architecture_from_config(expert.architecture).build("")
    load_weights(module, expert.weights)
    return module


def _not_seen(some: ImageDataset, seen: Collection[bytes], limit: int) -> dict[bytes, int]:
    """Rows of images that did not turn up before, by their digest: at most `limit`, chosen by the digest alone."""
    rows: dict[bytes, int] = {}
    for row, image in enumerate(some.images):
        digest = image_digest(image)
        if digest not in seen:
            rows.setdefault(digest, row)
    return dict(sorted(rows.items())[:limit])


def _lack(material: _Material, classes: Sequence[str]) -> str | None:
    """What is missing for an expert of these classes to be carried over here; None if nothing is."""
    counts = torch.bincount(material.buffer.labels_N, minlength=len(classes)).tolist()
    absent = [name for name, count in zip(classes, counts, strict=True) if not count]
    remedy = "put a task file with them back into the data folder, or migrate on a node that has learned them"
    if absent:
        return f"this node has no image left of {', '.join(absent)}; {remedy}"
    num_held_out = len(material.held_out.labels_N)
    if num_held_out < LEAST_HELD_OUT:
        return f"this node has {num_held_out} images of these classes to judge by, of {LEAST_HELD_OUT} needed; {remedy}"
    return None


def _accuracy(held_out: _Labelled, old: nn.Module, new: nn.Module) -> Accuracy:
    return Accuracy(old=held_out.accuracy(old), new=held_out.accuracy(new), samples=len(held_out.labels_N))


def told_layer(layer: LayerReport) -> LayerTransfer:
    """The report of a layer as a lineage tells it."""
    return LayerTransfer(
        name=layer.layer,
        source=layer.source,
        old_units=layer.old_units,
        new_units=layer.new_units,
        mapped=layer.mapped,
        duplicated=layer.duplicated,
        merged=layer.merged,
        dropped=layer.dropped,
        importance_kept=layer.importance_kept,
    )
