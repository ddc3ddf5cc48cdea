"""All methods on either input, with the settings they are run with.

None of these was chosen on a test image: see `networks` for those that train one, and for experts too held-out training
images (scripts/bench_scenarios_tuning.py).
"""

from experts.continual.novelty import NoveltyConfig
from experts.continual.settings import LearnerConfig
from experts.distillation.config import DistillationConfig
from experts.evaluation.baselines.continual_learner import ContinualMethod
from experts.evaluation.baselines.nearest_mean import NearestMean
from experts.evaluation.baselines.network import NetworkSetup
from experts.evaluation.baselines.routed_experts import RoutedConfig, RoutedExperts
from experts.evaluation.baselines.router_argmax import RouterArgmax
from experts.evaluation.baselines.slda import StreamingLda
from experts.evaluation.inputs import FlatPixelInputs, Inputs
from experts.evaluation.scenarios.base import Scenario
from experts.evaluation.suite.method import Input, Method
from experts.evaluation.suite.networks import (
    central,
    head_setup,
    joint,
    joint_once,
    network_method,
    pixel_inputs,
    pixel_setup,
    same_bytes_items,
    to_the_end,
)
from experts.evaluation.suite.settings import (
    EXPERT_HIDDEN,
    PUBLISHED_ROTATED,
    PUBLISHED_SPLIT,
    SAME_BYTES,
    TUNED,
    Given,
)
from experts.router.features import ReluFeaturesConfig
from experts.router.ridge import RouterConfig

__all__ = [
    "EXPERT_STEPS",
    "METHOD_NAMES",
    "PROJECTED_RIDGE",
    "ROUTED",
    "VECTOR_SIDE",
    "learner_config",
    "on_features",
    "on_pixels",
    "projected_ridge",
    "published",
    "routed",
    "same_bytes",
]

EXPERT_STEPS = 3000
"""Of distillation for each expert: some 24 passes over a domain of 4,000 images."""

PROJECTION = 1500
"""Random features of the projected router."""

PROJECTED_RIDGE = 1e-3
"""Its regulariser: more features than the trunk's want a stronger one than `RouterConfig` has."""

VECTOR_SIDE = 32
"""Pixels of a side, at most, of an image that is one vector: statistics are as large as the square of its length."""

ROUTED = "routed experts"

METHOD_NAMES = (
    *TUNED["class-incremental"]["trunk"],
    "joint",
    "central distillation",
    "nearest mean",
    "SLDA",
    "router argmax",
    "router argmax by domain",
    "projected ridge",
    "projected ridge by domain",
    ROUTED,
    "continual learner",
)
"""All that there are; those by domain are for scenarios of domains alone."""


def published(scenario: Scenario) -> list[Method]:
    """What Mammoth's figures are held against: on pixels, by its protocol and arguments, the joint model too."""
    settings = PUBLISHED_ROTATED if scenario.kind == "domain-incremental" else PUBLISHED_SPLIT
    setup = pixel_setup(scenario)
    held_against = [network_method(name, "pixels", setup, scenario, chosen) for name, chosen in settings.items()]
    return [*held_against, joint("pixels", setup, joint_once(settings["SGD"]))]


def on_pixels(scenario: Scenario, *, given: Given | None = None, expert_steps: int = EXPERT_STEPS) -> list[Method]:
    """A network on raw pixels, and what is built on features with the pixels in their place.

    All but the one that needs to know what others keep.

    Args:
        scenario: What they learn.
        given: Settings of the networks; None for `TUNED`.
        expert_steps: Of distillation for each expert.
    """
    setup, end = pixel_setup(scenario), to_the_end(scenario)
    return [
        *networks("pixels", setup, scenario, given),
        joint("pixels", setup, end),
        central("pixels", setup, end),
        *_on_vectors("pixels", scenario, FlatPixelInputs(pixel_inputs(scenario, VECTOR_SIDE)), expert_steps),
    ]


def on_features(
    scenario: Scenario, inputs: Inputs, *, given: Given | None = None, expert_steps: int = EXPERT_STEPS
) -> list[Method]:
    """A head on the trunk's features, what needs no training, the router alone, experts behind it, a node's learner.

    Args:
        scenario: What they learn.
        inputs: The features.
        given: Settings of the networks; None for `TUNED`.
        expert_steps: Of distillation for each expert.
    """
    setup, end = head_setup(scenario, inputs), to_the_end(scenario)
    return [
        *networks("trunk", setup, scenario, given),
        joint("trunk", setup, end),
        central("trunk", setup, end),
        *_on_vectors("trunk", scenario, inputs, expert_steps),
    ]


