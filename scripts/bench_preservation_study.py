"""What the parts of the benchmark share: data, old experts and teachers, each made once in a run."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from bench_command import Raw
from bench_experts_data import Size, load_ground
from bench_preservation_data import Items, digits, fashion_features, fashion_pixels
from bench_preservation_forms import OLD
from bench_preservation_learning import Plan, learn, percent_right
from bench_preservation_parallel import in_parallel
from bench_preservation_starts import BUFFER, Case
from torch import Tensor, nn

from experts.architectures.base import Architecture
from experts.checkpoint import flat_parameters, load_flat
from experts.distillation import DistillationConfig, DistillationData
from experts.generators import torch_generator
from experts.teachers.cnn import CnnTeacher, TeacherConfig, train_teacher

__all__ = ["Effort", "FULL", "OLD_RATE", "QUICK", "Study", "setting_of", "trained_on_labels"]

OLD_RATE = 0.05
"""Learning rate of old experts and replicas, not tuned."""


class Effort(NamedTuple):
    """How much of everything."""

    size: Size
    seeds: int
    rates: tuple[float, ...]
    old_steps: int
    """Also the most that a new expert may take to come up to the old one."""
    teacher_epochs: int


FULL = Effort(
    size=Size(pool=20_000, validation=2_000, test=10_000),
    seeds=3,
    rates=(0.01, 0.03, 0.1, 0.3, 0.9),
    old_steps=8000,
    teacher_epochs=12,
)
QUICK = Effort(
    size=Size(pool=4_000, validation=500, test=2_000),
    seeds=1,
    rates=(0.03, 0.3),
    old_steps=1000,
    teacher_epochs=3,
)


@dataclass(eq=False)
class Study:
    """What is there before anything is carried over.

    Attributes:
        seeds: Each has old experts, teachers, buffers, random initialisations and batches of its own.
        tell: Takes a line of progress.
    """

    effort: Effort
    seeds: range
    tell: Callable[[str], None]

    @cache  # noqa: B019 - it lives as long as the run
    def items(self, name: str) -> Items:
        """A data set: ``fashion_pixels``, ``fashion_features`` or ``digits``."""
        if name == "digits":
            return digits()
        ground = load_ground(self.effort.size, self.tell)
        return {"fashion_pixels": fashion_pixels, "fashion_features": fashion_features}[name](ground)

    @cache  # noqa: B019
    def old(self, name: str) -> list[Case]:
        """An old expert, for each seed."""
        old = OLD[name]
        items = self.items(old.items)
        self.tell(f"old experts: {name}")

        def parameters_of(seed: int) -> Any:
            module = trained_on_labels(old.architecture, items, self.effort.old_steps, seed=seed, name=f"old-{seed}")
            return flat_parameters(module).numpy()

        cases = []
        for seed, parameters_P in zip(
            self.seeds, in_parallel([partial(parameters_of, seed) for seed in self.seeds]), strict=True
        ):
            module = old.architecture.build(f"old-{seed}")
            load_flat(module, torch.from_numpy(parameters_P))
            cases.append(Case(old.architecture, module, items, seed))
        return cases

    @cache  # noqa: B019
    def teachers(self, name: str) -> list[CnnTeacher]:
        """The reference CNN, trained on the labels of a data set's pool, for each seed."""
        pool = self.items(name).pool
        self.tell(f"reference CNNs: {name}")
        config = TeacherConfig(epochs=self.effort.teacher_epochs)

        def trained(seed: int) -> bytes:
            teacher = train_teacher(pool.prepared(), pool.images.labels, config, torch_generator(seed, "teacher"))
            return teacher.to_bytes()

        return [CnnTeacher.from_bytes(data) for data in in_parallel([partial(trained, seed) for seed in self.seeds])]

    @cache  # noqa: B019
    def taught(self, name: str) -> list[Tensor]:
        """What those say of the pool, ``(N, C)``."""
        images_NCHW = self.items(name).pool.prepared()
        return [teacher.logits(images_NCHW) for teacher in self.teachers(name)]


def trained_on_labels(architecture: Architecture, items: Items, steps: int, *, seed: int, name: str) -> nn.Module:
    """An expert that has learned from the labels of the pool.

    Args:
        name: Of its initial weights.
    """
    module = architecture.build(name)
    data = DistillationData(features_ND=items.pool.features_ND, labels_N=items.pool.columns_N)
    plan = Plan(rate=OLD_RATE, at=(steps,), alpha=1.0)
    test = items.test
    learn(
        module,
        data,
        plan,
        torch_generator(seed, f"{name} batches"),
        lambda learned: percent_right(learned, test.features_ND, test.columns_N),
    )
    return module


def setting_of(effort: Effort, seed: int) -> Raw:
    """What all figures depend on."""
    config = DistillationConfig()
    return {
        "seeds": list(range(seed, seed + effort.seeds)),
        "images": effort.size._asdict(),
        "old_experts": {name: {"items": old.items, "form": old.architecture.to_config()} for name, old in OLD.items()},
        "old_learns_from": "the labels of the pool alone",
        "old_steps": effort.old_steps,
        "old_rate": OLD_RATE,
        "optimizer": "SGD",
        "batch_size": config.batch_size,
        "new_learns_from": "the logits of its teacher alone (alpha = 0)",
        "temperature": config.temperature,
        "rates": list(effort.rates),
        "rates_are_chosen": "on validation images, for each side and number of steps, on average over the seeds",
        "reference_cnn_learns_from": "the labels of the pool alone",
        "reference_cnn_epochs": effort.teacher_epochs,
        "buffer": BUFFER,
    }
