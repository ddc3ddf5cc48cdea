"""Assessment: do the experts know this batch, or is it new? (proposal, section 2.5, step a)

    d(x)  = min_c (h - mu_c)^T S_w^-1 (h - mu_c)  -  (h - mu)^T S_t^-1 (h - mu)
    S_w   = S / N,    S_t = (S + sum_c n_c (mu_c - mu)(mu_c - mu)^T) / N,    mu = sum_c n_c mu_c / N

the relative Mahalanobis distance (Ren et al. 2021, arXiv:2106.09022, eq. 2), from the router's own statistics n_c,
mu_c and S: scatters split exactly, so S_t is that of all samples without their classes. Each S has ridge tr(S)/D added
to its diagonal. The second term takes away how unusual a row is for any input; that matters on text more than on
images.

A single row tells little, a batch a lot. Held-out rows of what is known say how far the mean of a batch of B of them
comes by chance: 1,000 batches are drawn from them with replacement (the bootstrap, Efron 1979). But the N rows held out
are a sample themselves, whose own mean is off by s / sqrt(N), and whoever has drawn one that lies near has more false
alarms with every batch: at N = 2 B, 3 instead of 1 in 100 in the mean, and 12 one time in twenty. So the N rows are
drawn anew as well, and with Q the 99th percentile a batch is new if its mean distance is above

    Q(mean of B rows) + Q(mean of N rows) - mean of the rows held out,

which 1 batch in 100 or fewer of what is known exceed, with 99 of 100 held-out samples. Fewer than ``min_held_out`` rows
give no answer. A class that nobody has seen is new whatever the distance says.

Legend: B batch, N held-out rows, D feature, C class.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from experts.errors import NothingToLearnFrom, NotPositiveDefinite, SettingOutOfRange, ShapeMismatch
from experts.generators import torch_generator
from experts.router.statistics import ClassStatistics
from experts.router.symmetric import factorise

__all__ = [
    "Assessment",
    "MahalanobisScore",
    "NoveltyConfig",
    "NoveltyDetector",
    "Verdict",
    "bootstrap_threshold",
    "pooled",
]

Verdict = Literal["known", "new", "undecided"]


@dataclass(frozen=True, kw_only=True, slots=True)
class NoveltyConfig:
    """How batches are judged.

    Raises:
        SettingOutOfRange: If a field is outside its range.
    """

    batch_size: int = 64
    """Rows that are judged together, at least 1."""

    relative: bool = True
    """Whether the second term counts; without it the distance is Mahalanobis' own (Lee et al. 2018, arXiv:1807.03888).
    """

    ridge: float = 1e-3
    """Added to both scatters, relative to their mean eigenvalue; above 0."""

    quantile: float = 0.99
    """Share of known batches that are to pass as known, and how sure that is to be of the rows held out, in (0, 1)."""

    num_bootstrap: int = 1000
    """Batches, and samples of the held-out rows, drawn for the threshold, at least 1."""

    min_held_out: int = 128
    """Fewer held-out rows decide nothing; at least 1."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "num_bootstrap", "min_held_out"):
            if getattr(self, name) < 1:
                raise SettingOutOfRange(name, getattr(self, name), allowed="at least 1")
        if not 0.0 < self.ridge < float("inf"):
            raise SettingOutOfRange("ridge", self.ridge, allowed="finite and above 0")
        if not 0.0 < self.quantile < 1.0:
            raise SettingOutOfRange("quantile", self.quantile, allowed="in (0, 1)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Assessment:
    """A verdict with what it rests on: plain data."""

    verdict: Verdict
    num_rows: int
    """B."""
    num_labelled: int
    """Rows with a label."""
    unseen_labels: tuple[str, ...]
    """Labels of the batch that are not known, sorted."""
    distance: float | None
    """Mean of d over the batch; None where nothing is known yet, or known rows do not vary."""
    threshold: float | None
    """What the distance was held against; None with too little held-out data."""
    num_held_out: int
    """N."""

    def __post_init__(self) -> None:
        if self.verdict not in get_args(Verdict):
            raise SettingOutOfRange("verdict", self.verdict, allowed=", ".join(get_args(Verdict)))


class MahalanobisScore:
    """d, of any rows."""

    def __init__(self, statistics: ClassStatistics, *, ridge: float, relative: bool = True) -> None:
        """
        Args:
            statistics: Of what is known.
            ridge: Relative to the mean eigenvalue, above 0.
            relative: Whether the second term is taken away; of a single class it is the first, and is not.

        Raises:
            NotPositiveDefinite: If no two samples of a class differ.
        """
        counts_C1 = torch.tensor([[statistics.counts[name]] for name in statistics.classes], dtype=torch.float64)
        means_CD = statistics.stacked_means()
        self._mean_D = (counts_C1 * means_CD).sum(dim=0) / statistics.num_samples
        centred_CD = means_CD - self._mean_D
        within_DD = statistics.scatter / statistics.num_samples
        self._within = _factor(within_DD, ridge)
        self._means_CD = _whitened(centred_CD, self._within)
        between = (counts_C1 * centred_CD).T @ centred_CD / statistics.num_samples
        self._total = _factor(within_DD + between, ridge) if relative and len(statistics.classes) > 1 else None

    def distances(self, features_BD: Tensor) -> Tensor:
        """d of each row, float64 ``(B,)``; may be negative where relative.

        Raises:
            ShapeMismatch: If the features are not ``(B, D)``.
        """
        num_features = len(self._mean_D)
        if features_BD.ndim != 2 or features_BD.shape[1] != num_features:
            raise ShapeMismatch("features", expected=("B", num_features), got=tuple(features_BD.shape))
        centred_BD = features_BD.double().cpu() - self._mean_D
        own_BD = _whitened(centred_BD, self._within)
        squares_BC = own_BD.square().sum(dim=1, keepdim=True) + self._means_CD.square().sum(dim=1)
        distances_B = (squares_BC - 2 * own_BD @ self._means_CD.T).amin(dim=1).clamp_min(0.0)
        if self._total is None:
            return distances_B
        return distances_B - _whitened(centred_BD, self._total).square().sum(dim=1)


class NoveltyDetector:
    """Judges batches by what is known now; made anew when that has changed."""

    def __init__(
        self,
        statistics: ClassStatistics | None,
        held_out_ND: Tensor,
        known_labels: Collection[str],
        config: NoveltyConfig,
        generator: torch.Generator,
    ) -> None:
        """
        Args:
            statistics: The router's; None before there are any: everything is new then.
            held_out_ND: Features of known rows that are not in the statistics, ``(N, D)``, N possibly 0.
            known_labels: Every other label is unseen.
            config: How.
            generator: Draws the bootstrap. One number is taken from it, so that thresholds depend on neither which
                batch sizes are asked for nor in which order.

        Raises:
            ShapeMismatch: If the held-out features are not ``(N, D)``.
        """
        self._config = config
        self._known_labels = frozenset(known_labels)
        self._seed = int(torch.randint(2**62, (), generator=generator))
        self._thresholds: dict[int, float] = {}
        self._score: MahalanobisScore | None = None
        self._held_out_N = torch.zeros(0, dtype=torch.float64)
        self._is_empty = statistics is None
        if statistics is None:
            return
        try:
            self._score = MahalanobisScore(statistics, ridge=config.ridge, relative=config.relative)
        except NotPositiveDefinite:
            return  # One sample of each class: nothing can be said of distances.
        if len(held_out_ND):
            self._held_out_N = self._score.distances(held_out_ND)

    def threshold(self, num_rows: int) -> float | None:
        """What the mean distance of a batch of so many known rows rarely exceeds; None with too little held-out data.

        Args:
            num_rows: B, at least 1.
        """
        if len(self._held_out_N) < self._config.min_held_out:
            return None
        if num_rows not in self._thresholds:
            generator = torch_generator(self._seed, f"bootstrap/{num_rows}")
            self._thresholds[num_rows] = bootstrap_threshold(self._held_out_N, num_rows, self._config, generator)
        return self._thresholds[num_rows]

    def assess(self, features_BD: Tensor, labels: Sequence[str | None] | None = None) -> Assessment:
        """Judge one batch.

        Args:
            features_BD: Float ``(B, D)``, B at least 1.
            labels: B class names, None for a row without one; None if no row has one.

        Raises:
            NothingToLearnFrom: If there is no row.
            ShapeMismatch: If the features are not ``(B, D)``, or there is not one entry of labels a row.
        """
        num_rows = len(features_BD)
        if num_rows == 0:
            raise NothingToLearnFrom("assessment")
        if labels is not None and len(labels) != num_rows:
            raise ShapeMismatch("labels", expected=(num_rows,), got=(len(labels),))
        named = [label for label in labels or () if label is not None]
        unseen = tuple(sorted(set(named) - self._known_labels))
        distance = None if self._score is None else float(self._score.distances(features_BD).mean())
        threshold = self.threshold(num_rows)
        if unseen or self._is_empty:
            verdict: Verdict = "new"
        elif distance is None or threshold is None:
            verdict = "undecided"
        else:
            verdict = "new" if distance > threshold else "known"
        return Assessment(
            verdict=verdict,
            num_rows=num_rows,
            num_labelled=len(named),
            unseen_labels=unseen,
            distance=distance,
            threshold=threshold,
            num_held_out=len(self._held_out_N),
        )

    def assess_all(self, features_ND: Tensor, labels: Sequence[str | None] | None = None) -> Assessment:
        """Judge a whole task by its batches of ``batch_size``, each by itself: see `pooled`.

        Args:
            features_ND: As for `assess`; the rows beyond the last whole batch are not judged, if there is one.
            labels: As for `assess`; all of them are looked at.

        Raises: As `assess`.
        """
        size = self._config.batch_size
        if len(features_ND) < size:
            return self.assess(features_ND, labels)
        if labels is not None and len(labels) != len(features_ND):
            raise ShapeMismatch("labels", expected=(len(features_ND),), got=(len(labels),))
        starts = range(0, len(features_ND) - size + 1, size)
        parts = [self.assess(features_ND[start : start + size]) for start in starts]
        named = [label for label in labels or () if label is not None]
        return pooled(parts, num_labelled=len(named), unseen_labels=sorted(set(named) - self._known_labels))


def bootstrap_threshold(distances_N: Tensor, num_rows: int, config: NoveltyConfig, generator: torch.Generator) -> float:
    """What the mean of a batch of known rows rarely exceeds, as above.

    Args:
        distances_N: Of held-out rows, at least one.
        num_rows: B, rows of each batch.
        config: How many are drawn, and which quantile.
        generator: Draws the rows, with replacement.
    """

    def quantile_of_means(size: int) -> float:
        means = [
            distances_N[torch.randint(len(distances_N), (size,), generator=generator)].mean()
            for _ in range(config.num_bootstrap)
        ]
        return float(torch.quantile(torch.stack(means), config.quantile))

    return quantile_of_means(num_rows) + quantile_of_means(len(distances_N)) - float(distances_N.mean())


def pooled(parts: Sequence[Assessment], *, num_labelled: int, unseen_labels: Sequence[str]) -> Assessment:
    """One verdict for several batches of one size: that of more than half of them, with the mean of their distances.

    One batch in a hundred of what is known is judged new, so a single one says nothing of a whole task.

    Args:
        parts: At least one, all judged by one detector.
        num_labelled: Rows with a label, of all.
        unseen_labels: Sorted; any makes the whole new.
    """
    verdicts = [part.verdict for part in parts]
    majority: Verdict = "undecided"
    for verdict in get_args(Verdict):
        if 2 * verdicts.count(verdict) > len(verdicts):
            majority = verdict
    distances = [part.distance for part in parts if part.distance is not None]
    return Assessment(
        verdict="new" if unseen_labels else majority,
        num_rows=sum(part.num_rows for part in parts),
        num_labelled=num_labelled,
        unseen_labels=tuple(unseen_labels),
        distance=sum(distances) / len(distances) if distances else None,
        threshold=parts[0].threshold,
        num_held_out=parts[0].num_held_out,
    )


def _factor(scatter: Tensor, ridge: float) -> Tensor:
    """L^T of scatter + ridge tr(scatter)/D I."""
    size = len(scatter)
    matrix = scatter.clone()
    matrix.diagonal().add_(ridge * matrix.trace() / size)
    if not factorise(matrix):
        raise NotPositiveDefinite(size=size, ridge=ridge)
    return matrix


def _whitened(rows_BD: Tensor, factor: Tensor) -> Tensor:
    """L^-1 of each row, so that squares of it are Mahalanobis'."""
    whitened_DB: Tensor = torch.linalg.solve_triangular(factor.T, rows_BD.T, upper=False)
    return whitened_DB.T
