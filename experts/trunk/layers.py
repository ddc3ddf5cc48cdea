"""Layers as data: what a peer can build without the library that a network came from.

A network is a list of JSON objects, each one layer with its sizes, in the order of execution:

    conv      in, out, kernel, stride, padding ("same": as TensorFlow pads), groups; with bias
    linear    in, out; with bias
    relu, relu6, flatten
    pool      cells: average over a grid of cells x cells
    residual  layers: x + f(x), f the inner list

From the list alone follow the shape of what comes out and what it costs, so that a list from a peer is refused before
it takes memory or time.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from experts.architectures.base import MAX_PARAMETERS
from experts.errors import UnknownTrunk
from experts.networks.efficientnet_lite0 import SameConv

__all__ = ["MAX_VALUES", "build_layers", "output_shape"]

MAX_VALUES = 8_000_000
"""Numbers that one image may become at any layer: half a gigabyte of float32 for the 16 that a trunk takes at a time.
efficientnet-lite0 at 512 px has 6.3 million."""
_MAX_PRODUCTS = 20_000_000_000
"""Multiply-accumulates an image: fifty times efficientnet-lite0 at 224 px; seconds on one core."""
_MAX_LAYERS = 512
"""In all, inner ones included; efficientnet-lite0 has 105."""
_MAX_SIZE = 65_536
"""Of channels and features."""
_KIND = "section"


def build_layers(layers: Sequence[object], input_shape: tuple[int, int, int]) -> nn.Sequential:
    """The network, whose weights are not set; on the meta device it takes no memory.

    Raises: UnknownTrunk: If the list is not of this form, or exceeds what `output_shape` allows.
    """
    output_shape(layers, input_shape)
    return _build(layers)


def output_shape(layers: Sequence[object], input_shape: tuple[int, int, int]) -> tuple[int, ...]:
    """What an image of ``input_shape`` (C, H, W) becomes: (C, H, W) or (D,).

    Raises: UnknownTrunk: If the list is not of this form, two layers do not fit each other, or they ask for
        more than `MAX_VALUES` at a time, 16 million parameters or 20 billion multiply-accumulates.
    """
    cost = _Cost()
    return _shape_after(layers, input_shape, cost)


class _Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = x + self.layers(x)
        return y


class _Cost:
    """What a list has asked for so far."""

    def __init__(self) -> None:
        self.layers = self.parameters = self.products = 0

    def add(self, shape: tuple[int, ...], *, parameters: int, products: int) -> tuple[int, ...]:
        """Raises UnknownTrunk beyond a limit; returns the shape."""
        self.layers += 1
        self.parameters += parameters
        self.products += products
        too_large = (
            (self.layers > _MAX_LAYERS, f"more than {_MAX_LAYERS} layers"),
            (self.parameters > MAX_PARAMETERS, f"more than {MAX_PARAMETERS} parameters"),
            (self.products > _MAX_PRODUCTS, f"more than {_MAX_PRODUCTS} multiply-accumulates an image"),
            (math.prod(shape) > MAX_VALUES, f"{shape} after a layer"),
        )
        for exceeded, reason in too_large:
            if exceeded:
                raise UnknownTrunk(_KIND, reason=reason)
        return shape


def _shape_after(layers: Sequence[object], shape: tuple[int, ...], cost: _Cost) -> tuple[int, ...]:
    for layer in layers:
        match layer:
            case {"layer": "residual", "layers": list(inner), **rest} if not rest:
                # Before looking in: how deep a peer's list goes must not be how deep this function does.
                if any(isinstance(step, dict) and step.get("layer") == "residual" for step in inner):
                    raise UnknownTrunk(_KIND, reason="a residual within another")
                after = _shape_after(inner, cost.add(shape, parameters=0, products=0), cost)
                if after != shape:
                    raise UnknownTrunk(_KIND, reason=f"a residual of shape {after} to {shape}")
            case dict():
                shape = _one_shape(layer, shape, cost)
            case _:
                raise UnknownTrunk(_KIND, reason=f"{layer!r} is no layer")
    return shape


def _one_shape(layer: Mapping[str, Any], shape: tuple[int, ...], cost: _Cost) -> tuple[int, ...]:
    match layer, shape:
        case {"layer": "conv"}, (channels, height, width):
            sizes = _sizes(layer, {"in": _MAX_SIZE, "out": _MAX_SIZE, "kernel": 16, "stride": 8, "groups": _MAX_SIZE})
            side, stride, groups = sizes["kernel"], sizes["stride"], sizes["groups"]
            after = [_conv_length(length, side, stride, layer["padding"]) for length in (height, width)]
            fits = sizes["in"] == channels and channels % groups == 0 and sizes["out"] % groups == 0
            if fits and min(after) >= 1:
                weights = sizes["out"] * channels // groups * side**2
                products = weights * after[0] * after[1]
                return cost.add((sizes["out"], *after), parameters=weights + sizes["out"], products=products)
        case {"layer": "linear"}, (features,):
            sizes = _sizes(layer, {"in": MAX_PARAMETERS, "out": _MAX_SIZE})
            if sizes["in"] == features:
                weights = features * sizes["out"]
                return cost.add((sizes["out"],), parameters=weights + sizes["out"], products=weights)
        case {"layer": "relu" | "relu6"}, _ if len(layer) == 1:
            return cost.add(shape, parameters=0, products=0)
        case {"layer": "flatten"}, _ if len(layer) == 1:
            return cost.add((math.prod(shape),), parameters=0, products=0)
        case {"layer": "pool"}, (channels, _, _):
            cells = _sizes(layer, {"cells": 64})["cells"]
            return cost.add((channels, cells, cells), parameters=0, products=0)
    raise UnknownTrunk(_KIND, reason=f"{dict(layer)!r} on a tensor of shape {shape}")


def _sizes(layer: Mapping[str, Any], limits: Mapping[str, int]) -> dict[str, int]:
    """The layer's sizes, each from 1 to its limit; `padding` is read with the shape."""
    expected = {"layer", *limits} | ({"padding"} if layer["layer"] == "conv" else set())
    if layer.keys() != expected:
        raise UnknownTrunk(_KIND, reason=f"keys {sorted(map(str, layer))} of a layer")
    for name, most in limits.items():
        if type(layer[name]) is not int or not 1 <= layer[name] <= most:
            raise UnknownTrunk(_KIND, reason=f"{name} = {layer[name]!r}")
    return {name: layer[name] for name in limits}


