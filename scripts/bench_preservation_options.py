"""What the choices in a transfer make of its accuracy, before any step is taken.

Scores of importance, and of `gate` with labels that the old expert draws (`gate_true`); the weight beta of what is
mapped against the random initialisation; the number of items in the buffer. Each without the refit and with it.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from bench_preservation_forms import FORMS
from bench_preservation_learning import percent_right
from bench_preservation_parallel import in_parallel
from bench_preservation_runs import old_accuracy
from bench_preservation_starts import BUFFER, Case, carried
from bench_preservation_study import Study

from experts.architectures.base import Architecture
from experts.preservation.transfer import TransferConfig

__all__ = ["BETAS", "BUFFERS", "FITS", "SCORED", "SCORES", "measure_options"]

SCORES: Mapping[str, TransferConfig] = {
    "gate": TransferConfig(),
    "gate_true": TransferConfig(fisher="true"),
    "fisher_sum": TransferConfig(score="fisher_sum"),
    "fisher_theta2": TransferConfig(score="fisher_theta2"),
    "magnitude": TransferConfig(score="magnitude"),
}

SCORED = ("half", "fifth")
"""Forms on which scores are compared."""

BETAS = (0.0, 0.5, 0.9, 1.0)
BUFFERS = (200, 500, 2000)

FITS: Mapping[str, bool] = {"without_refit": False, "refit": True}


def measure_options(study: Study) -> dict[str, Any]:
    """Points below the old expert at step 0, by seed: ``scores`` by form, score and fit; ``betas`` and ``buffers`` of
    `half` by value and fit."""
    study.tell("scores, betas and buffers")
    cases = study.old(FORMS[SCORED[0]].old)
    return {
        "scores": {
            form: {name: _by_fit(cases, FORMS[form].architecture, config) for name, config in SCORES.items()}
            for form in SCORED
        },
        "betas": {
            f"{beta:g}": _by_fit(cases, FORMS[SCORED[0]].architecture, TransferConfig(beta=beta)) for beta in BETAS
        },
        "buffers": {
            str(size): _by_fit(cases, FORMS[SCORED[0]].architecture, TransferConfig(), buffer=size) for size in BUFFERS
        },
    }


def _by_fit(
    cases: list[Case], architecture: Architecture, config: TransferConfig, *, buffer: int = BUFFER
) -> dict[str, list[float]]:
    return {
        name: in_parallel([partial(_gap, case, architecture, replace(config, refit=refit), buffer) for case in cases])
        for name, refit in FITS.items()
    }


def _gap(case: Case, architecture: Architecture, config: TransferConfig, buffer: int) -> float:
    module = carried(case, architecture, config, buffer=buffer).module
    return old_accuracy(case) - percent_right(module, case.items.test.features_ND, case.items.test.columns_N)
