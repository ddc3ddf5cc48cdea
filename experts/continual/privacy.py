"""Class statistics that may be shared: clipped, noised once for each disjoint increment, and not of too few samples.

An increment's samples (psi, y), each psi shortened to ||psi|| <= R, are published as sums,

    q = ( n_c,  s_c / R,  T / R^2 )    s_c = sum over class c of psi,    T = sum over all of psi psi^T.

Adding or removing one sample changes one n_c by 1, the same s_c by psi, and T by psi psi^T, whose Frobenius norm is
||psi||^2. So q changes by sqrt(1 + r^2 + r^4) in L2 with r = ||psi|| / R, at most, and for r = 1 exactly,

    Delta = sqrt(3).

Each number of q gets noise of deviation sigma; T's is a symmetric matrix with sigma on the diagonal and sigma / sqrt(2)
off it, which is noise of deviation sigma on T's coordinates in an orthonormal basis of symmetric matrices. Means,
scatter S = T - sum_c n_c mu_c mu_c^T with its negative eigenvalues set to 0, and rounded counts are made from the
noised sums alone, which costs no privacy.

Which classes an increment holds is decided first: a class is shared if its count since it was last, with noise of its
own (sensitivity 1), is at least ``min_samples``; otherwise its samples wait for the next increment. So what is withheld
is no better known than what is shared. Every increment is charged for both mechanisms, and noise is such that all
``num_increments`` together are (epsilon, delta)-differentially private (`experts.continual.gaussian`) even for somebody
who adds a sample to each; a single sample is in one only and better off. Further increments are refused.

Not covered: names of classes, which are public here as in a mesh; what else leaves a node (experts that were trained on
the samples); and that noise is float64 from a generator whose seed must be as secret as the data (Mironov 2012, "On
significance of the least significant bits for differential privacy", CCS 2012).

Legend: N samples, D feature, C class.
"""

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from experts.continual.gaussian import composed, gaussian_epsilon, largest_mu
from experts.data.dataset import class_columns
from experts.errors import (
    CorruptState,
    PrivacyBudgetSpent,
    SettingOutOfRange,
    ShapeMismatch,
    UnsafeStatistics,
)
from experts.router.statistics import ClassStatistics
from experts.sealed import seal, unseal

__all__ = ["SENSITIVITY", "PrivacyConfig", "PrivatePublisher", "Sums", "clipped"]

