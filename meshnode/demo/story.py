"""The demo's acts: a mesh forms, learns task after task, loses a node and gets it back, while it is measured.

Every act ends only when what it shows is true of the running processes; an act that does not come true fails the demo.
"""

import asyncio
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from experts.data.dataset import ImageDataset
from experts.evaluation.metrics import AccuracyMatrix, accuracy
from meshnode.client import MeshClient
from meshnode.demo.accident import Accident, query_until
from meshnode.demo.data import NODE_NAMES, NUM_TASKS, DemoData
from meshnode.demo.process import DemoFailed, DemoNode, until
from meshnode.demo.show import Bars, Show
from meshnode.founding import Founding, found_mesh
from meshnode.inference import Prediction

__all__ = ["Story"]

LEARN_S = 300.0
MEET_S = 60.0
KILLED = "ben"
KILL_AFTER_TASK = 2
"""Counted from 0: when the third task is learned, the killed node holds two of the three experts."""

WITHOUT_S = 2.0
"""How long the queries go on while the node is away, before it is started again."""

BATCH = 200
NUM_TIMED_QUERIES = 200


class Story:
    """One run of the demo.

    Args:
        data: What is learned.
        folder: Where the nodes' homes and logs go.
        show: Tells what happens.
    """

    def __init__(self, data: DemoData, folder: Path, show: Show) -> None:
        self._data = data
        self._show = show
        self._folder = folder
        self.nodes = {name: DemoNode(name, folder) for name in NODE_NAMES}
        self.mesh_matrix = AccuracyMatrix(NUM_TASKS)
        self.router_matrix = AccuracyMatrix(NUM_TASKS)
        self.routing: Counter[tuple[str, str]] = Counter()
        self.accident = Accident(node=KILLED)
        self.mesh_id = ""

    async def stop(self) -> None:
        """Stop every node that still runs."""
        await asyncio.gather(*(node.stop() for node in self.nodes.values()))

    async def meet(self) -> list[str]:
        """The founder makes the mesh; the others know its address alone and pull the rest. Returns that address."""
        show, founder = self._show, self.nodes[NODE_NAMES[0]]
        show.heading("Three nodes form a mesh")
        first_task = self._data.deliver(0, founder.name, self._folder)
        self.mesh_id = await asyncio.to_thread(found_mesh, founder.home, Founding(name="demo", data=first_task))
        show.say(f"{founder.name} founds mesh {self.mesh_id[:12]}: a trunk of whitened patches of its first images")
        # The founder first: libp2p lets an address that refused it rest for seconds before it dials again.
        await self._start(founder, [])
        addresses: list[str] = (await founder.get("/id"))["addresses"]
        others = [node for node in self.nodes.values() if node is not founder]
        await asyncio.gather(*(self._start(node, addresses) for node in others))

        async def met() -> bool:
            peers = [(await node.get("/peers"))["peers"] for node in self.nodes.values()]
            return all(len(seen) == len(NODE_NAMES) for seen in peers)

        await until(met, what="the nodes to find each other", timeout_s=MEET_S)
        show.say("each finds the other two in the DHT")
        for node in self.nodes.values():
            status = await node.get("/status")
            if status["mesh"]["id"] != self.mesh_id:
                raise DemoFailed(f"node {node.name} is in another mesh: {status['mesh']['id']}")
            if node is not founder:
                pulled_kb = status["traffic"]["received"]["blobs"] / 1024
                show.say(f"{node.name} had neither spec nor trunk: pulled by digest, {pulled_kb:.0f} KB")
        return addresses

    async def _start(self, node: DemoNode, join: list[str]) -> None:
        await node.start(join)
        await node.ready()
        self._show.say(f"{node.name} is up: process {node.pid}")

    async def learn(self, task: int, client: MeshClient, bars: Bars) -> None:
        """A task's files arrive at its two nodes; wait until both learned it and their replicas are averaged."""
        data, show = self._data, self._show
        holders = [self.nodes[name] for name in data.shards[task]]
        sizes = ", ".join(f"{name} gets {len(shard)} images" for name, shard in data.shards[task].items())
        show.say(f"task {task + 1}: classes {' and '.join(data.tasks[task])}; {sizes}")
        for node in holders:
            data.deliver(task, node.name, node.data)
            await node.post("/train/now")

        async def learned() -> bool:
            statuses = await asyncio.gather(*(node.get("/train") for node in holders))
            for node, status in zip(holders, statuses, strict=True):
                bars.update(node.name, status.get("stage") or status["state"], status["done"], status["total"])
                _require_learning(node, status)
            return all(f"task-{task + 1}" in status["learned"] for status in statuses)

        async def averaged() -> bool:
            waiting = [(await node.get("/averaging"))["waiting"] for node in self.nodes.values()]
            return not any(waiting)

        async def known() -> bool:
            contributions = 2 * (task + 1)
            counts = [(await node.get("/status"))["router"]["contributions"] for node in self.nodes.values()]
            await client.refresh()
            replicas = [len(expert.replicas) for expert in client.experts()]
            return counts == [contributions] * 3 and len(replicas) == task + 1 and min(replicas) >= 2

        await until(learned, what=f"task {task + 1} to be learned", timeout_s=LEARN_S)
        await until(averaged, what=f"the replicas of task {task + 1} to be averaged", timeout_s=MEET_S)
        await until(known, what=f"task {task + 1} to be known everywhere", timeout_s=MEET_S)
        expert = next(expert for expert in client.experts() if expert.classes == tuple(sorted(data.tasks[task])))
        names = " and ".join(replica.peer_name for replica in expert.replicas)
        show.say(f"        expert {expert.uid[:12]} distilled, advertised, averaged: replicas at {names}")

    async def measure(self, task: int, client: MeshClient) -> None:
        """Ask the mesh, through its client, about the test images of every task so far."""
        self.routing.clear()
        for on_task in range(task + 1):
            test = self._data.task_test(on_task)
            predicted: list[str] = []
            for start in range(0, len(test), BATCH):
                images = test.images[start : start + BATCH]
                prediction = await client.predict(images)
                predicted += prediction.predictions
                self._note_routing(test, start, prediction)
            self.mesh_matrix.record(task, on_task, accuracy(predicted, test.labels))
            argmax = await asyncio.to_thread(client.router_argmax, test.images)
            self.router_matrix.record(task, on_task, accuracy(argmax, test.labels))
        shown = "  ".join(f"{100 * share:5.1f}" for share in self.mesh_matrix.row(task))
        self._show.say(f"        accuracy of the mesh on each task so far: {shown} %")

    async def lose_and_regain(self, client: MeshClient, addresses: list[str]) -> None:
        """SIGKILL one node under load, bring it back, and see that it is what it was."""
        show, victim, accident = self._show, self.nodes[KILLED], self.accident
        show.heading(f"{victim.name} is killed (SIGKILL) while queries keep coming")
        before = await _memory_of(victim)
        enough = asyncio.Event()
        test = self._data.test.of_classes([name for task in self._data.tasks[: KILL_AFTER_TASK + 1] for name in task])
        queries = asyncio.create_task(query_until(enough, client, test, accident), name="queries")
        try:
            await asyncio.sleep(WITHOUT_S / 2)
            pid, killed_at = victim.pid, time.monotonic()
            await victim.kill()
            show.say(f"process {pid} is gone; its experts have replicas elsewhere")
            await asyncio.sleep(WITHOUT_S)
            await victim.start(addresses)
            await victim.ready()

            async def recovered() -> bool:
                return await _memory_of(victim) == before

            await until(recovered, what=f"{victim.name} to resume its state", timeout_s=MEET_S)
            accident.away_s = time.monotonic() - killed_at
        finally:
            enough.set()
            await queries
        if accident.failures:
            raise DemoFailed(
                f"{accident.asked - accident.answered} of {accident.asked} queries went unanswered, "
                f"the first because: {accident.failures[0]}"
            )
        answer = await victim.post("/infer", {"images": test.images[:1].tolist()})
        if not answer["predictions"]:
            raise DemoFailed(f"{victim.name} came back but does not answer")
        show.say(
            f"{accident.answered} of {accident.asked} queries answered, {accident.failed_over} by another replica "
            f"than first asked; the slowest took {accident.slowest_ms:.0f} ms"
        )
        show.say(
            f"{victim.name} is back after {accident.away_s:.1f} s with {len(before['experts'])} experts at the same "
            f"weights, {before['contributions']} router contributions and {before['replay']} replay images"
        )

    async def time_queries(self, client: MeshClient) -> float:
        """Median time of a routed query of one image, in milliseconds."""
        images = self._data.test.images
        times = []
        for index in range(NUM_TIMED_QUERIES):
            row = index % len(images)
            times.append((await client.predict(images[row : row + 1])).elapsed_ms)
        return median(times)

    def _note_routing(self, test: ImageDataset, start: int, prediction: Prediction) -> None:
        for call in prediction.calls:
            if call.error is None:
                self.routing.update((test.labels[start + row], str(call.expert)) for row in call.rows)


async def _memory_of(node: DemoNode) -> dict[str, Any]:
    """What a node must still have after a restart."""
    experts = (await node.get("/experts", scope="local"))["experts"]
    status = await node.get("/status")
    me = status["peer_id"]
    return {
        "experts": {
            expert["uid"]: replica["weights"]
            for expert in experts
            for replica in expert["replicas"]
            if replica["peer_id"] == me
        },
        "contributions": status["router"]["contributions"],
        "replay": status["training"]["replay_samples"],
        "learned": status["training"]["learned"],
    }


def _require_learning(node: DemoNode, status: dict[str, Any]) -> None:
    failed = [entry for entry in status["history"] if entry["outcome"] == "failed"]
    if failed:
        raise DemoFailed(f"node {node.name} could not learn {failed[0]['task']}: {failed[0]['reason']}")
