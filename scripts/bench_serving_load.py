"""Load within one process: callers that each wait for their answer, and arrivals that wait for nobody.

An open loop sends every request when it is due, whether or not earlier ones have been answered, and its latency counts
from then: what a slow server makes others wait is in the figure.
"""

import asyncio
import ctypes
import os
import struct
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Self

import numpy as np

from protocol.errors import ModuleMeshError

__all__ = ["Call", "closed", "paced"]

Call = Callable[[], Awaitable[Any]]
"""Asks once; returns the answer or raises a named error."""

LEAD_S: Final = 0.05
"""From the order to the first arrival: enough to make the arrivals beforehand."""

_CLOCK_MONOTONIC, _NONBLOCK, _ABSOLUTE = 1, os.O_NONBLOCK | os.O_CLOEXEC, 1
_LIBC = ctypes.CDLL(None, use_errno=True)


async def closed(call: Call, *, callers: int, calls: int | None = None, span_s: float | None = None) -> dict[str, Any]:
    """Callers that ask again as soon as they are answered, together so many times, or for so long.

    Returns: ``ms`` of every call, and ``elapsed_s`` of all together.
    """
    taken_ms: list[float] = []
    began_s = time.perf_counter()
    until_s = began_s + span_s if span_s is not None else float("inf")
    left = calls if calls is not None else 2**62

    async def ask_again_and_again() -> None:
        nonlocal left
        while left > 0 and (sent_s := time.perf_counter()) < until_s:
            left -= 1
            await call()
            taken_ms.append(1e3 * (time.perf_counter() - sent_s))

    async with asyncio.TaskGroup() as group:
        for number in range(callers):
            group.create_task(ask_again_and_again(), name=f"caller {number}")
    return {"ms": _rounded(taken_ms), "elapsed_s": time.perf_counter() - began_s}


async def paced(
    call: Call, *, rate_per_s: float, requests: int, seed: int, begin_at_s: float | None = None
) -> dict[str, Any]:
    """A Poisson process of requests: independent of each other, as those of many users are.

    Args:
        call: Sends one.
        rate_per_s: Mean arrivals a second.
        requests: How many.
        seed: Of their moments.
        begin_at_s: When they begin, by the monotonic clock, which all processes of a machine share; None: now.

    Returns: In the order in which they were due, ``due_s`` and ``ended_s`` of every request since the beginning,
        and its ``error``, the code of a named error or None; ``late_ms``, how late each was sent; ``begin_at_s``; and
        ``notes``, what was answered with a mapping, by the request's number.
    """
    due_s = np.random.default_rng(seed).exponential(1 / rate_per_s, requests).cumsum().tolist()
    begin_s = time.monotonic() + LEAD_S if begin_at_s is None else begin_at_s
    ended_s: list[float] = [0.0] * len(due_s)
    errors: list[str | None] = [None] * len(due_s)
    late_ms: list[float] = []
    notes: dict[int, Any] = {}

    async def ask(number: int) -> None:
        try:
            if isinstance(answer := await call(), Mapping):
                notes[number] = answer
        except ModuleMeshError as failure:
            errors[number] = str(failure.code)
        ended_s[number] = time.monotonic() - begin_s

    with ExactAlarm() as alarm:
        async with asyncio.TaskGroup() as group:
            for number, moment_s in enumerate(due_s):
                await alarm.wait_until(begin_s + moment_s)
                late_ms.append(1e3 * (time.monotonic() - begin_s - moment_s))
                group.create_task(ask(number))
    return {
        "due_s": _rounded(due_s, 6),
        "ended_s": _rounded(ended_s, 6),
        "error": errors,
        "late_ms": _rounded(late_ms),
        "begin_at_s": begin_s,
        "notes": notes,
    }


class ExactAlarm:
    """Waits on the event loop to a twentieth of a millisecond, where its own timers go by whole ones (timerfd(2))."""

    def __enter__(self) -> Self:
        self._file = _LIBC.timerfd_create(_CLOCK_MONOTONIC, _NONBLOCK)
        if self._file < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._rung = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._file, self._ring)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._file)
        os.close(self._file)

    async def wait_until(self, moment_s: float) -> None:
        """Return at `moment_s` of the monotonic clock; if it has passed, when all others have had their turn."""
        if moment_s <= time.monotonic():
            await asyncio.sleep(0)
            return
        self._rung.clear()
        seconds, nanoseconds = divmod(round(1e9 * moment_s), 10**9)
        once = struct.pack("qqqq", 0, 0, seconds, nanoseconds)
        if _LIBC.timerfd_settime(self._file, _ABSOLUTE, once, None) < 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")
        await self._rung.wait()

    def _ring(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._file, 8)
            self._rung.set()


def _rounded(values: Sequence[float], digits: int = 4) -> list[float]:
    return [round(value, digits) for value in values]
