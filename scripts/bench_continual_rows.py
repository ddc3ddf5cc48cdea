"""The rows of the benchmark of continual learning: scenarios, ways in which their images come, and rivals beside them.

The trunk is the default tap E5 where classes are told apart and B4 where domains or tasks are, whose experts answer for
ten classes and have room for too few units on E5's 2,160 features. No setting was chosen on a test image: those of the
learner are its defaults but for what `learner_config` names; `bench_continual_tuning.py` shows how they were chosen.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import platformdirs
from bench_document import say
from bench_scenarios import PIXELS, load

from experts.evaluation.baselines.base import Baseline
from experts.evaluation.baselines.continual_learner import ContinualMethod, Labelling
from experts.evaluation.baselines.joint import JointBaseline
from experts.evaluation.baselines.task_networks import TaskNetworks
from experts.evaluation.features import FeatureStore
from experts.evaluation.inputs import Inputs
from experts.evaluation.networks import reference_cnn
from experts.evaluation.scenarios.base import Scenario
from experts.evaluation.scenarios.registry import make_scenario
from experts.evaluation.suite.methods import learner_config
from experts.evaluation.suite.networks import head_setup, pixel_inputs, to_the_end
from experts.evaluation.suite.trunk import trunk_inputs
from experts.evaluation.training import TrainingConfig

__all__ = ["LABELLED", "QUICK_ROWS", "ROWS", "SCORES", "STREAM_BATCH", "TAPS", "Row", "Sizes", "prepared"]

STREAM_BATCH = 64
"""Images, as many as are judged together."""

LABELLED = 0.1
"""Share of images that have a label in the rows that are partly labelled."""

SCORES = {"split-fashion-mnist": "mahalanobis", "rotated-fashion-mnist": "relative"}
"""That new tasks are detected by, as in `learner_config`; the other one is measured beside it."""

TAPS = {"split-fashion-mnist": "E5", "rotated-fashion-mnist": "B4", "four-sets": "B4"}

CNN_TRAINING = TrainingConfig(epochs=15, batch_size=32, lr=1e-3, optimizer="adam")
"""Of the reference CNN, of whose epochs the best on held-out training images counts."""


class Sizes(NamedTuple):
    """How much is measured."""

    train: int | None = None
    """Images a task; None for all."""
    test: int | None = None
    epochs: int = CNN_TRAINING.epochs
    """Of the reference CNN, at most."""


Make = Callable[[Scenario, Inputs, int, Sizes], Baseline]
"""A fresh method, from the scenario, its features, a seed, and how much is measured."""


class Row(NamedTuple):
    """One method on one scenario."""

    scenario: str
    make: Make
    is_ours: bool = True


def _ours(changes: Mapping[str, Any] | None = None, **how: Any) -> Make:
    def made(scenario: Scenario, inputs: Inputs, seed: int, _: Sizes) -> Baseline:
        return ContinualMethod(inputs, replace(learner_config(scenario), **(changes or {})), seed=seed, **how)

    return made


def _joint(scenario: Scenario, inputs: Inputs, seed: int, _: Sizes) -> Baseline:
    return JointBaseline(head_setup(scenario, inputs), to_the_end(scenario), seed=seed)


def _cnns(scenario: Scenario, _: Inputs, seed: int, sizes: Sizes) -> Baseline:
    config = TrainingConfig(
        epochs=sizes.epochs, batch_size=CNN_TRAINING.batch_size, lr=CNN_TRAINING.lr, optimizer=CNN_TRAINING.optimizer
    )
    return TaskNetworks(pixel_inputs(scenario), reference_cnn, config, seed=seed)


ROWS = {
    "split-fashion-mnist, tasks": Row("split-fashion-mnist", _ours()),
    "split-fashion-mnist, stream": Row("split-fashion-mnist", _ours(stream_batch=STREAM_BATCH)),
    "split-fashion-mnist, joint": Row("split-fashion-mnist", _joint, is_ours=False),
    "rotated-fashion-mnist, tasks": Row("rotated-fashion-mnist", _ours()),
    "rotated-fashion-mnist, stream": Row("rotated-fashion-mnist", _ours(stream_batch=STREAM_BATCH)),
    "four-sets, tasks": Row("four-sets", _ours()),
    "four-sets, reference CNN": Row("four-sets", _cnns, is_ours=False),
    "four-sets, 10% labelled": Row(
        "four-sets", _ours({"learns_unlabelled": True}, labelling=Labelling(ratio=LABELLED, gives_others=True))
    ),
    "four-sets, these 10% alone": Row("four-sets", _ours(labelling=Labelling(ratio=LABELLED, gives_others=False))),
}

QUICK_ROWS = ("split-fashion-mnist, tasks", "rotated-fashion-mnist, stream", "four-sets, tasks")
"""One of each scenario."""


def prepared(name: str, order: int, sizes: Sizes, *, held_out_ratio: float | None = None) -> tuple[Scenario, Inputs]:
    """A scenario and the features of its images, computed before anything is timed or read from the disk.

    Args:
        name: The scenario's.
        order: Of its classes, images or tasks.
        sizes: How much of it.
        held_out_ratio: Of each class's training images, which are then tested on in place of test images.
    """
    scenario = make_scenario(name, load, order=order)
    if sizes.train is not None and sizes.test is not None:
        scenario = scenario.limited(sizes.train, sizes.test)
    if held_out_ratio is not None:
        scenario = scenario.for_tuning(held_out_ratio)
    say(f"{name}, order {order}: features")
    store = FeatureStore(platformdirs.user_cache_path("modulemesh") / "features")
    return scenario, trunk_inputs(scenario, store, tap=TAPS[name], pixels=PIXELS)
