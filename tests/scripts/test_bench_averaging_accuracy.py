"""How the study of averaging deals out images, averages replicas and makes figures of accuracies."""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from experts.architectures.mlp import MlpArchitecture
from experts.averaging import CODECS, codec_named
from experts.checkpoint import flat_parameters
from experts.distillation import DistillationConfig, DistillationData, DistillationRun
from experts.generators import torch_generator

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))  # its modules are no package

from bench_averaging_accuracy import accuracy_figures, accuracy_targets
from bench_averaging_runs import SIDES
from bench_averaging_shards import SHARDS, class_split, dirichlet, iid
from bench_averaging_study import Exchange, average_runs

COLUMNS_N = torch.arange(1000) % 10

ARCHITECTURE = MlpArchitecture(feature_dim=5, hidden=4, num_classes=3)


def draw(length: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=length).astype(np.float32)


def group(steps: int, members: int) -> tuple[list[torch.nn.Module], list[DistillationRun]]:
    """Members with shards of their own and equal initial weights."""
    modules = [ARCHITECTURE.build("expert") for _ in range(members)]
    runs = []
    for member, module in enumerate(modules):
        generator = torch_generator(member, "data")
        data = DistillationData(
            features_ND=torch.randn(20, 5, generator=generator),
            labels_N=torch.randint(3, (20,), generator=generator),
        )
        config = DistillationConfig(steps=steps, alpha=1.0)
        runs.append(DistillationRun(module, data, config, torch_generator(member, "batches")))
    return modules, runs


@pytest.mark.parametrize("kind", SHARDS)
@pytest.mark.parametrize("seed", range(5))
def test_shards_are_disjoint_and_together_everything(kind: str, seed: int) -> None:
    shards = SHARDS[kind](COLUMNS_N, 4, seed)
    assert len(shards) == 4
    assert sorted(torch.cat(shards).tolist()) == list(range(1000))


@pytest.mark.parametrize("kind", SHARDS)
def test_a_seed_has_its_own_shards_and_always_the_same(kind: str) -> None:
    first, again, other = (SHARDS[kind](COLUMNS_N, 4, seed) for seed in (1, 1, 2))
    assert all(map(torch.equal, first, again))
    assert not all(one.equal(two) for one, two in zip(first, other, strict=True))


@pytest.mark.parametrize("deal", [iid, dirichlet])
def test_shards_of_mixtures_are_of_equal_size(deal: object) -> None:
    assert [len(rows) for rows in deal(COLUMNS_N, 4, 0)] == [250] * 4  # type: ignore[operator]


def test_mixtures_are_skewed_and_even_shards_are_not() -> None:
    largest = {
        deal.__name__: np.mean([COLUMNS_N[rows].bincount().max() / 250 for rows in deal(COLUMNS_N, 4, 0)])
        for deal in (iid, dirichlet)
    }
    assert largest["iid"] < 0.2
    assert largest["dirichlet"] > 0.25


def test_a_class_belongs_to_one_peer() -> None:
    owners = Counter(int(column) for rows in class_split(COLUMNS_N, 4, 0) for column in COLUMNS_N[rows].unique())
    assert owners == dict.fromkeys(range(10), 1)


def test_without_a_codec_everybody_goes_on_from_the_mean() -> None:
    vectors = [draw(50, seed) for seed in range(3)]
    exchange = Exchange(codec_named("none"))
    mean, new = exchange.average(vectors, np.zeros(50, np.float32))
    assert mean == pytest.approx(np.mean(vectors, axis=0), abs=1e-6)
    assert all(vector == pytest.approx(mean, abs=1e-6) for vector in new)
    assert exchange.sent_bytes == 2 * (3 - 1) * 4 * 50


@pytest.mark.parametrize("name", CODECS)
def test_with_feedback_nothing_is_lost_on_the_way_for_good(name: str) -> None:
    exchange = Exchange(codec_named(name))
    vectors, mean = [draw(64, seed) for seed in range(2)], np.zeros(64, np.float32)
    expected = np.mean(vectors, axis=0)
    for _ in range(60):
        mean, vectors = exchange.average(vectors, mean)
    assert mean == pytest.approx(expected, abs=1e-3)


def test_without_feedback_what_is_left_out_is_gone() -> None:
    exchange = Exchange(codec_named("topk"), feedback=False)
    mean, vectors = exchange.average([draw(64, seed) for seed in range(2)], np.zeros(64, np.float32))
    assert all(np.array_equal(vector, mean) for vector in vectors)
    # Each member keeps all of the slice that it reduces, and sends a sixteenth of the other one.
    first, _ = exchange.average(vectors, mean)
    assert np.array_equal(first, mean)


def test_a_group_of_one_learns_as_if_alone() -> None:
    modules, runs = group(steps=7, members=1)
    averaged = average_runs(modules, runs, Exchange(codec_named("none")), round_steps=3)
    alone, (run,) = group(steps=7, members=1)
    for _ in run:
        pass
    assert len(averaged.by_round) == 3
    torch.testing.assert_close(averaged.parameters_P, flat_parameters(alone[0]))


@pytest.mark.parametrize("name", CODECS)
def test_a_group_ends_at_its_mean_with_what_a_code_kept_back(name: str) -> None:
    modules, runs = group(steps=10, members=3)
    averaged = average_runs(modules, runs, Exchange(codec_named(name)), round_steps=5)
    assert all(run.done for run in runs)
    held = torch.stack([flat_parameters(module) for module in modules])
    if name == "none":
        torch.testing.assert_close(held, averaged.parameters_P.expand_as(held))
    # Nobody is further from the mean than a code is coarse.
    start = flat_parameters(group(steps=10, members=1)[0][0])
    assert (held.mean(dim=0) - averaged.parameters_P).norm() < 0.9 * (averaged.parameters_P - start).norm()
    assert torch.equal(averaged.by_round[-1], averaged.parameters_P)
    assert len(averaged.by_round) == 2


def test_figures_are_points_between_sides_of_the_same_seed() -> None:
    sides = {name: [86.0, 88.0] for name in SIDES} | {"none_without_teacher": [85.0, 86.0], "int8": [85.9, 87.5]}
    raw = {
        "central": {"central": [88.0, 87.0], "central_without_teacher": [87.0, 90.0]},
        "averaged": dict.fromkeys(SHARDS, sides),
        "sent_bytes": {"none": 400, "float16": 200, "int8": 102, "topk": 38},
    }
    figures = accuracy_figures(raw)
    assert figures["gap_iid"] == pytest.approx(1.5)
    assert figures["gap_without_teacher"]["iid"] == pytest.approx(3.0)
    assert figures["anchor_gain"]["class_split"] == pytest.approx(1.5)
    assert figures["int8_cost"]["iid"] == pytest.approx(0.3)
    assert figures["topk_bytes_ratio"] == pytest.approx(0.095)
    targets = accuracy_targets(figures)
    assert {name for name, target in targets.items() if not target["met"]} == {"gap_iid", "anchor_gain"}
