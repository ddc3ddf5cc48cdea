"""Start-up and footprint of a node, measured on the real `meshnode run` and held against the project's targets.

Every node is a process of its own on loopback, with a home of its own in a temporary folder and no setting in its
environment. Progress goes to stderr, the table to stdout. The exit code is 0 if every target is met, 10 if one is
missed, 1 if something could not be measured.
"""

import argparse
import itertools
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import psutil
from bench_document import bench_document, rounded, say, write_document
from bench_homes import Homes
from bench_node import POLL_S, BenchFailed, Node, end_everything, kind_of, run_python

from meshnode.cli.pictures import npy_of
from meshnode.errors import ExitCode, NodeError

NAME = "bench_start"

MANY = 16
STATUS_CALLS = 5
ANSWER_S = 10.0

EARLIEST_KILL_S, LATEST_KILL_S = 0.2, 9.0
"""From the first imports to some seconds of training: a node is ready after 3 s and learns after 5 s."""

IMPORTS = {"import": "import torch, hivemind", "import_without_exit": "import torch, hivemind, os; os._exit(0)"}
"""What every start pays. The second counts: an interpreter that has loaded both takes half a second to end, which no
start does; the first, which flatters, is told too."""

GRACE_S = 3.0
"""What a killed daemon had started may live this much longer."""


class Effort(NamedTuple):
    """How often each thing is done."""

    starts: int
    rss_starts: int
    kills: int


FULL, QUICK = Effort(starts=5, rss_starts=3, kills=20), Effort(starts=2, rss_starts=1, kills=5)


@dataclass(frozen=True, slots=True)
class Target:
    """What a measured value is held against."""

    bound: float
    exact: bool = False
    """Whether the value must be the bound; else it must not exceed it."""

    def is_met(self, value: float) -> bool:
        """Whether `value` is good enough."""
        return value == self.bound if self.exact else value <= self.bound

    def __str__(self) -> str:
        return f"{'=' if self.exact else '<='} {self.bound:g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One line of the table."""

    name: str
    value: float
    target: str
    met: bool


@dataclass(frozen=True, slots=True)
class Measured:
    """One metric: the value that counts, and all that it was made from."""

    value: float
    raw: Mapping[str, Any]


