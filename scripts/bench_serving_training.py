"""A daemon asked while its trainer distils, and while that rests."""

from collections.abc import Mapping
from contextlib import ExitStack
from statistics import median
from typing import Any

from bench_node import BenchFailed, Node, kind_of
from bench_serving_figures import all_latencies_ms, p50, p99, paced_from
from bench_stage import Stage, address_of, settings_of

__all__ = ["measure_while_training"]

RATE_PER_S = 200.0
"""A row each: some tenth of what the daemon bears."""

LEARNING = {"steps": 10_000_000}
"""A task that is never done with."""


def measure_while_training(stage: Stage) -> dict[str, Any]:
    """p99 of forwards to a daemon whose trainer distils and, in turn, is stopped by SIGSTOP."""
    ground = stage.ground
    home = ground.home("learning", [], config=settings_of(train=LEARNING))
    expert = ground.expert(*ground.train.classes)
    with ExitStack() as resources:
        stage.tell("training: starting a daemon that learns for ever")
        node = resources.enter_context(Node(home, ground.data()))
        node.wait_until("distilling", _distils)
        (client,) = resources.enter_context(stage.hands(1))
        how = {"uid": expert.uid, "sizes": [1], "is_checked": False}
        client.call("connect", way="ours", address=address_of(node), **how)
        client.call("settle")
        (trainer,) = [process for process in node.processes() if kind_of(process) == "trainer"]
        resources.callback(trainer.resume)
        by_state: dict[str, list[float]] = {"idle": [], "training": []}
        halves: dict[str, list[float]] = {"idle": [], "training": []}
        steps: list[float] = []
        for number in range(stage.effort.p99_runs):
            for state in ("idle", "training"):
                stage.tell(f"training: {state}, run {number + 1} of {stage.effort.p99_runs}")
                (trainer.suspend if state == "idle" else trainer.resume)()
                before = _done(node)
                outcome = client.call(
                    "paced",
                    name="ours/1",
                    rate_per_s=RATE_PER_S,
                    requests=stage.effort.p99_requests,
                    seed=stage.seed + number,
                )
                taken_ms = all_latencies_ms(paced_from(outcome))
                by_state[state].append(p99(taken_ms))
                halves[state].append(p50(taken_ms))
                if state == "training":
                    steps.append(_done(node) - before)
    if min(steps) <= 0:
        raise BenchFailed(f"the trainer took no step while it was to train: {steps}")
    return {
        "ratio": median(by_state["training"]) / median(by_state["idle"]),
        "p99_ms": by_state,
        "p50_ms": halves,
        "rate_per_s": RATE_PER_S,
        "rows": 1,
        "requests": stage.effort.p99_requests,
        "runs": stage.effort.p99_runs,
        "steps_while_training": steps,
    }


def _distils(status: Mapping[str, Any]) -> bool:
    return bool(status["training"]["stage"] == "distil")


def _done(node: Node) -> int:
    return int(node.api().get("status")["training"]["done"])
