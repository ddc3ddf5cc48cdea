"""What a whole network knows, as a chain that can be taken apart: the dense layers at its end, behind a frozen section.

    logits(x) = chain(z(x))        z the section's output, which the first of these layers reads

The layers are found by running the network and watching, so that nothing is assumed of how it is written: two of them
follow each other if what the one gives, normalised and activated perhaps, is what the other gets.

A mesh whose trunk is that section uses the chain as it is. For any other trunk its first layer is translated, by a
ridge regression on what both see of the same images.

Legend: N items, D features of z, E features of the trunk, C class.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from experts.errors import NothingCorresponds, ShapeMismatch
from experts.preservation.affine import affine_fit
from experts.preservation.chain import ACTIVATIONS, Chain, Stage, linear_layer

__all__ = ["Tail", "answering", "dense_tail", "inputs_of", "translated"]

_BATCH = 32
"""Images at a time, as when a teacher scores them; bounds memory."""


class Tail(NamedTuple):
    """The end of a network."""

    chain: Chain
    features_ND: Tensor
    """z of the images it was looked at with."""
    first: str
    """Path of its first layer: the section is all before it."""


class _Call(NamedTuple):
    path: str
    module: nn.Module
    inputs: Tensor
    output: Tensor


def dense_tail(network: nn.Module, images_NCHW: Tensor, *, layers: int | None = None) -> Tail:
    """The dense layers that a network ends with.

    Args:
        network: In evaluation mode, from images to logits ``(N, C)``.
        images_NCHW: As the network takes them, one at least.
        layers: How many of them; None for all that follow each other directly.

    Raises:
        NothingCorresponds: The network does not end with so many, or with none.
    """
    calls, reached = _watched(network, images_NCHW)
    stages: list[Stage] = []
    first: _Call | None = None
    while calls and (layers is None or len(stages) < layers):
        activation, norm = _activation(calls[-1], reached), None
        if isinstance(calls[-1].module, nn.LayerNorm | nn.BatchNorm1d):
            norm = calls.pop()
        if not calls or activation is None or not isinstance(calls[-1].module, nn.Linear):
            break
        call = calls.pop()
        # The logits are the network's own, and a token's layer is none of a vector's.
        if (not stages and activation != "identity") or call.inputs.ndim != 2 or not _follows(call, norm):
            break
        stages.insert(0, _stage(call, norm, activation))
        first, reached = call, call.inputs
    if first is None or (layers is not None and len(stages) < layers):
        wanted = "" if layers is None else f", not with {layers}"
        raise NothingCorresponds(f"the network ends with {len(stages)} dense layers that follow each other{wanted}")
    return Tail(Chain(stages), first.inputs, first.path)


def inputs_of(network: nn.Module, first: str, images_NCHW: Tensor) -> Tensor:
    """z of images: what a layer gets, ``(N, D)``.

    Args:
        network: As for `dense_tail`.
        first: The layer's path.
        images_NCHW: As the network takes them.
    """
    seen: list[Tensor] = []

    def note(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].detach().clone())

    hook = network.get_submodule(first).register_forward_pre_hook(note)
    try:
        with torch.no_grad():
            for batch_BCHW in torch.split(images_NCHW, _BATCH):
                network(batch_BCHW)
    finally:
        hook.remove()
    return torch.cat(seen)


def answering(chain: Chain, inputs_ND: Tensor, logits_NC: Tensor, *, ridge: float = 1e-3) -> Chain:
    """The chain with an output for other classes: a ridge regression of their logits on its last hidden units.

    Args:
        chain: Its hidden stages stay as they are.
        inputs_ND: z of some images.
        logits_NC: What it is to answer on them, such as a capability's, whose classes are unions of the network's.
        ridge: Regulariser, relative to the mean variance of the units; above 0.
    """
    with torch.no_grad():
        fit = affine_fit(chain.inputs_of(len(chain.hidden), inputs_ND), logits_NC, ridge=ridge)
    output = Stage(chain.output.name, linear_layer(fit.weight_UI.float(), fit.bias_U.float()))
    return chain.with_stages([*chain.hidden, output])


def translated(chain: Chain, inputs_ND: Tensor, features_NE: Tensor, *, ridge: float = 1e-3) -> Chain:
    """The chain behind another trunk: its first layer reads the trunk's features in the place of z.

        W z + b ~ W' h + b'

    Args:
        chain: Its first stage dense.
        inputs_ND: z of some images; some thousand make it good.
        features_NE: The trunk's features h of the same images.
        ridge: Regulariser, relative to the mean variance of the features; above 0.

    Raises:
        ShapeMismatch: The chain does not read such inputs, or there are not as many features.
    """
    if inputs_ND.ndim != 2 or inputs_ND.shape[1] != chain.feature_dim:
        raise ShapeMismatch("inputs", expected=("N", chain.feature_dim), got=inputs_ND.shape)
    if features_NE.ndim != 2 or len(features_NE) != len(inputs_ND):
        raise ShapeMismatch("features", expected=(len(inputs_ND), "E"), got=features_NE.shape)
    with torch.no_grad():
        fit = affine_fit(features_NE, chain.sums_of(0, inputs_ND), ridge=ridge)
    first = chain.stages[0]
    weights = linear_layer(fit.weight_UI.float(), fit.bias_U.float())
    return Chain([Stage(first.name, weights, activation=first.activation, norm=first.norm), *chain.stages[1:]])


def _watched(network: nn.Module, images_NCHW: Tensor) -> tuple[list[_Call], Tensor]:
    """The calls of layers that a tail is made of, in order, and the logits."""
    calls: list[_Call] = []
    paths = {module: path for path, module in network.named_modules()}

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append(_Call(paths[module], module, inputs[0].detach().clone(), output.detach().clone()))

    watched = [module for module in paths if isinstance(module, nn.Linear | nn.LayerNorm | nn.BatchNorm1d)]
    hooks = [module.register_forward_hook(note) for module in watched]
    try:
        with torch.no_grad():
            logits: Tensor = network(images_NCHW)
    finally:
        for hook in hooks:
            hook.remove()
    return calls, logits


def _activation(call: _Call, reached: Tensor) -> str | None:
    """What turns a call's output into what the next one got; None if nothing that is known does."""
    if call.output.shape != reached.shape:
        return None
    # The identity first: an output without negative values passes a relu as well.
    for name in sorted(ACTIVATIONS, key=lambda each: each != "identity"):
        if torch.equal(ACTIVATIONS[name](call.output), reached):
            return name
    return None


