"""Nodes that share tasks: when what they learn is everywhere, what they learn, and when a target is reached."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from experts.data.idx import FASHION_MNIST_CLASSES
from experts.generators import torch_generator

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))  # its modules are no package

import bench_collaboration_simulated
from bench_collaboration_learning import ROUNDS, SHARES, TASKS, WHOLE_TASKS, Ground, Together, learn_together
from bench_collaboration_lessons import Lesson, arrivals, time_to
from bench_collaboration_simulated import ALONE, BENCH, Effort, simulated_figures, simulated_targets
from bench_collaboration_time import WITHIN, Line

LINE = Line(bits_per_s=800.0, round_trip_s=0.5)
"""A hundred bytes a second."""

TELLING_S = 4 * 0.5
"""Two round trips to hear of something, two to ask for it."""


def lesson(task: int, cpu_s: float, result_bytes: int, *round_bytes: int) -> Lesson:
    return Lesson(task=task, cpu_s=cpu_s, result_bytes=result_bytes, round_bytes=round_bytes)


def test_one_node_learns_one_after_another_and_tells_nobody() -> None:
    assert arrivals([[lesson(0, 2.0, 1000), lesson(1, 3.0, 1000)]], LINE) == {(0, 0): 2.0, (0, 1): 5.0}


def test_results_leave_while_the_node_goes_on_and_wait_for_one_another() -> None:
    # 200 bytes to one peer take 2 s, so the second is learned at 3 s and may leave at 4 s only.
    nodes = [[lesson(0, 2.0, 200), lesson(1, 1.0, 200)], [lesson(2, 1.0, 0)]]
    assert arrivals(nodes, LINE) == {(0, 0): 4.0 + TELLING_S, (0, 1): 6.0 + TELLING_S, (1, 2): 1.0 + TELLING_S}


def test_every_peer_has_to_be_sent_a_result() -> None:
    assert arrivals([[lesson(0, 1.0, 100)], [], [], []], LINE)[0, 0] == 1.0 + 3 * 1.0 + TELLING_S


def test_those_who_average_wait_for_the_slowest_and_for_the_rounds() -> None:
    nodes = [[lesson(0, 1.0, 0, 100, 100), lesson(1, 1.0, 0)], [lesson(0, 3.0, 0, 100, 100)]]
    got = arrivals(nodes, LINE)
    rounds_s = 2 * (2 * 0.5 + 1.0)
    assert got[0, 0] == got[1, 0] == 3.0 + rounds_s + TELLING_S
    assert got[0, 1] == 3.0 + rounds_s + 1.0 + TELLING_S


LESSONS = st.builds(lesson, st.just(0), st.floats(0, 100), st.integers(0, 10**6))


@given(st.lists(LESSONS, min_size=2, max_size=6))
def test_nobody_is_told_before_it_is_learned_nor_sooner_over_a_slower_line(lessons: list[Lesson]) -> None:
    nodes = [[one] for one in lessons]
    quick, slow = (arrivals(nodes, Line(bits_per_s=rate, round_trip_s=0.1)) for rate in (1e6, 1e5))
    for node, one in enumerate(lessons):
        assert one.cpu_s < quick[node, 0] <= slow[node, 0]


@pytest.mark.parametrize(
    ("course", "moment_s"),
    [
        ([(1.0, 50.0), (2.0, 90.0), (3.0, 91.0)], 2.0),
        ([(1.0, 90.0), (2.0, 80.0), (3.0, 90.0)], 3.0),  # touched and lost is not reached
        ([(1.0, 50.0), (2.0, 89.9)], None),
        ([], None),
    ],
)
def test_a_target_is_reached_when_it_is_kept(course: list[tuple[float, float]], moment_s: float | None) -> None:
    assert time_to(90.0, course) == moment_s


def run_of(*course: tuple[float, float]) -> Together:
    return Together(course=course, cpu_s=[1.0, 2.0], sent_bytes=[1000, 3000])


def test_a_run_that_misses_the_target_leaves_no_mean_of_the_others() -> None:
    alone = [run_of((10.0, 90.0)), run_of((12.0, 90.0))]
    reaches, misses = run_of((5.0, 90.0 - WITHIN)), run_of((4.0, 80.0))
    kind = next(iter(SHARES))
    figures = simulated_figures(alone, {kind: {"2 nodes": [reaches, misses], "4 nodes": [reaches, reaches]}})
    assert figures[ALONE]["simulated_speed_up"] == 1.0
    missed, there = figures[kind]["2 nodes"], figures[kind]["4 nodes"]
    assert (missed["simulated_speed_up"], missed["simulated_s"], missed["reached_ratio"]) == (None, None, 0.5)
    assert there["simulated_speed_up"] == pytest.approx((10 / 5 + 12 / 5) / 2)
    assert (there["busiest_cpu_s"], there["all_cpu_s"], there["sent_kb"]) == (2.0, 3.0, 3.0)


def test_each_kind_of_shares_is_held_to_the_target() -> None:
    gains = dict(zip(SHARES, (2.5, 1.9, None), strict=True))
    figures = {kind: {"4 nodes": {"simulated_speed_up": gain}} for kind, gain in gains.items()}
    targets = simulated_targets({ALONE: {"simulated_speed_up": 1.0}, **figures})
    assert [target["met"] for target in targets.values()] == [True, False, False]
    assert all(name.startswith(kind) for name, kind in zip(targets, SHARES, strict=True))


def ground_of(num_images: int, num_held_out: int) -> Ground:
    """Ten classes that a line tells apart, in the place of a trunk's features, which took 10 ms an image."""
    generator = torch_generator(0, "features")
    centres_CD = 3 * torch.randn(10, 12, generator=generator)
    parts: list[Any] = []
    for number in (num_images, num_held_out):
        columns_N = torch.arange(number) % 10
        parts.append(centres_CD[columns_N] + torch.randn(number, 12, generator=generator))
        parts.append(tuple(FASHION_MNIST_CLASSES[int(column)] for column in columns_N))
    return Ground(*parts, trunk_s=0.01)


