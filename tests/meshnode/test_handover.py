"""A node that stops hands over what only it holds, and whoever asks meanwhile is answered as before."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mesh_in_memory import NO_PLACEMENT, MemoryNode, announce_all, digits, memory_network, memory_node, statistics_of

from meshnode import handover as handover_module
from meshnode.handover import HandOver
from meshnode.placement import PlacementConfig
from meshnode.telemetry import Telemetry
from meshnode.transport.memory import MemoryNetwork
from protocol.identifiers import ExpertUid

ROOMY = PlacementConfig(slot_s=3.0)
CLASSES = ("0", "1")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover_module, "LOOK_AGAIN_S", 0.01)


@dataclass
class Leaver:
    """The node "a", which holds one expert that nobody else has."""

    node: MemoryNode
    uid: ExpertUid
    handover: HandOver
    events: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)

    def told(self, kind: str) -> list[Mapping[str, Any]]:
        return [facts for name, facts in self.events if name == kind]


@asynccontextmanager
async def leaver(network: MemoryNetwork, folder: Path) -> AsyncIterator[Leaver]:
    async with memory_node(network, "a", folder) as node:
        telemetry = Telemetry()
        handover = HandOver(
            me=node.peer_id,
            host=node.host,
            directory=node.directory,
            advertiser=node.advertiser,
            placement=node.placement,
            telemetry=telemetry,
        )
        uid = (await node.spawn(*CLASSES)).uid
        await node.learn(uid, seed=1)
        leaving = Leaver(node, uid, handover)
        telemetry.events.listen(lambda event: leaving.events.append((event.kind, event.facts)))
        yield leaving


@asynccontextmanager
async def alive(*nodes: MemoryNode) -> AsyncIterator[None]:
    """These go on as they do: renewing, reading, placing."""

    async def live(node: MemoryNode) -> None:
        while True:
            await node.announce()
            await node.directory.refresh()
            await node.placement.step()
            await asyncio.sleep(0.005)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(live(node)) for node in nodes]
        yield
        for task in tasks:
            task.cancel()


async def test_a_sole_holder_is_relieved_before_it_ends_and_answers_stay_the_same(tmp_path: Path) -> None:
    network = memory_network()
    async with (
        leaver(network, tmp_path) as a,
        memory_node(network, "b", tmp_path, place=ROOMY) as b,
        memory_node(network, "c", tmp_path) as client,
    ):
        await client.contribute("task", statistics_of(*CLASSES))
        await announce_all((a.node, b, client))
        network.now_s += 1
        images = digits(*CLASSES, test=True).images[:8]

        async def answer() -> np.ndarray:
            return (await client.inference.predict(images, top_k=None, timeout_s=5.0)).outputs_BC

        before = await answer()
        ending = asyncio.create_task(a.handover.run(10.0))
        while not a.handover.under_way:
            await asyncio.sleep(0)
        await asyncio.sleep(0.02)
        await client.directory.refresh()
        assert client.directory.experts()[a.uid].holders == set()
        assert np.array_equal(await answer(), before), "it serves on while it hands over"
        async with alive(b, client):
            await ending
        assert a.handover.document() == {"under_way": False, "taken": {a.uid: "b"}, "left": [], "reason": None}
        assert [kind for kind, _ in a.events] == ["handover_begun", "expert_handed_over"]
        await a.node.transport.aclose()
        await client.directory.refresh()
        assert np.array_equal(await answer(), before)
        assert b.host.get(a.uid).placed


async def test_what_nobody_can_take_is_said_at_once(tmp_path: Path) -> None:
    network = memory_network()
    async with leaver(network, tmp_path) as a:
        await announce_all((a.node,))
        await a.handover.run(30.0)
        assert a.handover.reason == "there is no other peer in the mesh"
        async with memory_node(network, "b", tmp_path, place=NO_PLACEMENT) as b:
            await announce_all((b, a.node))
            began_s = time.monotonic()
            await a.handover.run(30.0)
            assert time.monotonic() - began_s < 5
        assert (a.handover.left, a.handover.reason) == ((a.uid,), "no peer has room")
        assert a.told("handover_incomplete")[-1] == {"experts": [a.uid], "reason": "no peer has room"}
        assert not a.told("handover_begun")


async def test_the_time_for_it_is_bounded(tmp_path: Path) -> None:
    network = memory_network()
    async with leaver(network, tmp_path) as a, memory_node(network, "b", tmp_path, place=ROOMY) as b:
        await announce_all((a.node, b))
        await a.handover.run(0.1)  # b has room, and does nothing
        assert (a.handover.left, a.handover.under_way) == ((a.uid,), False)
        assert a.handover.reason == "nobody has taken it over within 0.1 s"
        assert [kind for kind, _ in a.events] == ["handover_begun", "handover_incomplete"]


async def test_with_no_time_for_it_nothing_is_handed_over_and_nothing_said(tmp_path: Path) -> None:
    network = memory_network()
    async with leaver(network, tmp_path) as a, memory_node(network, "b", tmp_path, place=ROOMY) as b:
        await announce_all((a.node, b))
        await a.handover.run(0.0)
        assert a.handover.document() == {"under_way": False, "taken": {}, "left": [], "reason": None}
        assert a.events == []


async def test_a_node_whose_experts_others_hold_does_not_wait(tmp_path: Path) -> None:
    network = memory_network()
    async with leaver(network, tmp_path) as a, memory_node(network, "b", tmp_path) as b:
        await b.spawn(*CLASSES)
        await announce_all((a.node, b))
        await a.handover.run(30.0)
        assert a.handover.document() == {"under_way": False, "taken": {}, "left": [], "reason": None}
        assert a.events == []
