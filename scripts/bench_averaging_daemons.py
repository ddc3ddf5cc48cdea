"""Real daemons that average: their processes, and how fast one of them goes on training."""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from bench_averaging_effort import Effort
from bench_node import BenchFailed, Node, kind_of
from bench_serving_mesh import Expert
from bench_stage import Stage, address_of, settings_of

from meshnode.compute import Compute
from meshnode.home import Home
from meshnode.hosting import ExpertHost
from meshnode.state.rows import Reached
from meshnode.state.state import State

__all__ = ["count_processes", "measure_training"]

MANY = 16

SOON = {"enabled": True, "every": "2s", "timeout": "1s"}
"""Where it is of no matter how often replicas are averaged."""

LEARNING = {"enabled": True, "steps": 10_000_000}
"""A task that is never done with."""

PERIOD_S = 10.0
"""The default period of rounds, which training is measured at."""


def count_processes(stage: Stage[Effort]) -> dict[str, Any]:
    """Of a daemon that has averaged its 16 experts with another one: processes by kind."""
    ground = stage.ground
    experts = [ground.expert(f"{number}.a", f"{number}.b") for number in range(MANY)]
    stage.tell("processes: starting a daemon of 16 experts, and another one")
    home = ground.home("many", experts, config=settings_of(train={"enabled": True}, average=SOON))
    asyncio.run(_learn(home))
    with Node(home) as node:
        node.wait_ready()
        joining = settings_of(average=SOON, net={"join": [address_of(node)]})
        with Node(ground.home("as-many", experts, config=joining)):
            node.wait_until(f"through a round of {MANY} experts", lambda status: _committed(status) >= MANY)
            kinds = Counter(map(kind_of, node.processes()))
    return {"processes": kinds, "experts": MANY}


def measure_training(stage: Stage[Effort]) -> dict[str, Any]:
    """Steps a second of a daemon's trainer, with averaging and without it in turn."""
    per_s: dict[str, list[float]] = {"averaging": [], "alone": []}
    committed = []
    for number in range(stage.effort.training_runs):
        for state, rates in per_s.items():
            stage.tell(f"training: {state}, run {number + 1} of {stage.effort.training_runs}")
            rate_per_s, rounds = _train(stage, f"{state}-{number}", is_averaging=state == "averaging")
            rates.append(rate_per_s)
            if state == "averaging":
                committed.append(rounds)
    least = max(1, int(stage.effort.training_s / PERIOD_S) - 1)
    if min(committed) < least:
        raise BenchFailed(f"the daemon averaged {committed} times in runs that have {least} rounds at least")
    return {
        "per_s": per_s,
        "committed": committed,
        "span_s": stage.effort.training_s,
        "runs": stage.effort.training_runs,
        "period_s": PERIOD_S,
    }


def _train(stage: Stage[Effort], name: str, *, is_averaging: bool) -> tuple[float, int]:
    """Steps a second, and rounds committed meanwhile, of a daemon on one core; its peer has another core."""
    ground = stage.ground
    experts: list[Expert] = [ground.expert(*ground.train.classes)]
    average = {"enabled": is_averaging}
    home = ground.home(f"learning-{name}", experts, config=settings_of(train=LEARNING, average=average))
    cores = sorted(os.sched_getaffinity(0))
    with ExitStack() as resources:
        with _on_core(cores[0]):
            node = resources.enter_context(Node(home, ground.data()))
        node.wait_ready()
        joining = settings_of(average={"enabled": True}, net={"join": [address_of(node)]})
        peer_home = ground.home(f"peer-{name}", experts, config=joining)
        with _on_core(cores[-1]):
            peer = resources.enter_context(Node(peer_home))
        peer.wait_ready()
        node.wait_until("distilling", lambda status: status["training"]["stage"] == "distil")
        if is_averaging:
            node.wait_until("through its first round", lambda status: _committed(status) > 0)
        before, began_s = node.api().get("status"), time.perf_counter()
        time.sleep(stage.effort.training_s)
        after, ended_s = node.api().get("status"), time.perf_counter()
    steps = after["training"]["done"] - before["training"]["done"]
    return steps / (ended_s - began_s), _committed(after) - _committed(before)


def _committed(status: Mapping[str, Any]) -> int:
    return int(status["averaging"].get("committed", 0))


async def _learn(home: Home) -> None:
    """Have all experts of a home differ from what they began with, as after training."""
    compute = Compute()
    with State(home) as state:
        host = ExpertHost(state, compute)
        await host.load()
        for uid in host.experts:
            learned = host.snapshot(uid) + np.float32(1.0)
            await host.checkpoint(uid, learned, deltas_applied=0, reached=Reached(run="bench", steps=1))
    compute.close()


@contextmanager
def _on_core(core: int) -> Iterator[None]:
    """What is started meanwhile stays on this core, with all that it starts."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
