"""Puts a load on whatever answers requests, and keeps what became of each.

Nothing here knows of a network: what is asked, the clock and the sleep are passed in.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NamedTuple

from meshnode.bench.load import Load, poisson_arrivals
from meshnode.errors import NodeError, Timeout
from meshnode.inference import Prediction
from protocol.errors import ModuleMeshError

__all__ = ["Ask", "Asked", "LoadRunner", "Request", "sleep_exactly"]

Ask = Callable[[int], Awaitable[Prediction]]
"""Sends the request of this number, and returns its answer or raises a named error."""

GRACE_S = 1.0
"""Whoever is asked keeps to the deadline itself and says what was missing; this long after it, it has not."""

PAUSE_S = 0.1
"""A worker whose request failed rests this long: one that is refused at once would flood the mesh with the next."""

_THREAD_S = 0.003
"""An event loop's timers go by whole milliseconds and fire late; a thread's sleep does neither."""


class Asked(NamedTuple):
    """One call to one peer within a request."""

    expert: str
    peer_id: str
    peer_name: str
    rows: int
    elapsed_ms: float
    answered: bool


@dataclass(slots=True)
class Request:
    """One request, as far as it has come. Moments are seconds since the load began."""

    due_s: float
    """When it was to be sent; in a closed loop, when it was."""
    sent_s: float | None = None
    """None: it was not sent, because as many as allowed were outstanding."""
    ended_s: float | None = None
    """None: it was not sent, or the run was cut off before its end."""
    error: str | None = None
    """The code of its failure."""
    is_partial: bool = False
    """Whether gate mass was missing in its answer."""
    calls: tuple[Asked, ...] = ()
    """Of an answered one; a failure does not say who was asked."""

    @property
    def latency_ms(self) -> float | None:
        """From when it was due, not from when it was sent, to its answer; None while or where there is none."""
        if self.ended_s is None or self.error is not None:
            return None
        return 1e3 * (self.ended_s - self.due_s)

    @property
    def asking_ms(self) -> float:
        """How long it waited for peers: experts are asked at the same time, replicas of one after another."""
        by_expert: dict[str, float] = {}
        for call in self.calls:
            by_expert[call.expert] = by_expert.get(call.expert, 0.0) + call.elapsed_ms
        return max(by_expert.values(), default=0.0)


class LoadRunner:
    """One run of a load.

    Cancelling `run` ends it early; `requests` then holds all that was due until then, those under way without an end.

    Args:
        ask: Sends a request.
        load: When, how many, for how long.
        clock: Seconds from any origin, never going back.
        sleep: Waits so many seconds of that clock.
    """

    def __init__(
        self,
        ask: Ask,
        load: Load,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] | None = None,
    ) -> None:
        self.requests: list[Request] = []
        """In the order in which they were due."""
        self.outstanding = 0
        """Requests that are on their way at this moment."""
        self.ended_s: float | None = None
        """When the last one ended or the run was cut off; None before."""
        self._ask = ask
        self._load = load
        self._clock = clock
        self._sleep = sleep or sleep_exactly
        self._began_s = clock()

    @property
    def elapsed_s(self) -> float:
        """Since the load began."""
        return self._clock() - self._began_s

    async def run(self) -> None:
        """Send all that is due, and return when the last one has ended."""
        self._began_s = self._clock()
        try:
            async with asyncio.TaskGroup() as group:
                if self._load.rate_per_s is None:
                    for number in range(self._load.concurrency):
                        group.create_task(self._keep_asking(), name=f"worker {number}")
                else:
                    await self._follow_schedule(self._load.rate_per_s, group)
        finally:
            self.ended_s = self.elapsed_s

    async def _follow_schedule(self, rate_per_s: float, group: asyncio.TaskGroup) -> None:
        for due_s in poisson_arrivals(rate_per_s, self._load.span_s, seed=self._load.seed):
            # One that is late already goes out at once: it is not put off, and its wait counts.
            await self._sleep(max(0.0, due_s - self.elapsed_s))
            request = Request(due_s=float(due_s))
            self.requests.append(request)
            if self.outstanding < self._load.concurrency:
                number = len(self.requests) - 1
                # Counted here and not in the task, which begins only when this loop rests.
                self.outstanding += 1
                group.create_task(self._send(request, number), name=f"request {number}")
        # Rates are over the whole span, not up to its last arrival.
        await self._sleep(max(0.0, self._load.span_s - self.elapsed_s))

    async def _keep_asking(self) -> None:
        while (now_s := self.elapsed_s) < self._load.span_s:
            request = Request(due_s=now_s)
            self.requests.append(request)
            self.outstanding += 1
            await self._send(request, len(self.requests) - 1)
            if request.error is not None:
                await self._sleep(PAUSE_S)

    async def _send(self, request: Request, number: int) -> None:
        request.sent_s = self.elapsed_s
        try:
            async with asyncio.timeout(self._load.timeout_s + GRACE_S):
                prediction = await self._ask(number)
        except TimeoutError:
            request.error = Timeout.code
        except (ModuleMeshError, NodeError) as failure:
            request.error = str(failure.code)
        else:
            request.is_partial = bool((prediction.missing_mass_B > 0).any())
            request.calls = tuple(
                Asked(call.expert, call.peer_id, call.peer_name, len(call.rows), call.elapsed_ms, call.error is None)
                for call in prediction.calls
            )
        finally:
            self.outstanding -= 1
        request.ended_s = self.elapsed_s


async def sleep_exactly(span_s: float) -> None:
    """Sleep so many seconds, a tenth of a millisecond or two late where asyncio's own sleep is a whole one.

    What a request is sent late counts as its latency, and on a fast mesh a millisecond is a quarter of it.
    """
    until_s = time.monotonic() + span_s
    await asyncio.sleep(max(0.0, span_s - _THREAD_S))
    left_s = until_s - time.monotonic()
    if left_s > 0:
        await asyncio.to_thread(time.sleep, left_s)
