"""One new architecture: every way to begin, how each goes on from there, and what it costs.

For each way and number of steps the learning rate is chosen from one and the same grid: what does best on the
validation images after as many steps, on average over the seeds. Those that are to come up to the old expert, but for
half a point, go on at the rate for the most steps until they do, or have taken as many as the old one.

Legend: N items, C class.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from statistics import fmean
from typing import Any

import torch
from bench_preservation_data import Items
from bench_preservation_flops import counted, flops_of_forward
from bench_preservation_forms import FORMS
from bench_preservation_learning import Plan, best_rate, learn, percent_right, steps_to
from bench_preservation_parallel import in_parallel
from bench_preservation_starts import MAIN, SIDES, Case, carried, start
from bench_preservation_study import Study
from torch import Tensor, nn

from experts.architectures.base import Architecture
from experts.distillation import DistillationData, DistillationRun
from experts.generators import torch_generator

__all__ = ["Race", "STEPS", "SHORT_OF_OLD", "grid", "measure_form", "old_accuracy"]

STEPS = (10, 100, 1000)
"""After which all ways are compared."""

SHORT_OF_OLD = 0.5
"""Points below the old expert's accuracy that count as having come up to it."""


class Race:
    """One new architecture on all seeds.

    Args:
        cases: The old expert, for each seed.
        taught: Logits of what `retrained` learns from, of the pool, for each seed.
        rates: To choose from.
        bound: Most steps.
    """

    @torch.no_grad()
    def __init__(
        self,
        cases: Sequence[Case],
        taught: Sequence[Tensor],
        architecture: Architecture,
        rates: Sequence[float],
        bound: int,
    ) -> None:
        self.cases = cases
        self.architecture = architecture
        self.rates = rates
        self.bound = bound
        self._data = {
            "old": [_data(case.items, case.module(case.items.pool.features_ND)) for case in cases],
            "cnn": [_data(cases[0].items, logits_NC) for logits_NC in taught],
        }

    def data(self, side: str, index: int) -> DistillationData:
        """What a side learns from, with the seed of this index."""
        return self._data["cnn" if side == "retrained" else "old"][index]

    def run(self, side: str, index: int, plan: Plan) -> dict[int, float]:
        """Accuracy by steps on the test images."""
        test = self.cases[index].items.test
        return self._learned(side, index, plan, lambda module: percent_right(module, test.features_ND, test.columns_N))

    def tried(self, side: str, rate: float, index: int) -> tuple[dict[int, float], dict[int, float]]:
        """Accuracy after none, and after `STEPS`, on the validation images and on the test images."""
        items = self.cases[index].items
        on_test: list[float] = []

        def score(module: nn.Module) -> float:
            on_test.append(percent_right(module, items.test.features_ND, items.test.columns_N))
            return percent_right(module, items.validation.features_ND, items.validation.columns_N)

        validated = self._learned(side, index, Plan(rate, (0, *STEPS)), score)
        # Where a run diverged nothing is looked at any more.
        return validated, dict(zip_longest((0, *STEPS), on_test, fillvalue=0.0))

    def lines(self) -> dict[str, dict[str, Any]]:
        """For each side its rates, its accuracy after `STEPS` by seed, and, of those that are to come up to the old
        expert, that of longer runs and the steps that it took; None for not within the bound."""
        every = [(side, rate, index) for side in SIDES for rate in self.rates for index in range(len(self.cases))]
        found = in_parallel([partial(self.tried, *one) for one in every])
        by_side: dict[str, dict[float, list[Any]]] = {side: {rate: [] for rate in self.rates} for side in SIDES}
        for (side, rate, _), one in zip(every, found, strict=True):
            by_side[side][rate].append(one)
        lines = {side: _line(by_rate) for side, by_rate in by_side.items()}
        old = [old_accuracy(case) for case in self.cases]
        longer = [(side, index) for side in MAIN for index in range(len(self.cases))]
        plans = [Plan(lines[side]["rate"][STEPS[-1]], grid(self.bound), old[at] - SHORT_OF_OLD) for side, at in longer]
        runs = in_parallel([partial(self.run, *one, plan) for one, plan in zip(longer, plans, strict=True)])
        for (side, index), by_steps in zip(longer, runs, strict=True):
            lines[side].setdefault("longer", []).append(by_steps)
            lines[side].setdefault("steps_to_old", []).append(steps_to(old[index] - SHORT_OF_OLD, by_steps))
        return lines

    def _learned(self, side: str, index: int, plan: Plan, score: Callable[[nn.Module], float]) -> dict[int, float]:
        case = self.cases[index]
        generator = torch_generator(case.seed, "new batches")
        return learn(start(side, case, self.architecture), self.data(side, index), plan, generator, score)

    def flops(self) -> dict[str, int]:
        """Of carrying over, of one step, and of one answer of the old expert."""
        case = self.cases[0]
        transferred, transfer_flops = counted(lambda: carried(case, self.architecture))
        plan = Plan(rate=self.rates[0], at=(1,))
        data = self.data("mapped", 0)
        run = DistillationRun(transferred.module, data, plan.config(), torch_generator(case.seed, "counted"))
        _, step_flops = counted(run.step)
        return {
            "transfer": transfer_flops,
            "step": step_flops,
            "old_per_image": case.architecture.flops_per_sample,
            "images": len(case.items.pool.columns_N),
            "images_per_step": plan.config().batch_size,
        }


