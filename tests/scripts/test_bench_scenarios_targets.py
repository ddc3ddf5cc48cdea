"""What the table of scenarios is held against: whose points are taken over whom."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))  # its modules are no package

from bench_scenarios_targets import ON_NODES_TRUNK, PROTOCOL, SPLIT, targets_of

PIXELS = {"DER++ 200, pixels": {"accuracy": 70.0}, "DER++ 500, pixels": {"accuracy": 75.0}}


def on_trunk(experts: float) -> dict[str, dict[str, float]]:
    return {
        "DER++ 200, trunk": {"accuracy": 80.0},
        "DER++ 500, trunk": {"accuracy": 84.0},
        "DER++ same bytes, trunk": {"accuracy": 87.0},
        "routed experts, trunk": {"accuracy": experts},
    }


def test_experts_on_either_trunk_are_held_against_replay_there_and_on_pixels() -> None:
    figures = {SPLIT: PIXELS | on_trunk(88.0), ON_NODES_TRUNK: on_trunk(90.0), PROTOCOL: PIXELS}
    targets = targets_of(figures, [])
    points = {name: target["points"] for name, target in targets.items() if "over DER++" in name}
    assert points == {
        "routed experts over DER++ same bytes, trunk, split-fashion-mnist": 1.0,
        "routed experts over DER++ 500, trunk, split-fashion-mnist": 4.0,
        "routed experts over DER++ 200, trunk, split-fashion-mnist": 8.0,
        "routed experts over DER++ 500, pixels, split-fashion-mnist": 13.0,
        "routed experts over DER++ 200, pixels, split-fashion-mnist": 18.0,
        "routed experts over DER++ 500, pixels, split-fashion-mnist, split-fashion-mnist-60k": 13.0,
        "routed experts over DER++ 200, pixels, split-fashion-mnist, split-fashion-mnist-60k": 18.0,
        "routed experts over DER++ same bytes, trunk, split-fashion-mnist-on-e5": 3.0,
        "routed experts over DER++ 500, trunk, split-fashion-mnist-on-e5": 6.0,
        "routed experts over DER++ 200, trunk, split-fashion-mnist-on-e5": 10.0,
        "routed experts over DER++ 500, pixels, split-fashion-mnist-on-e5, split-fashion-mnist": 15.0,
        "routed experts over DER++ 200, pixels, split-fashion-mnist-on-e5, split-fashion-mnist": 20.0,
        "routed experts over DER++ 500, pixels, split-fashion-mnist-on-e5, split-fashion-mnist-60k": 15.0,
        "routed experts over DER++ 200, pixels, split-fashion-mnist-on-e5, split-fashion-mnist-60k": 20.0,
    }


@pytest.mark.parametrize(("experts", "met"), [(87.9, False), (88.0, True)])
def test_a_target_is_met_from_its_points_on(experts: float, met: bool) -> None:
    targets = targets_of({ON_NODES_TRUNK: on_trunk(experts)}, [])
    assert targets[f"routed experts over DER++ same bytes, trunk, {ON_NODES_TRUNK}"]["met"] is met


def test_what_was_not_measured_is_no_target() -> None:
    assert targets_of({PROTOCOL: PIXELS}, []).keys() == {f"{PROTOCOL}: DER++ 200", f"{PROTOCOL}: DER++ 500"}
    assert not any("over DER++" in name for name in targets_of({ON_NODES_TRUNK: PIXELS}, []))
