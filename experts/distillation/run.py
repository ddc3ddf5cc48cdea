"""A distillation run: an expert descends what labels, teachers and its own old generation say, by plain SGD.

    L_CL = L_new + gamma L_distill_old          (proposal, section 2.5)
    theta <- theta - lr_t dL_CL/dtheta          lr_t constant, or falling to 0 along half a cosine

The old generation of the expert is the teacher of L_distill_old, on replayed items. How the run is advanced, saved
and continued: `experts.descent`.

Legend: B batch, N items, D feature, C class (the student's columns).
"""

import dataclasses

import torch
from torch import Tensor, nn

from experts.descent import DescentRun
from experts.distillation.config import DistillationConfig
from experts.distillation.data import DistillationData
from experts.distillation.loss import distillation_loss
from experts.optimizers import Sgd, cosine_rate

__all__ = ["DistillationRun"]


class DistillationRun(DescentRun):
    """Training of one expert; see `DescentRun` for how it is advanced, saved and continued."""

    def __init__(
        self,
        module: nn.Module,
        data: DistillationData,
        config: DistillationConfig,
        generator: torch.Generator,
        *,
        replay: DistillationData | None = None,
    ) -> None:
        """
        Args:
            module: The student; maps features ``(B, D)`` to logits ``(B, C)``, and draws no random numbers.
            data: What is new.
            config: How to train.
            generator: Draws the batches, and belongs to this run alone.
            replay: What must not be forgotten; see `DistillationData.from_old_generation`.
        """
        super().__init__(module, Sgd(dict(module.named_parameters())), generator, steps=config.steps, lr=config.lr)
        self.module = module
        self.config = config
        self._data = data
        self._replay = replay

    def _loss(self) -> Tensor:
        loss = self._batch_loss(self._data)
        if self._replay is not None:
            loss = loss + self.config.gamma * self._batch_loss(self._replay)
        return loss

    def _rate(self) -> float:
        if not self.config.decay:
            return super()._rate()
        return cosine_rate(self.config.lr, done=self.steps_done, steps=self.config.steps)

    def _terms(self) -> dict[str, object]:
        terms: dict[str, object] = dataclasses.asdict(self.config)
        if not self.config.decay:
            # No step depends on how many are to follow. Runs that were saved before rates decayed have neither word.
            del terms["steps"], terms["decay"]
        terms["optimizer"] = "sgd"
        terms["num_items"] = len(self._data.features_ND)
        terms["num_replayed"] = 0 if self._replay is None else len(self._replay.features_ND)
        return terms

    def _batch_loss(self, data: DistillationData) -> Tensor:
        # With replacement, so that the generator is the whole state of the draw.
        rows = torch.randint(len(data.features_ND), (self.config.batch_size,), generator=self._generator)
        return distillation_loss(
            self._logits(data.features_ND[rows]),
            None if data.teacher_logits_NC is None else data.teacher_logits_NC[rows],
            None if data.labels_N is None else data.labels_N[rows],
            self.config.alpha,
            self.config.temperature,
            data.teacher_weights_J,
        )

    def _logits(self, features_BD: Tensor) -> Tensor:
        if not self.config.mixed_precision:
            logits_BC: Tensor = self.module(features_BD)
            return logits_BC
        # bfloat16 has float32's exponents: no gradient underflows, so no loss needs to be scaled.
        with torch.autocast(features_BD.device.type, dtype=torch.bfloat16):
            logits_BC = self.module(features_BD)
        return logits_BC.float()
