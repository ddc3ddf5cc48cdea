"""Taking a monolith apart: the reference CNN's dense end, as experts for its classes, before any training.

The CNN is trained on the pool's labels, and gives its knowledge away unit by unit: to five experts of two classes and
to one of ten. `section` experts read what the CNN's own dense end reads, `trunk` experts the features of the mesh's
trunk, to which the first layer is translated. Beside each stands an expert of the same form that begins with random
weights and is distilled from the CNN's logits for the classes, at the rate that does best on the validation images.

Legend: N items, C class.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from bench_preservation_data import Items, Part
from bench_preservation_learning import Plan, best_rate, learn, percent_right
from bench_preservation_parallel import in_parallel
from bench_preservation_starts import BUFFER
from bench_preservation_study import Study
from torch import Tensor

from experts.architectures.mlp import MlpArchitecture
from experts.data.dataset import class_columns
from experts.data.idx import FASHION_MNIST_CLASSES
from experts.distillation import DistillationData
from experts.generators import torch_generator
from experts.preservation.chain import Chain
from experts.preservation.monolith import dense_tail, inputs_of, translated
from experts.preservation.transfer import Source, TransferConfig, transfer
from experts.teachers.cnn import CnnTeacher

__all__ = ["BEHIND", "GROUPS", "SCRATCH_STEPS", "measure_apart"]

GROUPS: Mapping[str, tuple[Sequence[tuple[str, ...]], int]] = {
    "two_classes": (tuple(tuple(sorted(FASHION_MNIST_CLASSES[at : at + 2])) for at in range(0, 10, 2)), 8),
    "ten_classes": ((tuple(sorted(FASHION_MNIST_CLASSES)),), 16),
}
"""The classes of each expert, and its hidden units."""

BEHIND = ("section", "trunk")

SCRATCH_STEPS = (10, 100)

_TRANSLATED_ON = 4000
"""Images of the pool that both trunks look at."""


class _Behind(NamedTuple):
    """A chain, and the features that it reads."""

    chain: Chain
    items: Items


def measure_apart(study: Study) -> dict[str, Any]:
    """For the classes of each expert: accuracy in percent on their test images of the monolith, held to these classes,
    of the expert at step 0, and of the distilled one by steps; and the share of importance that is kept. All by seed,
    the mean over the experts of a group."""
    study.tell("taking reference CNNs apart")
    teachers = study.teachers("fashion_pixels")
    pixels, features = study.items("fashion_pixels"), study.items("fashion_features")
    by_seed = in_parallel(
        [
            partial(_apart, teacher, seed, pixels, features, study.effort.rates)
            for teacher, seed in zip(teachers, study.seeds, strict=True)
        ]
    )
    return {
        behind: {
            group: {what: [of[behind][group][what] for of in by_seed] for what in by_seed[0][behind][group]}
            for group in GROUPS
        }
        for behind in BEHIND
    }


def _apart(teacher: CnnTeacher, seed: int, pixels: Items, features: Items, rates: Sequence[float]) -> dict[str, Any]:
    section = _section(teacher, pixels)
    rows = torch.arange(min(_TRANSLATED_ON, len(features.pool.columns_N)))
    chain = translated(section.chain, section.items.pool.features_ND[rows], features.pool.features_ND[rows])
    return {
        name: {
            group: _mean([_one(behind, teacher, classes, hidden, seed, rates) for classes in experts])
            for group, (experts, hidden) in GROUPS.items()
        }
        for name, behind in zip(BEHIND, (section, _Behind(chain, features)), strict=True)
    }


def _section(teacher: CnnTeacher, pixels: Items) -> _Behind:
    """The dense end, and what it reads of all images."""
    tail = dense_tail(teacher, pixels.pool.of(torch.arange(1)).prepared())
    pool, validation, test = (
        part._replace(features_ND=inputs_of(teacher, tail.first, part.prepared()))
        for part in (pixels.pool, pixels.validation, pixels.test)
    )
    return _Behind(tail.chain, Items("the section", pixels.classes, pool, validation, test))


def _one(
    behind: _Behind, teacher: CnnTeacher, classes: tuple[str, ...], hidden: int, seed: int, rates: Sequence[float]
) -> dict[str, float]:
    """One expert, carried over and distilled."""
    pool, validation, test = (
        _of_classes(part, classes) for part in (behind.items.pool, behind.items.validation, behind.items.test)
    )
    form = MlpArchitecture(feature_dim=behind.chain.feature_dim, hidden=hidden, num_classes=len(classes))
    buffer = torch.randperm(len(pool.columns_N), generator=torch_generator(seed, "buffer"))[:BUFFER]
    carried = transfer(
        Source(behind.chain, behind.items.classes),
        form,
        classes,
        pool.features_ND[buffer],
        class_columns([pool.images.labels[row] for row in buffer.tolist()], behind.items.classes),
        TransferConfig(),
        seed=f"new-{seed}",
        generator=torch_generator(seed, "transfer"),
    )
    columns = torch.tensor([teacher.classes.index(name) for name in classes])
    data = DistillationData(features_ND=pool.features_ND, teacher_logits_NC=teacher.logits(pool.prepared())[:, columns])

    def distilled(plan: Plan, part: Part) -> dict[int, float]:
        return learn(
            form.build(f"new-{seed}"),
            data,
            plan,
            torch_generator(seed, "new batches"),
            lambda module: percent_right(module, part.features_ND, part.columns_N),
        )

    tried = {rate: distilled(Plan(rate, SCRATCH_STEPS), validation) for rate in rates}
    found = {
        "monolith": _percent_right(teacher.logits(test.prepared())[:, columns], test.columns_N),
        "mapped": percent_right(carried.module, test.features_ND, test.columns_N),
        "importance_kept": carried.report.layers[0].importance_kept,
    }
    for steps in SCRATCH_STEPS:
        rate = best_rate({rate: by_steps[steps] for rate, by_steps in tried.items()})
        found[f"scratch_{steps}"] = distilled(Plan(rate, (steps,)), test)[steps]
    return found


def _of_classes(part: Part, classes: tuple[str, ...]) -> Part:
    """Its items of these classes, with columns among them."""
    rows = torch.from_numpy(np.flatnonzero(np.isin(np.asarray(part.images.labels), classes)))
    own = part.of(rows)
    return own._replace(columns_N=class_columns(own.images.labels, classes))


def _percent_right(logits_NC: Tensor, columns_N: Tensor) -> float:
    return 100.0 * float((logits_NC.argmax(dim=1) == columns_N).double().mean())


def _mean(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(of[name] for of in found) / len(found) for name in found[0]}
