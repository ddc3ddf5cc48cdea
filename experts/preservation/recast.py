"""Stages of another type, as near as the type allows: dense layers and convolutions, normalised or not.

Both types of first layer read the same map of features, and a unit is a pattern to be found in it. A dense unit expects
it at one place, a filter anywhere; what the two have in common is how they respond, on average, to each channel.

Legend: N items, D feature, U unit, C channel, H height, W width.
"""

import copy
import itertools
from typing import NamedTuple

import torch
from torch import Tensor, nn

from experts.errors import NothingCorresponds
from experts.preservation.affine import affine_fit
from experts.preservation.chain import (
    ACTIVATIONS,
    Chain,
    MeanOverPositions,
    Stage,
    answers_by_item,
    bias_of,
    columns_by_unit,
    conv_layer,
    linear_layer,
)

__all__ = ["with_activation", "with_convolution", "with_dense_input", "with_input_scale", "with_norm", "without_norm"]

_EPS = 1e-6

_RIDGE = 1e-2
"""Relative to the mean variance of the inputs: a map's channels are many, and a buffer's items few."""

_SCALES = (0.5, 1.0, 2.0)
"""Of what comes before an activation that is put in the place of another."""


def with_input_scale(chain: Chain, input_scale: float) -> Chain:
    """The same function of features that are multiplied by another factor."""
    ratio = chain.input_scale / input_scale
    stages = copy.deepcopy(chain.stages)
    with torch.no_grad():
        stages[0].weights.weight.mul_(ratio)
        for stage, after in itertools.pairwise(stages):
            if stage.skip:  # what is added to the features must keep its proportion to them
                for parameter in stage.weights.parameters():
                    parameter.div_(ratio)
                after.weights.weight.mul_(ratio)
    return Chain(stages, input_scale=input_scale, input_map=chain.input_map)


def with_dense_input(chain: Chain) -> Chain:
    """The chain with a dense first stage in the place of a convolution.

    A dense unit is the mean of what the filter answers over all positions, before the activation: exact where a filter
    is active either everywhere or nowhere.
    """
    first = chain.stages[0]
    if not isinstance(first.weights, nn.Conv2d) or chain.input_map is None:
        return chain
    channels, height, width = chain.input_map
    conv = first.weights
    probe_CCHW = torch.zeros(1, channels, height, width, requires_grad=True)
    with torch.enable_grad():
        response_U = nn.functional.conv2d(probe_CCHW, conv.weight.detach(), padding=conv.padding).mean(dim=(0, 2, 3))
        rows = [torch.autograd.grad(each, probe_CCHW, retain_graph=True)[0].reshape(-1) for each in response_U]
    stages = copy.deepcopy(chain.stages)
    bias = None if conv.bias is None else conv.bias.detach()
    stages[0] = Stage(first.name, linear_layer(torch.stack(rows), bias), activation=first.activation)
    return Chain(stages, input_scale=chain.input_scale)


