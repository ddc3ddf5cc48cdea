"""A trunk without pretraining: responses to whitened patches of the first task's images.

Legend: B batch, C channel, H height, W width, K patches, P pixels of a patch's side, N sampled patches,
F values of a flattened patch (C * P * P).

After Coates, Lee and Ng 2011, "An Analysis of Single-Layer Networks in Unsupervised Feature Learning"
(AISTATS), and Coates and Ng 2011, "The Importance of Encoding Versus Training with Sparse Coding and Vector
Quantization" (ICML): there a dictionary of random patches with a thresholded encoding comes close to learned
ones, which leaves nothing to train and nothing to tune.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch.nn import functional

from experts.errors import MalformedDataset, SettingOutOfRange, ShapeMismatch, UnknownTrunk
from experts.generators import torch_generator
from experts.trunk.base import Trunk

__all__ = ["WhitenedConfig", "WhitenedTrunk", "fit_whitened"]

_CONTRAST_EPSILON = 0.01
"""Added to a patch's variance (pixels in [0, 1]), so that deviations below .1 stay below full contrast."""

_LEAST_CONTRAST = 0.05
"""A sampled patch of less deviation is blank and says nothing about the images."""

_WHITENING_EPSILON = 0.1
"""Share of the mean eigenvalue added to each: directions in which patches do not vary are not amplified."""

_THRESHOLD = 0.5
"""A response counts from half its own deviation on: about a third of all responses on either side."""

_NUM_SAMPLES = 20_000
"""Patches the whitening is estimated on: a hundred times their values at 8 x 8 pixels and 3 channels."""

