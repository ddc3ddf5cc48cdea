"""What a router, or router and experts together, are trained for: that the mixture's output names the true class.

    L_task = -1/B sum_b log y_b(label),   y_b(label) = sum_i g_i(x_b) E_i(x_b)_label,   g = softmax(f_R(x) / tau)

with soft gates: a gate that the top-k mask cut off has no gradient, so an expert not chosen could never be.

For fixed experts, dL/dl_i = (g_i - r_i) / (B tau) with r_i = g_i E_i(label) / y the expert's responsibility: the
router learns to ask whoever would have answered rightly. Where just one expert knows the label, r is one-hot and this
is the cross-entropy of that expert's gate; where several do, nobody has to decide beforehand whose row it is (Jacobs
et al. 1991, "Adaptive mixtures of local experts",
doi:10.1162/neco.1991.3.1.79).

Legend: B batch, E expert.
"""

import torch
from torch import Tensor

from experts.errors import ShapeMismatch

__all__ = ["mixture_cross_entropy"]


def mixture_cross_entropy(logits_BE: Tensor, log_likelihood_BE: Tensor, tau: float) -> Tensor:
    """-log y(label), mean over the batch, computed from logarithms: an answer of probability 0 stays finite in sum.

    Args:
        logits_BE: f_R ``(B, E)``; gradients flow here.
        log_likelihood_BE: log E_i(x)_label ``(B, E)``, at most 0, -inf where the expert does not know the label;
            gradients flow here too. Above -inf at least once in a row.
        tau: Temperature of the gates, above 0.

    Returns: Scalar, nats.

    Raises:
        ShapeMismatch: If the two differ in shape.
    """
    if logits_BE.ndim != 2 or logits_BE.shape != log_likelihood_BE.shape:
        raise ShapeMismatch("expert logits", expected=tuple(log_likelihood_BE.shape), got=tuple(logits_BE.shape))
    return -torch.logsumexp(torch.log_softmax(logits_BE / tau, dim=1) + log_likelihood_BE, dim=1).mean()
