"""Random features for the router: some of the trunk's, seen once more through a fixed layer of ReLUs.

    psi(x) = [h, relu(h_S W + b)]

with h_S the features of a slice, such as those of one of the trunk's taps, and W, b drawn once from a seed. A ridge
router that is linear in psi is not linear in h, and everything else stays as it was: statistics are those of psi,
they are summed in any order, and the router adds its constant 1 (M = D + D_r + 1 in all). After Rahimi and Recht
2008, "Weighted Sums of Random Kitchen Sinks" (NIPS).

What W is drawn from. Entries are uniform with mean 0 and variance 1/|S|, so that h_S of unit variance gives
h_S W of unit variance whatever the width of the slice, and b is uniform in [-1, 1], so that the kinks of the ReLUs
lie where the features are.

Legend: B batch, D feature of the trunk, S feature of the slice, R random feature (D_r), F feature of psi (D + D_r).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from experts.checkpoint import tensors_to_bytes
from experts.errors import SettingOutOfRange, ShapeMismatch
from experts.generators import portable_uniform

__all__ = ["MAX_RANDOM_FEATURES", "ReluFeatures", "ReluFeaturesConfig"]

MAX_RANDOM_FEATURES = 16_384
"""The scatter of so many is 2 GiB of float64: a mesh spec must not make a peer allocate more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReluFeaturesConfig:
    """Which random features; part of what a mesh agrees on.

    Raises:
        SettingOutOfRange: If a field is outside its range.
    """

    feature_dim: int
    """D, the trunk's features; 1 to `MAX_RANDOM_FEATURES`."""

    width: int
    """D_r, the random features; 1 to `MAX_RANDOM_FEATURES`. 1,500 of 640 gained what the figures show."""

    start: int
    """The first feature of the slice, from 0."""

    stop: int
    """One past the last feature of the slice; above ``start``, at most D."""

    seed: int = 0
    """Which W and b; 0 to 2^63 - 1."""

    def __post_init__(self) -> None:
        # In this order: a bound may be a field that has been checked.
        self._require("feature_dim", 1, MAX_RANDOM_FEATURES)
        self._require("width", 1, MAX_RANDOM_FEATURES)
        self._require("stop", 1, self.feature_dim)
        self._require("start", 0, self.stop - 1)
        self._require("seed", 0, 2**63 - 1)

    def _require(self, name: str, least: int, most: int) -> None:
        value = getattr(self, name)
        # The exact type: True is an int to isinstance.
        if type(value) is not int or not least <= value <= most:
            raise SettingOutOfRange(name, value, allowed=f"a whole number from {least} to {most}")


class ReluFeatures:
    """The map from h to psi; equal configs give equal bits of W and b on every machine.

    It comes before `ClassStatistics.from_features` and before `RidgeRouter.scores`.
    """

    def __init__(self, config: ReluFeaturesConfig) -> None:
        self.config = config
        num_sliced = config.stop - config.start
        seed = f"relu features {config.seed}"
        # A uniform variable in [-1, 1) has variance 1/3.
        scale = math.sqrt(3.0 / num_sliced)
        self.weight_SR = (2 * portable_uniform(seed, "weight", (num_sliced, config.width)) - 1) * scale
        """W, float32."""
        self.bias_R = 2 * portable_uniform(seed, "bias", (config.width,)) - 1
        """b, float32."""

    @property
    def feature_dim(self) -> int:
        """F = D + D_r."""
        return self.config.feature_dim + self.config.width

    def __call__(self, h_BD: Tensor) -> Tensor:
        """psi, ``(B, F)`` in the floating type of the features: those of the trunk, then the random ones.

        Raises:
            ShapeMismatch: If the features are not ``(B, D)``.
        """
        if h_BD.ndim != 2 or h_BD.shape[1] != self.config.feature_dim:
            raise ShapeMismatch("features", expected=("B", self.config.feature_dim), got=tuple(h_BD.shape))
        h_BS = h_BD[:, self.config.start : self.config.stop]
        random_BR = torch.relu(torch.addmm(self.bias_R.to(h_BD), h_BS, self.weight_SR.to(h_BD)))
        return torch.cat([h_BD, random_BR], dim=1)

    def to_bytes(self) -> bytes:
        """All that psi depends on, config, W and b, for the fingerprint of statistics: equal bytes, equal psi."""
        return tensors_to_bytes({"weight_SR": self.weight_SR, "bias_R": self.bias_R}, self.to_config())

    def to_config(self) -> dict[str, object]:
        """A JSON object from which `from_config` makes the same map."""
        return {field.name: getattr(self.config, field.name) for field in fields(self.config)}

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> Self:
        """The inverse of `to_config`.

        Raises:
            SettingOutOfRange: If a key is missing or foreign, or a value outside its range.
        """
        names = {field.name for field in fields(ReluFeaturesConfig)}
        if config.keys() != names:
            raise SettingOutOfRange("keys", sorted(map(str, config)), allowed=", ".join(sorted(names)))
        return cls(ReluFeaturesConfig(**config))  # type: ignore[arg-type]
