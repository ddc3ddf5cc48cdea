"""The compute threads: questions are bounded, batched and go before the node's own work, which is never refused."""

import asyncio
import threading
from collections.abc import AsyncIterator

import numpy as np
import pytest

from meshnode.compute import Compute
from protocol.errors import Busy, Draining


@pytest.fixture
async def compute() -> AsyncIterator[Compute]:
    made = Compute(max_waiting=64, max_batch=8)
    yield made
    made.close()


def add_one(rows: np.ndarray) -> np.ndarray:
    return rows + 1


class Blocked:
    """Holds the answering thread until it is released."""

    def __init__(self, compute: Compute) -> None:
        self._gate = threading.Event()
        self._task = asyncio.create_task(compute.run(self._gate.wait))

    async def release(self) -> None:
        self._gate.set()
        await self._task


async def test_a_full_queue_refuses_requests_and_still_does_the_nodes_own_work() -> None:
    compute, gate = Compute(max_waiting=2), threading.Event()
    try:
        requests = [asyncio.create_task(compute.run(gate.wait)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await compute.run(gate.wait)
        with pytest.raises(Busy):
            await compute.run_rows("x", add_one, np.zeros((1, 1)))
        with pytest.raises(Busy):
            compute.check_room(1e9)
        assert await compute.run_own(sum, [1, 2]) == 3
        gate.set()
        assert await asyncio.gather(*requests) == [True, True]
        assert await compute.run(sum, [3, 4]) == 7
    finally:
        gate.set()
        compute.close()


async def test_calls_run_one_after_another_in_one_thread_that_is_not_the_loops(compute: Compute) -> None:
    threads = await asyncio.gather(*(compute.run(threading.get_ident) for _ in range(8)))
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()


async def test_the_nodes_own_work_does_not_hold_up_a_question(compute: Compute) -> None:
    gate = threading.Event()
    own = asyncio.create_task(compute.run_own(gate.wait))
    await asyncio.sleep(0)
    assert await compute.run(sum, [1, 2]) == 3
    assert not own.done()
    gate.set()
    assert await own


async def test_the_nodes_own_work_is_done_in_the_order_of_the_calls(compute: Compute) -> None:
    done: list[int] = []
    await asyncio.gather(*(compute.run_own(done.append, number) for number in range(20)))
    assert done == list(range(20))


async def test_rows_that_wait_for_the_same_are_computed_at_once_up_to_the_largest_batch(compute: Compute) -> None:
    sizes: list[int] = []

    def count(rows: np.ndarray) -> np.ndarray:
        sizes.append(len(rows))
        return rows + 1

    blocked = Blocked(compute)
    parts = [np.full((number, 2), number) for number in (3, 3, 3, 1, 20, 1)]
    answers = [asyncio.create_task(compute.run_rows("x", count, part)) for part in parts]
    await asyncio.sleep(0)
    await blocked.release()
    for part, answer in zip(parts, await asyncio.gather(*answers), strict=True):
        assert np.array_equal(answer, part + 1)
    # Nobody overtakes: the first that does not fit ends the batch, and one that is too large by itself goes alone.
    assert sizes == [6, 4, 20, 1]


async def test_different_functions_are_not_mixed_and_are_computed_in_the_order_in_which_they_came(
    compute: Compute,
) -> None:
    calls: list[str] = []

    def named(name: str) -> "object":
        def run(rows: np.ndarray) -> np.ndarray:
            calls.append(name)
            return rows + ord(name)

        return run

    blocked = Blocked(compute)
    asked = [(name, asyncio.create_task(compute.run_rows(name, named(name), np.zeros((1, 1))))) for name in "abab"]  # type: ignore[arg-type]
    await asyncio.sleep(0)
    await blocked.release()
    for name, answer in asked:
        assert (await answer)[0, 0] == ord(name)
    assert calls == ["a", "b"]


async def test_a_question_that_fails_is_no_failure_of_those_it_was_computed_with(compute: Compute) -> None:
    def refuse_zeros(rows: np.ndarray) -> np.ndarray:
        if not rows.all():
            raise ValueError("no")
        return rows + 1

    blocked = Blocked(compute)
    parts = [np.full((2, 1), number) for number in (1, 0, 2)]
    first, failing, last = (asyncio.create_task(compute.run_rows("x", refuse_zeros, part)) for part in parts)
    await asyncio.sleep(0)
    await blocked.release()
    assert np.array_equal(await first, parts[0] + 1)
    assert np.array_equal(await last, parts[2] + 1)
    with pytest.raises(ValueError, match="no"):
        await failing
    assert compute.waiting == 0


async def test_what_was_cancelled_while_others_were_computed_is_not_computed_either(compute: Compute) -> None:
    ran: list[int] = []
    loop = asyncio.get_running_loop()
    began, gate = asyncio.Event(), threading.Event()

    def first() -> None:
        loop.call_soon_threadsafe(began.set)
        gate.wait(5)

    running = asyncio.create_task(compute.run(first))
    waiting = [asyncio.create_task(compute.run(ran.append, number)) for number in range(20)]
    await began.wait()
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    assert compute.waiting == 1
    assert not compute._waiting  # their rows are not kept either
    gate.set()
    await running
    await compute.run(ran.append, -1)
    assert ran == [-1]


async def test_a_cancelled_question_is_not_computed_and_makes_room(compute: Compute) -> None:
    ran: list[int] = []
    blocked = Blocked(compute)
    task = asyncio.create_task(compute.run(ran.append, 1))
    await asyncio.sleep(0)
    assert compute.waiting == 2
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert compute.waiting == 1
    await blocked.release()
    await compute.run(ran.append, 2)
    assert ran == [2]


async def test_how_long_a_question_would_wait_is_learned_from_the_last_ones(compute: Compute) -> None:
    for _ in range(40):
        await compute.run(threading.Event().wait, 0.01)
    blocked = Blocked(compute)
    waiting = [asyncio.create_task(compute.run(sum, [])) for _ in range(9)]
    await asyncio.sleep(0)
    assert 0.05 < compute.expected_wait_s < 1.0
    compute.check_room(10.0)
    with pytest.raises(Busy) as caught:
        compute.check_room(0.04)
    assert caught.value.retry_after_s > 0
    await blocked.release()
    await asyncio.gather(*waiting)
    assert compute.expected_wait_s == 0


async def test_closing_drops_what_waits_and_lets_what_runs_finish() -> None:
    compute, began, gate = Compute(), threading.Event(), threading.Event()

    def work() -> bool:
        began.set()
        return gate.wait(5)

    running = asyncio.create_task(compute.run(work))
    await asyncio.sleep(0)
    began.wait(5)
    waiting = asyncio.create_task(compute.run(sum, [1]))
    await asyncio.sleep(0)
    threading.Timer(0.05, gate.set).start()
    compute.close()
    assert await running
    with pytest.raises(Draining):
        await waiting
    with pytest.raises(Draining):
        await compute.run(sum, [1])


async def test_a_question_that_takes_long_counts_no_more_than_each_of_many_that_do_not(compute: Compute) -> None:
    await compute.run(threading.Event().wait, 1.0)
    for _ in range(3):
        blocked = Blocked(compute)
        many = [asyncio.create_task(compute.run_rows("x", add_one, np.zeros((1, 1)))) for _ in range(8)]
        await asyncio.sleep(0)
        await blocked.release()
        await asyncio.gather(*many)
    waiting = [asyncio.create_task(compute.run(sum, [])) for _ in range(10)]
    await asyncio.sleep(0)
    assert compute.expected_wait_s < 0.3
    await asyncio.gather(*waiting)