SENSITIVITY = math.sqrt(3)
"""Delta of q."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PrivacyConfig:
    """What is promised.

    Raises:
        SettingOutOfRange: If a field is outside its range.
    """

    epsilon: float
    """Of all increments together, above 0."""

    delta: float
    """Likewise, in (0, 1); well below one over the number of samples."""

    num_increments: int
    """How many will be published at most, at least 1."""

    max_norm: float
    """R, above 0: noise grows with its square, and longer features are shortened to it."""

    min_samples: int = 100
    """Noised samples of a class since it was last shared, below which it is not; at least 1."""

    count_share: float = 0.1
    """Share of mu^2 that goes to deciding which classes are shared, in (0, 1)."""

    def __post_init__(self) -> None:
        largest_mu(self.epsilon, self.delta)
        for name in ("num_increments", "min_samples"):
            if getattr(self, name) < 1:
                raise SettingOutOfRange(name, getattr(self, name), allowed="at least 1")
        if not 0.0 < self.max_norm < math.inf:
            raise SettingOutOfRange("max_norm", self.max_norm, allowed="finite and above 0")
        if not 0.0 < self.count_share < 1.0:
            raise SettingOutOfRange("count_share", self.count_share, allowed="in (0, 1)")

    @property
    def count_mu(self) -> float:
        """mu of one decision about which classes are shared."""
        return largest_mu(self.epsilon, self.delta) * math.sqrt(self.count_share / self.num_increments)

    @property
    def sums_mu(self) -> float:
        """mu of one publication of q."""
        return largest_mu(self.epsilon, self.delta) * math.sqrt((1 - self.count_share) / self.num_increments)

    @property
    def count_sigma(self) -> float:
        """Deviation of the noise on counts that decide."""
        return 1 / self.count_mu

    @property
    def sums_sigma(self) -> float:
        """Deviation of the noise on each number of q."""
        return SENSITIVITY / self.sums_mu


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """q before it is divided by R and R^2, exact or noised."""

    classes: tuple[str, ...]
    """C names, sorted."""
    counts_C: Tensor
    """n, float64."""
    sums_CD: Tensor
    """s, float64."""
    moment_DD: Tensor
    """T, float64, symmetric."""

    @classmethod
    def of(cls, psi_ND: Tensor, labels: Sequence[str], classes: Sequence[str]) -> "Sums":
        """Of samples that are clipped already; N may be 0."""
        psi_ND = psi_ND.double()
        columns_N = class_columns(labels, classes)
        sums_CD = torch.zeros(len(classes), psi_ND.shape[1], dtype=torch.float64).index_add_(0, columns_N, psi_ND)
        counts_C = torch.bincount(columns_N, minlength=len(classes)).double()
        return cls(tuple(classes), counts_C, sums_CD, psi_ND.T @ psi_ND)

    def noised(self, sigma: float, max_norm: float, generator: torch.Generator) -> "Sums":
        """With noise of deviation sigma on each number of q."""

        def noise(*shape: int) -> Tensor:
            return sigma * torch.randn(shape, generator=generator, dtype=torch.float64)

        square = noise(*self.moment_DD.shape)
        # The upper triangle's sigma / sqrt(2) on either side, and the diagonal's own sigma.
        symmetric = (square.triu(1) + square.triu(1).T) / math.sqrt(2) + torch.diag(square.diagonal())
        return Sums(
            self.classes,
            self.counts_C + noise(len(self.classes)),
            self.sums_CD + max_norm * noise(*self.sums_CD.shape),
            self.moment_DD + max_norm**2 * symmetric,
        )

    def statistics(self, fingerprint: str | None) -> ClassStatistics:
        """The class statistics that the sums say, made possible: counts whole and positive, no negative eigenvalue."""
        counts_C = self.counts_C.round().clamp_min(1.0)
        means_CD = self.sums_CD / counts_C[:, None]
        scatter = self.moment_DD - (counts_C[:, None] * means_CD).T @ means_CD
        values, vectors = torch.linalg.eigh((scatter + scatter.T) / 2)
        scatter = (vectors * values.clamp_min(0.0)) @ vectors.T
        return ClassStatistics(
            {name: int(count) for name, count in zip(self.classes, counts_C.tolist(), strict=True)},
            dict(zip(self.classes, means_CD, strict=True)),
            (scatter + scatter.T) / 2,
            fingerprint,
        )


class PrivatePublisher:
    """Increments in, noised statistics out; holds what waits, and how much has been told."""

    def __init__(
        self,
        feature_dim: int,
        config: PrivacyConfig,
        generator: torch.Generator,
        *,
        fingerprint: str | None = None,
    ) -> None:
        """
        Args:
            feature_dim: D.
            config: What is promised.
            generator: Draws the noise and nothing else; its seed must be secret, such as from `torch.Generator.seed`.
            fingerprint: Of what makes the features, which the statistics carry.
        """
        self._config = config
        self._generator = generator
        self._fingerprint = fingerprint
        self._waiting_ND = torch.zeros(0, feature_dim, dtype=torch.float64)
        self._waiting_labels: tuple[str, ...] = ()
        self.num_published = 0
        """Increments so far, those included in which no class was shared."""

    @property
    def num_waiting(self) -> int:
        """Samples of classes that were not shared."""
        return len(self._waiting_labels)

    def publish(self, features_ND: Tensor, labels: Sequence[str], classes: Collection[str]) -> ClassStatistics | None:
        """An increment: these samples, and those that wait.

        Args:
            features_ND: psi, finite floats ``(N, D)`` of samples never given before, N possibly 0.
            labels: N class names.
            classes: The names that may be told, whether they have a sample or not; those of what waits are among them.

        Returns: The statistics of the classes shared, disjoint from every increment before, so that they may be merged
            with those; None if no class is shared. Either is charged.

        Raises:
            PrivacyBudgetSpent: If as many increments as promised have been published; nothing has changed then, nor on
                the errors below.
            ShapeMismatch: If the features are not ``(N, D)`` with one label a row.
            UnknownClasses: If a label is not among the classes.
            UnsafeStatistics: If a feature is not finite.
        """
        config = self._config
        if self.num_published >= config.num_increments:
            raise PrivacyBudgetSpent(increments=config.num_increments, epsilon=config.epsilon, delta=config.delta)
        expected = (len(labels), self._waiting_ND.shape[1])
        if tuple(features_ND.shape) != expected:
            raise ShapeMismatch("features", expected=expected, got=tuple(features_ND.shape))
        if not torch.isfinite(features_ND).all():
            raise UnsafeStatistics("a feature is not finite")
        psi_ND = torch.cat([self._waiting_ND, clipped(features_ND.double().cpu(), config.max_norm)])
        names = (*self._waiting_labels, *labels)
        candidates = sorted(set(classes))
        columns_N = class_columns(names, candidates)

        counts_C = torch.bincount(columns_N, minlength=len(candidates)).double()
        counts_C += config.count_sigma * torch.randn(len(candidates), generator=self._generator, dtype=torch.float64)
        shared = [
            name for name, count in zip(candidates, counts_C.tolist(), strict=True) if count >= config.min_samples
        ]
        goes = [row for row, name in enumerate(names) if name in shared]
        waits = [row for row, name in enumerate(names) if name not in shared]
        self._waiting_ND, self._waiting_labels = psi_ND[waits], tuple(names[row] for row in waits)
        self.num_published += 1
        if not shared:
            return None
        sums = Sums.of(psi_ND[goes], [names[row] for row in goes], shared)
        return sums.noised(config.sums_sigma, config.max_norm, self._generator).statistics(self._fingerprint)

    def epsilon_spent(self, delta: float) -> float:
        """epsilon of all that was published, for somebody with a sample in each increment.

        Args:
            delta: In (0, 1).
        """
        config = self._config
        return gaussian_epsilon(delta, composed([config.count_mu, config.sums_mu] * self.num_published))

    def epsilon_of_sample(self, delta: float) -> float:
        """epsilon for a single sample: counted in any decision, but in one publication only, since they are disjoint.

        Args:
            delta: In (0, 1).
        """
        config = self._config
        mus = [config.count_mu] * self.num_published + [config.sums_mu] * min(1, self.num_published)
        return gaussian_epsilon(delta, composed(mus))

    def to_bytes(self) -> bytes:
        """What waits, what was told and the noise to come: a restart must forget none of them."""
        tensors = {
            "generator": self._generator.get_state(),
            "waiting": self._waiting_ND,
            "labels": torch.frombuffer(bytearray(json.dumps(self._waiting_labels).encode()), dtype=torch.uint8),
        }
        return seal(tensors, {"num_published": self.num_published, "terms": repr(self._config)})

    @classmethod
    def from_bytes(cls, data: bytes, config: PrivacyConfig, *, fingerprint: str | None = None) -> "PrivatePublisher":
        """The inverse of `to_bytes`.

        Args:
            data: The bytes.
            config: As before: another promise cannot take over what was told under this one.
            fingerprint: As before.

        Raises:
            CorruptState: If the bytes are not those of a publisher with this config.
        """
        tensors, header = unseal(data, _NAME)
        if header.get("terms") != repr(config):
            raise CorruptState(_NAME, reason=f"it promised {header.get('terms')}, not {config!r}")
        try:
            generator = torch.Generator()
            generator.set_state(tensors["generator"])
            publisher = cls(tensors["waiting"].shape[1], config, generator, fingerprint=fingerprint)
            publisher._waiting_ND = tensors["waiting"]
            publisher._waiting_labels = tuple(json.loads(tensors["labels"].numpy().tobytes()))
            publisher.num_published = int(str(header["num_published"]))
        except (KeyError, IndexError, ValueError, TypeError, RuntimeError) as exc:
            raise CorruptState(_NAME, reason=str(exc)) from exc
        return publisher


def clipped(psi_ND: Tensor, max_norm: float) -> Tensor:
    """psi min(1, R / ||psi||), each row."""
    norms_N1 = psi_ND.norm(dim=1, keepdim=True)
    clipped_ND: Tensor = psi_ND * (max_norm / norms_N1.clamp_min(max_norm))
    return clipped_ND


_NAME = "private statistics"
