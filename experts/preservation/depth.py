"""The same function with more layers, or nearly the same with fewer.

A new layer that passes on what it gets changes nothing (Chen et al. 2016, "Net2Net", arXiv:1511.05641, sec. 2.2). A
layer is taken out by putting the straight line that comes nearest to each unit in its place.

Legend: N items, D feature, U unit, C class, R units of a bottleneck.
"""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from experts.errors import NothingCorresponds
from experts.preservation.chain import ACTIVATIONS, Chain, Stage, bias_of, linear_layer

__all__ = ["IDENTITY", "lengthened", "shortened", "with_correction", "without_correction"]

IDENTITY = "identity"
"""Name of an inserted stage."""

_LEAST: Mapping[str, float] = {"relu": 0.0, "gelu": -0.17, "silu": -0.2785, "tanh": -1.0}
"""Below which no activation of this kind falls."""

_SCALE: Mapping[str, float] = {"relu": 1.0, "gelu": 2.0, "silu": 2.0, "tanh": 0.5, "identity": 1.0}
"""f(a x) / a is nearer to x with a larger a, with a smaller one for tanh; but in a layer whose values or whose next
weights are many times as large as usual, the first steps of training go too far."""


def lengthened(chain: Chain, activation: str) -> Chain:
    """The chain with one more hidden stage, the last, that passes on what the units before it answer.

    For relu this is exact: values that may be negative are shifted, and shifted back by the output's bias. Other
    activations pass on large or small values only nearly as they are. Behind the bare features, or units without an
    activation, which have no least value, each class gets a unit for its logit and one for the negative, of which the
    output takes the difference: for relu, gelu and silu, f(z) - f(-z) = z.

    Args:
        chain: Whose stages are all dense, but the first perhaps.
        activation: Of the new stage.
    """
    if not chain.hidden or chain.hidden[-1].activation == "identity":
        return _in_pairs(chain, activation)
    before, output = chain.hidden[-1], chain.output
    scale, shift = _SCALE[activation], -_LEAST[before.activation] if activation == "relu" else 0.0
    new = linear_layer(scale * torch.eye(before.units), torch.full((before.units,), shift))
    weight = output.weights.weight.detach() / scale
    bias = bias_of(output) - shift * weight.sum(dim=1)
    last = Stage(output.name, linear_layer(weight, bias))
    return chain.with_stages([*copy.deepcopy(chain.hidden), Stage(IDENTITY, new, activation=activation), last])


def _in_pairs(chain: Chain, activation: str) -> Chain:
    weight, bias = chain.output.weights.weight.detach(), bias_of(chain.output)
    classes = torch.eye(len(weight))
    if activation in {"tanh", "identity"}:
        scale = _SCALE[activation]
        hidden, output = linear_layer(scale * weight, scale * bias), linear_layer(classes / scale, None)
    else:
        hidden = linear_layer(torch.cat([weight, -weight]), torch.cat([bias, -bias]))
        output = linear_layer(torch.cat([classes, -classes], dim=1), None)
    new, last = Stage(IDENTITY, hidden, activation=activation), Stage(chain.output.name, output)
    return chain.with_stages([*copy.deepcopy(chain.hidden), new, last])


def shortened(chain: Chain, features_ND: Tensor) -> Chain:
    """The chain without the hidden stage whose loss changes the logits least.

    Args:
        chain: Whose stages are dense, without normalisation.
        features_ND: On which units are looked at.
    """
    with torch.no_grad():
        logits_NC = chain(features_ND)
        shorter = [_without(chain, index, features_ND) for index in range(len(chain.hidden))]
        return min(shorter, key=lambda each: float((each(features_ND) - logits_NC).square().mean()))


def _without(chain: Chain, index: int, features_ND: Tensor) -> Chain:
    stage, after = chain.stages[index], chain.stages[index + 1]
    sums_NU = chain.sums_of(index, features_ND)
    answers_NU = ACTIVATIONS[stage.activation](sums_NU)
    centred_NU = sums_NU - sums_NU.mean(dim=0)
    slope_U = (centred_NU * answers_NU).sum(dim=0) / centred_NU.square().sum(dim=0).clamp_min(1e-12)
    offset_U = answers_NU.mean(dim=0) - slope_U * sums_NU.mean(dim=0)
    through = after.weights.weight * slope_U
    bias = bias_of(after) + through @ bias_of(stage) + after.weights.weight @ offset_U
    merged = Stage(after.name, linear_layer(through @ stage.weights.weight, bias), activation=after.activation)
    stages = copy.deepcopy(chain.stages)
    return chain.with_stages([*stages[:index], merged, *stages[index + 2 :]])


def with_correction(chain: Chain, bottleneck: Stage, correction: Stage) -> Chain:
    """A linear chain behind a correction of its features that does not correct anything yet.

    Args:
        chain: Of one stage.
        bottleneck: Random, of the new architecture.
        correction: Likewise; its weights are left out.

    Raises:
        NothingCorresponds: The chain has hidden units: they answer classes, and correct no features.
    """
    if chain.hidden:
        raise NothingCorresponds("hidden units answer for classes, those of an adapter correct the features")
    idle = linear_layer(torch.zeros_like(correction.weights.weight), None)
    stages = [copy.deepcopy(bottleneck), Stage(correction.name, idle, skip=True), copy.deepcopy(chain.output)]
    return chain.with_stages(stages)


def without_correction(chain: Chain) -> Chain:
    """The same function with one hidden stage in the place of a bottleneck and what it adds to the features.

        U (x + P f(V x + a)) + b = U P f(V x + a) + (U x + b)

    The second part is a linear function of the features, in pairs of units as in `lengthened`.
    """
    if len(chain.stages) != 3 or not chain.stages[1].skip:
        return chain
    bottleneck, correction, output = chain.stages
    weight_CD, classes = output.weights.weight.detach(), torch.eye(output.units)
    own = torch.zeros(output.units)
    hidden = linear_layer(
        torch.cat([bottleneck.weights.weight, weight_CD, -weight_CD]), torch.cat([bias_of(bottleneck), own, own])
    )
    bias = bias_of(output) + weight_CD @ bias_of(correction)
    last = linear_layer(torch.cat([weight_CD @ correction.weights.weight, classes, -classes], dim=1), bias)
    return chain.with_stages([Stage(bottleneck.name, hidden, activation="relu"), Stage(output.name, last)])
