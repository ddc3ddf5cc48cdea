"""Weights that make new units add up to what the old ones came to, on some items.

    W = W_map + argmin_D |T - (W_map + D) X|^2 + lambda |D|^2

Only what the mapped weights leave over is fitted, so that what the items say nothing about stays as it was mapped.

What counts of logits is their softmax, and squares spend what few units there are on differences that change nothing.
So the output goes on from there to less of

    tau^2 KL(softmax(t / tau) || softmax(z / tau)) + lambda |D|^2 / 4

which is convex, by majorisation: as its curvature in z is at most 1/2, one inverse gives steps each of which lowers it,
without a length to choose (Boehning 1992, doi:10.1007/BF00048682).

Legend: N items, I inputs of a stage, U its units, C class.
"""

import torch
from torch import Tensor, nn

from experts.preservation.affine import affine_fit
from experts.preservation.chain import Chain, bias_of

__all__ = ["refit", "refit_answers"]

_TEMPERATURE = 2.0
"""tau, that of distillation."""
_STEPS = 100
"""Of the majorisation: most is gained in the first ten, next to nothing after a hundred."""


def refit(chain: Chain, index: int, features_ND: Tensor, targets_NU: Tensor, *, rows_U: Tensor, ridge: float) -> None:
    """Solve a dense stage's weights anew, in place.

    Args:
        chain: The new one.
        index: Of the stage.
        features_ND: The items.
        targets_NU: What these rows of the stage should add up to, before normalisation and activation.
        rows_U: Which ones.
        ridge: lambda, relative to the mean variance of the inputs; above 0.
    """
    stage = chain.stages[index]
    assert isinstance(stage.weights, nn.Linear)
    with torch.no_grad():
        inputs_NI = chain.inputs_of(index, features_ND).double()
        weight_UI, bias_U = stage.weights.weight[rows_U].double(), bias_of(stage)[rows_U].double()
        left_NU = targets_NU.double() - (inputs_NI @ weight_UI.T + bias_U)
        change = affine_fit(inputs_NI, left_NU, ridge=ridge)
        stage.weights.weight[rows_U] = (weight_UI + change.weight_UI).float()
        stage.weights.bias[rows_U] = (bias_U + change.bias_U).float()


def refit_answers(chain: Chain, features_ND: Tensor, logits_NC: Tensor, *, rows_C: Tensor, ridge: float) -> None:
    """Bring the answers of a chain nearer to given ones, by its output's weights, in place.

    Args:
        chain: The new one, its output fitted to the logits already.
        features_ND: The items.
        logits_NC: Whose softmax is wanted.
        rows_C: Rows of the output that these are for; the others stay.
        ridge: lambda, as in `refit`, of what is changed here.
    """
    weights = chain.output.weights
    assert weights.bias is not None
    with torch.no_grad():
        inputs_NI = chain.inputs_of(len(chain.hidden), features_ND).double()
        mean_I = inputs_NI.mean(dim=0)
        centred_NI = inputs_NI - mean_I
        curvature_II = centred_NI.T @ centred_NI
        scale = ridge * curvature_II.trace() / len(curvature_II) + 1e-12
        curvature_II.diagonal().add_(scale)
        inverse_II = torch.linalg.inv(curvature_II)
        wanted_NC = torch.softmax(logits_NC.double() / _TEMPERATURE, dim=1)
        before_NC = inputs_NI @ weights.weight[rows_C].double().T + bias_of(chain.output)[rows_C].double()
        change_CI = torch.zeros(len(rows_C), inputs_NI.shape[1], dtype=torch.float64)
        offset_C = torch.zeros(len(rows_C), dtype=torch.float64)
        for _ in range(_STEPS):
            answers_NC = torch.softmax((before_NC + centred_NI @ change_CI.T + offset_C) / _TEMPERATURE, dim=1)
            left_NC = 2 * _TEMPERATURE * (wanted_NC - answers_NC)
            change_CI += (left_NC.T @ centred_NI - scale * change_CI) @ inverse_II
            offset_C += left_NC.mean(dim=0)
        weights.weight[rows_C] += change_CI.float()
        weights.bias[rows_C] += (offset_C - change_CI @ mean_I).float()
