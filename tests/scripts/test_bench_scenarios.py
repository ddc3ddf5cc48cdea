"""Records of which some rows are measured anew: those take the place of the old ones, and no other is lost."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))  # its modules are no package

import bench_scenarios
import bench_scenarios_tuning


def test_new_rows_replace_those_of_their_scenario_alone() -> None:
    there = {"four-sets": {"SGD, trunk": 3}, "split-fashion-mnist": {"SGD, trunk": 1, "EWC, trunk": 2}}
    now = {"split-fashion-mnist": {"EWC, trunk": 9, "ER 200, trunk": 8}, "split-fashion-mnist-on-e5": {"SGD, trunk": 7}}
    replaced = bench_scenarios.replaced(there, now)
    assert replaced == {
        "split-fashion-mnist": {"SGD, trunk": 1, "EWC, trunk": 9, "ER 200, trunk": 8},
        "split-fashion-mnist-on-e5": {"SGD, trunk": 7},
        "four-sets": {"SGD, trunk": 3},
    }
    assert list(replaced) == ["split-fashion-mnist", "split-fashion-mnist-on-e5", "four-sets"]


def test_tuned_rows_stand_by_scenario_each_in_its_old_place() -> None:
    there = {"split-fashion-mnist: SGD, trunk": 1, "split-fashion-mnist: EWC, trunk": 2, "four-sets: SGD, trunk": 3}
    now = {"four-sets: SGD, trunk": 9, "split-fashion-mnist-on-e5: SGD, trunk": 8}
    assert list(bench_scenarios_tuning.replaced(there, now).items()) == [
        ("split-fashion-mnist: SGD, trunk", 1),
        ("split-fashion-mnist: EWC, trunk", 2),
        ("split-fashion-mnist-on-e5: SGD, trunk", 8),
        ("four-sets: SGD, trunk", 9),
    ]
