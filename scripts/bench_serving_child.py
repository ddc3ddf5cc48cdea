"""A process of the benchmark of serving: a peer, a server or a client on one event loop, as its orders want it.

Started by `bench_children`.
"""

import asyncio
import gc
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import bench_serving_load as load
from bench_orders import obey_on_a_loop
from bench_serving_heralds import Herald, look_up, open_herald
from bench_serving_load import Call
from bench_serving_ours import Asking, DelayedPeer, call_ours, open_peer
from bench_serving_rivals import Listeners, call_rival


class LoopChild:
    """The commands of a child with an event loop, each a coroutine method named as the command."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._resources = AsyncExitStack()
        self._joined = AsyncExitStack()
        self._calls: dict[str, Call] = {}
        self._peer: DelayedPeer
        self._asking: Asking
        self._heralds: list[Herald] = []

    async def open_rivals(self, uid: str) -> dict[str, str]:
        """Serve the module for all rivals but hivemind's server; addresses by rival."""
        listeners = await Listeners.open(uid)
        self._resources.push_async_callback(listeners.aclose)
        return await listeners.addresses()

    async def connect(self, way: str, address: str, uid: str, sizes: Sequence[int], **options: Any) -> None:
        """Make calls of so many rows ready, each under the name ``WAY/ROWS``."""
        how = {"uid": uid, "sizes": sizes, "resources": self._resources, **options}
        calls = await (call_ours(address, **how) if way.startswith("ours") else call_rival(way, address, **how))
        self._calls |= {f"{way}/{rows}": call for rows, call in calls.items()}

    async def closed(self, name: str, **how: Any) -> dict[str, Any]:
        """As `bench_serving_load.closed`."""
        return await load.closed(self._calls[name], **how)

    async def paced(self, name: str, **how: Any) -> dict[str, Any]:
        """As `bench_serving_load.paced`."""
        return await load.paced(self._calls[name], **how)

    async def open_peer(self, home: str, join: Sequence[str]) -> str:
        """Be a peer of the mesh, which lives in this home; its address."""
        self._peer = await open_peer(home, join, self._resources)
        return self._peer.address

    async def announce(self) -> None:
        """Publish the peer's record again."""
        await self._peer.announce()

    async def delay(self, seconds: float) -> None:
        """Let the peer wait before each answer from now on."""
        self._peer.delay_s = seconds

    async def join_mesh(self, addresses: Sequence[str], experts: int, replicas: int) -> dict[str, list[str]]:
        """Become a client that sees so many experts and replicas; peer ids by expert. Asks by the name ``image``."""
        await self._joined.aclose()  # the mesh it was in before
        self._asking = await Asking.join(addresses, experts=experts, replicas=replicas, resources=self._joined)
        self._calls["image"] = self._asking.next_image
        return self._asking.where()

    async def one_question(self, top_k: int) -> dict[str, Any]:
        """Ask the mesh about one image."""
        return await self._asking.one_question(top_k)

    async def all_images(self, top_k: int) -> dict[str, Any]:
        """Ask the mesh about all test images."""
        return await self._asking.all_images(top_k)

    async def one_after_another(self, names: Sequence[str]) -> float:
        """Milliseconds of making these calls, each after the one before."""
        began_s = time.perf_counter()
        for name in names:
            await self._calls[name]()
        return 1e3 * (time.perf_counter() - began_s)

    async def advertise(self, folder: str, join: Sequence[str], numbers: Sequence[int], experts: int) -> list[str]:
        """Be a peer for each of these numbers, with so many experts to advertise; their addresses."""
        for number in numbers:
            known = join or [herald.address for herald in self._heralds]
            self._heralds.append(await open_herald(folder, number, experts, known, self._resources))
        return [herald.address for herald in self._heralds]

    async def publish(self) -> None:
        """Publish the records of all these peers."""
        await asyncio.gather(*(herald.publish() for herald in self._heralds))

    async def look_up(self, folder: str, address: str, repeats: int) -> dict[str, Any]:
        """Find the mesh's experts as a fresh client, and again."""
        return await look_up(folder, address, repeats)

    async def settle(self) -> None:
        """Keep what is there out of the garbage collector's sight, as the daemon does once it is ready."""
        gc.collect()
        gc.freeze()

    async def empty(self) -> None:
        """Close all that was opened, and be as new."""
        await self.close()
        self._begin()
        gc.unfreeze()
        gc.collect()

    async def close(self) -> None:
        """Close all that was opened."""
        await self._joined.aclose()
        await self._resources.aclose()


if __name__ == "__main__":
    obey_on_a_loop(LoopChild)
