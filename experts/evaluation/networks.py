"""The networks that methods of the evaluation train, each a function from input and classes to a module.

Weights are uniform in +-sqrt(6 / (fan-in + fan-out)), biases 0 (Glorot and Bengio 2010, "Understanding the difficulty
of training deep feedforward neural networks", PMLR 9).

Legend: B batch, C class.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from experts.materialise import materialise
from experts.teachers.cnn import untrained_cnn

__all__ = ["NetworkForm", "feature_head", "mlp_100_100", "reference_cnn", "without_classifier"]

NetworkForm = Callable[[tuple[int, ...], Sequence[str], torch.Generator], nn.Module]
"""From the shape of one image's input, the names of the classes and a generator of initial weights to a module whose
forward maps ``(B, *shape)`` to logits ``(B, C)``."""

HEAD_HIDDEN = 64
"""Of `feature_head`: between what five experts of two classes (40 units) and five of ten classes (80) have together."""

_HEAD_SCALE = 0.3
"""On features, as `MlpArchitecture`'s: SGD at a learning rate of .05 is stable with it."""


def mlp_100_100(shape: tuple[int, ...], classes: Sequence[str], generator: torch.Generator) -> nn.Module:
    """Two hidden layers of 100 on raw pixels, what MNIST's family is usually compared on.

    As in Lopez-Paz and Ranzato 2017 (arXiv:1706.08840, sec. 4) and Buzzega et al. 2020 (arXiv:2004.07211, sec. 4).
    """
    return _initialised(
        lambda: nn.Sequential(nn.Flatten(), *_layers([math.prod(shape), 100, 100, len(classes)])), generator
    )


def feature_head(shape: tuple[int, ...], classes: Sequence[str], generator: torch.Generator) -> nn.Module:
    """One hidden layer on trunk features."""
    return _initialised(
        lambda: nn.Sequential(_Scaled(), *_layers([math.prod(shape), HEAD_HIDDEN, len(classes)])), generator
    )


def reference_cnn(shape: tuple[int, ...], classes: Sequence[str], generator: torch.Generator) -> nn.Module:
    """The reference CNN on raw pixels; its columns are the classes in sorted order, and so must ``classes`` be."""
    return untrained_cnn(classes, channels=shape[0], pixels=shape[1], generator=generator)


def without_classifier(network: nn.Module) -> nn.Module:
    """All layers but the last, with the same weights: what gives the last one its input.

    Args:
        network: Of `mlp_100_100` or `feature_head`.
    """
    assert isinstance(network, nn.Sequential), "the network is no sequence of layers"
    return network[:-1]


class _Scaled(nn.Module):
    """A fixed factor."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * _HEAD_SCALE


def _layers(sizes: Sequence[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return layers[:-1]


def _initialised(build: Callable[[], nn.Module], generator: torch.Generator) -> nn.Module:
    # On the meta device torch's own initialisation draws nothing from the global stream.
    with torch.device("meta"):
        network = build()
    materialise(network)
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
    return network
