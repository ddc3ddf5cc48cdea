"""Whole rounds without faults: ours in turn with hivemind's, and how long one holds up a peer's event loop."""

from collections.abc import Callable
from contextlib import ExitStack
from statistics import median
from typing import Any

from bench_averaging_effort import Effort
from bench_averaging_peers import Peers
from bench_node import BenchFailed
from bench_serving_figures import p99
from bench_stage import Stage

__all__ = ["Sixteen", "Single", "measure_stalls"]

MEMBERS = 4

LARGE = 10**7
"""Parameters of the expert whose rounds stall loops."""

IDLE_S = 3.0


class _Rivals:
    """Four peers of ours, and hivemind's averagers beside them, that average the same."""

    experts: int
    parameters: int

    def __init__(self, stage: Stage[Effort], resources: ExitStack) -> None:
        self._stage = stage
        folder = stage.folder / f"rounds-{self.experts}"
        folder.mkdir()
        stage.tell(f"rounds of {self.experts} x {self.parameters:,}: starting the peers")
        names = [f"peer-{number}" for number in range(MEMBERS)]
        self._peers = Peers(stage.children, names, folder)
        resources.callback(self._peers.end)
        self._peers.adopt(self.experts, self.parameters)
        stage.tell(f"rounds of {self.experts} x {self.parameters:,}: starting hivemind's averagers")
        (self._averagers,) = stage.children.get("averagers", role="averagers")
        resources.callback(stage.children.kill, "averagers")
        self._averagers.call("open", peers=MEMBERS, experts=self.experts, parameters=self.parameters)

    def rounds(self) -> dict[str, Any]:
        """So many rounds of each in turn, after one of each that is not counted."""
        ways: dict[str, Callable[[int], dict[str, float]]] = {
            "ours": self._ours,
            "runner": self._runner,
            "averager": self._averager,
        }
        seconds: dict[str, dict[str, list[float]]] = {}
        for number in range(self._stage.effort.rounds + 1):
            self._stage.tell(f"rounds of {self.experts} x {self.parameters:,}: {number} of {self._stage.effort.rounds}")
            for way, measure in ways.items():
                outcome = measure(1000 * self._stage.seed + number)
                for name, value in outcome.items() if number else ():
                    seconds.setdefault(way, {}).setdefault(name, []).append(value)
        optimum = 2 * (MEMBERS - 1) * 4 * self.experts * self.parameters
        return {
            **seconds,
            "members": MEMBERS,
            "experts": self.experts,
            "parameters": self.parameters,
            "rounds": self._stage.effort.rounds,
            "optimum_bytes": optimum,
        }

    def _ours(self, seed: int) -> dict[str, float]:
        self._peers.learn(seed)
        return _slowest(self._peers.round())

    def _runner(self, seed: int) -> dict[str, float]:
        self._peers.learn(seed)
        return _slowest(self._peers.reduce())

    def _averager(self, seed: int) -> dict[str, float]:
        outcome = self._averagers.call("step", seed=seed)
        if outcome["wrong"]:
            raise BenchFailed(f"{outcome['wrong']} of hivemind's averagers did not come to the mean")
        return {"ended_s": outcome["elapsed_s"]}


class Sixteen(_Rivals):
    """16 experts of 10^5 parameters."""

    experts, parameters = 16, 10**5


class Single(_Rivals):
    """One expert of 10^6."""

    experts, parameters = 1, 10**6


def _slowest(outcomes: list[dict[str, Any]]) -> dict[str, float]:
    """When the last of the peers was so far; bytes are summed."""
    slowest = {name: max(outcome[name] for outcome in outcomes) for name in ("commits_s", "ended_s")}
    if "sent_bytes" in outcomes[0]:
        slowest["sent_bytes"] = sum(outcome["sent_bytes"] for outcome in outcomes)
    return slowest


def measure_stalls(stage: Stage[Effort]) -> dict[str, Any]:
    """By how much ticks on a peer's loop are late while it averages a large expert with another, and at rest.

    A third process only ticks: it is late by what the machine's cores are short of.
    """
    folder = stage.folder / "stalls"
    folder.mkdir()
    stage.tell("stalls: starting two peers and a bystander")
    late_ms: dict[str, list[list[float]]] = {"averaging": [], "idle": [], "bystander": []}
    spans_s = []
    with ExitStack() as resources:
        peers = Peers(stage.children, ["peer-0", "peer-1"], folder)
        resources.callback(peers.end)
        (bystander,) = stage.children.get("bystander", role="averaging-peer")
        resources.callback(stage.children.end, "bystander")
        peers.adopt(1, LARGE)
        for number in range(stage.effort.stall_rounds):
            stage.tell(f"stalls: round {number + 1} of {stage.effort.stall_rounds}")
            watched = peers.peers[0]
            late_ms["idle"].append(watched.call("tick", span_s=IDLE_S))
            peers.learn(stage.seed + number)
            bystander.send("tick", span_s=spans_s[-1] if spans_s else IDLE_S)
            outcome, _ = peers.round(watched=[watched])
            late_ms["bystander"].append(bystander.answer())
            late_ms["averaging"].append(outcome["late_ms"])
            spans_s.append(outcome["ended_s"])
    return {
        "parameters": LARGE,
        "rounds": stage.effort.stall_rounds,
        "round_s": median(spans_s),
        "p99_ms": {state: [p99(values) for values in rounds] for state, rounds in late_ms.items()},
        "max_ms": {state: [max(values) for values in rounds] for state, rounds in late_ms.items()},
        "late_ms": {state: sorted(value for values in rounds for value in values) for state, rounds in late_ms.items()},
    }
