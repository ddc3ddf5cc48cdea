"""One expert, asked in every way: how long a call takes by its size, how many a second, and how long the slowest do.

Ours is a real daemon; bare TCP, a raw stream and a unary call have a process together, hivemind.moe.Server one of its
own, and so have their clients. Nobody is pinned to a core, and whoever is not measured rests.
"""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

from bench_children import Child
from bench_node import BenchFailed
from bench_serving_figures import all_latencies_ms, p50, p99, paced_from
from bench_stage import Stage, address_of

__all__ = ["Ways"]

SIZES = (1, 8, 64, 256, 1024)
"""Rows: 1 KB to 1 MB of features."""

WAYS = ("ours", "tcp", "raw", "unary", "moe")
CALLERS = 64

P99_ROWS, P99_RATE_PER_S = 64, 250.0
"""Both rivals bear the rate without a queue."""

WARM_CALLS = 20

MOE_START_S, MOE_STARTS = 30.0, 4
"""It takes 3 s, and now and then for ever."""


class Ways:
    """One expert behind every way to ask it.

    Args:
        stage: Where the processes belong.
        resources: End the daemon.
    """

    def __init__(self, stage: Stage, resources: ExitStack) -> None:
        self._stage = stage
        self._effort = stage.effort
        expert = stage.ground.expert("0", "1")
        stage.tell("starting a daemon, hivemind.moe.Server, and those they are held against")
        servers, self._client = resources.enter_context(stage.hands(2))
        (moe_server,) = stage.children.get("moe-server", role="moe-server")
        (self._moe,) = stage.children.get("moe-client", role="moe-client")
        resources.callback(stage.children.end, "moe-client", "moe-server")
        moe_server.send("open", uid=expert.uid)
        (daemon,) = stage.daemons([("serving", [expert])], resources)
        addresses = servers.call("open_rivals", uid=expert.uid)
        addresses["ours"] = address_of(daemon)
        for way, address in addresses.items():
            self._client.call("connect", way=way, address=address, uid=expert.uid, sizes=SIZES)
        self._moe.call("open", address=self._moe_address(moe_server, expert.uid), uid=expert.uid)
        for child in (servers, self._client):
            child.call("settle")
        for way in WAYS:
            self._closed(way, SIZES[0], WARM_CALLS)

    def _moe_address(self, server: Child, uid: str) -> str:
        """Where hivemind's server listens; one that hangs, as a fork beside threads may, is started again."""
        for _ in range(MOE_STARTS - 1):
            try:
                return str(server.answer(MOE_START_S))
            except BenchFailed:
                self._stage.tell("hivemind.moe.Server hangs in its start; trying again")
                server = self._stage.children.again("moe-server", role="moe-server")
                server.send("open", uid=uid)
        return str(server.answer(MOE_START_S))

    def latency(self, sizes: Sequence[int] = SIZES) -> dict[str, Any]:
        """p50 in ms by way and rows, of one caller; a number for each round."""
        by_way: dict[str, dict[int, list[float]]] = {way: {rows: [] for rows in sizes} for way in WAYS}
        for number in range(self._effort.rounds):
            self._stage.tell(f"latency by size: round {number + 1} of {self._effort.rounds}")
            for rows in sizes:
                for way in _turned(WAYS, number):
                    by_way[way][rows].append(p50(self._closed(way, rows, self._calls(rows))))
        return {"p50_ms": by_way, "calls": {rows: self._calls(rows) for rows in sizes}}

    def throughput(self) -> dict[str, Any]:
        """Requests of 1 KB a second with 64 callers, by way; a number for each round."""
        by_way: dict[str, list[float]] = {way: [] for way in WAYS if way not in {"tcp", "raw"}}
        span_s = self._effort.throughput_s
        for number in range(self._effort.rounds):
            self._stage.tell(f"throughput: round {number + 1} of {self._effort.rounds}")
            for way in _turned(tuple(by_way), number):
                load = {"callers": CALLERS, "span_s": span_s}
                outcome = (
                    self._moe.call("throughput", rows=1, **load)
                    if way == "moe"
                    else self._client.call("closed", name=f"{way}/1", **load)
                )
                by_way[way].append(len(outcome["ms"]) / outcome["elapsed_s"])
        return {"per_s": by_way, "callers": CALLERS, "span_s": span_s}

    def slowest(self) -> dict[str, Any]:
        """p99 in ms of requests of 64 KB that come at a fixed rate, by way; a number for each run."""
        by_way: dict[str, list[float]] = {way: [] for way in ("ours", "unary")}
        halves: dict[str, list[float]] = {way: [] for way in by_way}
        late_ms = []
        for number in range(self._effort.p99_runs):
            self._stage.tell(f"p99 of 64 KB at {P99_RATE_PER_S:g}/s: run {number + 1} of {self._effort.p99_runs}")
            for way in _turned(tuple(by_way), number):
                outcome = self._client.call(
                    "paced",
                    name=f"{way}/{P99_ROWS}",
                    rate_per_s=P99_RATE_PER_S,
                    requests=self._effort.p99_requests,
                    seed=self._stage.seed + number,
                )
                taken_ms = all_latencies_ms(paced_from(outcome))
                by_way[way].append(p99(taken_ms))
                halves[way].append(p50(taken_ms))
                late_ms.append(p99(outcome["late_ms"]))
        return {
            "p99_ms": by_way,
            "p50_ms": halves,
            "rate_per_s": P99_RATE_PER_S,
            "rows": P99_ROWS,
            "requests": self._effort.p99_requests,
            "runs": self._effort.p99_runs,
            "sent_late_p99_ms": max(late_ms),
        }

    def _calls(self, rows: int) -> int:
        """About the time of two large messages for one small one, and at least enough for a median."""
        return max(self._effort.calls // 10, int(self._effort.calls / (1 + rows / 64)))

    def _closed(self, way: str, rows: int, calls: int) -> list[float]:
        if way == "moe":
            return list(self._moe.call("closed", rows=rows, calls=calls)["ms"])
        return list(self._client.call("closed", name=f"{way}/{rows}", callers=1, calls=calls)["ms"])


def _turned(ways: Sequence[str], number: int) -> Iterable[str]:
    """Each round begins with another one."""
    first = number % len(ways)
    return [*ways[first:], *ways[:first]]
