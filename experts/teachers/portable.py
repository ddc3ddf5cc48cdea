"""Which sections of a teacher can travel: those that are a sequence of layers every peer can build.

What leads to a cut is written as data (`experts.trunk.layers`) that peers build without the library it came from. Our
own networks are such sequences. Of a module of another library only its own code says what it computes, and code does
not travel: its sections serve on this machine alone.
"""

from collections.abc import Sequence

from torch import nn

from experts.errors import SectionNotPortable
from experts.networks.efficientnet_lite0 import InvertedResidual, SameConv
from experts.networks.head import split_cut
from experts.teachers.cnn import CnnTeacher

__all__ = ["layers_of", "layers_up_to"]


def layers_up_to(network: nn.Module, cut: str) -> list[nn.Module]:
    """The layers, one after another, that lead from a network's input to a cut.

    Raises: SectionNotPortable: If the way there is no such sequence.
    """
    path, call = split_cut(cut)
    if call > 1:
        raise SectionNotPortable(cut, reason="a layer is used twice")
    return _steps(network, path.split("."), cut)


def layers_of(steps: Sequence[nn.Module], cut: str) -> list[dict[str, object]]:
    """The layers as data.

    Args:
        steps: As from `layers_up_to`.
        cut: For the error.
    Raises: SectionNotPortable: If one is no layer that the data can say.
    """
    return [_describe(step, cut) for step in steps]


def _steps(module: nn.Module, path: Sequence[str], cut: str) -> list[nn.Module]:
    if not path:
        return [module]
    inner, rest = path[0], path[1:]
    # Of these two it is known that `layers` is where the input goes first.
    if isinstance(module, InvertedResidual | CnnTeacher) and inner == "layers":
        return _steps(module.layers, rest, cut) if rest else _flat(module.layers)
    if isinstance(module, nn.Sequential) and _is_plain_sequence(module):
        # Not named_children: it leaves out a layer that is there for the second time.
        children = dict(zip(module._modules, module, strict=True))
        before = list(children)[: list(children).index(inner)]
        steps = [child for name in before for child in _flat(children[name])]
        if rest:
            return [*steps, *_steps(children[inner], rest, cut)]
        return [*steps, *_flat(children[inner])]
    raise SectionNotPortable(cut, reason=f"{type(module).__name__} is not a sequence of layers known to every peer")


def _flat(module: nn.Module) -> list[nn.Module]:
    if isinstance(module, InvertedResidual) and not module.residual:
        return _flat(module.layers)
    if isinstance(module, nn.Sequential) and _is_plain_sequence(module):
        return [step for child in module for step in _flat(child)]
    return [module]


def _is_plain_sequence(module: nn.Sequential) -> bool:
    """Whether the module is its parts one after another, whatever it is called."""
    return type(module).forward is nn.Sequential.forward


def _describe(step: nn.Module, cut: str) -> dict[str, object]:
    # A subclass of torch's layer may compute anything, so types are compared exactly.
    layer: dict[str, object]
    match step:
        case InvertedResidual():
            layer = {"layer": "residual", "layers": layers_of(list(step.layers), cut)}
        case nn.Conv2d() if type(step) in (nn.Conv2d, SameConv) and _is_plain(step):
            layer = {
                "layer": "conv",
                "in": step.in_channels,
                "out": step.out_channels,
                "kernel": step.kernel_size[0],
                "stride": step.stride[0],
                "padding": "same" if isinstance(step, SameConv) else step.padding[0],
                "groups": step.groups,
            }
        case nn.Linear() if type(step) is nn.Linear and step.bias is not None:
            layer = {"layer": "linear", "in": step.in_features, "out": step.out_features}
        case nn.ReLU() | nn.ReLU6() if type(step) in (nn.ReLU, nn.ReLU6):
            layer = {"layer": "relu6" if isinstance(step, nn.ReLU6) else "relu"}
        case nn.Flatten() if (step.start_dim, step.end_dim) == (1, -1):
            layer = {"layer": "flatten"}
        case nn.AdaptiveAvgPool2d() if type(step.output_size) is int:
            layer = {"layer": "pool", "cells": step.output_size}
        case _:
            name = type(step).__name__
            raise SectionNotPortable(cut, reason=f"{name} is none of the layers that every peer can build")
    return layer


def _is_plain(conv: nn.Conv2d) -> bool:
    """Whether a convolution is given by what the data says of it."""
    square = conv.kernel_size[0] == conv.kernel_size[1] and conv.stride[0] == conv.stride[1]
    padded = isinstance(conv, SameConv) or (
        isinstance(conv.padding, tuple) and conv.padding[0] == conv.padding[1] and conv.padding_mode == "zeros"
    )
    return square and padded and conv.dilation == (1, 1) and conv.bias is not None
