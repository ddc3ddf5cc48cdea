"""The pace is held whoever sends and in whatever sizes, by a clock that the test moves."""

import asyncio
import random

import pytest

from meshnode.pacing import AHEAD_S, Pacer

RATE = 1000.0


class Clock:
    """Stands still until everybody sleeps; then it is the time at which the first of them wakes."""

    def __init__(self) -> None:
        self.now_s = 50.0
        self._sleeping: list[tuple[float, asyncio.Future[None]]] = []

    async def sleep(self, span_s: float) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (self.now_s + span_s, woken)
        self._sleeping.append(entry)
        try:
            await woken
        finally:
            if entry in self._sleeping:
                self._sleeping.remove(entry)

    async def run(self) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        while self._sleeping:
            wakes_at, woken = min(self._sleeping, key=lambda entry: entry[0])
            self._sleeping.remove((wakes_at, woken))
            self.now_s = max(self.now_s, wakes_at)
            woken.set_result(None)
            for _ in range(3):
                await asyncio.sleep(0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def pacer(clock: Clock, rate: float | None = RATE) -> Pacer:
    return Pacer(rate, now_s=lambda: clock.now_s, sleep=clock.sleep)


async def sends(pacer: Pacer, clock: Clock, sizes: list[int], sent: list[tuple[float, int]]) -> None:
    for size in sizes:
        await pacer.take(size)
        sent.append((clock.now_s, size))


async def test_several_senders_together_keep_to_the_pace_over_every_span(clock: Clock) -> None:
    rng, paced = random.Random(3), pacer(clock)
    sent: list[tuple[float, int]] = []
    sizes = [[rng.randrange(1, 400) for _ in range(40)] for _ in range(3)]
    senders = [asyncio.create_task(sends(paced, clock, each, sent)) for each in sizes]
    await clock.run()
    assert all(sender.done() for sender in senders)
    total = sum(map(sum, sizes))
    assert clock.now_s - 50 == pytest.approx(total / RATE - AHEAD_S)
    for first in range(len(sent)):
        for last in range(first, len(sent)):
            span_s = sent[last][0] - sent[first][0]
            in_span = sum(size for _, size in sent[first : last + 1])
            # What went first may have waited for its own bytes before the span began.
            assert in_span - sent[first][1] <= RATE * (span_s + AHEAD_S) + 1e-6


async def test_who_asks_first_goes_first(clock: Clock) -> None:
    paced, order = pacer(clock), []

    async def send(name: str, size: int) -> None:
        await paced.take(size)
        order.append(name)

    senders = [asyncio.create_task(send(name, size)) for name, size in (("large", 5000), ("small", 1), ("next", 1))]
    await clock.run()
    assert order == ["large", "small", "next"]
    assert all(sender.done() for sender in senders)


async def test_an_idle_line_lets_a_little_go_at_once_and_no_more_for_having_been_idle_long(clock: Clock) -> None:
    paced = pacer(clock)
    clock.now_s += 3600
    await paced.take(int(AHEAD_S * RATE))  # would hang if it had to wait: nobody moves the clock
    assert paced.backlog_s == 0
    waiting = asyncio.create_task(paced.take(100))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert paced.backlog_s == pytest.approx(100 / RATE)
    await clock.run()
    assert waiting.done()
    assert clock.now_s == pytest.approx(50 + 3600 + 0.1)


async def test_who_gives_up_waiting_has_taken_nothing(clock: Clock) -> None:
    paced = pacer(clock)
    waiting = asyncio.create_task(paced.take(10_000))
    await asyncio.sleep(0)
    assert paced.backlog_s == pytest.approx(10 - AHEAD_S)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert paced.backlog_s == 0


async def test_without_a_pace_nobody_waits(clock: Clock) -> None:
    paced = pacer(clock, None)
    await paced.take(10**12)
    assert paced.backlog_s == 0