class Bench:
    """The measurements, each a method named as its result.

    Args:
        homes: What the nodes run on.
        seed: Of the moments of the kills.
        effort: How often each thing is done.
    """

    def __init__(self, homes: Homes, *, seed: int, effort: Effort) -> None:
        self._homes = homes
        self._seed = seed
        self._effort = effort

    def start_over_import_s(self) -> Measured:
        """From the start of the command until the node is ready, less that of `python -c "import torch, hivemind"`."""
        homes = {
            "with_a_mesh": self._homes.founded(),
            "without_a_mesh": self._homes.bare(),
            "with_16_experts": self._homes.hosting(MANY),
        }
        samples: dict[str, list[float]] = {name: [] for name in (*IMPORTS, *homes)}
        for number in range(self._effort.starts):
            say(f"start: round {number + 1} of {self._effort.starts}")
            for name, program in IMPORTS.items():
                samples[name].append(run_python("-c", program))
            for name, home in homes.items():
                with Node(home) as node:
                    samples[name].append(node.wait_ready())
        medians = {name: median(values) for name, values in samples.items()}
        over_s = {name: medians["with_a_mesh"] - medians[name] for name in IMPORTS}
        return Measured(over_s["import_without_exit"], {"samples_s": samples, "medians_s": medians, "over_s": over_s})

    def processes_16_experts(self) -> Measured:
        """Processes of a node that hosts and serves 16 experts: the daemon, its trainer, and p2pd."""
        say("processes: 1 of 1")
        with Node(self._homes.hosting(MANY), self._homes.data) as node:
            self._settle(node, MANY)
            kinds = Counter(map(kind_of, node.processes()))
        return Measured(kinds.total(), {"processes": kinds})

    def rss_mb_16_experts_over_1(self) -> Measured:
        """Resident memory of a node's processes: 16 experts' over that of one."""
        samples: dict[int, list[dict[str, float]]] = {1: [], MANY: []}
        for start, number in itertools.product(range(self._effort.rss_starts), samples):
            say(f"memory: start {start + 1} of {self._effort.rss_starts} with {number} expert{'s'[: number > 1]}")
            with Node(self._homes.hosting(number), self._homes.data) as node:
                self._settle(node, number)
                samples[number].append(_resident_mb(node))
        mb = {number: median(sum(parts.values()) for parts in starts) for number, starts in samples.items()}
        return Measured(mb[MANY] / mb[1], {"samples_mb_by_experts": samples, "medians_mb_by_experts": mb})

    def status_s(self) -> Measured:
        """The command `meshnode status` against a node that hosts 16 experts, at its best."""
        home = self._homes.hosting(MANY)
        samples = []
        with Node(home, self._homes.data) as node:
            self._settle(node, MANY)
            for number in range(STATUS_CALLS):
                say(f"status: {number + 1} of {STATUS_CALLS}")
                samples.append(run_python("-m", "meshnode", "--home", home.path, "status"))
        return Measured(min(samples), {"samples_s": samples})

    def orphans_after_sigkill(self) -> Measured:
        """Kills of the daemon, at moments from its first imports to its training, after which anything lived on."""
        home, kills = self._homes.learning(), []
        for number, moment_s in enumerate(_moments(self._seed, self._effort.kills)):
            say(f"kill: {number + 1} of {self._effort.kills}, {moment_s:.1f} s after the start")
            with Node(home, self._homes.data) as node:
                while node.age_s < moment_s:
                    node.look()
                    time.sleep(POLL_S)
                node.require_running("killed")
                doing = node.api().get("status")["training"]["state"] if node.is_ready else "not ready"
                kinds = Counter(map(kind_of, node.processes()))
                node.kill()
                left, ended_s = node.outlived(GRACE_S)
                names = sorted(map(kind_of, left))
            kills.append({"at_s": moment_s, "training": doing, "had": kinds, "left": names, "ended_s": ended_s})
        say("kill: starting once more")
        with Node(home, self._homes.data) as node:
            ready_s = node.wait_ready()
        return Measured(sum(bool(kill["left"]) for kill in kills), {"kills": kills, "next_start_s": ready_s})

    def _settle(self, node: Node, number: int) -> None:
        """Wait until the node serves its experts and its trainer rests; have every expert answer once."""
        node.wait_until(
            f"idle with {number} experts",
            lambda status: status["experts"]["local"] == number and status["training"]["state"] == "idle",
        )
        image = npy_of(self._homes.images.images[:1])
        answer = node.api().post_bytes(
            "infer", image, {"top_k": str(number)}, media_type="application/x-npy", wait_s=ANSWER_S
        )
        answered = {call["expert"] for call in answer["route"] if call["ok"]}
        if len(answered) != number:
            raise BenchFailed(f"{len(answered)} of {number} experts answered")


MEASUREMENTS: Mapping[str, tuple[Callable[[Bench], Measured], Target]] = {
    "start_over_import_s": (Bench.start_over_import_s, Target(1.5)),
    "processes_16_experts": (Bench.processes_16_experts, Target(3, exact=True)),
    "rss_mb_16_experts_over_1": (Bench.rss_mb_16_experts_over_1, Target(1.1)),
    "status_s": (Bench.status_s, Target(0.5)),
    "orphans_after_sigkill": (Bench.orphans_after_sigkill, Target(0, exact=True)),
}


