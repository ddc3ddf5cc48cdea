"""The worker goes to one borrower at a time, in the order in which they came, and comes back whatever happens."""

import asyncio
from typing import cast

import pytest

from meshnode.trainer.lending import Lending
from meshnode.trainer.process import TrainerDied, TrainerProcess

WORKER, NEXT = (cast("TrainerProcess", object()) for _ in range(2))


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_borrowers_have_it_alone_and_in_order() -> None:
    lent: list[str] = []
    wanted: list[None] = []
    lending = Lending(wanted=lambda: wanted.append(None), lent=lent.append)
    assert not await lending.lend(WORKER)
    inside: list[str] = []
    go_on = asyncio.Event()

    async def use(name: str) -> None:
        async with lending.borrow(name) as process:
            assert process is WORKER
            assert inside == []
            inside.append(name)
            await go_on.wait()
            inside.remove(name)

    users = [asyncio.create_task(use(name)) for name in ("first", "second")]
    await turns()
    assert (len(wanted), lent) == (2, [])
    serving = asyncio.create_task(lending.lend(WORKER))
    await turns()
    assert (inside, lent) == (["first"], ["first"])
    go_on.set()
    assert await serving
    await asyncio.gather(*users)
    assert lent == ["first", "second"]
    assert not await lending.lend(WORKER)


async def test_who_does_not_want_it_any_more_is_passed_over() -> None:
    lent: list[str] = []
    lending = Lending(wanted=lambda: None, lent=lent.append)

    async def use(name: str) -> None:
        async with lending.borrow(name):
            pass

    gone, stays = (asyncio.create_task(use(name)) for name in ("gone", "stays"))
    await turns()
    gone.cancel()
    await asyncio.wait([gone])
    assert await lending.lend(WORKER)
    await stays
    assert lent == ["stays"]


async def test_a_borrower_that_fails_gives_it_back_and_who_waits_gets_the_next_one() -> None:
    lending = Lending(wanted=lambda: None, lent=lambda purpose: None)
    got: list[TrainerProcess] = []

    async def fail() -> None:
        async with lending.borrow("fails"):
            raise TrainerDied(-9)

    async def use() -> None:
        async with lending.borrow("waits") as process:
            got.append(process)

    failing = asyncio.create_task(fail())
    await turns()
    assert await lending.lend(WORKER)
    with pytest.raises(TrainerDied):
        await failing
    waiting = asyncio.create_task(use())
    await turns()
    assert await lending.lend(NEXT)
    await waiting
    assert got == [NEXT]
