"""How much a unit matters: the importance that decides which units go on in a smaller architecture.

    gate            E_n[ (sum_p a_nup dL_n/da_nup)^2 ]
    fisher_sum      sum of I(theta) over the unit's parameters                          (proposal, section 2.4, step 1)
    fisher_theta2   sum of I(theta) theta^2 over the unit's parameters
    magnitude       sum of theta^2 over those that lead to the unit, times that over those that lead on

`gate` is the Fisher information of a gate of 1 by which the unit's output a is multiplied: how much the loss notices if
it begins to close (Theis et al. 2018, arXiv:1801.05787, "Fisher pruning", but for their factor 1/2; Molchanov et al.
2019, arXiv:1906.10771). A map has one gate, hence the sum over its positions p before the square. Behind a ReLU, a unit
with larger weights before it and as much smaller ones behind it computes the same: only `fisher_sum` tells the two
apart. It is the reason why `magnitude` is a product.

A unit's parameters are the weights that lead to it, its bias, the gain and bias of its normalisation, and its columns
in the next stage. The units of the last stage are the classes, which lead nowhere: only what leads to them counts.

Legend: B batch, U units of a stage, N samples.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Literal, assert_never

import torch
from torch import Tensor, nn

from experts.preservation.chain import Chain
from experts.preservation.fisher import FisherKind, fisher_diagonal
from experts.preservation.labels import labels_of

__all__ = ["ScoreName", "unit_scores"]

ScoreName = Literal["gate", "fisher_sum", "fisher_theta2", "magnitude"]

_ROWS = 256
"""Of one pass: the largest maps that an architecture may give are then 64 MiB a stage."""


def unit_scores(
    chain: Chain,
    inputs: Tensor,
    labels_N: Tensor | None,
    *,
    score: ScoreName = "gate",
    kind: FisherKind = "empirical",
    generator: torch.Generator | None = None,
) -> list[Tensor]:
    """The importance of each stage's units, the classes' too.

    Args:
        chain: Stays as it is.
        inputs: Features ``(N, D)``; `magnitude` passes over them and over all that follows.
        labels_N: int64, columns of the logits; `true` passes over them.
        score: Of the above.
        kind: Whose labels the loss is of.
        generator: Of the labels that `true` draws, on the CPU.

    Returns: For each stage float64 ``(U,)``, >= 0. Scores of different stages, or of different names, are in units of
        their own.

    Raises:
        ShapeMismatch, SettingOutOfRange, UndefinedFigure: As `fisher_diagonal`, but not for `magnitude`.
    """
    match score:
        case "gate":
            return _gates(chain, inputs, labels_N, kind, generator)
        case "fisher_sum" | "fisher_theta2":
            values = fisher_diagonal(chain, inputs, labels_N, kind=kind, generator=generator)
            if score == "fisher_theta2":
                values = {name: values[name] * squared for name, squared in _squares(chain).items()}
            return _by_unit(chain, values, torch.add)
        case "magnitude":
            return _by_unit(chain, _squares(chain), torch.mul)
    assert_never(score)


@torch.enable_grad()  # also for a caller who serves without
def _gates(
    chain: Chain, inputs: Tensor, labels_N: Tensor | None, kind: FisherKind, generator: torch.Generator | None
) -> list[Tensor]:
    # A copy, which requires gradients also where the chain's own parameters are frozen.
    own = copy.deepcopy(chain).eval().requires_grad_()
    labels_N = labels_of(own, inputs, labels_N, kind=kind, generator=generator)
    sums = [torch.zeros(stage.units, dtype=torch.float64) for stage in own.stages]
    for start in range(0, len(inputs), _ROWS):
        rows = slice(start, start + _ROWS)
        outputs = own.trace(inputs[rows])
        loss = nn.functional.cross_entropy(outputs[-1].double(), labels_N[rows], reduction="sum")
        for index, gradients in enumerate(torch.autograd.grad(loss, outputs)):
            products = outputs[index].detach().double() * gradients.double()
            sums[index] += products.reshape(*products.shape[:2], -1).sum(dim=2).square().sum(dim=0)
    return [total_U / len(inputs) for total_U in sums]


def _squares(chain: Chain) -> dict[str, Tensor]:
    return {name: parameter.detach().double().square() for name, parameter in chain.named_parameters()}


def _by_unit(chain: Chain, values: Mapping[str, Tensor], joined: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
    """What parameters come to at their units: those that lead to a unit summed, and joined with those that lead on.

    Args:
        values: By parameter name, of the parameter's shape.
    """
    value_of: dict[Tensor, Tensor] = {parameter: values[name].double() for name, parameter in chain.named_parameters()}
    stages, scores = chain.stages, []
    for index, stage in enumerate(stages):
        layers = [stage.weights] if stage.norm is None else [stage.weights, stage.norm]
        leading_to = [value_of[parameter] for layer in layers for parameter in layer.parameters()]
        score_U = torch.stack([value.reshape(stage.units, -1).sum(dim=1) for value in leading_to]).sum(dim=0)
        if index + 1 < len(stages):
            leading_on = value_of[stages[index + 1].weights.weight]
            columns = leading_on.reshape(len(leading_on), stage.units, -1)
            score_U = joined(score_U, columns.sum(dim=(0, 2)))
        scores.append(score_U)
    return scores
