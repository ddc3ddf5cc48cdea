"""Runs a load against a real mesh, from joining it to the table's figures, the picture and the document."""

import asyncio
import json
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from meshnode.bench.images import Batches
from meshnode.bench.load import Load
from meshnode.bench.plot import serve_png
from meshnode.bench.progress import Show, showing
from meshnode.bench.report import MeshSeen, Report, TrafficUsed
from meshnode.bench.runner import LoadRunner, Request
from meshnode.bench.statistics import measure
from meshnode.client import MeshClient
from meshnode.home import write_atomically
from meshnode.transport.interface import Traffic

__all__ = ["DOCUMENT", "PICTURE", "bench_serve"]

DOCUMENT, PICTURE = "serve.json", "serve.png"


def bench_serve(
    addresses: Sequence[str], load: Load, images: tuple[NDArray[np.uint8], str], *, out: Path, is_quiet: bool
) -> Report:
    """Measure how a mesh serves; Ctrl+C ends the load early and keeps what was measured.

    Args:
        addresses: Multiaddresses of peers to join through.
        load: What to ask of the mesh.
        images: uint8 ``(N, H, W)`` or ``(N, H, W, channels)``, and what they are in words.
        out: Folder for `DOCUMENT` and `PICTURE`; made if absent.
        is_quiet: Say nothing while it runs.

    Raises:
        MalformedAddress: An address cannot be read.
        PeerUnreachable: No address answers.
        Timeout: They answer, but no mesh could be pulled in time.
        MalformedDataset: The mesh cannot take such images.
        NotReady, NoRoute, RowsUnanswered: The mesh did not answer the first request, so that there is nothing to
            measure.
        OSError: `out` cannot be written to.
    """
    # Before the load, not after it: a folder that cannot be made would lose the run.
    out.mkdir(parents=True, exist_ok=True)
    # As many threads would spin against the mesh's own where all run on one machine, and a batch gains little by them.
    torch.set_num_threads(1)
    with showing(load, is_quiet=is_quiet) as show:
        report, requests = asyncio.run(_measure(addresses, load, images, show))
    document = json.dumps(report.to_dict(), indent=2) + "\n"
    write_atomically(out / DOCUMENT, document.encode(), 0o644)
    write_atomically(out / PICTURE, serve_png(report, requests), 0o644)
    return report


async def _measure(
    addresses: Sequence[str], load: Load, images: tuple[NDArray[np.uint8], str], show: Show
) -> tuple[Report, Sequence[Request]]:
    batches = Batches(images[0], load.batch, seed=load.seed)
    async with await MeshClient.join(addresses, queue=load.concurrency) as client:
        # A mesh that answers nothing is an error with a name and not a table of failures.
        await client.predict(batches(0), top_k=load.top_k, timeout_s=load.timeout_s)
        seen = _seen(client)
        runner = LoadRunner(
            lambda number: client.predict(batches(number), top_k=load.top_k, timeout_s=load.timeout_s), load
        )
        traffic, is_interrupted = await _run(runner, load, client, show)
    assert runner.ended_s is not None
    report = Report(
        mesh=seen,
        load=load,
        images=images[1],
        measured=measure(runner.requests, load, ended_s=runner.ended_s),
        traffic=traffic,
        is_interrupted=is_interrupted,
    )
    return report, runner.requests


async def _run(runner: LoadRunner, load: Load, client: MeshClient, show: Show) -> tuple[TrafficUsed, bool]:
    """Run the load to its end or to Ctrl+C; the bytes used since the warm-up, and whether it was interrupted."""
    meter = _Meter(client.traffic)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(runner.run(), name="load")
        beside = [
            group.create_task(meter.begin_after(load.warm_up_s), name="traffic"),
            group.create_task(show.follow(runner), name="progress"),
        ]
        with _cancelled_by_ctrl_c(running):
            await asyncio.wait({running})
        for task in beside:
            task.cancel()
    return meter.used(), running.cancelled()


@contextmanager
def _cancelled_by_ctrl_c(task: asyncio.Task[None]) -> Iterator[None]:
    """Within the block the first Ctrl+C cancels `task` and no more; a second one ends the program as usual."""
    loop = asyncio.get_running_loop()

    def cancel() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        task.cancel()

    loop.add_signal_handler(signal.SIGINT, cancel)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


class _Meter:
    """Counts a client's bytes from some moment on; before that, none."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self._before: tuple[Counter[str], Counter[str]] | None = None

    async def begin_after(self, span_s: float) -> None:
        await asyncio.sleep(span_s)
        self._before = Counter(self._traffic.sent), Counter(self._traffic.received)

    def used(self) -> TrafficUsed:
        if self._before is None:
            return TrafficUsed()
        sent, received = self._before
        return TrafficUsed(sent=dict(self._traffic.sent - sent), received=dict(self._traffic.received - received))


def _seen(client: MeshClient) -> MeshSeen:
    experts = client.experts()
    peers = {replica.peer_id for expert in experts for replica in expert.replicas}
    return MeshSeen(
        mesh_id=client.mesh.mesh_id,
        name=client.mesh.spec.name,
        experts=len(experts),
        replicas=sum(len(expert.replicas) for expert in experts),
        peers=len(peers),
    )
