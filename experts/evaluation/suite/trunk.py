"""The frozen trunk that all methods of a study stand on: calibrated on the first task, its features made beforehand."""

from collections.abc import Callable

from experts.evaluation.features import FeatureStore
from experts.evaluation.inputs import TrunkInputs
from experts.evaluation.scenarios.base import Scenario
from experts.trunk.base import set_normalisation
from experts.trunk.efficientnet import load_efficientnet

__all__ = ["trunk_inputs"]


def trunk_inputs(
    scenario: Scenario,
    store: FeatureStore,
    *,
    tap: str,
    pixels: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> TrunkInputs:
    """The features of all images of a scenario, so that no method's seconds hold what others find ready; FLOPs do.

    Args:
        scenario: Of its first task the training images calibrate the trunk.
        store: Where features are kept.
        tap: Of EfficientNet-Lite0.
        pixels: A side, of the trunk's input.
        on_progress: Called after each part with how many parts are done, of how many; None for nobody.
    """
    trunk = load_efficientnet(tap, pixels=pixels)
    set_normalisation(trunk, [store.section(trunk, scenario.tasks[0].train.images)])
    inputs = TrunkInputs(trunk, store.features)
    parts = [part for task in scenario.tasks for part in (task.train, task.test)]
    for number, part in enumerate(parts, 1):
        inputs(part.images)
        if on_progress is not None:
            on_progress(number, len(parts))
    return inputs
