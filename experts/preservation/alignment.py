"""Two replicas that began differently, brought into one order of units, so that their mean means something.

Hidden units have no order: two nets of one architecture that were trained from different initial weights may compute
much the same with their units in different places, and the mean of their weights then computes nothing. Each unit of
the one is given the place of the unit of the other that answers most like it (Ainsworth et al. 2023, "Git Re-Basin",
arXiv:2209.04836, sec. 3.1, "matching activations"), by the same assignment as in a transfer.

Legend: N items, D feature.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from experts.architectures.base import Architecture
from experts.errors import NothingToLearnFrom, ShapeMismatch
from experts.preservation.chain import Chain, answers_by_item, bias_of, columns_by_unit
from experts.preservation.mapping import assign, correlation
from experts.preservation.reading import chain_of, write_chain
from experts.preservation.scores import unit_scores

__all__ = ["Alignment", "align"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Alignment:
    """What came of it."""

    module: nn.Module
    """Computes what it did before, its units in the reference's order; on the CPU."""
    correlations: dict[str, float]
    """Of each hidden layer: the mean over its units of how alike a pair answers, in [-1, 1]."""
    moved: dict[str, int]
    """Of each hidden layer: units that have another place than before."""


def align(
    architecture: Architecture,
    module: nn.Module,
    reference: nn.Module,
    features_ND: Tensor,
    *,
    generator: torch.Generator,
) -> Alignment:
    """Bring a replica's units into another one's order.

    Args:
        architecture: Of both.
        module: The replica; unchanged.
        reference: The other one; unchanged.
        features_ND: Items that both are for, without labels.
        generator: Draws the labels that the reference's scores are of.

    Raises:
        NothingCorresponds: The architecture does not say what its layers are for.
        NothingToLearnFrom: There are no items.
        ShapeMismatch: The features are not those that the replicas read.
    """
    chain, fixed = chain_of(architecture, module), chain_of(architecture, reference)
    if not len(features_ND):
        raise NothingToLearnFrom("the alignment's buffer")
    if features_ND.ndim != 2 or features_ND.shape[1] != chain.feature_dim:
        raise ShapeMismatch("features", expected=("N", chain.feature_dim), got=features_ND.shape)
    scores = unit_scores(fixed, features_ND, None, score="gate", kind="true", generator=generator)
    correlations, moved = {}, {}
    for index, stage in enumerate(chain.hidden):
        if stage.skip:  # its units are the features
            continue
        with torch.no_grad():
            # Anew for each layer: those before it have been put in order.
            alike_UV = correlation(
                answers_by_item(fixed.trace(features_ND)[index]), answers_by_item(chain.trace(features_ND)[index])
            )
        pairs = assign((1 + alike_UV) / 2, scores[index])
        order = torch.tensor([new for _, new in sorted(pairs)])
        _reorder(chain, index, order)
        correlations[stage.name] = float(alike_UV[torch.arange(len(order)), order].mean())
        moved[stage.name] = int((order != torch.arange(len(order))).sum())
    aligned = architecture.build("")
    write_chain(chain, architecture, aligned)
    return Alignment(module=aligned, correlations=correlations, moved=moved)


def _reorder(chain: Chain, index: int, order_U: Tensor) -> None:
    stage, after = chain.stages[index], chain.stages[index + 1]
    with torch.no_grad():
        columns_UIP = columns_by_unit(after.weights, stage.units)
        after.weights.weight.copy_(columns_UIP[:, order_U].reshape(after.weights.weight.shape))
        stage.weights.weight.copy_(stage.weights.weight[order_U])
        stage.weights.bias = nn.Parameter(bias_of(stage)[order_U])
        if stage.norm is not None:
            stage.norm.weight.copy_(stage.norm.weight[order_U])
            stage.norm.bias.copy_(stage.norm.bias[order_U])
