"""The form of a spawned expert, within a budget of parameters.

    hidden = 8 + C units, or as many as the budget has room for

which is a little more than the 8 for two classes and the 16 for ten that serve on trunk features. Where the budget has
room for fewer than two units, a linear expert is the better use of it. The budget is of all that a task adds: the
columns of the router that speak for the expert, D + 1 parameters each, come off it first.

Legend: D feature, C class, R router's column.
"""

from experts.architectures.base import Architecture
from experts.architectures.linear import LinearArchitecture
from experts.architectures.mlp import MlpArchitecture
from experts.errors import SettingOutOfRange

__all__ = ["DEFAULT_MAX_PARAMETERS", "REFERENCE_PARAMETERS", "choose_architecture"]

REFERENCE_PARAMETERS = 156_042
"""Of the reference task model, which a task would take without experts."""

DEFAULT_MAX_PARAMETERS = REFERENCE_PARAMETERS * 8 // 100
"""Of a spawned expert with the router's columns for it: 8% of the reference."""


def choose_architecture(
    feature_dim: int, num_classes: int, *, max_parameters: int = DEFAULT_MAX_PARAMETERS, router_columns: int = 0
) -> Architecture:
    """The expert to make for a number of classes.

    Args:
        feature_dim: D, of the trunk.
        num_classes: C, at least 1.
        max_parameters: Weights and biases, the router's included.
        router_columns: R, that the router gets for it.

    Raises:
        SettingOutOfRange: If not even a linear expert is within the budget.
    """
    # (D + 1) H + (H + 1) C parameters.
    of_router = router_columns * (feature_dim + 1)
    room = (max_parameters - of_router - num_classes) // (feature_dim + 1 + num_classes)
    hidden = min(8 + num_classes, room)
    if hidden >= 2:
        return MlpArchitecture(feature_dim=feature_dim, hidden=hidden, num_classes=num_classes)
    linear = LinearArchitecture(feature_dim=feature_dim, num_classes=num_classes)
    least = linear.num_parameters + of_router
    if least > max_parameters:
        with_router = f" with {router_columns} columns of the router" if router_columns else ""
        allowed = f"at least the {least} of a linear expert for {num_classes} classes{with_router}"
        raise SettingOutOfRange("max_parameters", max_parameters, allowed=allowed)
    return linear
