"""A clock and a network that exist in numbers only: events in the order of their moments, calls that take time or fail.

A call is a request and its answer. Each waits for its sender's uplink, a small one for no more than what is written
already, then travels for a time drawn from a lognormal distribution. What is lost, late or for a dead peer leaves the
caller waiting until its own deadline, as a host that has gone silent does; a real link recovers single lost packets, so
a loss here stands for a stalled or broken link.
"""

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from meshnode.transport.links import WRITE_AHEAD_BYTES

__all__ = ["Call", "Clock", "Host", "Network", "NetworkConfig", "Stream"]

NEVER_S = math.inf

MOST_AHEAD_BYTES = 4096
"""A message up to this is small: words about rounds, and no parts of them."""


class Clock:
    """Virtual seconds, and what is to happen when.

    Args:
        now_s: The moment at which it begins.
    """

    def __init__(self, now_s: float = 0.0) -> None:
        self.now_s = now_s
        self.num_events = 0
        """Events that have happened."""
        self._due: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._scheduled = 0

    def at(self, moment_s: float, action: Callable[..., None], *args: object) -> None:
        """Do it then; what is due at the same moment happens in the order of its scheduling."""
        self._scheduled += 1
        heapq.heappush(self._due, (max(moment_s, self.now_s), self._scheduled, action, args))

    def after(self, delay_s: float, action: Callable[..., None], *args: object) -> None:
        self.at(self.now_s + delay_s, action, *args)

    def run_until(self, end_s: float) -> None:
        """Let everything happen that is due by then."""
        due = self._due
        while due and due[0][0] <= end_s:
            self.now_s, _, action, args = heapq.heappop(due)
            self.num_events += 1
            action(*args)
        self.now_s = end_s


class Stream:
    """Numbers of one named random stream, drawn in blocks: one at a time would cost more than the rest of an event.

    Args:
        seed: The run's.
        name: Streams of different names are independent.
        draw: Takes a generator and how many numbers to draw.
    """

    def __init__(self, seed: int, name: str, draw: Callable[[np.random.Generator, int], np.ndarray]) -> None:
        self._generator = np.random.default_rng([seed, *name.encode()])
        self._draw = draw
        self._block: list[float] = []

    def next(self) -> float:
        if not self._block:
            self._block = self._draw(self._generator, 4096).tolist()
        return self._block.pop()


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkConfig:
    latency_s: float = 0.05
    """Median of one way."""
    latency_sigma: float = 0.6
    """Of the logarithm: one message in a hundred takes four times the median."""
    loss_ratio: float = 0.0
    """Share of requests and of answers that never arrive."""
    uplink_bytes_per_s: float = 1.25e6
    """10 Mbit/s, what a home connection may send."""


@dataclass(slots=True, eq=False)
class Host:
    """A machine at the network's edge."""

    alive: bool = True
    side: int = 0
    """Of a partition, while there is one."""
    life: int = 0
    """Counts its starts: what an earlier life asked for is answered to nobody."""
    uplink_free_s: float = 0.0
    sent: Counter[str] = field(default_factory=Counter)
    """Bytes by kind."""


class Call:
    """A request under way."""

    __slots__ = ("answered", "callee", "caller", "is_cancelled", "kind", "life", "serve", "until_s")

    def __init__(self, caller: Host, callee: Host, kind: str, until_s: float) -> None:
        self.caller = caller
        self.callee = callee
        self.kind = kind
        self.life = caller.life
        self.until_s = until_s
        self.is_cancelled = False
        self.serve: Callable[[Call], None]
        """Told at the callee when the request is there; it answers then or later, with `Network.answer`."""
        self.answered: Callable[[Any], None]
        """Told at the caller: the answer, or None when the wait ran out."""


class Network:
    """Carries calls between hosts.

    Attributes:
        partitioned: Whether the sides cannot reach each other.
    """

    def __init__(self, clock: Clock, config: NetworkConfig, seed: int) -> None:
        self.clock = clock
        self.config = config
        self.partitioned = False
        median_s, sigma = math.log(config.latency_s), config.latency_sigma
        self._latency = Stream(seed, "latency", lambda generator, num: generator.lognormal(median_s, sigma, num))
        self._luck = Stream(seed, "loss", lambda generator, num: generator.random(num))

    def reach(self, one: Host, other: Host) -> bool:
        return one.alive and other.alive and not (self.partitioned and one.side != other.side)

    def ask(self, call: Call, num_bytes: int, serve: Callable[[Call], None], answered: Callable[[Any], None]) -> None:
        """Send a request.

        Args:
            call: Who asks whom.
            num_bytes: Of the request.
            serve: As `Call.serve`.
            answered: As `Call.answered`.
        """
        call.serve, call.answered = serve, answered
        arrives_s = self._send(call.caller, num_bytes, call.kind)
        if arrives_s <= call.until_s:
            self.clock.at(arrives_s, self._arrive, call)
        else:
            self._fail(call)

    def answer(self, call: Call, num_bytes: int, content: object) -> None:
        """Send the answer, at the callee."""
        if call.is_cancelled:
            return
        arrives_s = self._send(call.callee, num_bytes, call.kind)
        if arrives_s <= call.until_s:
            self.clock.at(arrives_s, self._deliver, call, content)
        else:
            self._fail(call)

    def _send(self, sender: Host, num_bytes: int, kind: str) -> float:
        """When it arrives; infinitely late if it is lost."""
        sender.sent[kind] += num_bytes
        now_s, takes_s = self.clock.now_s, num_bytes / self.config.uplink_bytes_per_s
        sender.uplink_free_s = max(sender.uplink_free_s, now_s) + takes_s
        sent_s = sender.uplink_free_s
        if num_bytes <= MOST_AHEAD_BYTES:  # chunks of larger messages let it pass
            sent_s = min(sent_s, now_s + takes_s + WRITE_AHEAD_BYTES / self.config.uplink_bytes_per_s)
        arrives_s = sent_s + self._latency.next()
        loss_ratio = self.config.loss_ratio
        return NEVER_S if loss_ratio and self._luck.next() < loss_ratio else arrives_s

    def cancel(self, caller: Host, calls: Iterable[Call], kind: str) -> None:
        """Give up calls of one host. What waits for its uplink is not sent then: it is all of one exchange."""
        for call in calls:
            call.is_cancelled = True
        unsent_s = max(0.0, caller.uplink_free_s - self.clock.now_s)
        caller.uplink_free_s -= unsent_s
        caller.sent[kind] -= round(unsent_s * self.config.uplink_bytes_per_s)

    def _arrive(self, call: Call) -> None:
        if call.is_cancelled:
            return
        if self.reach(call.caller, call.callee):
            call.serve(call)
        else:
            self._fail(call)

    def _deliver(self, call: Call, content: object) -> None:
        if call.is_cancelled:
            return
        if not self.reach(call.caller, call.callee):
            self._fail(call)
        elif call.life == call.caller.life:
            call.answered(content)

    def _fail(self, call: Call) -> None:
        self.clock.at(call.until_s, self._run_out, call)

    def _run_out(self, call: Call) -> None:
        if not call.is_cancelled and call.caller.alive and call.life == call.caller.life:
            call.answered(None)
