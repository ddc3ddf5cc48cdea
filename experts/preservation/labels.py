"""Whose classes the loss is of, when importance is scored: those of the data, or those that the model itself draws.

Legend: B batch, C class, N samples.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from experts.errors import SettingOutOfRange, ShapeMismatch, UndefinedFigure

__all__ = ["FisherKind", "labels_of"]

FisherKind = Literal["empirical", "true"]
"""`empirical`: the data's labels. `true`: drawn from softmax(logits), which gives the Fisher information proper
(Kunstner et al. 2019, arXiv:1905.12558). The empirical one vanishes where the model is sure of the labels that
it was fitted to."""

_ROWS = 256
"""Of one forward pass, when labels are drawn."""


def labels_of(
    module: nn.Module, inputs: Tensor, labels_N: Tensor | None, *, kind: FisherKind, generator: torch.Generator | None
) -> Tensor:
    """A class for each sample.

    Args:
        module: In evaluation mode; maps ``(N, ...)`` to logits ``(N, C)``.
        inputs: ``(N, ...)``.
        labels_N: int64, columns of the logits; `true` passes over them.
        generator: On the CPU; `true` draws N numbers from it, and only `true` needs it.

    Returns: int64 ``(N,)``, each in [0, C), on the inputs' device.

    Raises:
        ShapeMismatch: Labels are not ``(N,)``, or logits not ``(N, C)``.
        SettingOutOfRange: A label is not a column of the logits.
        UndefinedFigure: There are no samples, `empirical` has no labels, or `true` no generator.
    """
    if len(inputs) == 0:
        raise UndefinedFigure("Fisher information", reason="there are no samples")
    with torch.no_grad():
        logits_BC = module(inputs[:1])
    if logits_BC.ndim != 2:
        raise ShapeMismatch("logits", expected=("N", "C"), got=logits_BC.shape)
    if kind == "true":
        if generator is None:
            raise UndefinedFigure("Fisher information", reason="the true one draws labels, and has no generator to")
        return _drawn(module, inputs, generator)
    if labels_N is None:
        raise UndefinedFigure("Fisher information", reason="the empirical one has no labels")
    if labels_N.shape != (len(inputs),):
        raise ShapeMismatch("labels", expected=(len(inputs),), got=labels_N.shape)
    num_classes = logits_BC.shape[1]
    for label in (int(labels_N.min()), int(labels_N.max())):
        if not 0 <= label < num_classes:
            raise SettingOutOfRange("labels_N", label, allowed=f"a column of the logits, 0 to {num_classes - 1}")
    return labels_N.to(inputs.device)


def _drawn(module: nn.Module, inputs: Tensor, generator: torch.Generator) -> Tensor:
    """By the inverse of the distribution: one number a sample, so that how samples are grouped changes no label."""
    uniform_N = torch.rand(len(inputs), generator=generator, dtype=torch.float64).to(inputs.device)
    drawn = []
    for start in range(0, len(inputs), _ROWS):
        rows = slice(start, start + _ROWS)
        with torch.no_grad():
            cumulative_BC = torch.softmax(module(inputs[rows]).double(), dim=-1).cumsum(dim=-1)
        # The last of the sums may be a rounding below 1.
        below_B = (cumulative_BC <= uniform_N[rows, None]).sum(dim=-1)
        drawn.append(below_B.clamp(max=cumulative_BC.shape[1] - 1))
    return torch.cat(drawn)
