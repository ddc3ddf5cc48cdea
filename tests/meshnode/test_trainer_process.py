"""A real trainer process: it learns over its pipes, and it never outlives its daemon."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from mesh_in_memory import MESH, digits, mesh_blobs, tiny_trunk

from experts.architectures.mlp import MlpArchitecture
from experts.checkpoint import flat_parameters, load_flat, weights_to_bytes
from experts.data.npz import save_task
from experts.router.statistics import ClassStatistics
from experts.trunk.base import features_of
from meshnode.trainer.messages import (
    AddDelta,
    Checkpoint,
    ExpertJob,
    FromTrainer,
    Learn,
    Learned,
    LearningFailed,
    Progress,
    Scan,
    Settings,
    Setup,
    Statistics,
    Tasks,
    TeacherChoice,
    TrainerReady,
)
from meshnode.trainer.process import TrainerDied, TrainerProcess
from protocol.identifiers import digest_of

ARCHITECTURE = MlpArchitecture(feature_dim=MESH.spec.feature_dim, hidden=4, num_classes=2)
TASK = digits("0", "1").select(range(60))
START = flat_parameters(ARCHITECTURE.build("e")).numpy()
PATIENCE_S = 60.0


def setup(
    folder: Path, *, steps: int = 60, learning_rate: float = 0.05, teachers: tuple[TeacherChoice, ...] = ()
) -> Setup:
    settings = Settings(
        teacher_epochs=1,
        steps=steps,
        batch_size=16,
        learning_rate=learning_rate,
        alpha=0.5,
        temperature=2.0,
        gamma=1.0,
        replay="reservoir",
        replay_samples=50,
        replay_mib=1,
        round_steps=40,
        checkpoint_s=0.001,
        logit_cache_mib=8,
        own_teacher=True,
        teachers=teachers,
        seed=1,
    )
    return Setup(
        trunk=mesh_blobs()[1],
        device="cpu",
        data_dir=str(folder / "data"),
        state_dir=str(folder / "trainer"),
        settings=settings,
        log_level="info",
        log_format="json",
    )


def learn(task: str, *, run: int = 1, reached: Checkpoint | None = None) -> Learn:
    module = ARCHITECTURE.build("e")
    if reached is not None:
        load_flat(module, torch.from_numpy(np.frombuffer(reached.vector, np.float32).copy()))
    job = ExpertJob(
        uid="e",
        classes=("0", "1"),
        architecture=ARCHITECTURE.to_config(),
        weights=weights_to_bytes(module),
        updating=False,
        run=reached.run if reached else None,
        steps=reached.steps if reached else 0,
    )
    return Learn(run=run, task=task, experts=(job,))


@asynccontextmanager
async def worker(order: Setup) -> AsyncIterator[TrainerProcess]:
    process = await TrainerProcess.start(threads=1)
    try:
        async with asyncio.timeout(PATIENCE_S):
            await process.send(order)
            assert isinstance(await process.receive(), TrainerReady)
        yield process
    finally:
        await process.aclose()
        assert not psutil.pid_exists(process.pid)


async def until_the_end(process: TrainerProcess) -> list[FromTrainer]:
    said = []
    async with asyncio.timeout(PATIENCE_S):
        while not said or not isinstance(said[-1], Learned | LearningFailed):
            said.append(await process.receive())
    return said


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path


async def test_it_scans_and_learns_over_its_pipes_and_outlasts_a_task_it_cannot_read(folder: Path) -> None:
    data = folder / "data"
    save_task(data / "good.npz", TASK)
    (data / "broken.npz").write_bytes(b"no zip")
    np.savez(data / "misnamed.npz", images=TASK.images, classes=np.array(TASK.labels))
    (data / "readme.txt").write_text("no task")
    save_task(data / f"{'n' * 65}.npz", TASK)
    async with worker(setup(folder)) as process:
        assert psutil.Process(process.pid).nice() > psutil.Process().nice()
        await process.send(Scan())
        found = await process.receive()
        assert isinstance(found, Tasks)
        (task,) = found.tasks
        assert (task.name, task.classes) == ("good", TASK.class_counts)
        assert task.digest == digest_of((data / "good.npz").read_bytes())
        assert found.unreadable.keys() == {"broken", "n" * 65, "misnamed"}
        assert "no array labels, but classes" in found.unreadable["misnamed"]
        for name in ("broken", "vanished"):
            await process.send(learn(name))
            (failed,) = await until_the_end(process)
            assert isinstance(failed, LearningFailed)
            assert name in failed.reason
        await process.send(learn("good"))
        said = await until_the_end(process)
        assert isinstance(said[0], Statistics)
        expected = ClassStatistics.from_features(features_of(tiny_trunk(), TASK.images), TASK.labels)
        assert torch.allclose(
            ClassStatistics.from_bytes(said[0].data).scatter,
            ClassStatistics.from_bytes(expected.to_bytes()).scatter,
            rtol=1e-4,
            atol=1e-3,
        )
        assert ClassStatistics.from_bytes(said[0].data).fingerprint == MESH.fingerprint
        assert [m.steps for m in said if isinstance(m, Checkpoint)] == [40, 60]
        learned = said[-1]
        assert isinstance(learned, Learned)
        assert learned.replay_samples == 50
    assert (folder / "trainer" / "teachers" / "good.safetensors").exists()
    assert (folder / "trainer" / "replay.msgpack").exists()


async def test_deltas_of_this_run_are_added_and_those_of_another_are_not(folder: Path) -> None:
    save_task(folder / "data" / "t.npz", TASK)
    ours, old = (np.full(len(START), value, np.float32) for value in (1.0, 100.0))
    async with worker(setup(folder, learning_rate=1e-9)) as process:
        for run, delta in ((1, old), (2, ours)):
            await process.send(AddDelta(run=run, uid="e", delta=delta.tobytes()))
        await process.send(AddDelta(run=2, uid="another", delta=old.tobytes()))
        await process.send(learn("t", run=2))
        (*_, last) = [m for m in await until_the_end(process) if isinstance(m, Checkpoint)]
        assert last.deltas_applied == 1
        assert np.allclose(np.frombuffer(last.vector, np.float32), START + ours, atol=1e-5)
        # What came too late for its run does not turn up in the next.
        await process.send(learn("t", run=3))
        (*_, last) = [m for m in await until_the_end(process) if isinstance(m, Checkpoint)]
        assert last.deltas_applied == 0
        assert np.allclose(np.frombuffer(last.vector, np.float32), START, atol=1e-5)


async def test_a_killed_worker_goes_on_from_its_last_checkpoint(folder: Path) -> None:
    save_task(folder / "data" / "t.npz", TASK)
    order = setup(folder, steps=2000)
    killed = await TrainerProcess.start(threads=1)
    async with asyncio.timeout(PATIENCE_S):
        await killed.send(order)
        assert isinstance(await killed.receive(), TrainerReady)
        await killed.send(learn("t"))
        while not isinstance(reached := await killed.receive(), Checkpoint):
            pass
        os.kill(killed.pid, signal.SIGKILL)
        with suppress(TrainerDied):  # what it had said before is still in the pipe
            while True:
                message = await killed.receive()
                reached = message if isinstance(message, Checkpoint) else reached
    await killed.aclose()
    assert 0 < reached.steps < 2000
    async with worker(order) as process:
        await process.send(learn("t", run=2, reached=reached))
        said = await until_the_end(process)
    assert next(m.steps for m in said if isinstance(m, Checkpoint)) == reached.steps + 40
    assert not [m for m in said if isinstance(m, Progress) and m.stage == "teacher"]
    assert isinstance(said[-1], Learned)
    ends = [m.vector for m in said if isinstance(m, Checkpoint)]
    (folder / "trainer").rename(folder / "of the killed one")
    async with worker(order) as process:
        await process.send(learn("t"))
        whole = [m.vector for m in await until_the_end(process) if isinstance(m, Checkpoint)]
    assert ends[-1] == whole[-1]


async def test_a_closed_pipe_ends_it_in_the_middle_of_learning_and_a_kill_is_reported(folder: Path) -> None:
    save_task(folder / "data" / "t.npz", TASK)
    async with worker(setup(folder, steps=10_000_000)) as process:
        await process.send(learn("t"))
        assert isinstance(await process.receive(), Statistics)
        began_s = time.monotonic()
        await process.aclose()
        assert time.monotonic() - began_s < 2.5  # of itself, before anybody had to kill it
        assert not psutil.pid_exists(process.pid)
    killed = await TrainerProcess.start(threads=1)
    os.kill(killed.pid, signal.SIGKILL)
    async with asyncio.timeout(PATIENCE_S):
        await killed.send(Scan())
        with pytest.raises(TrainerDied) as caught:
            await killed.receive()
    assert caught.value.exit_status == -signal.SIGKILL
    await killed.aclose()


DAEMON = """
import asyncio, sys
from meshnode.trainer.process import TrainerProcess

async def main():
    process = await TrainerProcess.start(threads=1)
    print(process.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_a_killed_daemon_leaves_no_trainer_behind() -> None:
    daemon = subprocess.Popen([sys.executable, "-c", DAEMON], stdout=subprocess.PIPE, text=True)
    try:
        assert daemon.stdout is not None
        trainer = psutil.Process(int(daemon.stdout.readline()))
        assert trainer.is_running()
    finally:
        daemon.kill()
        daemon.wait()
        assert daemon.stdout is not None
        daemon.stdout.close()
    # Whether it had got as far as its first line or not: the parent it looks for is gone.
    gone, alive = psutil.wait_procs([trainer], timeout=PATIENCE_S)
    for process in alive:
        process.kill()
    assert gone


def test_a_worker_whose_daemon_is_not_its_parent_does_not_start() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "meshnode.trainer.worker", str(os.getpid() + 1_000_000)],
        stdin=subprocess.PIPE,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 1
