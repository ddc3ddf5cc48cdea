"""The compute thread: requests are bounded, the node's own work is not."""

import asyncio
import threading

import pytest

from meshnode.compute import Compute
from protocol.errors import Busy


async def test_a_full_queue_refuses_requests_and_still_does_the_nodes_own_work() -> None:
    compute, gate = Compute(max_waiting=2), threading.Event()
    try:
        requests = [asyncio.create_task(compute.run(gate.wait)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await compute.run(gate.wait)
        own = asyncio.create_task(compute.run_own(sum, [1, 2]))
        await asyncio.sleep(0)
        gate.set()
        assert await own == 3
        assert await asyncio.gather(*requests) == [True, True]
        assert await compute.run(sum, [3, 4]) == 7
    finally:
        gate.set()
        compute.close()


async def test_calls_run_one_after_another_in_one_thread_that_is_not_the_loops() -> None:
    compute = Compute()
    try:
        threads = await asyncio.gather(*(compute.run(threading.get_ident) for _ in range(8)))
    finally:
        compute.close()
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()
