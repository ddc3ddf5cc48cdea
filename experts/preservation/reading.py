"""From an architecture's module to its chain of units, and back.

Legend: D feature, C class.
"""

import torch
from torch import Tensor, nn

from experts.architectures.anatomy import Anatomy
from experts.architectures.base import Architecture
from experts.errors import NothingCorresponds
from experts.preservation.chain import (
    Chain,
    MeanOverPositions,
    Stage,
    bias_of,
    columns_by_unit,
    conv_layer,
    linear_layer,
)

__all__ = ["anatomy_of", "chain_of", "write_chain"]


def anatomy_of(architecture: Architecture) -> Anatomy:
    """What an architecture's layers are for.

    Raises:
        NothingCorresponds: It does not say so.
    """
    if architecture.anatomy is None:
        raise NothingCorresponds(f"the kind {architecture.kind!r} does not say what its layers are for (anatomy)")
    return architecture.anatomy


def chain_of(architecture: Architecture, module: nn.Module) -> Chain:
    """The chain that computes what an expert's module does, with weights of its own.

    Raises:
        NothingCorresponds: The architecture does not say what its layers are for.
    """
    anatomy = anatomy_of(architecture)
    own: dict[str, Tensor] = dict(module.named_parameters())
    stages = []
    for role in anatomy.roles:
        weight = module.get_parameter(f"{role.name}.weight").detach().cpu()
        bias = own.get(f"{role.name}.bias")
        # Units of a stage without a bias may get one from what is merged into them.
        bias = torch.zeros(len(weight)) if bias is None else bias.detach().cpu()
        weights = linear_layer(weight, bias) if weight.ndim == 2 else conv_layer(weight, bias)
        norm = None
        if role.norm is not None:
            norm = nn.LayerNorm(len(weight), device="meta")
            norm.weight = nn.Parameter(module.get_parameter(f"{role.norm}.weight").detach().cpu().clone())
            norm.bias = nn.Parameter(module.get_parameter(f"{role.norm}.bias").detach().cpu().clone())
        after = MeanOverPositions() if role.pooled else None
        stages.append(Stage(role.name, weights, activation=role.activation, norm=norm, after=after, skip=role.skip))
    return Chain(stages, input_scale=anatomy.input_scale, input_map=anatomy.input_map)


def write_chain(chain: Chain, architecture: Architecture, module: nn.Module) -> None:
    """Set a module's parameters to those of a chain of the same stages and sizes.

    A bias that the module has no place for becomes part of the next one, which is the same where no activation is
    between the two, as in the built-in kinds.
    """
    own = dict(module.named_parameters())
    passed_on: Tensor | None = None
    with torch.no_grad():
        for role, stage in zip(anatomy_of(architecture).roles, chain.stages, strict=True):
            bias = bias_of(stage)
            if passed_on is not None:
                bias = bias + columns_by_unit(stage.weights, len(passed_on)).sum(dim=2) @ passed_on
            own[f"{role.name}.weight"].copy_(stage.weights.weight)
            passed_on = None if f"{role.name}.bias" in own else bias
            if passed_on is None:
                own[f"{role.name}.bias"].copy_(bias)
            if role.norm is not None and stage.norm is not None:
                own[f"{role.norm}.weight"].copy_(stage.norm.weight)
                own[f"{role.norm}.bias"].copy_(stage.norm.bias)
