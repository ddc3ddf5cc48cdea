"""The methods of the table of scenarios, with the settings they are run with.

None of these was chosen on a test image. On pixels they are those that Mammoth (github.com/aimagelab/mammoth) publishes
for Split MNIST; on the trunk they were chosen on held-out training images, as `bench_scenarios_tuning.py` shows.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from experts.distillation.config import DistillationConfig
from experts.evaluation.baselines.base import Baseline
from experts.evaluation.baselines.er import ReplayBaseline
from experts.evaluation.baselines.joint import JointBaseline
from experts.evaluation.baselines.network import NetworkSetup
from experts.evaluation.baselines.routed_experts import RoutedConfig, RoutedExperts
from experts.evaluation.baselines.router_argmax import RouterArgmax
from experts.evaluation.baselines.sequential import SequentialBaseline
from experts.evaluation.inputs import Inputs, PixelInputs
from experts.evaluation.networks import feature_head, mlp_100_100
from experts.evaluation.scenarios.base import Scenario
from experts.evaluation.training import TrainingConfig
from experts.router.ridge import RouterConfig

__all__ = [
    "EXPERT_HIDDEN",
    "EXPERT_STEPS",
    "Method",
    "as_stream",
    "er",
    "head_setup",
    "joint",
    "on_features",
    "on_pixels",
    "routed",
    "sgd",
    "to_the_end",
]

PIXEL_LR: dict[str | int, float] = {"SGD": 0.03, "joint": 0.03, 200: 0.01, 500: 0.1}
"""With batches of 10, 10 replayed, as published, by method and by the number of items kept; "joint" by plain SGD where
the protocol is repeated."""

FEATURE_LR: dict[str | int, float] = {"SGD": 0.003, 200: 0.03, 500: 0.1}
"""For a head on tap B4, likewise."""

STREAM_STEPS = 400
"""A task, about, for what learns from a stream: one pass over 4,000 images in batches of 10. Smaller tasks are passed
over until they had as many, since the experts beside them are trained to the end."""

JOINT_STEPS = {"class-incremental": 1875, "domain-incremental": 6250, "task-incremental": 1875}
"""On all tasks together, in batches of 64: 6 and 20 passes over 20,000 images. An upper reference that is not trained
to the end is none, and one network for every domain has the most to learn."""

JOINT_LR = {"class-incremental": 0.001, "domain-incremental": 0.003, "task-incremental": 0.001}
"""Of Adam, falling to 0."""

EXPERT_HIDDEN = {"class-incremental": 8, "domain-incremental": 16, "task-incremental": 16}
"""Eight serve two classes, 16 ten."""

EXPERT_STEPS = 3000
"""Of distillation for each expert: some 24 passes over a domain of 4,000 images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """One row of the table."""

    name: str
    input: Literal["pixels", "trunk"]
    make: Callable[[int], Baseline]
    """A fresh one, from a seed."""
    settings: str
    """What tells it from another of its name."""


def on_pixels(scenario: Scenario, *, published: bool) -> list[Method]:
    """An MLP of two hidden layers on raw pixels.

    Args:
        scenario: What it learns.
        published: Whether to repeat the published protocol, in which the joint model, too, sees every image once.
    """
    size = scenario.tasks[0].train.images.shape[1]
    inputs = PixelInputs(channels=scenario.tasks[0].train.channels, pixels=size)
    setup = NetworkSetup(inputs=inputs, form=mlp_100_100, classes=scenario.classes)
    upper = TrainingConfig(lr=PIXEL_LR["joint"]) if published else to_the_end(scenario)
    return _networks("pixels", setup, scenario, PIXEL_LR, upper)


def on_features(scenario: Scenario, inputs: Inputs, *, expert_steps: int = EXPERT_STEPS) -> list[Method]:
    """A head on the trunk's features, the router alone, and experts behind the router."""
    methods = _networks("trunk", head_setup(scenario, inputs), scenario, FEATURE_LR, to_the_end(scenario))
    argmax = RouterConfig()
    methods.append(
        Method(name="router argmax", input="trunk", make=lambda _: RouterArgmax(inputs, argmax), settings=repr(argmax))
    )
    if scenario.kind == "domain-incremental":
        methods.append(
            Method(
                name="router argmax by domain",
                input="trunk",
                make=lambda _: RouterArgmax(inputs, argmax, by_task=True),
                settings=repr(argmax),
            )
        )
    return [*methods, routed(scenario, inputs, EXPERT_HIDDEN[scenario.kind], expert_steps)]


def as_stream(scenario: Scenario, lr: float) -> TrainingConfig:
    """Of what learns a task in one pass, or in a few where the tasks are small."""
    smallest = min(len(task.train) for task in scenario.tasks)
    return TrainingConfig(lr=lr, epochs=max(1, round(10 * STREAM_STEPS / smallest)))


def to_the_end(scenario: Scenario) -> TrainingConfig:
    """Of the upper reference."""
    images = sum(len(task.train) for task in scenario.tasks)
    passes = math.ceil(JOINT_STEPS[scenario.kind] * 64 / images)
    return TrainingConfig(epochs=passes, batch_size=64, lr=JOINT_LR[scenario.kind], optimizer="adam")


def head_setup(scenario: Scenario, inputs: Inputs) -> NetworkSetup:
    """The network of the methods that train one on features."""
    return NetworkSetup(inputs=inputs, form=feature_head, classes=scenario.classes)


def sgd(kind: Literal["pixels", "trunk"], setup: NetworkSetup, config: TrainingConfig) -> Method:
    """Fine-tuning, task after task."""
    return Method(
        name="SGD",
        input=kind,
        make=lambda seed: SequentialBaseline(setup, config, seed=seed),
        settings=repr(config),
    )


def joint(kind: Literal["pixels", "trunk"], setup: NetworkSetup, config: TrainingConfig) -> Method:
    """The upper reference."""
    return Method(
        name="joint", input=kind, make=lambda seed: JointBaseline(setup, config, seed=seed), settings=repr(config)
    )


def er(kind: Literal["pixels", "trunk"], setup: NetworkSetup, config: TrainingConfig, capacity: int) -> Method:
    """Replay of so many items."""
    return Method(
        name=f"ER {capacity}",
        input=kind,
        make=lambda seed: ReplayBaseline(setup, config, capacity=capacity, seed=seed),
        settings=repr(config),
    )


def routed(scenario: Scenario, inputs: Inputs, hidden: int, steps: int) -> Method:
    """Experts behind the ridge: it tells classes apart, or domains where all tasks share the classes."""
    domains = scenario.kind == "domain-incremental"
    config = RoutedConfig(
        router=RouterConfig(top_k=2 if domains else 1),
        distillation=DistillationConfig(steps=steps),
        hidden=hidden,
        target="tasks" if domains else "classes",
    )
    return Method(
        name="routed experts",
        input="trunk",
        make=lambda seed: RoutedExperts(inputs, config, seed=seed),
        settings=repr(config),
    )


def _networks(
    kind: Literal["pixels", "trunk"],
    setup: NetworkSetup,
    scenario: Scenario,
    lr: dict[str | int, float],
    upper: TrainingConfig,
) -> list[Method]:
    return [
        sgd(kind, setup, as_stream(scenario, lr["SGD"])),
        joint(kind, setup, upper),
        *(er(kind, setup, as_stream(scenario, lr[capacity]), capacity) for capacity in (200, 500)),
    ]
