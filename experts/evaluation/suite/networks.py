"""The methods that train a network: what each is made of, for a scenario and an input."""

import dataclasses
import math
from collections.abc import Callable

from experts.evaluation.baselines.base import Baseline
from experts.evaluation.baselines.derpp import DarkReplayBaseline, DarkReplayConfig, item_bytes
from experts.evaluation.baselines.er import ReplayBaseline
from experts.evaluation.baselines.ewc import EwcBaseline
from experts.evaluation.baselines.icarl import IcarlBaseline
from experts.evaluation.baselines.joint import JointBaseline
from experts.evaluation.baselines.lwf import LwfBaseline
from experts.evaluation.baselines.moe import MixtureBaseline, gated_network
from experts.evaluation.baselines.monolithic import MonolithicBaseline
from experts.evaluation.baselines.network import NetworkSetup
from experts.evaluation.baselines.sequential import SequentialBaseline
from experts.evaluation.inputs import Inputs, PixelInputs
from experts.evaluation.networks import feature_head, mlp_100_100
from experts.evaluation.scenarios.base import Scenario
from experts.evaluation.suite.method import Input, Method
from experts.evaluation.suite.settings import EXPERT_HIDDEN, SAME_BYTES, Settings
from experts.evaluation.training import TrainingConfig

__all__ = [
    "central",
    "fewest_passes",
    "head_setup",
    "joint",
    "joint_once",
    "network_method",
    "pixel_inputs",
    "pixel_setup",
    "same_bytes_items",
    "to_the_end",
]

NUM_EXPERTS, PIXEL_HIDDEN = 5, 20
"""Of a standard mixture: on pixels of as many parameters as the network, on the trunk as large as the routed ones."""

STREAM_STEPS = 400
"""A task, about, for what learns from a stream: one pass over 4,000 images in batches of 10. Smaller tasks are passed
over until they had as many, since the experts beside them are trained to the end."""

JOINT_STEPS = {"class-incremental": 1875, "domain-incremental": 6250, "task-incremental": 1875}
"""On all tasks together, in batches of 64: 6 and 20 passes over 20,000 images. An upper reference that is not trained
to the end is none, and one network for every domain has the most to learn."""

JOINT_LR = 0.003
"""Of Adam, falling to 0."""


def network_method(
    name: str, kind: Input, setup: NetworkSetup, scenario: Scenario, settings: Settings, *, capacity: int | None = None
) -> Method:
    """A method that trains one network, task after task.

    Args:
        name: A key of its settings; a number at its end is how many items it keeps.
        kind: What the network is fed.
        setup: It.
        scenario: What it learns.
        settings: How.
        capacity: Items kept, where the name has no number.
    """
    config = _as_stream(scenario, settings)
    family = "DER++" if name == SAME_BYTES else name.rstrip(" 0123456789")
    if name[len(family) + 1 :].isdigit():
        capacity = int(name[len(family) + 1 :])
    kept = capacity or 0
    replay, balance = settings.replay_size, settings.strength
    gated_hidden = PIXEL_HIDDEN if kind == "pixels" else EXPERT_HIDDEN[scenario.kind]
    gated = _gated(kind, setup, gated_hidden)
    makers: dict[str, Callable[[int], Baseline]] = {
        "SGD": lambda seed: SequentialBaseline(setup, config, seed=seed),
        "EWC": lambda seed: EwcBaseline(setup, config, strength=settings.strength, seed=seed),
        "LwF": lambda seed: LwfBaseline(setup, config, strength=settings.strength, seed=seed),
        "iCaRL": lambda seed: IcarlBaseline(setup, config, capacity=kept, mirrored=kind == "pixels", seed=seed),
        "ER": lambda seed: ReplayBaseline(setup, config, capacity=kept, replay_size=replay, seed=seed),
        "DER++": lambda seed: DarkReplayBaseline(
            setup,
            config,
            DarkReplayConfig(capacity=kept, alpha=settings.alpha, beta=settings.beta, replay_size=replay),
            seed=seed,
        ),
        "monolithic distillation": lambda seed: MonolithicBaseline(setup, config, alpha=settings.alpha, seed=seed),
        "mixture of experts": lambda seed: MixtureBaseline(gated, config, balance=balance, seed=seed),
    }
    words = [f"{config!r}, {settings!r}, capacity={capacity}"]
    heads = setup if family != "iCaRL" else dataclasses.replace(setup, told=())  # a yes or no a column needs none
    if family == "mixture of experts":
        words.append(f"{NUM_EXPERTS} experts of {gated_hidden}")
    return Method(name=name, input=kind, make=makers[family], settings=_with_heads(", ".join(words), heads))


