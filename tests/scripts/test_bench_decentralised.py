"""Decentralised against centralised: what groups of any size have in common, and how their figures are made."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from experts.data.dataset import ImageDataset
from experts.data.idx import FASHION_MNIST_CLASSES
from experts.generators import torch_generator

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))  # its modules are no package

import bench_decentralised
from bench_averaging_runs import Effort
from bench_averaging_shards import SHARDS
from bench_averaging_study import TAP, StudyEffort
from bench_decentralised import BENCH, GROUPS, TEACHERS, decentralised_figures, measure_decentralised
from bench_document import rounded
from bench_experts_data import Features, Ground, Size

SMALL = Effort(
    size=Size(pool=600, validation=200, test=300),
    study=StudyEffort(peers=4, steps=50, round_steps=50, teacher_steps=200, small_teacher_images=0),
    seeds=1,
)
TOGETHER = 200
"""Steps of all nodes of a group of it."""


def ground_of(size: Size, tell: Callable[[str], None]) -> Ground:
    """Ten classes that a line tells apart for most of their rows, in the place of a trunk's features."""
    generator = torch_generator(0, "features")
    centres_CD = 2 * torch.randn(10, 8, generator=generator)
    parts, features = [], []
    for number in size:
        columns = torch.arange(number) % 10
        features.append(centres_CD[columns] + torch.randn(number, 8, generator=generator))
        labels = tuple(FASHION_MNIST_CLASSES[int(column)] for column in columns)
        parts.append(ImageDataset(np.zeros((number, 1, 1), np.uint8), labels))
    ground = Ground(pool=parts[0], validation=parts[1], test=parts[2], tell=tell)
    trunk: Any = SimpleNamespace(feature_dim=8)
    ground._features[TAP] = Features(trunk=trunk, pool=features[0], validation=features[1], test=features[2])
    return ground


@pytest.fixture(scope="module")
def raw() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(bench_decentralised, "load_ground", ground_of)
        torch.set_num_threads(1)
        return measure_decentralised(SMALL, 0, lambda _: None)


def test_however_many_share_the_work_they_take_as_many_steps_together(raw: dict[str, Any]) -> None:
    parameters = raw["setting"]["parameters"]
    assert raw["setting"]["steps_together"] == TOGETHER
    for group in GROUPS:
        rounds = math.ceil(TOGETHER / group.nodes / group.round_steps)
        assert raw["rounds"][str(group)] == rounds
        # Each round a part to, and a mean from, each slice's reducer: float32.
        optimum = rounds * 2 * (group.nodes - 1) / group.nodes * 4 * parameters
        assert raw["sent_bytes"][str(group)] == pytest.approx(optimum, abs=8 * group.nodes)


def test_one_node_learns_what_the_central_net_does(raw: dict[str, Any]) -> None:
    for words in TEACHERS.values():
        central = np.mean(raw["central"][words])
        for shards in SHARDS:
            assert np.mean(raw["averaged"][shards][words]["1 node"]) == pytest.approx(central, abs=5)


def test_nodes_with_classes_of_their_own_lose_more_the_rarer_they_average(raw: dict[str, Any]) -> None:
    of = {shards: raw["averaged"][shards]["labels alone"] for shards in SHARDS}
    often, seldom = "4 nodes, every 10 steps", "4 nodes, every 200 steps"
    lost = {shards: np.mean(of[shards][often]) - np.mean(of[shards][seldom]) for shards in SHARDS}
    assert lost["class_split"] > max(5, lost["iid"])


def test_a_gap_is_to_the_better_central_net_seed_by_seed() -> None:
    groups = {str(group): [80.0, 84.0] for group in GROUPS}
    raw = {
        # The first is best once, the second on average.
        "central": {"shared teacher": [92.0, 80.0], "labels alone": [90.0, 88.0]},
        "averaged": {"iid": {"shared teacher": groups}},
        "rounds": dict.fromkeys(groups, 3),
        "sent_bytes": dict.fromkeys(groups, 4000),
    }
    row = decentralised_figures(raw)["iid, shared teacher"]["1 node"]
    assert row["accuracy"] == 82.0
    assert row["gap_points"] == pytest.approx((10 + 4) / 2)
    assert row["gap_std"] == pytest.approx(np.std([10, 4], ddof=1))
    assert row["sent_kb"] == 4.0


def test_a_quick_run_prints_what_the_same_seed_gave_before(
    raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_decentralised, "load_ground", ground_of)
    monkeypatch.setattr(bench_decentralised, "QUICK", SMALL)
    assert BENCH.main(["--quick", "--json"]) == 0
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert document["command"] == "python scripts/bench_decentralised.py --seed 0 --quick"
    assert document["seeds"] == [0]
    assert document["figures"] == rounded(decentralised_figures(raw))
    assert sum("4 nodes" in line for line in printed.err.splitlines()) == 3 * len(SHARDS)


def test_a_quick_run_is_never_written_for_the_record(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        BENCH.main(["--quick", "--write"])
    assert refused.value.code == 2
    assert "leave out --quick" in capsys.readouterr().err
