"""How the benchmark of preservation lets new experts begin, lets them learn, and judges what comes of it."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from experts.architectures.deep import DeepArchitecture
from experts.architectures.mlp import MlpArchitecture
from experts.checkpoint import flat_parameters
from experts.data.dataset import ImageDataset
from experts.distillation import DistillationData
from experts.generators import torch_generator
from experts.preservation.transfer import TransferConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))  # its modules are no package

import bench_preservation_plot
import bench_preservation_runs
from bench_command import Target
from bench_preservation import BENCH, FORM_TARGETS, PARTS
from bench_preservation_apart import BEHIND, GROUPS
from bench_preservation_data import Items, Part
from bench_preservation_flops import counted
from bench_preservation_forms import FORMS, OLD
from bench_preservation_learning import Plan, best_rate, learn, percent_right, steps_to
from bench_preservation_options import BETAS, BUFFERS, FITS, SCORED, SCORES
from bench_preservation_replicas import measure_pair
from bench_preservation_runs import STEPS, Race, grid
from bench_preservation_starts import SIDES, Case, carried, start
from bench_preservation_study import FULL, QUICK, setting_of, trained_on_labels
from bench_preservation_words import apart, form_told, options, training_flops

CLASSES = ("a", "b", "c")
OLD_FORM = MlpArchitecture(feature_dim=12, hidden=12, num_classes=3)
NARROW = MlpArchitecture(feature_dim=12, hidden=5, num_classes=3)
WIDE = MlpArchitecture(feature_dim=12, hidden=20, num_classes=3)


def part(num_items: int, seed: int) -> Part:
    """Classes that lie apart."""
    generator = torch_generator(seed, "items")
    columns_N = torch.arange(num_items) % 3
    centres = 2.0 * torch.randn(3, 12, generator=torch_generator(0, "centres"))
    features_ND = centres[columns_N] + torch.randn(num_items, 12, generator=generator)
    images = ImageDataset(np.zeros((num_items, 2, 2), np.uint8), tuple(CLASSES[column] for column in columns_N))
    return Part(images, features_ND, columns_N)


ITEMS = Items("points", CLASSES, part(300, 1), part(90, 2), part(150, 3))


@pytest.fixture(scope="module")
def case() -> Case:
    return Case(OLD_FORM, trained_on_labels(OLD_FORM, ITEMS, 200, seed=0, name="old"), ITEMS, 0)


def by_seed(*names: str) -> dict[str, list[float]]:
    """Something measured under each name, with one seed."""
    return {name: [90.0] for name in names}


def accuracy(module: nn.Module) -> float:
    return percent_right(module, ITEMS.test.features_ND, ITEMS.test.columns_N)


@pytest.mark.parametrize("side", ["scratch", "retrained"])
def test_scratch_begins_with_the_random_weights_of_the_form_and_nothing_else(case: Case, side: str) -> None:
    assert torch.equal(flat_parameters(start(side, case, NARROW)), flat_parameters(NARROW.build("new-0")))
    other = case._replace(module=OLD_FORM.build("another"))
    assert torch.equal(flat_parameters(start(side, case, NARROW)), flat_parameters(start(side, other, NARROW)))


@pytest.mark.parametrize("side", [side for side in SIDES if side not in ("scratch", "retrained")])
def test_every_other_way_begins_with_what_the_old_expert_knew(case: Case, side: str) -> None:
    other = case._replace(module=OLD_FORM.build("another"))
    mine, theirs = (flat_parameters(start(side, of, NARROW)) for of in (case, other))
    assert not torch.equal(mine, theirs)
    assert torch.equal(mine, flat_parameters(start(side, case, NARROW)))


def test_units_at_random_are_units_of_the_old_expert(case: Case) -> None:
    old_rows = {tuple(row) for row in case.module.get_parameter("hidden.weight").tolist()}
    drawn = [tuple(row) for row in start("random_units", case, NARROW).get_parameter("hidden.weight").tolist()]
    kept = [tuple(row) for row in start("mapped_without_refit", case, NARROW).get_parameter("hidden.weight").tolist()]
    assert len(set(drawn)) == 5
    assert set(drawn) <= old_rows
    assert set(drawn) != set(kept)
    # Nothing of the draw is left behind.
    assert torch.equal(
        flat_parameters(start("mapped", case, NARROW)),
        flat_parameters(carried(case, NARROW, TransferConfig()).module),
    )


def test_shuffled_weights_are_those_of_the_mapped_expert_in_the_same_layers(case: Case) -> None:
    shuffled, mapped = (start(side, case, WIDE) for side in ("random_permutation", "mapped_without_refit"))
    assert torch.equal(shuffled.get_parameter("output.weight"), mapped.get_parameter("output.weight"))
    weight, own = shuffled.get_parameter("hidden.weight"), mapped.get_parameter("hidden.weight")
    assert not torch.equal(weight, own)
    assert torch.equal(weight.sort(dim=0).values, own.sort(dim=0).values)


def test_what_is_carried_over_beats_what_is_drawn(case: Case) -> None:
    by_side = {side: accuracy(start(side, case, WIDE)) for side in SIDES}
    assert by_side["mapped"] == pytest.approx(accuracy(case.module), abs=1)
    assert by_side["mapped"] > by_side["scratch"] + 20
    assert by_side["mapped"] > by_side["random_permutation"] + 20


def test_a_larger_buffer_begins_with_the_smaller_one(case: Case) -> None:
    assert torch.equal(case.buffer(20).features_ND, case.buffer(50).features_ND[:20])


def test_a_race_has_all_ways_seeds_and_steps_and_chooses_no_rate_on_test_images(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = (2, 5, 20)
    monkeypatch.setattr(bench_preservation_runs, "STEPS", few)
    with torch.no_grad():
        logits_NC = case.module(ITEMS.pool.features_ND)
    race = Race([case, case], [logits_NC, logits_NC], NARROW, (0.001, 0.1), 40)
    lines = race.lines()
    assert set(lines) == set(SIDES)
    for line in lines.values():
        assert {steps: len(accuracies) for steps, accuracies in line["accuracy"].items()} == dict.fromkeys((0, *few), 2)
        assert set(line["rate"]) == set(few)
    assert lines["scratch"]["rate"][20] == 0.1
    assert lines["mapped"]["accuracy"][0][0] == accuracy(start("mapped", case, NARROW))
    assert lines["scratch"]["accuracy"][0][0] == accuracy(NARROW.build("new-0"))
    assert len(lines["mapped"]["steps_to_old"]) == 2
    # Labels that make every accuracy on the test images 0, whatever the rate.
    hidden = ITEMS._replace(test=ITEMS.test._replace(columns_N=torch.full_like(ITEMS.test.columns_N, -1)))
    blind = Race([case._replace(items=hidden)] * 2, [logits_NC, logits_NC], NARROW, (0.001, 0.1), 40).lines()
    assert {side: line["rate"] for side, line in blind.items()} == {side: line["rate"] for side, line in lines.items()}
    assert blind["mapped"]["accuracy"][20] == [0.0, 0.0]
    assert blind["mapped"]["steps_to_old"] == [0, 0]


def test_learning_stops_when_it_is_enough(case: Case) -> None:
    data = DistillationData(features_ND=ITEMS.pool.features_ND, labels_N=ITEMS.pool.columns_N)

    def run(plan: Plan) -> dict[int, float]:
        return learn(NARROW.build("x"), data, plan, torch_generator(0, "batches"), accuracy)

    assert list(run(Plan(0.1, (0, 200, 400), enough=60.0, alpha=1.0))) == [0, 200]
    assert list(run(Plan(0.1, (0, 1, 5), enough=101.0, alpha=1.0))) == [0, 1, 5]


def test_a_run_that_diverges_is_never_chosen() -> None:
    features_ND = torch.full((8, 12), torch.inf)
    data = DistillationData(features_ND=features_ND, labels_N=torch.arange(8) % 3)
    found = learn(NARROW.build("x"), data, Plan(1.0, (0, 5, 10), alpha=1.0), torch.Generator(), lambda _: 33.3)
    assert found == {0: 33.3, 5: 0.0, 10: 0.0}
    assert best_rate({0.1: 33.3, 1.0: 0.0}) == 0.1


def test_of_equal_rates_the_lowest_is_chosen() -> None:
    assert best_rate({0.3: 80.0, 0.1: 80.0, 0.9: 79.0}) == 0.1


def test_steps_are_counted_to_the_first_time() -> None:
    assert steps_to(80.0, {0: 10.0, 5: 80.0, 10: 79.0, 20: 85.0}) == 5
    assert steps_to(90.0, {0: 10.0, 5: 80.0}) is None


def test_long_runs_are_looked_at_in_a_geometric_grid() -> None:
    assert grid(8000) == (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 8000)
    assert set(STEPS) < set(grid(FULL.old_steps))
    assert set(STEPS) <= set(grid(QUICK.old_steps))


def test_flops_are_products_forward_and_backward_and_solves() -> None:
    left, right = torch.eye(6, dtype=torch.float64), torch.ones(6, 2, dtype=torch.float64)
    assert counted(lambda: torch.linalg.solve(left, right))[1] == 2 * 6**3 // 3 + 2 * 6**2 * 2
    assert counted(lambda: torch.linalg.inv(left))[1] == 2 * 6**3
    module = nn.Linear(5, 3)
    assert counted(lambda: module(torch.ones(4, 5)))[1] == 2 * 4 * 5 * 3
    # The first layer's inputs need no gradient.
    assert counted(lambda: module(torch.ones(4, 5)).sum().backward())[1] == 2 * (2 * 4 * 5 * 3)


def test_a_teacher_is_asked_about_an_image_once() -> None:
    flops = {"step": 10, "images": 100, "images_per_step": 32}
    assert training_flops(flops, 2, teacher_flops=7) == 2 * 10 + 64 * 7
    assert training_flops(flops, 50, teacher_flops=7) == 50 * 10 + 100 * 7


def race_document(old: float, mapped_0: float, mapped_10: float, scratch_1000: float) -> dict[str, object]:
    def side(at_0: float, at_10: float, at_1000: float) -> dict[str, object]:
        accuracy = {0: [at_0], 10: [at_10], 100: [at_10], 1000: [at_1000]}
        return {"rate": dict.fromkeys(STEPS, 0.1), "accuracy": accuracy, "longest": [], "steps_to_old": [None]}

    sides = dict.fromkeys(SIDES, side(20.0, 30.0, scratch_1000)) | {"mapped": side(mapped_0, mapped_10, old)}
    flops = {"transfer": 10**9, "step": 10**6, "old_per_image": 10, "teacher_per_image": 10**5}
    flops |= {"images": 1000, "images_per_step": 32}
    told = {"told": "narrower", "items": "points", "bound": 8000, "importance_kept": [0.9]}
    return {**told, "old": [old], "sides": sides, "flops": flops}


def test_targets_are_judged_and_one_that_is_missed_is_told() -> None:
    good = form_told("half", race_document(85.0, 83.0, 84.9, 84.0)).figures
    assert good["step0_gap_points.half"] == pytest.approx(2.0)
    assert good["ten_steps_over_scratch_1000_points.half"] == pytest.approx(0.9)
    assert all(target["met"] for target in BENCH.judged(good).values())
    bad = form_told("half", race_document(85.0, 81.9, 84.0, 84.0)).figures
    assert {name: target["met"] for name, target in BENCH.judged(bad).items()} == {
        "step0_gap_points.half": False,
        "ten_steps_over_scratch_1000_points.half": False,  # as good is not better
    }


def test_a_relation_is_strict_where_it_says_so() -> None:
    assert [Target(0, sign).is_met(0.0) for sign in ("<=", ">=", ">", "=")] == [True, True, False, True]


def test_what_is_never_reached_is_said_and_counted_to_the_bound() -> None:
    told = form_told("half", race_document(85.0, 84.0, 84.5, 80.0))
    assert told.figures["steps_to_old_scratch.half"] == 8000
    assert "not within 8,000 with 1 of 1 seeds" in told.how["steps_to_old_scratch.half"]


def test_every_part_tells_the_figures_that_it_names() -> None:
    by_fit = {fit: [1.0] for fit in FITS}
    raw = {
        "options": {
            "scores": {form: dict.fromkeys(SCORES, by_fit) for form in SCORED},
            "betas": {f"{beta:g}": by_fit for beta in BETAS},
            "buffers": {str(size): by_fit for size in BUFFERS},
        },
        "apart": {
            behind: {
                group: by_seed("monolith", "mapped", "importance_kept", "scratch_10", "scratch_100") for group in GROUPS
            }
            for behind in BEHIND
        },
        "replicas": dict.fromkeys(("pixels", "trunk"), by_seed("alone", "unaligned", "aligned", "correlation")),
    }
    for name, part in PARTS.items():
        told = part.told(raw.get(name) or race_document(85.0, 84.0, 84.5, 80.0))
        assert set(told.figures) == set(told.how) == set(part.figures)
    assert set(FORM_TARGETS) <= set(BENCH.targets)
    assert options(raw["options"]).figures["score_gap_points.half.gate.refit"] == 1.0
    assert apart(raw["apart"]).figures["apart_gap_points.trunk.two_classes"] == 0.0


def test_every_form_reads_what_its_old_expert_reads() -> None:
    for form in FORMS.values():
        features_BD = torch.zeros(2, OLD[form.old].architecture.feature_dim)  # type: ignore[attr-defined]
        assert form.architecture.build("x")(features_BD).shape == (2, 10)


def test_a_document_says_its_seeds_and_settings() -> None:
    setting = setting_of(FULL, 4)
    assert setting["seeds"] == [4, 5, 6]
    assert setting["old_learns_from"] == "the labels of the pool alone"
    assert len(setting["rates"]) == 5
    json.dumps(setting)


def test_aligned_replicas_have_a_better_mean() -> None:
    found = measure_pair(DeepArchitecture(feature_dim=12, hidden=12, layers=2, num_classes=3), ITEMS, 300, 0)
    assert found["aligned"] >= found["unaligned"]
    assert found["aligned"] > found["alone"] - 5


def test_the_picture_is_drawn_of_a_document_as_it_is_read_back(tmp_path: Path) -> None:
    by_fit = {fit: [1.0] for fit in FITS}
    of_groups = {group: by_seed("monolith", "mapped", "scratch_10", "scratch_100") for group in GROUPS}
    measured = {form: race_document(85.0, 84.0, 84.5, 80.0) for form in bench_preservation_plot.DRAWN}
    measured["options"] = {"scores": {"fifth": dict.fromkeys(SCORES, by_fit)}, "betas": {"0": by_fit, "1": by_fit}}
    measured["apart"] = dict.fromkeys(BEHIND, of_groups)
    document = json.loads(json.dumps({"measured": measured}))
    bench_preservation_plot.draw(document, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
