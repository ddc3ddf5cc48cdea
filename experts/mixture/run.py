"""Training experts and router together: the standard mixture of experts that modular training is measured against.

    L = -1/B sum_b log sum_i g_i(x_b) E_i(x_b)_label + lambda_t R_spec + lambda_b balance
    lambda_t = lambda min(1, t / warmup_steps)                                       t steps taken

with soft gates (`task_loss`, `regularisers`). Nobody says which expert is for what: an expert gets the gradient of the
rows it already answers best, times its gate, and the router that of asking whoever answered best.

Balance comes first, specialization after it. With lambda at its value from the first step on, the weighted entropies
lock in the classes that the initial router happens to send the same way, several to one expert, before the experts
differ; and there they stay. The slope of the two terms in a class's share q_ci of expert i is

    N_E (lambda (log pi_i - log q_ci) + lambda_b log pi_i) + constant

so that for a class that expert i has nothing of, the lambda term pushes back the first row that would come, however
idle i is. While lambda is small only balance pulls, and rows cross.

Legend: B batch, N items, D feature, E expert, C class.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from experts.data.dataset import class_columns
from experts.descent import DescentRun
from experts.errors import NothingToLearnFrom, ShapeMismatch
from experts.mixture.model import Mixture
from experts.optimizers import Adam
from experts.router.regularisers import RegulariserConfig, regularisation_loss
from experts.router.task_loss import mixture_cross_entropy

__all__ = ["MixtureRun", "mixture_loss"]


def mixture_loss(
    logits_BE: Tensor, log_p_BEC: Tensor, columns_B: Tensor, *, tau: float, regulariser: RegulariserConfig | None
) -> Tensor:
    """The loss of a batch; gradients flow to router and experts.

    Args:
        logits_BE: f_R ``(B, E)``.
        log_p_BEC: log E_i ``(B, E, C)``, nats.
        columns_B: The label of each row, int64 ``(B,)`` in [0, C).
        tau: Temperature of the gates, above 0.
        regulariser: What is added; None for the task loss alone.

    Returns: Scalar, nats.

    Raises:
        ShapeMismatch: If the tensors do not fit each other.
    """
    if log_p_BEC.ndim != 3 or log_p_BEC.shape[:2] != logits_BE.shape:
        raise ShapeMismatch("log-probabilities", expected=(*logits_BE.shape, "C"), got=tuple(log_p_BEC.shape))
    log_likelihood_BE = log_p_BEC[torch.arange(len(columns_B)), :, columns_B]
    loss = mixture_cross_entropy(logits_BE, log_likelihood_BE, tau)
    if regulariser is not None:
        loss = loss + regularisation_loss(torch.softmax(logits_BE / tau, dim=1), columns_B, regulariser)
    return loss


class MixtureRun(DescentRun):
    """End-to-end training of one mixture; see `DescentRun` for how it is advanced, saved and continued."""

    def __init__(
        self, mixture: Mixture, features_ND: Tensor, labels: Sequence[str], generator: torch.Generator
    ) -> None:
        """
        Args:
            mixture: Trained in place, as its config says.
            features_ND: Trunk features, float32 ``(N, D)``.
            labels: N class names, at least one, all of the mixture's classes.
            generator: Draws the batches, and belongs to this run alone.

        Raises:
            NothingToLearnFrom: If there is no item.
            UnknownClasses: If a label is not one of the mixture's classes.
            ShapeMismatch: If there is not one label a row.
        """
        adam = Adam(dict(mixture.named_parameters()))
        super().__init__(mixture, adam, generator, steps=mixture.config.steps, lr=mixture.config.lr)
        if not labels:
            raise NothingToLearnFrom("mixture")
        if len(features_ND) != len(labels):
            raise ShapeMismatch("features", expected=(len(labels), "D"), got=tuple(features_ND.shape))
        self.mixture = mixture
        self._features_ND = features_ND
        self._columns_N = class_columns(labels, mixture.classes)

    def _loss(self) -> Tensor:
        config = self.mixture.config
        # With replacement, so that the generator is the whole state of the draw.
        rows_B = torch.randint(len(self._columns_N), (config.batch_size,), generator=self._generator)
        logits_BE, log_p_BEC = self.mixture(self._features_ND[rows_B])
        return mixture_loss(
            logits_BE, log_p_BEC, self._columns_N[rows_B], tau=config.tau, regulariser=self._regulariser()
        )

    def _regulariser(self) -> RegulariserConfig | None:
        """The config's, with lambda_t for lambda."""
        config = self.mixture.config
        if config.regulariser is None or self.steps_done >= config.warmup_steps:
            return config.regulariser
        risen_ratio = self.steps_done / config.warmup_steps
        return dataclasses.replace(config.regulariser, lambda_s=config.regulariser.lambda_s * risen_ratio)

    def _terms(self) -> dict[str, object]:
        terms: dict[str, object] = dataclasses.asdict(self.mixture.config)
        # No step depends on how many are to follow, or on how many experts will be asked.
        del terms["steps"], terms["top_k"]
        terms["classes"] = list(self.mixture.classes)
        terms["num_items"] = len(self._columns_N)
        return terms
