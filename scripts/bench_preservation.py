"""Carrying experts over to other architectures: what is kept before any training, and what it saves to begin there.

Old experts of Fashion-MNIST (pixels, and features of the trunk) and MNIST-5k become narrower, wider, deeper, shallower
and of other kinds. Beside what is carried over stand controls whose units are drawn at random, an expert of random
weights that is distilled from the old one, and one that is distilled from the reference CNN; all have their learning
rates from the same grid. A reference CNN is taken apart into experts, and replicas that began differently are aligned.
Progress goes to stderr, the table to stdout. The exit code is 0 if every target is met, 10 if one is missed, 1 if
something could not be measured.
"""

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial

from bench_command import Bench, Part, Target
from bench_preservation_apart import BEHIND, GROUPS, measure_apart
from bench_preservation_forms import FORMS
from bench_preservation_options import BETAS, BUFFERS, FITS, SCORED, SCORES, measure_options
from bench_preservation_plot import draw
from bench_preservation_replicas import REPLICAS, measure_replicas
from bench_preservation_runs import measure_form
from bench_preservation_study import FULL, QUICK, Effort, Study, setting_of
from bench_preservation_words import FORM_FIGURES, aligned, apart, form_told, options
from bench_stage import Stage

__all__ = ["BENCH", "FORM_TARGETS"]

_PROMISED = ("half", "double", "deeper", "trunk_half", "digits_half", "digits_double")
"""Narrower, wider and deeper."""

_AHEAD = ("half", "double", "deeper", "trunk_half")
"""Those of Fashion-MNIST: on 3,500 digits a thousand steps from random weights come up to the old expert, so that
nobody can be ahead of them."""

FORM_TARGETS: Mapping[str, Target] = {
    **{f"step0_gap_points.{form}": Target(3) for form in _PROMISED},
    **{f"ten_steps_over_scratch_1000_points.{form}": Target(0, ">") for form in _AHEAD},
}

_OPTION_FIGURES = (
    *[f"score_gap_points.{form}.{score}.{fit}" for form in SCORED for score in SCORES for fit in FITS],
    *[f"beta_gap_points.{beta:g}.{fit}" for beta in BETAS for fit in FITS],
    *[f"buffer_gap_points.{size}.{fit}" for size in BUFFERS for fit in FITS],
)

_APART_FIGURES = tuple(
    f"{name}.{behind}.{group}"
    for behind in BEHIND
    for group in GROUPS
    for name in ("apart_gap_points", "apart_over_scratch_100_points", "apart_importance_kept_ratio")
)

_REPLICA_FIGURES = tuple(
    f"{name}.{form}" for form in REPLICAS for name in ("aligned_gain_points", "aligned_below_alone_points")
)


def _study(stage: Stage[Effort], _: ExitStack) -> Study:
    effort = stage.effort
    return Study(effort, range(stage.seed, stage.seed + effort.seeds), stage.tell)


PARTS: Mapping[str, Part] = {
    **{
        form: Part(
            _study,
            partial(measure_form, form),
            partial(form_told, form),
            tuple(f"{figure}.{form}" for figure in FORM_FIGURES),
        )
        for form in FORMS
    },
    "options": Part(_study, measure_options, options, _OPTION_FIGURES),
    "apart": Part(_study, measure_apart, apart, _APART_FIGURES),
    "replicas": Part(_study, measure_replicas, aligned, _REPLICA_FIGURES),
}

BENCH = Bench(
    name="bench_preservation",
    about=__doc__,
    targets={figure: FORM_TARGETS.get(figure) for part in PARTS.values() for figure in part.figures},
    parts=PARTS,
    draw=draw,
    full=FULL,
    quick=QUICK,
    quick_help="the same on less, within four minutes",
    seed_help="the first of all that are used",
    setting=setting_of,
)

if __name__ == "__main__":
    sys.exit(BENCH.main(sys.argv[1:]))