def measure_form(name: str, study: Study) -> dict[str, Any]:
    """All of one new architecture.

    Returns: ``old`` accuracy by seed, ``sides`` as `Race.lines`, ``flops``, and what became of the units.
    """
    form = FORMS[name]
    cases = study.old(form.old)
    monolith = "digits" if form.old == "digits" else "fashion_pixels"
    taught = study.taught(monolith)
    study.tell(f"{name}: {form.told}")
    race = Race(cases, taught, form.architecture, study.effort.rates, study.effort.old_steps)
    image_NCHW = cases[0].items.pool.of(torch.arange(1)).prepared()
    teacher_per_image = flops_of_forward(study.teachers(monolith)[0], image_NCHW)
    reports = [carried(case, form.architecture).report for case in cases]
    return {
        "told": form.told,
        "items": cases[0].items.told,
        "form": form.architecture.to_config(),
        "bound": study.effort.old_steps,
        "old": [old_accuracy(case) for case in cases],
        "sides": race.lines(),
        "flops": {**race.flops(), "teacher_per_image": teacher_per_image},
        "importance_kept": [min(layer.importance_kept for layer in report.layers) for report in reports],
    }


def _line(by_rate: Mapping[float, list[tuple[dict[int, float], dict[int, float]]]]) -> dict[str, Any]:
    """What one side comes to at its best rates: each run's accuracy on validation and on test images, by rate."""

    def validated(steps: int) -> dict[float, float]:
        return {rate: fmean(on_validation[steps] for on_validation, _ in runs) for rate, runs in by_rate.items()}

    rates = {steps: best_rate(validated(steps)) for steps in (0, *STEPS)}
    accuracy = {steps: [on_test[steps] for _, on_test in by_rate[rate]] for steps, rate in rates.items()}
    del rates[0]  # any is as good
    return {"rate": rates, "accuracy": accuracy}


def _data(items: Items, logits_NC: Tensor) -> DistillationData:
    return DistillationData(features_ND=items.pool.features_ND, teacher_logits_NC=logits_NC)


def old_accuracy(case: Case) -> float:
    """In percent, on the test images."""
    return percent_right(case.module, case.items.test.features_ND, case.items.test.columns_N)


def grid(bound: int) -> tuple[int, ...]:
    """Numbers of steps at which a long run is looked at: 0, and 1, 2 and 5 times powers of ten up to the bound."""
    numbers = [factor * 10**power for power in range(len(str(bound))) for factor in (1, 2, 5)]
    return (0, *[number for number in numbers if number < bound], bound)
