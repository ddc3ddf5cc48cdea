"""Training the small-net router on fixed experts: task loss, specialization, and replay against forgetting.

    L = L_task + lambda R_spec + lambda_b balance + gamma (alpha L_task' + (1 - alpha) T^2 KL(g_old || g))

after the proposal's L_router (section 2.3) and L_CL (section 2.5). L_task is the cross-entropy of the mixture's output
under soft gates (`task_loss`), the experts fixed; a prime marks replayed items. There the old generation of the
router is the teacher; it knows nothing of experts that came later, so both distributions are renormalised over those
it does know, and the labels of replayed items say what is to be asked of the new ones. The regulariser is taken over
new and replayed items together: of a task's own classes alone, balance would spread them over all experts.

Legend: B batch, N items, D feature, E expert.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from experts.data.dataset import class_columns
from experts.descent import DescentRun
from experts.distillation.loss import align_logits, distillation_loss
from experts.errors import NothingToLearnFrom, SettingOutOfRange, ShapeMismatch
from experts.local import LocalExpert, label_log_likelihoods
from experts.optimizers import Adam
from experts.router.mlp_net import MlpRouter
from experts.router.regularisers import WEIGHTED, RegulariserConfig, regularisation_loss
from experts.router.task_loss import mixture_cross_entropy

__all__ = ["MlpRouter", "MlpRouterConfig", "MlpRouterRun", "RouterData"]


@dataclass(frozen=True, kw_only=True, slots=True)
class MlpRouterConfig:
    """How the router is trained.

    Raises:
        SettingOutOfRange: If a field is outside its range.
    """

    steps: int = 600
    """Steps, at least 1."""

    batch_size: int = 64
    """Items drawn per step, with replacement, at least 1; as many again from replay."""

    lr: float = 1e-3
    """Learning rate of Adam, above 0."""

    tau: float = 1.0
    """Temperature of the gates it is trained for, above 0."""

    regulariser: RegulariserConfig | None = WEIGHTED
    """lambda R_spec + lambda_b balance; None for the task loss alone."""

    gamma: float = 1.0
    """Weight of the replay term, at least 0."""

    alpha: float = 1.0
    """Within replay, weight of the labels against the old generation, in [0, 1]; without one the labels stand alone.
    Where every replayed item has a label they say more: the old gates know nothing of experts that came later."""

    temperature: float = 2.0
    """T of the old generation's gates, above 0."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise SettingOutOfRange(name, getattr(self, name), allowed="at least 1")
        for name in ("lr", "tau", "temperature"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise SettingOutOfRange(name, getattr(self, name), allowed="finite and above 0")
        if not 0.0 <= self.gamma < float("inf"):
            raise SettingOutOfRange("gamma", self.gamma, allowed="finite and at least 0")
        if not 0.0 <= self.alpha <= 1.0:
            raise SettingOutOfRange("alpha", self.alpha, allowed="in [0, 1]")


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class RouterData:
    """Items to learn routing from: what each expert makes of each.

    Raises:
        NothingToLearnFrom: If there is no item.
        ShapeMismatch: If the fields do not fit each other.
    """

    features_ND: Tensor
    """Trunk features, float32 ``(N, D)``."""

    labels: tuple[str, ...]
    """N class names; the regulariser asks which rows are of one class."""

    uids: tuple[str, ...]
    """E expert uids, sorted: the columns of ``log_likelihood_NE``."""

    log_likelihood_NE: Tensor
    """log E_i(x) of the label, -inf where the expert does not know it; above -inf at least once in a row."""

    def __post_init__(self) -> None:
        if not self.labels:
            raise NothingToLearnFrom("router data")
        if self.features_ND.ndim != 2 or len(self.features_ND) != len(self.labels):
            raise ShapeMismatch("features", expected=(len(self.labels), "D"), got=tuple(self.features_ND.shape))
        expected = (len(self.labels), len(self.uids))
        if tuple(self.log_likelihood_NE.shape) != expected:
            raise ShapeMismatch("log-likelihood", expected=expected, got=tuple(self.log_likelihood_NE.shape))

    @classmethod
    def from_experts(
        cls, features_ND: Tensor, labels: Sequence[str], experts: Mapping[str, LocalExpert]
    ) -> "RouterData":
        """Items as answered by the experts, asked once, here.

        Raises:
            UnknownClasses: If no expert answers for a label.
            NothingToLearnFrom: As the class.
            ShapeMismatch: As the class, or if the features do not fit an expert.
        """
        uids, log_likelihood_NE = label_log_likelihoods(experts, features_ND, labels)
        return cls(features_ND=features_ND, labels=tuple(labels), uids=uids, log_likelihood_NE=log_likelihood_NE)


class MlpRouterRun(DescentRun):
    """Training of one router; see `DescentRun` for how it is advanced, saved and continued."""

    def __init__(
        self,
        router: MlpRouter,
        data: RouterData,
        config: MlpRouterConfig,
        generator: torch.Generator,
        *,
        replay: RouterData | None = None,
        old: MlpRouter | None = None,
    ) -> None:
        """
        Args:
            router: Trained in place; knows exactly the experts of the data.
            data: What is new.
            config: How to train.
            generator: Draws the batches, and belongs to this run alone.
            replay: What must not be forgotten; None for the new data alone.
            old: The router's generation before, for the replayed items; asked once, here, and not kept. It may know
                fewer experts. None leaves replay to its labels.

        Raises:
            ShapeMismatch: If router and data differ in experts.
        """
        super().__init__(router, Adam(dict(router.named_parameters())), generator, steps=config.steps, lr=config.lr)
        for part in (data,) if replay is None else (data, replay):
            if part.uids != router.uids:
                raise ShapeMismatch("router data", expected=router.uids, got=part.uids)
        self.router = router
        self.config = config
        self._data = data
        self._replay = replay
        classes = tuple(sorted({*data.labels, *(replay.labels if replay else ())}))
        self._columns_N = class_columns(data.labels, classes)
        self._replay_columns_N = class_columns(replay.labels, classes) if replay else None
        self._old_logits_NE: Tensor | None = None
        if replay is not None and old is not None:
            with torch.no_grad():
                self._old_logits_NE = align_logits(old(replay.features_ND), old.uids, router.uids)

    def _loss(self) -> Tensor:
        config = self.config
        rows_B = self._draw(self._data)
        logits_BE: Tensor = self.router(self._data.features_ND[rows_B])
        loss = mixture_cross_entropy(logits_BE, self._data.log_likelihood_NE[rows_B], config.tau)
        columns_B = self._columns_N[rows_B]
        if self._replay is not None and self._replay_columns_N is not None:
            rows_B = self._draw(self._replay)
            replayed_BE: Tensor = self.router(self._replay.features_ND[rows_B])
            again = mixture_cross_entropy(replayed_BE, self._replay.log_likelihood_NE[rows_B], config.tau)
            if self._old_logits_NE is not None:
                kept = distillation_loss(replayed_BE, self._old_logits_NE[rows_B], None, 0.0, config.temperature)
                again = config.alpha * again + (1 - config.alpha) * kept
            loss = loss + config.gamma * again
            logits_BE = torch.cat([logits_BE, replayed_BE])
            columns_B = torch.cat([columns_B, self._replay_columns_N[rows_B]])
        if config.regulariser is not None:
            soft_BE = torch.softmax(logits_BE / config.tau, dim=1)
            loss = loss + regularisation_loss(soft_BE, columns_B, config.regulariser)
        return loss

    def _terms(self) -> dict[str, object]:
        terms: dict[str, object] = dataclasses.asdict(self.config)
        # No step depends on how many are to follow.
        del terms["steps"]
        terms["uids"] = list(self.router.uids)
        terms["num_items"] = len(self._data.labels)
        terms["num_replayed"] = 0 if self._replay is None else len(self._replay.labels)
        terms["has_old_generation"] = self._old_logits_NE is not None
        return terms

    def _draw(self, data: RouterData) -> Tensor:
        # With replacement, so that the generator is the whole state of the draw.
        return torch.randint(len(data.labels), (self.config.batch_size,), generator=self._generator)
