"""From what a part has measured to its figures, each with a line of what it was made from.

All are means over seeds; a difference is of the same seed's two sides.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from bench_command import Measured
from bench_preservation_apart import SCRATCH_STEPS
from bench_preservation_runs import SHORT_OF_OLD, STEPS

from experts.evaluation.metrics import spread

__all__ = ["FORM_FIGURES", "aligned", "apart", "form_told", "options", "training_flops"]

Raw = Mapping[str, Any]

FORM_FIGURES = (
    "step0_gap_points",
    "ten_steps_over_scratch_1000_points",
    "refit_gain_points",
    "mapping_gain_points",
    "mapping_gain_with_refit_points",
    "steps_to_old",
    "steps_to_old_scratch",
    "transfer_gflops",
    "flops_saved_ratio",
)
"""Of each new architecture."""


def form_told(name: str, raw: Raw) -> Measured:
    """One new architecture."""
    sides, old = raw["sides"], raw["old"]

    def at(side: str, steps: int) -> list[float]:
        return list(sides[side]["accuracy"][steps])

    mapped, saved = at("mapped", 0), _saved(raw)
    scratch = ", ".join(f"{steps:,}: {_spread(at('scratch', steps))}" for steps in STEPS)
    on = ", ".join(f"{steps:,}: {_spread(at('mapped', steps))}" for steps in STEPS)
    figures = {
        "step0_gap_points": _points(old, mapped),
        "ten_steps_over_scratch_1000_points": _points(at("mapped", STEPS[0]), at("scratch", STEPS[-1])),
        "refit_gain_points": _points(mapped, at("mapped_without_refit", 0)),
        "mapping_gain_points": _points(at("mapped_without_refit", 0), at("random_units", 0)),
        "mapping_gain_with_refit_points": _points(mapped, at("random_units_refit", 0)),
        "steps_to_old": fmean(_bounded(raw, "mapped")),
        "steps_to_old_scratch": fmean(_bounded(raw, "scratch")),
        "transfer_gflops": raw["flops"]["transfer"] / 1e9,
        "flops_saved_ratio": fmean(saved),
    }
    how = {
        "step0_gap_points": f"{raw['told']}: {_spread(old)} before, {_spread(mapped)} after, on {raw['items']}",
        "ten_steps_over_scratch_1000_points": f"mapped {on}; from random weights {scratch}; rate "
        f"{sides['mapped']['rate'][STEPS[0]]:g} against {sides['scratch']['rate'][STEPS[-1]]:g}",
        "refit_gain_points": f"over {_spread(at('mapped_without_refit', 0))} without",
        "mapping_gain_points": f"without refit, over {_spread(at('random_units', 0))} with scores drawn at random; "
        f"incoming and outgoing weights of different units: {_spread(at('random_permutation', 0))}",
        "mapping_gain_with_refit_points": f"over {_spread(at('random_units_refit', 0))} with scores drawn at random",
        "steps_to_old": f"within {SHORT_OF_OLD:g} points: {_steps(raw, 'mapped')}",
        "steps_to_old_scratch": f"{_steps(raw, 'scratch')}; from the reference CNN {_steps(raw, 'retrained')}",
        "transfer_gflops": f"as many as {raw['flops']['transfer'] / raw['flops']['step']:.0f} steps of distillation",
        "flops_saved_ratio": f"{fmean(_all_flops(raw, 'mapped')) / 1e9:.2f} GFLOP, transfer and steps to the old "
        f"accuracy, against {fmean(_all_flops(raw, 'retrained')) / 1e9:.1f} of the reference CNN's answers and "
        "distillation from random weights",
    }
    return Measured(*({f"{figure}.{name}": of[figure] for figure in FORM_FIGURES} for of in (figures, how)))


def training_flops(flops: Mapping[str, int], steps: int, *, teacher_flops: int) -> int:
    """Of so many steps, with a teacher that is asked about an image once."""
    images = min(flops["images"], steps * flops["images_per_step"])
    return steps * flops["step"] + images * teacher_flops


def options(raw: Raw) -> Measured:
    """Scores, betas and buffers."""
    figures, how = {}, {}
    told = {
        "score": {f"{form}.{score}": fits for form, scores in raw["scores"].items() for score, fits in scores.items()},
        "beta": raw["betas"],
        "buffer": raw["buffers"],
    }
    for choice, by_value in told.items():
        for value, fits in by_value.items():
            for fit, gaps in fits.items():
                name = f"{choice}_gap_points.{value}.{fit}"
                figures[name], how[name] = fmean(gaps), _spread(gaps, unit="points below the old expert at step 0")
    return Measured(figures, how)


def apart(raw: Raw) -> Measured:
    """Experts out of a monolith."""
    figures, how = {}, {}
    for behind, groups in raw.items():
        for group, of in groups.items():
            gap, over, kept = (
                f"{name}.{behind}.{group}"
                for name in ("apart_gap_points", "apart_over_scratch_100_points", "apart_importance_kept_ratio")
            )
            scratch = [f"scratch_{steps}" for steps in SCRATCH_STEPS]
            figures[gap] = _points(of["monolith"], of["mapped"])
            figures[over] = _points(of["mapped"], of[scratch[-1]])
            figures[kept] = fmean(of["importance_kept"])
            how[gap] = f"{_spread(of['mapped'])} at step 0; the CNN, held to these classes, {_spread(of['monolith'])}"
            how[over] = "distilled from random weights: " + ", ".join(
                f"{steps} steps {_spread(of[name])}" for steps, name in zip(SCRATCH_STEPS, scratch, strict=True)
            )
            how[kept] = "of its last hidden layer's, by the units that went on"
    return Measured(figures, how)


def aligned(raw: Raw) -> Measured:
    """Means of replicas."""
    figures, how = {}, {}
    for form, of in raw.items():
        gain, short = f"aligned_gain_points.{form}", f"aligned_below_alone_points.{form}"
        figures[gain] = _points(of["aligned"], of["unaligned"])
        figures[short] = _points(of["alone"], of["aligned"])
        how[gain] = f"the mean as it is {_spread(of['unaligned'])}, aligned {_spread(of['aligned'])}"
        how[short] = f"alone {_spread(of['alone'])}; paired units correlate at {fmean(of['correlation']):.2f}"
    return Measured(figures, how)


def _bounded(raw: Raw, side: str) -> list[int]:
    return [raw["bound"] if steps is None else steps for steps in raw["sides"][side]["steps_to_old"]]


def _all_flops(raw: Raw, side: str) -> list[int]:
    """Until the old accuracy is reached, or to the bound, by seed."""
    flops = raw["flops"]
    teacher = flops["teacher_per_image" if side == "retrained" else "old_per_image"]
    before = flops["transfer"] if side == "mapped" else 0
    return [before + training_flops(flops, steps, teacher_flops=teacher) for steps in _bounded(raw, side)]


def _saved(raw: Raw) -> list[float]:
    return [
        1 - ours / theirs for ours, theirs in zip(_all_flops(raw, "mapped"), _all_flops(raw, "retrained"), strict=True)
    ]


def _steps(raw: Raw, side: str) -> str:
    steps = raw["sides"][side]["steps_to_old"]
    reached = ", ".join(f"{number:,}" for number in steps if number is not None)
    never = sum(number is None for number in steps)
    missed = f"not within {raw['bound']:,} with {never} of {len(steps)} seeds" if never else ""
    return "; ".join(filter(None, (f"{reached} steps" if reached else "", missed)))


def _points(better: Sequence[float], worse: Sequence[float]) -> float:
    return fmean(first - second for first, second in zip(better, worse, strict=True))


def _spread(values: Sequence[float], unit: str = "%") -> str:
    of = spread(values)
    return f"{of.mean:.1f} {unit}" if of.deviation is None else f"{of.mean:.1f} ± {of.deviation:.1f} {unit}"
