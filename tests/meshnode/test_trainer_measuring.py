"""Gates are measured on as many images as memory is meant for, of the tasks whose files are still what was learned."""

import pytest
import torch
from mesh_in_memory import digits, tiny_trunk

from experts.data.dataset import ImageDataset
from experts.router.ridge import RouterConfig, solve_ridge
from experts.router.statistics import ClassStatistics
from experts.trunk.base import features_of
from meshnode.trainer import measuring
from meshnode.trainer.measuring import GateMeter
from meshnode.trainer.messages import Measure, TaskFile

DATA = {"low": digits("0", "1").select(range(90)), "high": digits("2", "3").select(range(70))}
EXPERTS = {"a" * 64: ("0", "1"), "b" * 64: ("2", "3")}


def order(*names: str) -> Measure:
    trunk = tiny_trunk()
    images = torch.cat([features_of(trunk, task.images) for task in DATA.values()])
    labels = [label for task in DATA.values() for label in task.labels]
    router = solve_ridge(ClassStatistics.from_features(images, labels), RouterConfig())
    return Measure(
        router_classes=router.classes,
        router_weights=router.weights.contiguous().numpy().tobytes(),
        kappa=router.kappa,
        tau=1.0,
        top_k=1,
        experts=EXPERTS,
        tasks=tuple(TaskFile(name=name, digest=name, classes=DATA[name].class_counts) for name in names),
    )


class _Files:
    """The data folder; counts what is opened."""

    def __init__(self) -> None:
        self.held: dict[str, ImageDataset] = dict(DATA)
        self.opened: list[str] = []

    def load(self, task: TaskFile) -> ImageDataset | None:
        self.opened.append(task.name)
        return self.held.get(task.name)


def test_each_task_is_opened_once_and_its_classes_send_mass_to_the_expert_that_knows_them() -> None:
    files = _Files()
    meter = GateMeter(tiny_trunk(), files.load, seed=0)
    for _ in range(2):
        said = meter.measure(order("low", "high"))
    assert files.opened == ["low", "high"]
    assert said.classes == ("0", "1", "2", "3")
    assert said.experts == tuple(EXPERTS)
    assert sum(said.num_samples) == 160
    mass = torch.tensor(said.mass)
    assert float(mass[:2, 0].sum()) > 0.95 * 90
    assert float(mass[2:, 1].sum()) > 0.95 * 70


def test_a_task_whose_file_is_gone_does_not_count() -> None:
    files = _Files()
    del files.held["high"]
    said = GateMeter(tiny_trunk(), files.load, seed=0).measure(order("low", "high"))
    assert said.classes == ("0", "1")
    files.held.clear()
    nothing = GateMeter(tiny_trunk(), files.load, seed=0).measure(order("low", "high"))
    assert (nothing.classes, nothing.mass, nothing.num_samples) == ((), [], [])


def test_many_tasks_share_the_images_that_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "IMAGES_IN_ALL", 80)
    files = _Files()
    meter = GateMeter(tiny_trunk(), files.load, seed=0)
    assert sum(meter.measure(order("low")).num_samples) == 80
    assert sum(meter.measure(order("low", "high")).num_samples) == 80
    assert sum(len(labels) for _, labels in meter._known.values()) == 80
    assert sum(meter.measure(order("high")).num_samples) == 40
    assert meter._known.keys() == {"high"}
