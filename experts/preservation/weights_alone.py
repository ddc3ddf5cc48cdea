"""What a file of weights says of its network when nothing but names and shapes is left of it.

Layers stand in the order of their names, numbers as numbers (``layers.10`` behind ``layers.2``). The chain is the dense
layers at the end of which each reads what the one before gives. What stood between them a file does not say: whoever
has it knows the activation.

Legend: C class, U units, I inputs.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from experts.errors import CorruptWeights, NothingCorresponds, SettingOutOfRange
from experts.preservation.chain import ACTIVATIONS, Chain, Stage, linear_layer
from experts.teachers.class_names import read_classes
from experts.teachers.network import InputForm, NetworkTeacher
from experts.teachers.weights import read_weights, refuse_pickle

__all__ = ["chain_of_tensors", "teacher_of_weights"]

_WEIGHT = "weight"


def chain_of_tensors(tensors: Mapping[str, Tensor], *, activation: str = "relu", layers: int | None = None) -> Chain:
    """The dense layers at the end of a network whose weights are all that is left.

    Args:
        tensors: By name: ``NAME.weight`` ``(U, I)``, and ``NAME.bias`` ``(U,)`` or none.
        activation: Between the layers: relu, gelu, silu, tanh or identity.
        layers: How many of them; None for all whose shapes fit.

    Raises:
        NothingCorresponds: There are not so many, or none; or a normalisation stands among them, of which the file does
            not say where it belongs.
        SettingOutOfRange: There is no such activation.
    """
    if activation not in ACTIVATIONS:
        raise SettingOutOfRange("activation", activation, allowed=", ".join(sorted(ACTIVATIONS)))
    stages: list[Stage] = []
    for name in sorted((name for name in tensors if _layer(name)), key=_natural, reverse=True):
        weight = tensors[name]
        if weight.ndim != 2 or (stages and weight.shape[0] != stages[0].weights.weight.shape[1]):
            break
        if layers is not None and len(stages) == layers:
            break
        bias = tensors.get(f"{_layer(name)}.bias")
        act = activation if stages else "identity"
        layer = linear_layer(weight.float(), None if bias is None else bias.float())
        stages.insert(0, Stage(_layer(name) or name, layer, activation=act))
    if not stages or (layers is not None and len(stages) < layers):
        wanted = "" if layers is None else f", not {layers}"
        raise NothingCorresponds(f"the weights end with {len(stages)} dense layers that fit each other{wanted}")
    return Chain(stages)


def teacher_of_weights(path: Path, *, classes: Path, activation: str = "relu") -> NetworkTeacher:
    """A teacher whose network is the dense layers of a file, of images in [0, 1] as one vector, channel by channel.

    Args:
        path: safetensors, by whatever program.
        classes: A name for each output.
        activation: Between the layers.

    Raises:
        NothingCorresponds: It holds no dense layers that fit each other, or the first does not read square images.
        MalformedTeacher: There are not as many classes as outputs.
        SettingOutOfRange: There is no such activation.
        PickleRefused: It is a pickle.
        CorruptWeights: It is not safetensors, or a weight is not finite.
    """
    refuse_pickle(path)
    tensors = read_weights(path)
    if broken := sorted(name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())):
        raise CorruptWeights(f"{path}: {broken[0]} has values that are not finite")
    chain = chain_of_tensors(tensors, activation=activation)
    names = read_classes(classes, num_classes=chain.output.units)
    for channels in (1, 3):
        pixels = math.isqrt(chain.inputs // channels)
        if channels * pixels**2 == chain.inputs:
            form = InputForm(channels=channels, pixels=pixels, mean=(0.0,) * channels, deviation=(1.0,) * channels)
            network = nn.Sequential(nn.Flatten(), chain)
            return NetworkTeacher(network, name=f"weights:{path}", architecture="chain", classes=names, form=form)
    raise NothingCorresponds(f"{chain.inputs} inputs are no square image, grey or in colour")


def _layer(name: str) -> str | None:
    """The layer that a tensor is the weight of; None if it is no weight."""
    layer, _, kind = name.rpartition(".")
    return layer if kind == _WEIGHT and layer else None


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part]