_BATCH = 256
"""Images at a time when responses are measured; bounds memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WhitenedConfig:
    """Form of a whitened-patch trunk; D = 2 * num_patches * pool^2 features."""

    num_patches: int = 16
    """K, 1 to 4,096. A router statistic holds D (D + 1) / 2 numbers, so D should stay in the hundreds."""
    patch_px: int = 6
    """P, 2 to 32: a stroke or an edge at 32 px."""
    pool: int = 4
    """Responses are averaged over a grid of pool x pool cells, 1 to 16."""

    def __post_init__(self) -> None:
        for name, least, most in (("num_patches", 1, 4096), ("patch_px", 2, 32), ("pool", 1, 16)):
            value: object = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise SettingOutOfRange(name, value, allowed=f"{least} to {most}")


class WhitenedTrunk(Trunk):
    """Phi(x) = average over cells of relu(r_k - t_k) and relu(-r_k - t_k), for each patch k.

    r_k at a position is d_k^T W (z - mu): z the pixels under the patch minus their mean, over their
    contrast, the root of variance plus epsilon; W, mu the whitening of such z; d_k a whitened sample of unit
    length; t_k a threshold. That is a convolution: with f_k = W d_k minus its mean and o_k = d_k^T W mu,
    r_k = (f_k * x) / contrast - o_k.
    """

    kind: ClassVar[str] = "whitened"

    filters_KCPP: torch.Tensor
    """f_k."""
    offset_K: torch.Tensor
    """o_k."""
    threshold_K: torch.Tensor
    """t_k, at least 0."""

    def __init__(self, config: WhitenedConfig, *, input_channels: int, input_pixels: int) -> None:
        super().__init__(
            input_channels=input_channels,
            input_pixels=input_pixels,
            feature_dim=2 * config.num_patches * config.pool**2,
        )
        self.config = config
        filters = torch.zeros(config.num_patches, input_channels, config.patch_px, config.patch_px)
        self.register_buffer("filters_KCPP", filters)
        self.register_buffer("offset_K", torch.zeros(config.num_patches))
        self.register_buffer("threshold_K", torch.zeros(config.num_patches))

    def section(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Both signs of the thresholded responses, pooled: ``(B, D)``, at least 0."""
        responses_BKHW = self.responses(images_BCHW)
        threshold_K11 = self.threshold_K.view(-1, 1, 1)
        above_BKHW = torch.relu(responses_BKHW - threshold_K11)
        below_BKHW = torch.relu(-responses_BKHW - threshold_K11)
        both_BKHW = torch.cat([above_BKHW, below_BKHW], dim=1)
        return functional.adaptive_avg_pool2d(both_BKHW, self.config.pool).flatten(start_dim=1)

    @property
    def feature_map(self) -> tuple[int, int, int] | None:
        """Both signs of each patch's response over the grid of cells."""
        return (2 * self.config.num_patches, self.config.pool, self.config.pool)

    def responses(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """r: ``(B, K, H, W)``, the images padded with zeros so that every pixel has a response."""
        side = self.config.patch_px
        before, after = side // 2, (side - 1) // 2
        padded_BCHW = functional.pad(images_BCHW, (before, after, before, after))
        mean_B1HW = functional.avg_pool2d(padded_BCHW, side, 1).mean(dim=1, keepdim=True)
        square_B1HW = functional.avg_pool2d(padded_BCHW.square(), side, 1).mean(dim=1, keepdim=True)
        contrast_B1HW = ((square_B1HW - mean_B1HW.square()).clamp(min=0) + _CONTRAST_EPSILON).sqrt()
        raw_BKHW = functional.conv2d(padded_BCHW, self.filters_KCPP)
        return raw_BKHW / contrast_B1HW - self.offset_K.view(-1, 1, 1)

    def to_config(self) -> dict[str, object]:
        """The form of the input and of the patches."""
        return {
            "input_channels": self.input_channels,
            "input_pixels": self.input_pixels,
            "num_patches": self.config.num_patches,
            "patch_px": self.config.patch_px,
            "pool": self.config.pool,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> Self:
        """The inverse of `to_config`; input of 1 or 3 channels and a patch's side to 512 pixels."""
        fields = {"input_channels", "input_pixels", "num_patches", "patch_px", "pool"}
        if config.keys() != fields:
            raise UnknownTrunk(cls.kind, reason=f"keys {sorted(map(str, config))}")
        channels, pixels = config["input_channels"], config["input_pixels"]
        form_fields = {name: config[name] for name in ("num_patches", "patch_px", "pool")}
        try:
            form = WhitenedConfig(**form_fields)  # type: ignore[arg-type]
        except SettingOutOfRange as exc:
            raise UnknownTrunk(cls.kind, reason=str(exc)) from exc
        if type(channels) is not int or channels not in (1, 3):
            raise UnknownTrunk(cls.kind, reason=f"input_channels = {channels!r}")
        if type(pixels) is not int or not form.patch_px <= pixels <= 512:
            raise UnknownTrunk(cls.kind, reason=f"input_pixels = {pixels!r}")
        return cls(form, input_channels=channels, input_pixels=pixels)


def fit_whitened(images_BCHW: torch.Tensor, config: WhitenedConfig, *, seed: int) -> WhitenedTrunk:
    """Makes a trunk from patches of ``images_BCHW``; m and s are left to `calibrate`.

    Args:
        images_BCHW: Prepared square images of the first task, in [0, 1]; patches of them become public.
        config: Form of the trunk.
        seed: Which patches are drawn.
    Raises: ShapeMismatch: If the images are not square or smaller than a patch. MalformedDataset: If fewer
        patches than asked for have any contrast.
    """
    side = config.patch_px
    shape = images_BCHW.shape
    if images_BCHW.ndim != 4 or shape[1] not in (1, 3) or shape[2] != shape[3] or shape[2] < side:
        raise ShapeMismatch("images", expected=("B", "1 or 3", "P", "P"), got=shape)
    generator = torch_generator(seed, "patches")
    patches_NF = _normalised_patches(images_BCHW, side, generator)
    if len(patches_NF) < config.num_patches:
        reason = f"{len(patches_NF)} patches with contrast, {config.num_patches} needed"
        raise MalformedDataset("images", reason=reason)
    mean_F, whitening_FF = _whitening(patches_NF)
    chosen_N = torch.randperm(len(patches_NF), generator=generator)[: config.num_patches]
    directions_KF = functional.normalize((patches_NF[chosen_N] - mean_F) @ whitening_FF, dim=1)
    filters_KF = directions_KF @ whitening_FF
    trunk = WhitenedTrunk(config, input_channels=shape[1], input_pixels=shape[2])
    trunk.offset_K.copy_(filters_KF @ mean_F)
    # z has mean 0, so a filter of mean 0 gives the same product and no mean need be subtracted under it.
    trunk.filters_KCPP.copy_((filters_KF - filters_KF.mean(dim=1, keepdim=True)).view_as(trunk.filters_KCPP))
    trunk.threshold_K.copy_(_THRESHOLD * _response_deviation(trunk, images_BCHW))
    return trunk


def _normalised_patches(images_BCHW: torch.Tensor, side: int, generator: torch.Generator) -> torch.Tensor:
    """Patches at random places, those without contrast left out: float64 ``(N, F)``, mean 0 each."""
    if len(images_BCHW) == 0:
        return torch.empty(0, images_BCHW.shape[1] * side**2, dtype=torch.float64)
    windows_BCYXPP = images_BCHW.unfold(2, side, 1).unfold(3, side, 1)
    places = windows_BCYXPP.shape[2]
    image_N = torch.randint(len(images_BCHW), (_NUM_SAMPLES,), generator=generator)
    y_N = torch.randint(places, (_NUM_SAMPLES,), generator=generator)
    x_N = torch.randint(places, (_NUM_SAMPLES,), generator=generator)
    patches_NF = windows_BCYXPP[image_N, :, y_N, x_N].flatten(start_dim=1).double()
    centred_NF = patches_NF - patches_NF.mean(dim=1, keepdim=True)
    variance_N1 = centred_NF.square().mean(dim=1, keepdim=True)
    normalised_NF = centred_NF / (variance_N1 + _CONTRAST_EPSILON).sqrt()
    return normalised_NF[variance_N1.squeeze(1) > _LEAST_CONTRAST**2]


def _whitening(patches_NF: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """mu ``(F,)`` and the symmetric W ``(F, F)`` that gives patches unit covariance ("ZCA")."""
    mean_F = patches_NF.mean(dim=0)
    centred_NF = patches_NF - mean_F
    eigenvalues_F, eigenvectors_FF = torch.linalg.eigh(centred_NF.T @ centred_NF / len(patches_NF))
    scale_F = (eigenvalues_F + _WHITENING_EPSILON * eigenvalues_F.mean()).rsqrt()
    return mean_F, (eigenvectors_FF * scale_F) @ eigenvectors_FF.T


def _response_deviation(trunk: WhitenedTrunk, images_BCHW: torch.Tensor) -> torch.Tensor:
    """The deviation of each patch's responses over all images and positions: float64 ``(K,)``."""
    sum_K = torch.zeros(trunk.config.num_patches, dtype=torch.float64)
    square_sum_K = torch.zeros_like(sum_K)
    for batch_BCHW in torch.split(images_BCHW, _BATCH):
        responses_BKHW = trunk.responses(batch_BCHW).double()
        sum_K += responses_BKHW.sum(dim=(0, 2, 3))
        square_sum_K += responses_BKHW.square().sum(dim=(0, 2, 3))
    num_responses = len(images_BCHW) * images_BCHW.shape[2] * images_BCHW.shape[3]
    return (square_sum_K / num_responses - (sum_K / num_responses).square()).clamp(min=0).sqrt()
