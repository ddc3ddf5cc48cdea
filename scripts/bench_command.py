"""A benchmark as a command: figures in parts that share scenes, targets, a table for people, a document to keep."""

import argparse
import itertools
import json
import operator
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from bench_document import bench_document, write_document
from bench_node import BenchFailed, end_everything
from bench_stage import Stage

from experts.errors import ExpertsError
from meshnode.errors import ExitCode, NodeError
from protocol.errors import ModuleMeshError

__all__ = ["Bench", "Measured", "Part", "Target", "alone"]

Raw = Mapping[str, Any]

_RELATIONS: Mapping[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    ">": operator.gt,
    "=": operator.eq,
}


class Measured(NamedTuple):
    """The figures of one part, and of each what it was made from."""

    figures: Mapping[str, float]
    how: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure is held against."""

    bound: float
    sign: str = "<="
    """``<=``, ``>=``, ``>`` or ``=``."""

    def is_met(self, value: float) -> bool:
        """Whether `value` is good enough."""
        return _RELATIONS[self.sign](value, self.bound)

    def __str__(self) -> str:
        return f"{self.sign} {self.bound:g}"


class Part(NamedTuple):
    """Figures that are measured together, on a scene that it may share with the parts beside it."""

    scene: Callable[[Stage, ExitStack], Any]
    measure: Callable[[Any], dict[str, Any]]
    told: Callable[[Raw], Measured]
    figures: tuple[str, ...]


def alone(stage: Stage, _: ExitStack) -> Stage:
    """The scene of a part that shares none."""
    return stage


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """A benchmark.

    Attributes:
        name: Of its script and of the document that it keeps.
        about: What ``--help`` says first.
        targets: Every figure, with what it is held against if with anything.
        parts: In the order in which they are measured.
        draw: Makes the picture of a whole document.
        full: How much is measured.
        quick: How much is measured with ``--quick``.
        quick_help: How long that takes.
        seed_help: What follows from the seed.
        setting: What all figures depend on, by how much is measured and the seed; its ``seeds`` are all that are used.
    """

    name: str
    about: str
    targets: Mapping[str, Target | None]
    parts: Mapping[str, Part]
    draw: Callable[[Mapping[str, Any], Path], None]
    full: Any
    quick: Any
    quick_help: str
    seed_help: str
    setting: Callable[[Any, int], Raw] = lambda _, seed: {"seeds": [seed]}

    def main(self, arguments: Sequence[str]) -> int:
        """Run the script; returns its exit code."""
        options = self._parse(arguments)
        torch.set_num_threads(1)
        # A terminated run cleans up as an interrupted one does.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            document = self._measure(options)
        except (BenchFailed, ExpertsError, NodeError, ModuleMeshError, OSError, psutil.Error) as failure:
            print(f"not measured: {failure}", file=sys.stderr)
            return ExitCode.FAILURE
        except KeyboardInterrupt:
            return ExitCode.INTERRUPTED
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            end_everything()
        if options.write:
            self.draw(document, write_document(document, self.name).with_suffix(".png"))
        print(json.dumps(document, indent=2) if options.json else self.table(document))
        return ExitCode.OK if all(target["met"] for target in document["targets"].values()) else ExitCode.CHECK_FAILED

    def table(self, document: Mapping[str, Any]) -> str:
        """A line for each figure: its value, what it is held against, and what it was made from."""
        rows = [("figure", "measured", "target", "met", "")]
        for name, value in document["figures"].items():
            target = document["targets"].get(name)
            bound, met = (target["target"], "yes" if target["met"] else "NO") if target else ("", "")
            rows.append((name, f"{value:.4g}", bound, met, document["measured"]["how"][name]))
        width = max(map(len, self.targets))
        return "\n".join(f"{row[0]:<{width}} {row[1]:>8} {row[2]:>8} {row[3]:>3}  {row[4]}".rstrip() for row in rows)

    def judged(self, figures: Mapping[str, float]) -> dict[str, dict[str, Any]]:
        """Of the figures that have a target: that, and whether it is met."""
        held = {name: target for name in figures if (target := self.targets[name]) is not None}
        return {name: {"target": str(target), "met": target.is_met(figures[name])} for name, target in held.items()}

    def _parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        parser = argparse.ArgumentParser(description=self.about)
        parser.add_argument("--json", action="store_true", help="print the whole document instead of the table")
        parser.add_argument("--quick", action="store_true", help=self.quick_help)
        kept = f"also put it into docs/results/{self.name}.json, with a plot"
        parser.add_argument("--write", action="store_true", help=kept)
        parser.add_argument("--seed", type=int, default=0, metavar="N", help=f"{self.seed_help} (0)")
        parser.add_argument(
            "--only",
            nargs="+",
            choices=self.targets,
            default=list(self.targets),
            metavar="NAME",
            help="these figures, and what is measured with them",
        )
        options = parser.parse_args(arguments)
        if options.write and (options.quick or set(options.only) != set(self.targets)):
            parser.error("--write is for all figures at full size: leave out --only and --quick")
        return options

    def _measure(self, options: argparse.Namespace) -> dict[str, Any]:
        chosen = {name: part for name, part in self.parts.items() if set(part.figures) & set(options.only)}
        effort = self.quick if options.quick else self.full
        setting = self.setting(effort, options.seed)
        figures: dict[str, float] = {}
        how: dict[str, str] = {}
        raw: dict[str, Any] = {}
        load = psutil.getloadavg()[0]
        with (
            tempfile.TemporaryDirectory(prefix="meshnode-bench-", ignore_cleanup_errors=True) as folder,
            Stage(Path(folder), effort, options.seed) as stage,
        ):
            for scene, parts in itertools.groupby(chosen.items(), key=lambda named: named[1].scene):
                with ExitStack() as resources:
                    set_up = scene(stage, resources)
                    for name, part in parts:
                        raw[name] = part.measure(set_up)
                        told = part.told(raw[name])
                        figures |= told.figures
                        how |= told.how
            seconds = stage.elapsed_s
        words = [f"python scripts/{self.name}.py", f"--seed {options.seed}", *(["--quick"] if options.quick else [])]
        words += [f"--only {' '.join(figures)}"] if len(figures) < len(self.targets) else []
        return bench_document(
            " ".join(words),
            setting["seeds"],
            figures,
            targets=self.judged(figures),
            measured={"how": how, "setting": setting, **raw, "load_before": load, "seconds": seconds},
            digits=4,
        )
