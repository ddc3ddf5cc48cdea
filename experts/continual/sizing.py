"""The form of a spawned expert, within a budget of parameters.

    hidden = 6 + C units, or as many as the budget has room for

which is the 8 for two classes and the 16 for ten that serve on trunk features. Where the budget has room for fewer than
two units, a linear expert is the better use of it.

Legend: D feature, C class.
"""

from experts.architectures.base import Architecture
from experts.architectures.linear import LinearArchitecture
from experts.architectures.mlp import MlpArchitecture
from experts.errors import SettingOutOfRange

__all__ = ["DEFAULT_MAX_PARAMETERS", "REFERENCE_PARAMETERS", "choose_architecture"]

REFERENCE_PARAMETERS = 156_042
"""Of the reference task model, which a task would take without experts."""

DEFAULT_MAX_PARAMETERS = REFERENCE_PARAMETERS * 8 // 100
"""Of a spawned expert: 8% of the reference."""


def choose_architecture(
    feature_dim: int, num_classes: int, *, max_parameters: int = DEFAULT_MAX_PARAMETERS
) -> Architecture:
    """The expert to make for a number of classes.

    Args:
        feature_dim: D, of the trunk.
        num_classes: C, at least 1.
        max_parameters: Weights and biases.

    Raises:
        SettingOutOfRange: If not even a linear expert is within the budget.
    """
    # (D + 1) H + (H + 1) C parameters.
    room = (max_parameters - num_classes) // (feature_dim + 1 + num_classes)
    hidden = min(6 + num_classes, room)
    if hidden >= 2:
        return MlpArchitecture(feature_dim=feature_dim, hidden=hidden, num_classes=num_classes)
    linear = LinearArchitecture(feature_dim=feature_dim, num_classes=num_classes)
    if linear.num_parameters > max_parameters:
        allowed = f"at least the {linear.num_parameters} of a linear expert for {num_classes} classes"
        raise SettingOutOfRange("max_parameters", max_parameters, allowed=allowed)
    return linear