def _follows(call: _Call, norm: _Call | None) -> bool:
    return norm is None or (call.output.shape == norm.inputs.shape and torch.equal(call.output, norm.inputs))


def _stage(call: _Call, norm: _Call | None, activation: str) -> Stage:
    assert isinstance(call.module, nn.Linear)
    weight, bias = call.module.weight.detach(), call.module.bias
    layer = linear_layer(weight.cpu(), None if bias is None else bias.cpu())
    match None if norm is None else norm.module:
        case nn.BatchNorm1d() as batch:
            scale_U, shift_U = _fixed(batch)
            assert layer.bias is not None
            layer = linear_layer(scale_U[:, None] * layer.weight, scale_U * layer.bias + shift_U)
            return Stage(call.path, layer, activation=activation)
        case nn.LayerNorm() as own:
            kept = nn.LayerNorm(layer.out_features, eps=own.eps)
            if own.elementwise_affine:
                kept.load_state_dict(own.state_dict(), strict=False)
            return Stage(call.path, layer, activation=activation, norm=kept)
        case _:
            return Stage(call.path, layer, activation=activation)


def _fixed(norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Factor and summand of each unit, once nothing is learned any more."""
    if norm.running_mean is None or norm.running_var is None:
        raise NothingCorresponds("a batch normalisation without running statistics computes something else each time")
    scale_U = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale_U = scale_U * norm.weight.detach()
    shift_U = -scale_U * norm.running_mean
    if norm.bias is not None:
        shift_U = shift_U + norm.bias.detach()
    return scale_U.cpu(), shift_U.cpu()
