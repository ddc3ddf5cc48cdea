"""Two replicas that began with different weights and learned from a half each: their mean, as they are and aligned."""

from functools import partial
from typing import Any

import torch
from bench_preservation_data import Items
from bench_preservation_forms import OLD
from bench_preservation_learning import percent_right
from bench_preservation_parallel import in_parallel
from bench_preservation_starts import BUFFER
from bench_preservation_study import Study, trained_on_labels
from torch import nn

from experts.architectures.base import Architecture
from experts.checkpoint import flat_parameters, load_flat
from experts.generators import torch_generator
from experts.preservation.alignment import align

__all__ = ["REPLICAS", "measure_replicas"]

REPLICAS = ("pixels", "trunk")
"""Forms of old experts that are tried."""


def measure_replicas(study: Study) -> dict[str, Any]:
    """By form and seed, accuracy in percent of ``alone`` (the mean of both), ``unaligned`` and ``aligned``; and how
    alike paired units answer."""
    found = {}
    for name in REPLICAS:
        study.tell(f"replicas of different beginnings: {name}")
        items, architecture = study.items(OLD[name].items), OLD[name].architecture
        by_seed = in_parallel(
            [partial(measure_pair, architecture, items, study.effort.old_steps, seed) for seed in study.seeds]
        )
        found[name] = {what: [of[what] for of in by_seed] for what in by_seed[0]}
    return found


def measure_pair(architecture: Architecture, items: Items, steps: int, seed: int) -> dict[str, float]:
    """One pair of replicas."""
    rows = torch.randperm(len(items.pool.columns_N), generator=torch_generator(seed, "halves"))
    first, second = (
        trained_on_labels(
            architecture, items._replace(pool=items.pool.of(half)), steps, seed=seed, name=f"{name}-{seed}"
        )
        for name, half in zip(("first", "second"), rows.chunk(2), strict=True)
    )
    buffer = rows[torch.randperm(len(rows), generator=torch_generator(seed, "buffer"))[:BUFFER]]
    generator = torch_generator(seed, "alignment")
    alignment = align(architecture, second, first, items.pool.features_ND[buffer], generator=generator)

    def right(module: nn.Module) -> float:
        return percent_right(module, items.test.features_ND, items.test.columns_N)

    return {
        "alone": (right(first) + right(second)) / 2,
        "unaligned": right(_mean(architecture, first, second)),
        "aligned": right(_mean(architecture, first, alignment.module)),
        "correlation": min(alignment.correlations.values()),
    }


def _mean(architecture: Architecture, first: nn.Module, second: nn.Module) -> nn.Module:
    module = architecture.build("")
    load_flat(module, (flat_parameters(first) + flat_parameters(second)) / 2)
    return module
