"""Runs the demo from the first node to the table and the picture."""

import asyncio
import json
import tempfile
from contextlib import suppress
from pathlib import Path
from shutil import rmtree

import torch

from experts.evaluation.metrics import accuracy
from meshnode.client import MeshClient
from meshnode.demo.data import NUM_TASKS, DemoData, load_demo_data
from meshnode.demo.picture import draw
from meshnode.demo.references import measure_references
from meshnode.demo.result import DemoResult, MethodResult
from meshnode.demo.show import Show
from meshnode.demo.story import KILL_AFTER_TASK, Story
from meshnode.demo.table import print_table
from meshnode.home import write_atomically

__all__ = ["run_demo"]


def run_demo(*, dataset: str, out: Path, seed: int, keep: bool, as_json: bool) -> int:
    """Run the demo; returns the command's exit code.

    Args:
        dataset: ``digits`` or ``fashion-mnist``.
        out: Folder for ``mesh.png`` and ``summary.json``; made if absent.
        seed: Of every random choice.
        keep: Leave the nodes' homes and logs where they are, and say where.
        as_json: Print ``summary.json``'s content instead of the table.

    Raises:
        DemoFailed, Timeout: What the demo is there to show did not come true.
        ResourceAbsent: The data set is not to be had.
    """
    torch.set_num_threads(1)
    show = Show()
    data = load_demo_data(dataset, seed=seed)
    out.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="meshnode-demo-"))
    completed = False
    try:
        result = asyncio.run(_run(data, folder, show, seed=seed))
        completed = True
    finally:
        if completed and not keep:
            rmtree(folder, ignore_errors=True)
        else:
            show.say(f"the nodes' folders and logs: {folder}")
    summary = json.dumps(result.to_dict(), indent=2)
    write_atomically(out / "summary.json", summary.encode(), 0o644)
    draw(result, out / "mesh.png")
    if as_json:
        print(summary)
    else:
        print_table(result)
    show.say(f"picture: {out / 'mesh.png'}   figures: {out / 'summary.json'}")
    return 0


async def _run(data: DemoData, folder: Path, show: Show, *, seed: int) -> DemoResult:
    story = Story(data, folder, show)
    try:
        addresses = await story.meet()
        async with await MeshClient.join(addresses) as client:
            show.heading("Five tasks of two classes arrive, each at two of the nodes")
            with show.bars() as bars:
                for task in range(KILL_AFTER_TASK + 1):
                    await story.learn(task, client, bars)
                    await story.measure(task, client)
            await story.lose_and_regain(client, addresses)
            show.heading("The mesh goes on learning")
            with show.bars() as bars:
                for task in range(KILL_AFTER_TASK + 1, NUM_TASKS):
                    await story.learn(task, client, bars)
                    await story.measure(task, client)
            mesh = await _measure_mesh(story, data, client)
            rounds = sum([(await node.get("/averaging"))["committed"] for node in story.nodes.values()])
            experts = {str(expert.uid): expert for expert in client.experts()}
    finally:
        with suppress(asyncio.CancelledError):
            await story.stop()
    show.heading("The same data in one place")
    references = await asyncio.to_thread(measure_references, data, seed=seed, say=show.say)
    return DemoResult(
        dataset=data.name,
        seed=seed,
        mesh_id=story.mesh_id,
        tasks=data.tasks,
        methods=(*mesh, *references),
        hosts={uid: tuple(replica.peer_name for replica in expert.replicas) for uid, expert in experts.items()},
        expert_classes={uid: expert.classes for uid, expert in experts.items()},
        routing=story.routing,
        accident=story.accident,
        rounds_committed=rounds,
        seconds=show.elapsed_s,
    )


async def _measure_mesh(story: Story, data: DemoData, client: MeshClient) -> list[MethodResult]:
    """The mesh, and its router as a classifier of its own, on all test images after the last task."""
    test = data.test
    predicted = [
        name
        for start in range(0, len(test), 200)
        for name in (await client.predict(test.images[start : start + 200])).predictions
    ]
    argmax = client.router_argmax(test.images)
    p50_ms = await story.time_queries(client)
    sent = [await node.sent() for node in story.nodes.values()]
    return [
        MethodResult(
            name="mesh",
            matrix=story.mesh_matrix,
            accuracy=accuracy(predicted, test.labels),
            moved_bytes=sum(counts.total() for counts in sent),
            query_p50_ms=p50_ms,
        ),
        MethodResult(
            name="router argmax alone",
            matrix=story.router_matrix,
            accuracy=accuracy(argmax, test.labels),
            moved_bytes=sum(counts["blobs"] for counts in sent),
            query_p50_ms=None,
        ),
    ]
