"""The daemon's side of learning with a real worker: what it waits for, what it goes on with, what it measures."""

import math
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from mesh_in_memory import (
    PIXELS,
    MemoryNode,
    announce_all,
    digits,
    memory_network,
    memory_node,
    memory_nodes,
)
from successions import migrate
from training_nodes import running, trainer_parts, until

from experts.data.npz import save_task
from experts.generators import torch_generator
from experts.teachers.cnn import TeacherConfig, train_teacher
from experts.trunk.images import prepare_images
from meshnode.logs import configure_logs
from meshnode.settings.sections import TeacherSetting, TrainSection
from meshnode.state.rows import Reached
from meshnode.telemetry import Telemetry
from meshnode.trainer import service as module
from meshnode.trainer.service import LEARNED, Trainer

SETTINGS = {"teacher_epochs": 2, "steps": 200, "round_steps": 50, "checkpoint_every": 0.001}


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    configure_logs("info", "json")
    monkeypatch.setattr(module, "MEASURE_EVERY_S", 0.05)
    monkeypatch.setattr(module, "RESTART_S", 0.05)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    save_task(folder / "a.npz", digits("0", "1").select(range(80)))
    return folder


@asynccontextmanager
async def learning(node: MemoryNode, folder: Path, settings: TrainSection) -> AsyncIterator[Trainer]:
    trainer = Trainer(trainer_parts(node, Telemetry()), settings, folder / "trainer", device="cpu", threads=1)
    async with running(trainer.run()):
        yield trainer


async def test_gates_are_measured_once_there_is_nothing_to_learn_and_again_when_experts_change(
    tmp_path: Path, data: Path
) -> None:
    async with (
        memory_node(memory_network(), "a", tmp_path) as node,
        learning(node, tmp_path, TrainSection(data=data, **SETTINGS)) as trainer,
    ):
        await until(lambda: trainer.history)
        assert trainer.specialization is None  # nothing is advertised yet
        await node.announce()
        await node.directory.refresh()
        await until(lambda: trainer.specialization)
        first = trainer.specialization
        assert first is not None
        (uid,) = first.uids
        assert first.classes == ("0", "1")
        assert first.num_samples_C.tolist() == list(digits("0", "1").select(range(80)).class_counts.values())
        assert float(first.mass_CE.sum()) == pytest.approx(80, abs=1e-3)
        assert float(first.entropies[0]) == pytest.approx(math.log(2), abs=0.05)
        assert first.mutual_information == 0
        other = (await node.spawn("7", "8")).uid
        await node.announce()
        await node.directory.refresh()
        await until(lambda: trainer.specialization is not first)
        assert trainer.specialization is not None
        assert set(trainer.specialization.uids) == {uid, other}


async def test_a_task_goes_to_what_this_node_has_kept_also_where_no_record_lists_that(
    tmp_path: Path, data: Path
) -> None:
    async with memory_nodes(memory_network(), "ab", tmp_path) as (a, b):
        new = await migrate(b, await b.spawn("0", "1"))
        await announce_all((a, b))
        old = await a.spawn("0", "1")
        assert a.directory.current().keys() == {new.uid}
        async with learning(a, tmp_path, TrainSection(data=data, **SETTINGS)) as trainer:
            await until(lambda: trainer.history)
        assert trainer.history[0]["outcome"] == LEARNED
        assert a.host.experts.keys() == {old.uid}


@pytest.mark.parametrize("keeps_old", [True, False])
async def test_a_task_goes_to_the_successor_unless_this_node_has_kept_the_old_expert(
    tmp_path: Path, data: Path, keeps_old: bool
) -> None:
    async with memory_nodes(memory_network(), "abc", tmp_path) as (a, b, c):
        old = await b.spawn("0", "1")
        await c.spawn("0", "1")
        new = await migrate(b, old)
        if keeps_old:
            await a.spawn("0", "1")
        await announce_all((a, b, c))
        async with learning(a, tmp_path, TrainSection(data=data, **SETTINGS)) as trainer:
            await until(lambda: trainer.history)
        assert trainer.history[0]["outcome"] == LEARNED
        (expert,) = a.host.experts.values()
        assert expert.uid == (old.uid if keeps_old else new.uid)
        assert expert.reached is not None


async def test_a_killed_trainer_goes_on_where_it_was(tmp_path: Path, data: Path) -> None:
    settings = TrainSection(data=data, **{**SETTINGS, "steps": 3000})
    async with (
        memory_node(memory_network(), "a", tmp_path) as node,
        learning(node, tmp_path, settings) as trainer,
    ):
        await until(
            lambda: any(expert.reached and expert.reached.steps >= 500 for expert in node.host.experts.values())
        )
        (expert,) = node.host.experts.values()
        assert trainer.status.pid is not None
        assert expert.reached is not None
        reached = expert.reached
        os.kill(trainer.status.pid, signal.SIGKILL)
        await until(lambda: trainer.status.restarts)
        committed = [
            generation.reached.steps
            for generation in node.state.ledger.generations(expert.uid)
            if generation.reached is not None
        ]
        await until(lambda: trainer.history)
        assert trainer.history[0]["outcome"] == LEARNED
        assert expert.reached == Reached(run=reached.run, steps=3000)
        assert reached.steps <= max(committed)
        # One generation a checkpoint, and none of them twice.
        assert expert.generation == 1 + 3000 // 50


async def test_without_a_teacher_that_its_settings_name_nothing_is_learned_until_it_is_there(
    tmp_path: Path, data: Path
) -> None:
    path = tmp_path / "outside.safetensors"
    settings = TrainSection(data=data, own_teacher=False, teachers=(TeacherSetting(name=f"file:{path}"),), **SETTINGS)
    async with (
        memory_node(memory_network(), "a", tmp_path) as node,
        learning(node, tmp_path, settings) as trainer,
    ):
        await until(lambda: trainer.status.state == "waiting")
        assert trainer.status.unusable_teachers.keys() == {f"file:{path}"}
        assert str(path) in str(trainer.status.reason)
        assert not trainer.history
        known = digits("0", "1")
        teacher = train_teacher(
            prepare_images(known.images, 1, PIXELS), known.labels, TeacherConfig(epochs=3), torch_generator(0, "t")
        )
        path.write_bytes(teacher.to_bytes())
        trainer.look_again()
        await until(lambda: trainer.history)
        assert trainer.history[0]["outcome"] == LEARNED
        assert "teacher_accuracy" not in trainer.history[0]
        assert not trainer.status.unusable_teachers
