"""What is to be evaluated, and what can be: scenarios by name or by a file of the user's, methods by name."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import platformdirs

from experts.data.image_files import ReadingProgress
from experts.errors import UnknownTrunk
from experts.evaluation.inputs import Inputs
from experts.evaluation.scenarios.base import Scenario
from experts.evaluation.scenarios.file import scenario_from_file
from experts.evaluation.scenarios.registry import SCENARIO_NAMES, make_scenario
from experts.evaluation.suite.method import Method
from experts.evaluation.suite.methods import METHOD_NAMES, ROUTED, on_features, on_pixels
from experts.evaluation.suite.settings import SAME_BYTES, Given
from experts.trunk.efficientnet import EFFICIENTNET_TAPS, check_tap
from meshnode.datasets import load_dataset
from meshnode.errors import ScenarioUnusable, UnknownName

__all__ = ["Plan"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """An evaluation, before anything is loaded.

    Raises:
        UnknownName: If there is no such scenario, method or tap.
        ScenarioUnusable: If there are such taps, and not as they are asked for.
    """

    scenario: str
    """A name of `SCENARIO_NAMES`, or the path of a TOML file."""
    methods: Sequence[str] = ()
    """Names of `METHOD_NAMES`; none for all."""
    on: Literal["trunk", "pixels", "both"] = "trunk"
    """What networks are fed."""
    runs: int = 1
    """Orders of classes or tasks, each with a seed of its own, from 0."""
    train_images: int | None = None
    """A task, at most; None for all."""
    test_images: int | None = None
    images_per_class: int | None = None
    """Read of a folder of images, at most; None for all."""
    tap: str = "B4"
    """Where EfficientNet-Lite0 is cut to be the trunk."""
    pixels: int = 64
    """A side of the trunk's input, and of image files."""
    tune: bool = False
    """Whether rates of networks are chosen on held-out training images of the first order."""
    data: Path | None = None
    """A folder that has a folder for each public data set that a user has to get; None for the usual place."""

    def __post_init__(self) -> None:
        for name in self.methods:
            if name not in METHOD_NAMES:
                raise UnknownName("method", name, near=_near(name, METHOD_NAMES), known=METHOD_NAMES)
        if self.on != "pixels":
            self._check_tap()
        if not self.is_file and self.scenario not in SCENARIO_NAMES:
            near = _near(self.scenario, SCENARIO_NAMES)
            raise UnknownName("scenario", self.scenario, near=near, known=(*SCENARIO_NAMES, "or a file.toml"))

    def _check_tap(self) -> None:
        try:
            check_tap(self.tap, pixels=self.pixels)
        except UnknownTrunk as exc:
            if all(part.startswith(EFFICIENTNET_TAPS) for part in self.tap.split("+")):
                raise ScenarioUnusable(self.scenario, str(exc)) from exc
            known = (*EFFICIENTNET_TAPS, f"or several, such as {'+'.join(EFFICIENTNET_TAPS)}")
            raise UnknownName("tap", self.tap, near=_near(self.tap, EFFICIENTNET_TAPS), known=known) from exc

    @property
    def is_file(self) -> bool:
        """Whether the scenario is the user's own."""
        return self.scenario.endswith(".toml")

    @property
    def name(self) -> str:
        """Of what is written: of the file without its ending, or of the scenario."""
        return Path(self.scenario).stem if self.is_file else self.scenario

    def load(self, order: int, on_progress: Callable[[ReadingProgress], None]) -> Scenario:
        """The scenario in one order.

        Raises:
            ResourceAbsent: If data is missing that nobody can download for a user.
            ExpertsError: If the file or the data is not as it has to be.
        """
        if self.is_file:
            cache = platformdirs.user_cache_path("modulemesh") / "images"
            scenario = scenario_from_file(
                Path(self.scenario),
                order=order,
                images_per_class=self.images_per_class,
                cache=cache,
                on_progress=on_progress,
            )
        else:
            scenario = make_scenario(
                self.scenario,
                lambda name: load_dataset(
                    name,
                    self.data,
                    pixels=self.pixels,
                    images_per_class=self.images_per_class,
                    on_progress=on_progress,
                ),
                order=order,
            )
        return scenario.with_fewer(self.train_images, self.test_images)

    def chosen(self, scenario: Scenario, inputs: Inputs | None, given: Given | None = None) -> list[Method]:
        """The methods on this scenario.

        Args:
            inputs: The trunk's features; None if no method is to stand on a trunk.
            given: Settings of the networks; None for those of the benchmark.
        """
        methods = on_pixels(scenario, given=given) if self.on != "trunk" else []
        if inputs is not None:
            methods += on_features(scenario, inputs, given=given)
        return [method for method in methods if method.name in self.wanted]

    @property
    def wanted(self) -> frozenset[str]:
        """Names of the methods that are run."""
        if not self.methods:
            return frozenset(METHOD_NAMES)
        # What keeps as many bytes as experts do has to be told how many these are.
        return frozenset((*self.methods, *([ROUTED] if SAME_BYTES in self.methods else [])))


def _near(name: str, known: Sequence[str]) -> str | None:
    lowered = {one.lower(): one for one in known}
    found = difflib.get_close_matches(name.lower(), lowered, n=1)
    return lowered[found[0]] if found else None
