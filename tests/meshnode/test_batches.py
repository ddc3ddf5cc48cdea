"""Work in batches: what waits at the same time is done in one go, in order, and nobody's failure is another's."""

import asyncio
from collections.abc import Sequence

import pytest

from meshnode.batches import Batches


class Worker:
    """Does numbers by doubling them; remembers its batches."""

    def __init__(self, *, most: int = 100) -> None:
        self.batches = Batches(self._work, size=lambda number: number, most=most)
        self.done: list[list[int]] = []
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()

    async def _work(self, numbers: Sequence[int]) -> list[int | Exception]:
        self.done.append(list(numbers))
        await self.may_go_on.wait()
        if 13 in numbers:
            raise OSError("the whole of it failed")
        return [ValueError(number) if number == 7 else 2 * number for number in numbers]

    async def do_all(self, *numbers: int) -> list[int | BaseException]:
        return await asyncio.gather(*map(self.batches.do, numbers), return_exceptions=True)


async def test_what_is_asked_for_at_the_same_time_is_done_in_one_go() -> None:
    worker = Worker()
    assert await worker.do_all(1, 2, 3) == [2, 4, 6]
    assert await worker.do_all(4) == [8]
    assert worker.done == [[1, 2, 3], [4]]


async def test_more_gathers_while_a_batch_is_done() -> None:
    worker = Worker()
    worker.may_go_on.clear()
    first = asyncio.create_task(worker.do_all(1))
    while not worker.done:
        await asyncio.sleep(0)
    later = [asyncio.create_task(worker.do_all(number)) for number in (2, 3)]
    await asyncio.sleep(0)
    worker.may_go_on.set()
    assert [await first, await later[0], await later[1]] == [[2], [4], [6]]
    assert worker.done == [[1], [2, 3]]


async def test_a_batch_is_no_larger_than_it_may_be_unless_it_is_of_one() -> None:
    worker = Worker(most=5)
    assert await worker.do_all(2, 3, 1, 9, 1) == [4, 6, 2, 18, 2]
    assert worker.done == [[2, 3], [1], [9], [1]]


async def test_a_failure_is_told_to_whom_it_belongs() -> None:
    worker = Worker(most=20)
    one, failed, other = await worker.do_all(1, 7, 2)
    assert (one, other) == (2, 4)
    assert isinstance(failed, ValueError)
    assert [type(outcome) for outcome in await worker.do_all(13, 1)] == [OSError, OSError]
    assert await worker.do_all(1) == [2]


async def test_what_nobody_waits_for_any_more_is_not_done() -> None:
    worker = Worker()
    worker.may_go_on.clear()
    first = asyncio.create_task(worker.batches.do(1))
    while not worker.done:
        await asyncio.sleep(0)
    dropped, kept = (asyncio.create_task(worker.batches.do(number)) for number in (2, 3))
    await asyncio.sleep(0)
    dropped.cancel()
    first.cancel()  # under way: it is done, and nobody is told
    worker.may_go_on.set()
    assert await kept == 6
    assert worker.done == [[1], [3]]
    with pytest.raises(asyncio.CancelledError):
        await first
