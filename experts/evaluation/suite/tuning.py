"""Rates that suit data of which nobody knows yet how fast a network may learn from it: chosen on held-out images."""

import dataclasses
from collections.abc import Collection

from experts.evaluation.baselines.network import NetworkSetup
from experts.evaluation.scenarios.base import Scenario
from experts.evaluation.suite.method import Input
from experts.evaluation.suite.networks import network_method
from experts.evaluation.suite.settings import SAME_BYTES, TUNED, Settings
from experts.evaluation.suite.table import MethodTable

__all__ = ["HELD_OUT", "RATES", "tuned_rates"]

HELD_OUT = 0.15
"""Share of each class of a task's training images that rates are chosen on."""

RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Tried for every network, as multiples of the rate that it has otherwise: one budget for all."""

SAME_ITEMS = 1000
"""Kept here by `SAME_BYTES`, of which it is not known yet how many it may keep."""


def tuned_rates(
    on: Input, setup: NetworkSetup, held_out: Scenario, names: Collection[str], table: MethodTable
) -> dict[str, Settings]:
    """For each network, its settings at the rate of `RATES` that is most accurate after the last task.

    Args:
        on: What the network is fed.
        setup: It.
        held_out: What `Scenario.for_tuning` made, so that no image is looked at that a method is tested on later.
        names: Of the methods to tune; all others keep what they have.
        table: Runs them, with seed 0, and keeps them where it keeps runs; none becomes a row.
    """
    chosen = dict(TUNED[held_out.kind][on])
    for name, usual in TUNED[held_out.kind][on].items():
        if name not in names:
            continue
        best = -1.0
        for factor in RATES:
            settings = dataclasses.replace(usual, lr=factor * usual.lr)
            capacity = SAME_ITEMS if name == SAME_BYTES else None
            method = network_method(name, on, setup, held_out, settings, capacity=capacity)
            named = dataclasses.replace(method, name=f"{name} at {settings.lr:g}")
            accuracy = table.run(named, held_out, 0).matrix.average_accuracy()
            if accuracy > best:
                best, chosen[name] = accuracy, settings
    return chosen
