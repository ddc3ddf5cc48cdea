"""How much sooner together: the arithmetic, on runs whose times are known."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))  # its modules are no package

from bench_collaboration_time import (
    EXPECTED_SPEED_UP,
    ROUND_TRIPS_A_TASK,
    Line,
    NodeWork,
    Run,
    mean_or_none,
    simulated_s,
    speed_ups,
    target_of,
)

LINE = Line(bits_per_s=8e6, round_trip_s=0.1)
"""A megabyte a second."""


def _run(*works: NodeWork) -> Run:
    return Run(works={str(number): work for number, work in enumerate(works)}, wall_s=1.0, accuracy=90.0)


ALONE = NodeWork(cpu_s=50.0, moved_bytes=0, foreign_tasks=0)


def test_a_node_alone_takes_what_it_computes() -> None:
    assert simulated_s(_run(ALONE), LINE) == 50.0


def test_the_slowest_node_counts_with_its_bytes_and_round_trips() -> None:
    busy = NodeWork(cpu_s=20.0, moved_bytes=3_000_000, foreign_tasks=2)
    idle = NodeWork(cpu_s=19.0, moved_bytes=1_000_000, foreign_tasks=3)
    assert simulated_s(_run(busy, idle), LINE) == pytest.approx(20 + 3 + ROUND_TRIPS_A_TASK * 2 * 0.1)
    late = replace(idle, moved_bytes=9_000_000)
    assert simulated_s(_run(busy, late), LINE) == pytest.approx(19 + 9 + ROUND_TRIPS_A_TASK * 3 * 0.1)


WORKS = st.builds(NodeWork, cpu_s=st.floats(0, 1e3), moved_bytes=st.integers(0, 10**9), foreign_tasks=st.integers(0, 9))


@given(st.lists(WORKS, min_size=1, max_size=4), st.floats(1e6, 1e9), st.floats(0, 1))
def test_a_slower_line_or_one_more_node_never_makes_it_sooner(
    works: list[NodeWork], bits_per_s: float, round_trip_s: float
) -> None:
    line = Line(bits_per_s=bits_per_s, round_trip_s=round_trip_s)
    took_s = simulated_s(_run(*works), line)
    assert took_s >= max(work.cpu_s for work in works)
    assert simulated_s(_run(*works), Line(bits_per_s=bits_per_s / 2, round_trip_s=2 * round_trip_s)) >= took_s
    assert simulated_s(_run(*works, ALONE), line) >= took_s


def test_a_run_below_the_target_has_no_speed_up_and_spoils_the_mean() -> None:
    each = speed_ups([60.0, 60.0], [20.0, None])
    assert each == [3.0, None]
    assert mean_or_none(each) is None
    assert mean_or_none(speed_ups([60.0, 60.0], [20.0, 30.0])) == 2.5
    assert mean_or_none([]) is None


def test_a_speed_up_that_was_not_reached_misses_the_target() -> None:
    assert [target_of(speed_up)["met"] for speed_up in (EXPECTED_SPEED_UP, EXPECTED_SPEED_UP - 0.01, None)] == [
        True,
        False,
        False,
    ]
