"""The methods of the table of scenarios, with the settings they are run with.

None of these was chosen on a test image: see `bench_scenarios_networks.py` for those of networks, on held-out training
images too the experts' (`bench_scenarios_tuning.py`).
"""

from bench_scenarios_networks import (
    PUBLISHED_ROTATED,
    PUBLISHED_SPLIT,
    SAME_BYTES,
    TUNED,
    Method,
    central,
    head_setup,
    joint,
    joint_once,
    network_method,
    pixel_setup,
    to_the_end,
)

from experts.distillation.config import DistillationConfig
from experts.evaluation.baselines.nearest_mean import NearestMean
from experts.evaluation.baselines.routed_experts import RoutedConfig, RoutedExperts
from experts.evaluation.baselines.router_argmax import RouterArgmax
from experts.evaluation.baselines.slda import StreamingLda
from experts.evaluation.inputs import Inputs
from experts.evaluation.scenarios.base import Scenario
from experts.router.features import ReluFeaturesConfig
from experts.router.ridge import RouterConfig

__all__ = ["EXPERT_HIDDEN", "EXPERT_STEPS", "on_features", "on_pixels", "published", "routed"]

EXPERT_HIDDEN = {"class-incremental": 8, "domain-incremental": 16, "task-incremental": 16}
"""Eight serve two classes, 16 ten."""

EXPERT_STEPS = 3000
"""Of distillation for each expert: some 24 passes over a domain of 4,000 images."""

PROJECTION = 1500
"""Random features of the projected router."""


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
    """A head on the trunk's features, what needs no training, the router alone, and experts behind the router."""
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
        name="routed experts",
        input="trunk",
        make=lambda seed: RoutedExperts(inputs, config, seed=seed),
        settings=repr(config),
    )


_HELD_AGAINST = ("SGD", "EWC", "LwF", "iCaRL 200", "iCaRL 500", "ER 200", "ER 500", "DER++ 200", "DER++ 500")


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
