"""Carrying an expert over into another form, on what this node still has of its classes.

From the buffer (`meshnode.trainer.material`) units are scored and matched, and what follows them is fitted; the
held-out part only judges. The old expert has mostly learned from those very images and the new one never has, so that
the comparison is strict: the new one seems to lose what the old one only remembers. It says nothing of other images
than this node has.

Legend: N images, D feature, C class.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from experts.architectures.registry import architecture_from_config
from experts.checkpoint import load_weights, weights_to_bytes
from experts.data.dataset import ImageDataset
from experts.distillation import DistillationConfig, DistillationData, DistillationRun, ProgressMeter
from experts.generators import torch_generator
from experts.preservation.report import LayerReport
from experts.preservation.transfer import Source, TransferConfig, transfer
from experts.trunk.base import Trunk
from meshnode.trainer.material import Labelled, Material, Materials, logits_of
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

PROGRESS_EVERY_STEPS = 100


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
        self._device = trunk.mean_D.device
        self._materials = Materials(trunk, memory, load)
        self._config = config
        self._seed = seed
        self._send = send

    def migrate(self, order: Migrate) -> Migrated | MigrationFailed:
        """The expert in its new form, with how well both do on the held-out images.

        Raises:
            ExpertsError: It cannot be carried over: the forms have nothing in common, the weights are not its own, ...
        """
        self._say("transfer")
        material = self._materials.of(order.classes, order.tasks)
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
            tasks=self._materials.tasks_of(order.classes, order.tasks),
        )

    def compare(self, order: Compare) -> Compared:
        """How well two experts do on the held-out images.

        Raises:
            ExpertsError: Weights are not those of their form.
        """
        held_out = self._materials.of(order.classes, order.tasks).held_out
        old, new = (_built(expert).to(self._device) for expert in (order.old, order.new))
        return Compared(accuracy=_accuracy(held_out, old, new) if len(held_out.labels_N) else None)

    def _distil(self, order: Migrate, old: nn.Module, new: nn.Module, buffer: Labelled) -> None:
        data = DistillationData(
            features_ND=buffer.features_ND,
            labels_N=buffer.labels_N,
            teacher_logits_NC=logits_of(old, buffer.features_ND),
        )
        config = dataclasses.replace(self._config, steps=order.steps)
        run = DistillationRun(new, data, config, self._generator("distil", order))
        meter = ProgressMeter(total=order.steps, every_steps=PROGRESS_EVERY_STEPS, now_s=time.monotonic())
        while not run.done:
            progress = meter.after_step(run.step(), now_s=time.monotonic())
            if progress is not None:
                done, total, left_s = progress.step, progress.total, progress.left_s
                self._send(Progress(stage="distil", done=done, total=total, loss=progress.mean_loss, left_s=left_s))

    def _generator(self, purpose: str, order: Migrate) -> torch.Generator:
        return torch_generator(self._seed, f"migrate/{purpose}/{order.successor}")

    def _say(self, stage: str) -> None:
        self._send(Progress(stage=stage, done=0, total=0, loss=None, left_s=0.0))


def _built(expert: ExpertWeights) -> nn.Module:
    # Of any seed: all that it decides is overwritten at once.
    module = architecture_from_config(expert.architecture).build("")
    load_weights(module, expert.weights)
    return module


def _lack(material: Material, classes: Sequence[str]) -> str | None:
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


def _accuracy(held_out: Labelled, old: nn.Module, new: nn.Module) -> Accuracy:
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