def with_convolution(chain: Chain, input_map: tuple[int, int, int], kernel: int, features_ND: Tensor) -> Chain:
    """The chain with a convolution in the place of a dense first stage.

    Filters look at their centres alone, with the weights by which the mean of each channel over all positions tells
    best what the dense unit adds up to, wherever in the map that expected its pattern.

    Args:
        chain: Its features are the map, flattened.
        input_map: Channels, height and width.
        kernel: Side length of the filters, odd.
        features_ND: On which units are looked at.

    Raises:
        NothingCorresponds: The features are no such map.
    """
    if chain.feature_dim != input_map[0] * input_map[1] * input_map[2]:
        raise NothingCorresponds(f"{chain.feature_dim} features are no map of {' x '.join(map(str, input_map))}")
    first = chain.stages[0]
    with torch.no_grad():
        means_NC = chain.scaled(features_ND).reshape(len(features_ND), *input_map).mean(dim=(2, 3))
        fit = affine_fit(means_NC, chain.sums_of(0, features_ND), ridge=_RIDGE)
    weight = torch.zeros(first.units, input_map[0], kernel, kernel)
    weight[:, :, kernel // 2, kernel // 2] = fit.weight_UI.float()
    conv = conv_layer(weight, fit.bias_U.float())
    stages = copy.deepcopy(chain.stages)
    stages[0] = Stage(first.name, conv, activation=first.activation, after=MeanOverPositions())
    return Chain(stages, input_scale=chain.input_scale, input_map=input_map)


def with_activation(chain: Chain, index: int, activation: str, features_ND: Tensor) -> Chain:
    """The chain with another activation behind a hidden stage, each unit's answers as near as a straight line brings
    them to what they were, with what comes before the activation as it is, halved or doubled.
    """
    stage = chain.stages[index]
    if stage.activation == activation:
        return chain
    stages = copy.deepcopy(chain.stages)
    with torch.no_grad():
        sums = chain.sums_of(index, features_ND)
        sums = sums if stage.norm is None else stage.norm(sums)
        wanted_NU = answers_by_item(ACTIVATIONS[stage.activation](sums))
        fits = [_line(answers_by_item(ACTIVATIONS[activation](scale * sums)), wanted_NU) for scale in _SCALES]
        best_U = torch.stack([fit.error_U for fit in fits]).argmin(dim=0)
        scale_U = torch.tensor(_SCALES)[best_U]
        every_U = torch.arange(stage.units)
        slope_U = torch.stack([fit.slope_U for fit in fits])[best_U, every_U]
        offset_U = torch.stack([fit.offset_U for fit in fits])[best_U, every_U]
        norm = stages[index].norm
        scaled: nn.Module = stages[index].weights if norm is None else norm
        for parameter in scaled.parameters():
            parameter.mul_(scale_U.reshape(-1, *[1] * (parameter.ndim - 1)))
        after = stages[index + 1].weights
        columns_UIP = columns_by_unit(after, stage.units)
        bias = bias_of(stages[index + 1]) + columns_UIP.sum(dim=2) @ offset_U
        after.weight.copy_((columns_UIP * slope_U[:, None]).reshape(after.weight.shape))
        after.bias = nn.Parameter(bias)
    stages[index].activation = activation
    return chain.with_stages(stages)


class _Line(NamedTuple):
    slope_U: Tensor
    offset_U: Tensor
    error_U: Tensor


def _line(values_NU: Tensor, wanted_NU: Tensor) -> _Line:
    """The straight line through each unit's values that comes nearest to what is wanted."""
    mean_U, wanted_U = values_NU.mean(dim=0), wanted_NU.mean(dim=0)
    variance_U = (values_NU - mean_U).square().mean(dim=0)
    slope_U = ((values_NU - mean_U) * (wanted_NU - wanted_U)).mean(dim=0) / variance_U.clamp_min(_EPS)
    offset_U = wanted_U - slope_U * mean_U
    return _Line(slope_U, offset_U, (slope_U * values_NU + offset_U - wanted_NU).square().mean(dim=0))


def without_norm(chain: Chain, index: int, features_ND: Tensor) -> Chain:
    """The chain with a stage's layer normalisation taken into its weights.

    Taking the mean over units away is linear and exact; of the deviation, which differs from item to item, the mean of
    its inverse is taken.
    """
    stage = chain.stages[index]
    if stage.norm is None or not isinstance(stage.weights, nn.Linear):
        return chain
    with torch.no_grad():
        sums_NU = chain.sums_of(index, features_ND)
        factor_U = stage.norm.weight * (sums_NU.var(dim=1, unbiased=False) + stage.norm.eps).rsqrt().mean()
        weight, bias = stage.weights.weight, bias_of(stage)
        centred = weight - weight.mean(dim=0), bias - bias.mean()
        weights = linear_layer(factor_U[:, None] * centred[0], factor_U * centred[1] + stage.norm.bias)
    stages = copy.deepcopy(chain.stages)
    stages[index] = Stage(stage.name, weights, activation=stage.activation, after=stage.after, skip=stage.skip)
    return chain.with_stages(stages)


def with_norm(chain: Chain, index: int, features_ND: Tensor) -> Chain:
    """The chain with a layer normalisation behind a stage's weights that changes as little as it can.

    Its gain is the mean deviation over units, its bias their mean, so that most items come out as they went in.
    """
    stage = chain.stages[index]
    if stage.norm is not None:
        return chain
    norm = nn.LayerNorm(stage.units)
    with torch.no_grad():
        sums_NU = chain.sums_of(index, features_ND)
        norm.weight.fill_(sums_NU.var(dim=1, unbiased=False).sqrt().mean().clamp_min(_EPS))
        norm.bias.fill_(sums_NU.mean())
    stages = copy.deepcopy(chain.stages)
    stages[index].norm = norm
    return chain.with_stages(stages)
