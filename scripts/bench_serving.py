"""Routed inference as a mesh serves it: latency, throughput, overload, death of a replica, each beside its rival.

Everything runs in processes of its own on loopback, with real p2pd; ours are `meshnode run` daemons, but for peers that
are slowed down on purpose or have no expert. Rivals are measured in the same run, in turn with ours, with the same
module, the same tensors, one torch thread each and on uvloop. Progress goes to stderr, the table to stdout. The exit
code is 0 if every target is met, 10 if one is missed, 1 if something could not be measured.
"""

import argparse
import itertools
import json
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
from bench_serving_calls import Ways
from bench_serving_lookup import measure_look_ups
from bench_serving_overload import measure_overload
from bench_serving_plot import draw
from bench_serving_routed import Eight, measure_failover
from bench_serving_stage import FULL, QUICK, Stage
from bench_serving_training import measure_while_training
from bench_serving_words import Measured, accuracy, failover, fan_out, latency, look_ups, overload, slowest, throughput
from bench_serving_words import training as while_training

from experts.errors import ExpertsError
from meshnode.errors import ExitCode, NodeError
from protocol.errors import ModuleMeshError

NAME = "bench_serving"


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure is held against."""

    bound: float
    sign: str = "<="
    """``<=``, ``>=`` or ``=``."""

    def is_met(self, value: float) -> bool:
        """Whether `value` is good enough."""
        return {"<=": value <= self.bound, ">=": value >= self.bound, "=": value == self.bound}[self.sign]

    def __str__(self) -> str:
        return f"{self.sign} {self.bound:g}"


TARGETS: Mapping[str, Target | None] = {
    "forward_1kb_p50_over_tcp": Target(5),
    "forward_1kb_p50_over_moe_server": Target(0.10),
    "forward_1mb_p50_over_raw_stream": Target(1.5),
    "throughput_1kb_c64_over_moe_server": Target(4, ">="),
    "forward_64kb_p99_over_unary": Target(0.1),
    "fanout8_100ms_over_sequential": Target(0.15),
    "routed_accuracy_delta": Target(0, "="),
    "serve_p99_while_training_over_idle": Target(2),
    "goodput_at_10x_over_peak": Target(0.9, ">="),
    "failover_s": Target(1),
    "failover_success_ratio": Target(0.999, ">="),
    "lookup_1000_experts_cold_ms": None,
    "lookup_1000_experts_again_ms": None,
    "lookup_1000_experts_cached_ms": None,
    "lookup_1000_experts_cold_30_dead_ms": None,
    "lookup_1000_experts_again_30_dead_ms": None,
    "lookup_1000_experts_cached_30_dead_ms": None,
    "lookup_live_experts_found_ratio": Target(1, "="),
}
"""Every figure, with what it is held against if with anything."""


class Part(NamedTuple):
    """Figures that are measured together, on a scene that it may share with the parts beside it."""

    scene: Callable[[Stage, ExitStack], Any]
    measure: Callable[[Any], dict[str, Any]]
    told: Callable[[Mapping[str, Any]], Measured]
    figures: tuple[str, ...]


def _stage_alone(stage: Stage, _: ExitStack) -> Stage:
    return stage


_LOOK_UPS = tuple(name for name in TARGETS if name.startswith("lookup_"))

PARTS: Mapping[str, Part] = {
    "latency": Part(
        Ways,
        Ways.latency,
        latency,
        ("forward_1kb_p50_over_tcp", "forward_1kb_p50_over_moe_server", "forward_1mb_p50_over_raw_stream"),
    ),
    "throughput": Part(Ways, Ways.throughput, throughput, ("throughput_1kb_c64_over_moe_server",)),
    "slowest": Part(Ways, Ways.slowest, slowest, ("forward_64kb_p99_over_unary",)),
    "fan_out": Part(Eight, Eight.fan_out, fan_out, ("fanout8_100ms_over_sequential",)),
    "accuracy": Part(Eight, Eight.accuracy, accuracy, ("routed_accuracy_delta",)),
    "training": Part(_stage_alone, measure_while_training, while_training, ("serve_p99_while_training_over_idle",)),
    "overload": Part(_stage_alone, measure_overload, overload, ("goodput_at_10x_over_peak",)),
    "failover": Part(_stage_alone, measure_failover, failover, ("failover_s", "failover_success_ratio")),
    "look_ups": Part(_stage_alone, measure_look_ups, look_ups, _LOOK_UPS),
}


def main(arguments: Sequence[str]) -> int:
    """Run the script; returns its exit code."""
    options = _parse(arguments)
    torch.set_num_threads(1)
    # A terminated run cleans up as an interrupted one does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        document = _measure(options)
    except (BenchFailed, ExpertsError, NodeError, ModuleMeshError, OSError, psutil.Error) as failure:
        print(f"not measured: {failure}", file=sys.stderr)
        return ExitCode.FAILURE
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        end_everything()
    if options.write:
        draw(document, write_document(document, NAME).with_suffix(".png"))
    print(json.dumps(document, indent=2) if options.json else _table(document))
    return ExitCode.OK if all(target["met"] for target in document["targets"].values()) else ExitCode.CHECK_FAILED


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the whole document instead of the table")
    parser.add_argument("--quick", action="store_true", help="the same on less, within four minutes")
    parser.add_argument("--write", action="store_true", help=f"also put it into docs/results/{NAME}.json, with a plot")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the arrivals of requests (0)")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=TARGETS,
        default=list(TARGETS),
        metavar="NAME",
        help="these figures, and what is measured with them",
    )
    options = parser.parse_args(arguments)
    if options.write and (options.quick or set(options.only) != set(TARGETS)):
        parser.error("--write is for all figures at full size: leave out --only and --quick")
    return options


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    chosen = {name: part for name, part in PARTS.items() if set(part.figures) & set(options.only)}
    figures: dict[str, float] = {}
    how: dict[str, str] = {}
    raw: dict[str, Any] = {}
    load = psutil.getloadavg()[0]
    with (
        tempfile.TemporaryDirectory(prefix="meshnode-bench-", ignore_cleanup_errors=True) as folder,
        Stage(Path(folder), QUICK if options.quick else FULL, options.seed) as stage,
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
    words = [f"python scripts/{NAME}.py", f"--seed {options.seed}", *(["--quick"] if options.quick else [])]
    words += [f"--only {' '.join(figures)}"] if len(figures) < len(TARGETS) else []
    held = {name: target for name in figures if (target := TARGETS[name]) is not None}
    return bench_document(
        " ".join(words),
        [options.seed],
        figures,
        targets={name: {"target": str(target), "met": target.is_met(figures[name])} for name, target in held.items()},
        measured={"how": how, **raw, "load_before": load, "seconds": seconds},
        digits=4,
    )


def _table(document: Mapping[str, Any]) -> str:
    rows = [("figure", "measured", "target", "met", "")]
    for name, value in document["figures"].items():
        target = document["targets"].get(name)
        bound, met = (target["target"], "yes" if target["met"] else "NO") if target else ("", "")
        rows.append((name, f"{value:.4g}", bound, met, document["measured"]["how"][name]))
    return "\n".join(f"{row[0]:<39} {row[1]:>8} {row[2]:>8} {row[3]:>3}  {row[4]}".rstrip() for row in rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