GROUND = ground_of(400, 200)
WIDE = Line(bits_per_s=1e12, round_trip_s=0.0)


@pytest.mark.parametrize("kind", SHARES)
@pytest.mark.parametrize("nodes", [2, 3, 8])
def test_however_tasks_are_shared_all_is_known_in_the_end_and_all_images_are_seen_once(kind: str, nodes: int) -> None:
    alone = learn_together(GROUND, 1, WHOLE_TASKS, WIDE, seed=0, steps=400)
    together = learn_together(GROUND, nodes, kind, WIDE, seed=0, steps=400)
    # Without one of five tasks nobody is above 80.
    assert min(run.course[-1][1] for run in (alone, together)) > 85
    assert [moment_s for moment_s, _ in together.course] == sorted(moment_s for moment_s, _ in together.course)
    # The trunk alone takes ten milliseconds an image, whoever has it.
    assert sum(together.cpu_s) > 400 * 0.01
    idle = sum(cpu_s == 0 for cpu_s in together.cpu_s)
    assert idle == (max(0, nodes - len(TASKS)) if kind == WHOLE_TASKS else 0)
    assert max(together.cpu_s) < alone.course[-1][0]


def test_a_task_that_is_shared_is_averaged_and_its_expert_not_sent_again() -> None:
    parameters = 12 * 8 + 8 + 8 * 2 + 2
    whole, even = (learn_together(GROUND, 2, kind, WIDE, seed=0, steps=40) for kind in (WHOLE_TASKS, "even shares"))
    # One of two nodes learns three of five tasks: statistics and an expert of each go to its peer.
    statistics = whole.sent_bytes[0] / 3 - 4 * parameters
    rounds = len(TASKS) * ROUNDS * 4 * parameters
    assert even.sent_bytes[0] == pytest.approx(len(TASKS) * statistics + rounds, rel=0.02)


def test_a_quick_run_prints_a_document_of_rows_and_targets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(num_images: int, num_held_out: int, tell: Any) -> Ground:
        tell("features")
        return ground_of(num_images, num_held_out)

    quick = Effort(images=400, held_out=200, steps=40, nodes=(2, 4), seeds=1)
    monkeypatch.setattr(bench_collaboration_simulated, "load_ground", load)
    monkeypatch.setattr(bench_collaboration_simulated, "QUICK", quick)
    torch.set_num_threads(1)
    code = BENCH.main(["--quick", "--json"])
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert code == (0 if all(target["met"] for target in document["targets"].values()) else 10)
    assert document["command"] == "python scripts/bench_collaboration_simulated.py --quick"
    assert set(document["figures"]) == {ALONE, *SHARES}
    assert all(set(document["figures"][kind]) == {"2 nodes", "4 nodes"} for kind in SHARES)
    for kind, rows in document["figures"].items():
        for row in [rows] if kind == ALONE else rows.values():
            assert (row["simulated_s"] is None) == (row["reached_ratio"] < 1)
    assert len(printed.err.splitlines()) == 1 + 1 + len(SHARES) * 2
