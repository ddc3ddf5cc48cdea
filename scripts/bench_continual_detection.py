"""How often batches are judged new: known ones, and those with some or only rows of the next task.

After each task but the last, the statistics and held-out images are what a learner would have; batches are drawn from
the test images of the tasks learned (known) and of the next one (new), which nobody has learned from or set a threshold
by. Known batches mix all that is known, as held-out images do; ``known_one_task`` has batches of a single known task,
which a stream that comes task by task brings.

Legend: D feature.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from experts.continual.novelty import MahalanobisScore, NoveltyConfig, NoveltyDetector
from experts.continual.settings import LearnerConfig
from experts.data.held_out import image_digest, is_held_out
from experts.evaluation.inputs import Inputs
from experts.evaluation.scenarios.base import Scenario, ScenarioTask
from experts.generators import torch_generator
from experts.router.statistics import ClassStatistics, merge

__all__ = ["detection"]

SHARES = (10, 25, 50, 100)
"""Percent of a batch's rows that are new."""

BATCHES, QUICK_BATCHES = 500, 50
"""Of each kind after each task."""

HELD_OUT = LearnerConfig(setting="class-incremental").held_out_per_target
"""Of each class and domain, as a learner holds out."""


def detection(scenario: Scenario, inputs: Inputs, *, quick: bool) -> dict[str, Any]:
    """By score: the share judged new of the batches of each kind that were decided, over all steps of the scenario, and
    the share of all batches that were not, for want of held-out images.
    """
    return {
        "relative": _rates(scenario, inputs, NoveltyConfig(), quick=quick),
        "mahalanobis": _rates(scenario, inputs, NoveltyConfig(relative=False), quick=quick),
    }


def _rates(scenario: Scenario, inputs: Inputs, config: NoveltyConfig, *, quick: bool) -> dict[str, float]:
    judged: dict[str, list[bool]] = {}
    num_undecided = 0
    statistics: ClassStatistics | None = None
    held_out: list[Tensor] = []
    num_batches = QUICK_BATCHES if quick else BATCHES
    for number, task in enumerate(scenario.tasks[:-1]):
        own, out_ND = _learned(task, number, inputs, scenario.kind == "domain-incremental")
        statistics = own if statistics is None else merge(statistics, own)
        held_out.append(out_ND)
        generator = torch_generator(number, "detection")
        detector = NoveltyDetector(statistics, torch.cat(held_out), (), config, generator)
        threshold = detector.threshold(config.batch_size)
        # Of each row once: a batch's distance is the mean of its rows'.
        score = MahalanobisScore(statistics, ridge=config.ridge, relative=config.relative)
        known = [score.distances(inputs(each.test.images)) for each in scenario.tasks[: number + 1]]
        new_N, known_N = score.distances(inputs(scenario.tasks[number + 1].test.images)), torch.cat(known)

        def drawn(distances_N: Tensor, count: int, generator: torch.Generator = generator) -> Tensor:
            return distances_N[torch.randint(len(distances_N), (count,), generator=generator)]

        for batch in range(num_batches):
            size = config.batch_size
            kinds = {"known": drawn(known_N, size), "known_one_task": drawn(known[batch % len(known)], size)}
            for share in SHARES:
                count = round(size * share / 100)
                kinds[f"new_{share}_percent"] = torch.cat([drawn(new_N, count), drawn(known_N, size - count)])
            for kind, distances_B in kinds.items():
                if threshold is None:
                    num_undecided += 1
                else:
                    judged.setdefault(kind, []).append(float(distances_B.mean()) > threshold)
    rates = {kind: sum(verdicts) / len(verdicts) for kind, verdicts in judged.items()}
    num_decided = sum(map(len, judged.values()))
    return {**rates, "undecided": num_undecided / (num_undecided + num_decided)}


def _learned(task: ScenarioTask, number: int, inputs: Inputs, by_domain: bool) -> tuple[ClassStatistics, Tensor]:
    """Statistics and held-out features of a task, as a learner takes it in."""
    features_ND = inputs(task.train.images)
    num_out: dict[str, int] = {}
    out, learned = [], []
    for row, image in enumerate(task.train.images):
        target = f"domain {number}" if by_domain else task.train.labels[row]
        if is_held_out(image_digest(np.asarray(image))) and num_out.get(target, 0) < HELD_OUT:
            num_out[target] = num_out.get(target, 0) + 1
            out.append(row)
        else:
            learned.append(row)
    names = [f"{number}/{task.train.labels[row]}" if by_domain else task.train.labels[row] for row in learned]
    return ClassStatistics.from_features(features_ND[learned], names), features_ND[out]