def main(arguments: Sequence[str]) -> int:
    """Run the script; returns its exit code."""
    options = _parse(arguments)
    # A terminated run cleans up as an interrupted one does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        document = _measure(options)
    except (BenchFailed, NodeError, OSError, psutil.Error) as failure:
        print(f"not measured: {failure}", file=sys.stderr)
        return ExitCode.FAILURE
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        end_everything()
    if options.write:
        _draw(document, write_document(document, NAME).with_suffix(".png"))
    print(json.dumps(document, indent=2) if options.json else _table(document))
    return ExitCode.OK if all(target["met"] for target in document["targets"].values()) else ExitCode.CHECK_FAILED


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the whole document instead of the table")
    parser.add_argument(
        "--quick", action="store_true", help="the same on less: two starts, five kills; some two minutes"
    )
    parser.add_argument("--write", action="store_true", help=f"also put it into docs/results/{NAME}.json, with a plot")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the moments of the kills (0)")
    parser.add_argument(
        "--only", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS), metavar="NAME", help="these metrics"
    )
    options = parser.parse_args(arguments)
    if options.write and (options.quick or set(options.only) != set(MEASUREMENTS)):
        parser.error("--write is for all figures at full size: leave out --only and --quick")
    return options


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    began_s, load = time.perf_counter(), os.getloadavg()[0]
    measured: dict[str, Any] = {}
    results: list[Result] = []
    chosen = [name for name in MEASUREMENTS if name in options.only]
    with tempfile.TemporaryDirectory(prefix="meshnode-bench-") as folder:
        bench = Bench(Homes(Path(folder)), seed=options.seed, effort=QUICK if options.quick else FULL)
        for name in chosen:
            measure, target = MEASUREMENTS[name]
            outcome = measure(bench)
            measured[name] = rounded(outcome.raw)
            met = target.is_met(outcome.value)
            results.append(Result(name=name, value=rounded(outcome.value), target=str(target), met=met))
    words = ["python scripts/bench_start.py", f"--seed {options.seed}", *(["--quick"] if options.quick else [])]
    words += [f"--only {' '.join(chosen)}"] if len(chosen) < len(MEASUREMENTS) else []
    return bench_document(
        " ".join(words),
        [options.seed],
        {result.name: result.value for result in results},
        targets={result.name: {"target": result.target, "met": result.met} for result in results},
        measured={**measured, "load_before": load, "seconds": time.perf_counter() - began_s},
    )


def _resident_mb(node: Node) -> dict[str, float]:
    """Of each of its processes, the median over some seconds, in 10^6 bytes."""
    time.sleep(1.0)
    samples: dict[str, list[float]] = {}
    for _ in range(8):
        for process in node.processes():
            samples.setdefault(kind_of(process), []).append(process.memory_info().rss / 1e6)
        time.sleep(0.5)
    return {kind: median(values) for kind, values in samples.items()}


def _moments(seed: int, number: int) -> list[float]:
    """When to kill, in seconds after the start: a moment out of each of `number` equal spans, in random order."""
    generator = np.random.default_rng(seed)
    edges = np.linspace(EARLIEST_KILL_S, LATEST_KILL_S, number + 1)
    return [float(moment_s) for moment_s in generator.permutation(generator.uniform(edges[:-1], edges[1:]))]


def _table(document: Mapping[str, Any]) -> str:
    rows = [("figure", "measured", "target", "met")]
    rows += [
        (name, f"{document['figures'][name]:g}", target["target"], "yes" if target["met"] else "NO")
        for name, target in document["targets"].items()
    ]
    return "\n".join(f"{name:<26} {value:>9} {target:>8}  {met}" for name, value, target, met in rows)


def _draw(document: Mapping[str, Any], path: Path) -> None:
    """Where the time and the memory go: what a start takes, and what each process holds."""
    import matplotlib as mpl  # noqa: PLC0415 - takes a second, and is for --write only

    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    figure, (start, memory) = pyplot.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
    seconds = document["measured"]["start_over_import_s"]["samples_s"]
    start.boxplot(
        list(seconds.values()), orientation="horizontal", tick_labels=[name.replace("_", " ") for name in seconds]
    )
    start.set_xlabel("seconds from the start of the process")
    start.set_title("Until a node is ready, and the imports alone")
    starts = document["measured"]["rss_mb_16_experts_over_1"]["samples_mb_by_experts"]
    left_mb = dict.fromkeys(starts, 0.0)
    for kind in starts["1"][0]:
        width_mb = {number: median(one[kind] for one in samples) for number, samples in starts.items()}
        memory.barh(
            [f"{number} expert{'s'[: number != '1']}" for number in starts],
            width_mb.values(),
            left=left_mb.values(),
            label=kind,
        )
        left_mb = {number: left_mb[number] + width_mb[number] for number in starts}
    memory.set_xlabel("resident memory, MB")
    memory.set_title("What its processes hold")
    memory.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, frameon=False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