def joint(kind: Input, setup: NetworkSetup, config: TrainingConfig) -> Method:
    """The upper reference."""
    return Method(
        name="joint",
        input=kind,
        make=lambda seed: JointBaseline(setup, config, seed=seed),
        settings=_with_heads(repr(config), setup),
    )


def central(kind: Input, setup: NetworkSetup, config: TrainingConfig) -> Method:
    """One student, retrained from all teachers and images after every task, as long as the upper reference."""
    return Method(
        name="central distillation",
        input=kind,
        make=lambda seed: MonolithicBaseline(setup, config, keeps_all=True, seed=seed),
        settings=_with_heads(repr(config), setup),
    )


def joint_once(settings: Settings) -> TrainingConfig:
    """Of an upper reference that sees every image once, as by the protocols that are repeated."""
    return TrainingConfig(lr=settings.lr, batch_size=settings.batch_size)


def to_the_end(scenario: Scenario) -> TrainingConfig:
    """Of the upper reference."""
    images = sum(len(task.train) for task in scenario.tasks)
    passes = math.ceil(JOINT_STEPS[scenario.kind] * 64 / images)
    return TrainingConfig(epochs=passes, batch_size=64, lr=JOINT_LR, optimizer="adam")


def fewest_passes(scenario: Scenario) -> int:
    """One, or as many as make `STREAM_STEPS` of the smallest task."""
    smallest = min(len(task.train) for task in scenario.tasks)
    return max(1, round(10 * STREAM_STEPS / smallest))


def head_setup(scenario: Scenario, inputs: Inputs) -> NetworkSetup:
    """The network of the methods that train one on features."""
    return NetworkSetup(inputs=inputs, form=feature_head, classes=scenario.classes, told=_told(scenario))


def pixel_setup(scenario: Scenario) -> NetworkSetup:
    """An MLP of two hidden layers on raw pixels."""
    inputs = pixel_inputs(scenario)
    return NetworkSetup(inputs=inputs, form=mlp_100_100, classes=scenario.classes, told=_told(scenario))


def pixel_inputs(scenario: Scenario, most: int | None = None) -> PixelInputs:
    """Of the size of the first task's images.

    Args:
        scenario: Whose.
        most: Pixels of a side, at most; None for all there are.
    """
    images = scenario.tasks[0].train
    side = images.images.shape[1]
    return PixelInputs(channels=images.channels, pixels=side if most is None else min(side, most))


def same_bytes_items(scenario: Scenario, kept_bytes: int) -> int:
    """How many items with their logits DER++ can keep in so many bytes, at least one."""
    return max(1, kept_bytes // item_bytes(scenario.tasks[0].train.images[0].nbytes, len(scenario.classes)))


def _as_stream(scenario: Scenario, settings: Settings) -> TrainingConfig:
    """Of what learns task after task."""
    return TrainingConfig(
        lr=settings.lr,
        epochs=settings.passes * fewest_passes(scenario),
        batch_size=settings.batch_size,
        weight_decay=settings.weight_decay,
    )


def _told(scenario: Scenario) -> tuple[tuple[str, ...], ...]:
    return tuple(task.classes for task in scenario.tasks) if scenario.kind == "task-incremental" else ()


def _gated(kind: Input, setup: NetworkSetup, hidden: int) -> NetworkSetup:
    """Experts and a gate in place of a network."""
    scale = {"input_scale": 1.0} if kind == "pixels" else {}
    form = gated_network(num_experts=NUM_EXPERTS, expert_hidden=hidden, router_hidden=16, **scale)
    return dataclasses.replace(setup, form=form)


def _with_heads(settings: str, setup: NetworkSetup) -> str:
    return f"{settings}, a head for each task" if setup.told else settings
