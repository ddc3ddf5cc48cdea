"""Old experts, and the architectures that each is carried over to."""

from collections.abc import Mapping
from typing import NamedTuple

from experts.architectures.base import Architecture
from experts.architectures.conv import ConvArchitecture
from experts.architectures.deep import DeepArchitecture
from experts.architectures.linear import LinearArchitecture
from experts.architectures.mlp import MlpArchitecture

__all__ = ["FORMS", "Form", "OLD", "Old"]

_CLASSES = 10
_PIXELS, _FEATURES = 28 * 28, 240 * 3 * 3


class Old(NamedTuple):
    """An expert that is there already."""

    items: str
    """What it was trained on: ``fashion_pixels``, ``fashion_features`` or ``digits``."""
    architecture: Architecture


class Form(NamedTuple):
    """A new architecture."""

    old: str
    told: str
    architecture: Architecture


def _mlp(hidden: int, features: int = _PIXELS) -> MlpArchitecture:
    return MlpArchitecture(feature_dim=features, hidden=hidden, num_classes=_CLASSES)


_TWO_LAYERS = DeepArchitecture(feature_dim=_PIXELS, hidden=128, layers=2, num_classes=_CLASSES)

OLD: Mapping[str, Old] = {
    "pixels": Old("fashion_pixels", _mlp(128)),
    "pixels_deep": Old("fashion_pixels", _TWO_LAYERS),
    "trunk": Old("fashion_features", _mlp(32, _FEATURES)),
    "digits": Old("digits", _mlp(128)),
}

FORMS: Mapping[str, Form] = {
    "half": Form("pixels", "128 to 64 hidden units", _mlp(64)),
    "fifth": Form("pixels", "128 to 25 hidden units", _mlp(25)),
    "units_24": Form("pixels", "128 to 24 hidden units", _mlp(24)),
    "double": Form("pixels", "128 to 256 hidden units", _mlp(256)),
    "deeper": Form("pixels", "one hidden layer of 128 to two", _TWO_LAYERS),
    "gelu": Form(
        "pixels",
        "relu to gelu",
        DeepArchitecture(feature_dim=_PIXELS, hidden=128, layers=1, activation="gelu", num_classes=_CLASSES),
    ),
    "shallower": Form("pixels_deep", "two hidden layers of 128 to one", _mlp(128)),
    "trunk_half": Form("trunk", "32 to 16 hidden units", _mlp(16, _FEATURES)),
    "trunk_conv": Form(
        "trunk",
        "32 hidden units to filters of a 3 x 3 map",
        ConvArchitecture(channels=240, height=3, width=3, filters=32, num_classes=_CLASSES),
    ),
    "trunk_linear": Form(
        "trunk", "32 hidden units to none", LinearArchitecture(feature_dim=_FEATURES, num_classes=_CLASSES)
    ),
    "digits_half": Form("digits", "128 to 64 hidden units", _mlp(64)),
    "digits_fifth": Form("digits", "128 to 25 hidden units", _mlp(25)),
    "digits_double": Form("digits", "128 to 256 hidden units", _mlp(256)),
}
