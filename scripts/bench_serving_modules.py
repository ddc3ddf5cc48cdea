"""The expert that everybody serves and the features it is asked about, the same in all processes.

Legend: B batch, D feature, C class.
"""

from collections.abc import Mapping
from functools import cache

import numpy as np
import torch
from torch import nn

from experts.architectures.base import probabilities
from experts.architectures.mlp import MlpArchitecture
from experts.generators import portable_uniform

__all__ = ["CLASSES", "FEATURES", "HIDDEN", "P2P_SETTINGS", "architecture", "features_of", "local_answer", "module_of"]

FEATURES = 256
"""D: a row is 1 KB of float32."""

CLASSES = 2
HIDDEN = 8

P2P_SETTINGS: Mapping[str, bool] = {"use_relay": False, "auto_nat": False, "nat_port_map": False}
"""Of every rival's hivemind.P2P: what our own transport switches off too."""


def architecture(hidden: int = HIDDEN) -> MlpArchitecture:
    """The form of the expert; of another width where it is to be heavy."""
    return MlpArchitecture(feature_dim=FEATURES, hidden=hidden, num_classes=CLASSES)


@cache
def module_of(uid: str) -> nn.Module:
    """The module of this uid with its initial weights, which the uid determines."""
    return architecture().build(uid)


def features_of(rows: int) -> np.ndarray:
    """Features, float32 ``(rows, D)``."""
    return portable_uniform("bench", f"features/{rows}", (rows, FEATURES)).numpy().astype(np.float32)


def local_answer(uid: str, features_BD: np.ndarray) -> np.ndarray:
    """What the expert answers, ``(B, C)``, computed here."""
    return np.asarray(probabilities(module_of(uid), torch.from_numpy(features_BD)).numpy())
