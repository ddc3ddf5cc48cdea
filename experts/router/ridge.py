"""The router as ridge regression on one-hot classes, solved from statistics with a class prior of choice.

With psi = [h, 1], M_c = [mu_c, 1], N = sum n_c and a prior pi,

    G = [S 0; 0 0] + N sum_c pi_c M_c M_c^T,    Q = N M^T diag(pi),    B = (G + ridge tr(G)/D I)^-1 Q

and the class scores are s_c = kappa psi^T B_c. With pi_c = n_c/N, G is sum psi psi^T and Q is sum psi y^T, so
B is exactly ridge regression; pi_c = 1/C answers as if every class had been equally frequent.

Legend: B batch, D feature, C class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from experts.errors import NotPositiveDefinite, SettingOutOfRange, ShapeMismatch
from experts.router.gating import Gates, gate
from experts.router.statistics import ClassStatistics
from experts.router.symmetric import factorise

__all__ = ["RidgeRouter", "RouterConfig", "solve_ridge"]

Prior = Literal["uniform", "empirical"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterConfig:
    """Settings of router and gates, fixed for a mesh by its spec.

    Raises:
        SettingOutOfRange: If a field is outside its range.
    """

    kappa: float = 10.0
    """Sharpness of the class scores, above 0: ridge targets of 0 and 1 are too flat for a softmax."""

    tau: float = 1.0
    """Temperature of the gates' softmax, above 0."""

    top_k: int = 1
    """Experts asked per row, at least 1: 1 when experts differ in classes, 2 when they differ in domain."""

    ridge: float = 1e-4
    """Regulariser relative to the mean eigenvalue tr(G)/D, above 0."""

    prior: Prior = "uniform"
    """``uniform`` makes every class count alike, which long tails gain from; ``empirical`` is plain ridge."""

    renormalise: bool = False
    """Whether outputs are divided by the gate mass that answered; False leaves them a sub-probability."""

    def __post_init__(self) -> None:
        for name in ("kappa", "tau", "ridge"):
            value = getattr(self, name)
            if not 0.0 < value < float("inf"):
                raise SettingOutOfRange(name, value, allowed="finite and above 0")
        if self.top_k < 1:
            raise SettingOutOfRange("top_k", self.top_k, allowed="at least 1")
        if self.prior not in ("uniform", "empirical"):
            raise SettingOutOfRange("prior", self.prior, allowed="uniform or empirical")


@dataclass(frozen=True, eq=False)
class RidgeRouter:
    """A solved router: linear class scores on trunk features."""

    classes: tuple[str, ...]
    """Class names in sorted order: the columns of ``weights``."""

    weights: Tensor
    """B, float64 ``(D + 1, C)``, the bias in the last row; not yet multiplied by kappa."""

    kappa: float

    def scores(self, h_BD: Tensor) -> Tensor:
        """s_c = kappa [h, 1]^T B_c, ``(B, C)`` in the floating type of the features.

        Raises:
            ShapeMismatch: If the features are not ``(B, D)``.
        """
        num_features = self.weights.shape[0] - 1
        if h_BD.ndim != 2 or h_BD.shape[1] != num_features:
            raise ShapeMismatch("features", expected=("B", num_features), got=tuple(h_BD.shape))
        scaled = (self.kappa * self.weights).to(h_BD)
        return torch.addmm(scaled[-1], h_BD, scaled[:-1])

    def gates(self, h_BD: Tensor, experts: Mapping[str, Sequence[str]], *, tau: float = 1.0, top_k: int = 1) -> Gates:
        """Gate weights over ``experts``: `gate` of the class scores; see there for arguments and errors.

        Raises:
            ShapeMismatch: If the features are not ``(B, D)``.
            SettingOutOfRange: If ``tau`` or ``top_k`` is.
        """
        return gate(self.scores(h_BD), self.classes, experts, tau=tau, top_k=top_k)

    def class_argmax(self, h_BD: Tensor) -> tuple[str, ...]:
        """The highest-scoring class of each row by name: the router alone as a classifier.

        Raises:
            ShapeMismatch: If the features are not ``(B, D)``.
        """
        return tuple(self.classes[column] for column in self.scores(h_BD).argmax(dim=1).tolist())


def solve_ridge(stats: ClassStatistics, config: RouterConfig) -> RidgeRouter:
    """Solve the router in float64 with one Cholesky factorisation, in one (D + 1) x (D + 1) matrix besides S.

    Works with fewer samples than features: the regulariser, on the bias as well, makes the system definite.

    Raises:
        NotPositiveDefinite: If it does not, because the statistics were not those of any samples.
    """
    num_features = stats.feature_dim
    means_CM = torch.cat([stats.stacked_means(), torch.ones(len(stats.classes), 1, dtype=torch.float64)], dim=1)
    mass_C = _class_mass(stats, config.prior)
    targets_MC = means_CM.T * mass_C

    system = targets_MC @ means_CM
    system[:num_features, :num_features] += stats.scatter
    system.diagonal().add_(config.ridge * system.trace() / num_features)
    if not factorise(system):
        raise NotPositiveDefinite(size=num_features + 1, ridge=config.ridge)
    # B = L^-T L^-1 Q by two triangular systems: cholesky_solve would copy the factor.
    weights = torch.linalg.solve_triangular(system.T, targets_MC, upper=False)
    return RidgeRouter(stats.classes, torch.linalg.solve_triangular(system, weights, upper=True), config.kappa)


def _class_mass(stats: ClassStatistics, prior: Prior) -> Tensor:
    """N pi_c, float64 ``(C,)``; for the empirical prior these are the counts themselves."""
    if prior == "empirical":
        return torch.tensor([stats.counts[name] for name in stats.classes], dtype=torch.float64)
    num_classes = len(stats.classes)
    return torch.full((num_classes,), stats.num_samples / num_classes, dtype=torch.float64)