def routed(kind: Input, scenario: Scenario, inputs: Inputs, hidden: int, steps: int) -> Method:
    """Experts behind the ridge: it tells classes apart, or domains where all tasks share the classes."""
    domains = scenario.kind == "domain-incremental"
    config = RoutedConfig(
        router=RouterConfig(top_k=2 if domains else 1),
        distillation=DistillationConfig(steps=steps),
        hidden=hidden,
        target="tasks" if domains else "classes",
    )
    return Method(
        name=ROUTED,
        input=kind,
        make=lambda seed: RoutedExperts(inputs, config, seed=seed),
        settings=repr(config),
    )


def projected_ridge(kind: Input, inputs: Inputs, ridge: float, *, by_task: bool = False) -> Method:
    """The router alone on random features beside the others, drawn anew from each seed."""
    config, width = RouterConfig(ridge=ridge), sum(inputs.shape)

    def make(seed: int) -> RouterArgmax:
        projection = ReluFeaturesConfig(feature_dim=width, width=PROJECTION, start=0, stop=width, seed=seed)
        return RouterArgmax(inputs, config, by_task=by_task, projection=projection)

    name = "projected ridge by domain" if by_task else "projected ridge"
    return Method(name=name, input=kind, make=make, settings=f"{config!r}, {PROJECTION}")


def same_bytes(scenario: Scenario, inputs: Inputs, kept_bytes: int, *, given: Given | None = None) -> list[Method]:
    """DER++ on each input that settings are given for, keeping so many bytes, such as what experts and router keep."""
    capacity, given = same_bytes_items(scenario, kept_bytes), given or TUNED[scenario.kind]
    setups: dict[Input, NetworkSetup] = {"pixels": pixel_setup(scenario), "trunk": head_setup(scenario, inputs)}
    return [
        network_method(SAME_BYTES, kind, setups[kind], scenario, of_input[SAME_BYTES], capacity=capacity)
        for kind, of_input in given.items()
    ]


def networks(kind: Input, setup: NetworkSetup, scenario: Scenario, given: Given | None = None) -> list[Method]:
    """All that train one network on a stream, but the one that needs to know what others keep."""
    settings = (given or TUNED[scenario.kind])[kind]
    return [network_method(name, kind, setup, scenario, settings[name]) for name in settings if name != SAME_BYTES]


def learner_config(scenario: Scenario) -> LearnerConfig:
    """A node's defaults; of domains two are asked though, and to tell classes apart the distance is Mahalanobis'."""
    router = RouterConfig(top_k=2 if scenario.kind == "domain-incremental" else 1)
    novelty = NoveltyConfig(relative=scenario.kind != "class-incremental")
    return LearnerConfig(setting=scenario.kind, router=router, novelty=novelty)


def _on_vectors(kind: Input, scenario: Scenario, inputs: Inputs, expert_steps: int) -> list[Method]:
    """What reads one vector an image: the nearest mean, SLDA, the router alone, experts behind it, a node's learner."""
    return [
        Method(name="nearest mean", input=kind, make=lambda _: NearestMean(inputs), settings=""),
        Method(name="SLDA", input=kind, make=lambda _: StreamingLda(inputs), settings=""),
        *_routers(kind, scenario, inputs),
        routed(kind, scenario, inputs, EXPERT_HIDDEN[scenario.kind], expert_steps),
        _learner(kind, scenario, inputs),
    ]


def _learner(kind: Input, scenario: Scenario, inputs: Inputs) -> Method:
    """What a node does: it decides by itself whether to reuse, update or spawn, sizes experts, and replays."""
    config = learner_config(scenario)
    return Method(
        name="continual learner",
        input=kind,
        make=lambda seed: ContinualMethod(inputs, config, seed=seed),
        settings=repr(config),
    )


def _routers(kind: Input, scenario: Scenario, inputs: Inputs) -> list[Method]:
    """The router alone as a classifier, without and with random features."""
    config, domains = RouterConfig(), scenario.kind == "domain-incremental"

    def plain(name: str, *, by_task: bool) -> Method:
        def make(_: int) -> RouterArgmax:
            return RouterArgmax(inputs, config, by_task=by_task)

        return Method(name=name, input=kind, make=make, settings=repr(config))

    routers = [plain("router argmax", by_task=False), projected_ridge(kind, inputs, PROJECTED_RIDGE)]
    if domains:
        routers.append(plain("router argmax by domain", by_task=True))
        routers.append(projected_ridge(kind, inputs, PROJECTED_RIDGE, by_task=True))
    return routers
