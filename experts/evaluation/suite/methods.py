"""All methods on either input, with the settings they are run with.

None of these was chosen on a test image: see `networks` for those that train one, and for experts too held-out training
images (scripts/bench_scenarios_tuning.py).
"""

from experts.continual.novelty import NoveltyConfig
from experts.continual.settings import LearnerConfig
from experts.distillation.config import DistillationConfig
from experts.evaluation.baselines.continual_learner import ContinualMethod
from experts.evaluation.baselines.nearest_mean import NearestMean
from experts.evaluation.baselines.routed_experts import RoutedConfig, RoutedExperts
from experts.evaluation.baselines.router_argmax import RouterArgmax
from experts.evaluation.baselines.slda import StreamingLda
from experts.evaluation.inputs import Inputs
from experts.evaluation.scenarios.base import Scenario
from experts.evaluation.suite.method import Method
from experts.evaluation.suite.networks import (
    PUBLISHED_ROTATED,
    PUBLISHED_SPLIT,
    SAME_BYTES,
    TUNED,
    central,
    head_setup,
    joint,
    joint_once,
    network_method,
    pixel_setup,
    same_bytes_items,
    to_the_end,
)
from experts.router.features import ReluFeaturesConfig
from experts.router.ridge import RouterConfig

__all__ = [
    "EXPERT_HIDDEN",
    "EXPERT_STEPS",
    "METHOD_NAMES",
    "ROUTED",
    "learner_config",
    "on_features",
    "on_pixels",
    "published",
    "routed",
    "same_bytes",
]

EXPERT_HIDDEN = {"class-incremental": 8, "domain-incremental": 16, "task-incremental": 16}
"""Eight serve two classes, 16 ten."""

EXPERT_STEPS = 3000
"""Of distillation for each expert: some 24 passes over a domain of 4,000 images."""

PROJECTION = 1500
"""Random features of the projected router."""

ROUTED = "routed experts"

METHOD_NAMES = (
    *TUNED,
    "joint",
    "central distillation",
    "nearest mean",
    "SLDA",
    "router argmax",
    "router argmax by domain",
    "projected ridge",
    ROUTED,
    "continual learner",
)
"""All that there are; not every one is on either input or for every kind of scenario."""


def published(scenario: Scenario) -> list[Method]:
    """What Mammoth's figures are held against: on pixels, by its protocol and arguments, the joint model too."""
    settings = PUBLISHED_ROTATED if scenario.kind == "domain-incremental" else PUBLISHED_SPLIT
    setup = pixel_setup(scenario)
    networks = [
        network_method(name, "pixels", setup, scenario, chosen)
        for name, chosen in settings.items()
        if name in _HELD_AGAINST
    ]
    return [*networks, joint("pixels", setup, joint_once(settings["SGD"]))]


def on_pixels(scenario: Scenario) -> list[Method]:
    """A network on raw pixels; all but the one that needs to know what others keep."""
    setup, end = pixel_setup(scenario), to_the_end(scenario)
    networks = [
        network_method(name, "pixels", setup, scenario, chosen)
        for name, chosen in PUBLISHED_SPLIT.items()
        if name != SAME_BYTES
    ]
    return [*networks, joint("pixels", setup, end), central("pixels", setup, end)]


def on_features(scenario: Scenario, inputs: Inputs, *, expert_steps: int = EXPERT_STEPS) -> list[Method]:
    """A head on the trunk's features, what needs no training, the router alone, experts behind it, a node's learner."""
    setup, end = head_setup(scenario, inputs), to_the_end(scenario)
    networks = [
        network_method(name, "trunk", setup, scenario, chosen) for name, chosen in TUNED.items() if name != SAME_BYTES
    ]
    return [
        *networks,
        joint("trunk", setup, end),
        central("trunk", setup, end),
        Method(name="nearest mean", input="trunk", make=lambda _: NearestMean(inputs), settings=""),
        Method(name="SLDA", input="trunk", make=lambda _: StreamingLda(inputs), settings=""),
        *_routers(scenario, inputs),
        routed(scenario, inputs, EXPERT_HIDDEN[scenario.kind], expert_steps),
        _learner(scenario, inputs),
    ]


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
        name=ROUTED,
        input="trunk",
        make=lambda seed: RoutedExperts(inputs, config, seed=seed),
        settings=repr(config),
    )


def same_bytes(scenario: Scenario, inputs: Inputs, kept_bytes: int) -> list[Method]:
    """DER++ on either input, keeping so many bytes, such as what experts and router keep."""
    capacity = same_bytes_items(scenario, kept_bytes)
    return [
        network_method(
            SAME_BYTES, "pixels", pixel_setup(scenario), scenario, PUBLISHED_SPLIT[SAME_BYTES], capacity=capacity
        ),
        network_method(
            SAME_BYTES, "trunk", head_setup(scenario, inputs), scenario, TUNED[SAME_BYTES], capacity=capacity
        ),
    ]


def learner_config(scenario: Scenario) -> LearnerConfig:
    """A node's defaults; of domains two are asked though, and to tell classes apart the distance is Mahalanobis'."""
    router = RouterConfig(top_k=2 if scenario.kind == "domain-incremental" else 1)
    novelty = NoveltyConfig(relative=scenario.kind != "class-incremental")
    return LearnerConfig(setting=scenario.kind, router=router, novelty=novelty)


_HELD_AGAINST = ("SGD", "EWC", "LwF", "iCaRL 200", "iCaRL 500", "ER 200", "ER 500", "DER++ 200", "DER++ 500")


def _learner(scenario: Scenario, inputs: Inputs) -> Method:
    """What a node does: it decides by itself whether to reuse, update or spawn, sizes experts, and replays."""
    config = learner_config(scenario)
    return Method(
        name="continual learner",
        input="trunk",
        make=lambda seed: ContinualMethod(inputs, config, seed=seed),
        settings=repr(config),
    )


def _routers(scenario: Scenario, inputs: Inputs) -> list[Method]:
    """The router alone as a classifier; the projected one is drawn anew from each seed."""
    config, width = RouterConfig(), sum(inputs.shape)

    def projected(seed: int) -> RouterArgmax:
        projection = ReluFeaturesConfig(feature_dim=width, width=PROJECTION, start=0, stop=width, seed=seed)
        return RouterArgmax(inputs, config, projection=projection)

    routers = [
        Method(name="router argmax", input="trunk", make=lambda _: RouterArgmax(inputs, config), settings=repr(config)),
        Method(name="projected ridge", input="trunk", make=projected, settings=f"{config!r}, {PROJECTION}"),
    ]
    if scenario.kind == "domain-incremental":
        by_domain = Method(
            name="router argmax by domain",
            input="trunk",
            make=lambda _: RouterArgmax(inputs, config, by_task=True),
            settings=repr(config),
        )
        routers.append(by_domain)
    return routers