def _conv_length(length: int, side: int, stride: int, padding: object) -> int:
    if padding == "same":
        return -(-length // stride)
    if type(padding) is not int or not 0 <= padding < side:
        raise UnknownTrunk(_KIND, reason=f"padding = {padding!r}")
    return (length + 2 * padding - side) // stride + 1


def _build(layers: Sequence[Any]) -> nn.Sequential:
    return nn.Sequential(*map(_layer, layers))


def _layer(layer: Mapping[str, Any]) -> nn.Module:
    """A layer that `output_shape` has checked."""
    match layer["layer"]:
        case "residual":
            built: nn.Module = _Residual(_build(layer["layers"]))
        case "conv":
            built = _conv(layer)
        case "linear":
            built = nn.Linear(layer["in"], layer["out"])
        case "pool":
            built = nn.AdaptiveAvgPool2d(layer["cells"])
        case "flatten":
            built = nn.Flatten()
        case "relu":
            built = nn.ReLU()
        case _:
            built = nn.ReLU6()
    return built


def _conv(layer: Mapping[str, Any]) -> nn.Conv2d:
    channels, kernel, stride, groups = (layer["in"], layer["out"]), layer["kernel"], layer["stride"], layer["groups"]
    if layer["padding"] == "same":
        return SameConv(*channels, kernel=kernel, stride=stride, groups=groups)
    return nn.Conv2d(*channels, kernel, stride=stride, padding=layer["padding"], groups=groups)
