"""From raw pixels to what a trunk takes: one size, one number of channels, values from 0 to 1.

Legend: B batch, C channel, H height, W width, P pixels of the trunk's square input.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from experts.errors import MalformedDataset

__all__ = ["prepare_images"]


def prepare_images(images: NDArray[np.uint8], channels: int, pixels: int) -> torch.Tensor:
    """Scales pixels to [0, 1], sets the number of channels, resizes bilinearly.

    Grey becomes colour by repetition, colour becomes grey by luma (ITU-R BT.601). Shrinking averages over the
    pixels that fall together; enlarging is plain bilinear interpolation with the corners not aligned.

    Args:
        images: uint8 ``(B, H, W)`` grey, ``(B, H, W, 1)`` grey or ``(B, H, W, 3)`` red, green, blue.
        channels: 1 or 3.
        pixels: P, at least 1.
    Returns: float32 ``(B, channels, P, P)`` in [0, 1], contiguous.
    Raises: MalformedDataset: If the images are not such an array.
    """
    given: object = images
    if not isinstance(given, np.ndarray) or given.dtype != np.uint8:
        raise MalformedDataset("images", reason="not an array of uint8")
    shape = images.shape
    if images.ndim not in (3, 4) or 0 in shape[1:] or (images.ndim == 4 and shape[3] not in (1, 3)):
        raise MalformedDataset("images", reason=f"shape {shape} is neither (B, H, W) nor (B, H, W, 1 or 3)")
    given_channels = 1 if images.ndim == 3 else shape[3]
    pixels_BHWC = torch.from_numpy(images.astype(np.float32)).reshape(*shape[:3], given_channels)
    images_BCHW = _with_channels(pixels_BHWC.permute(0, 3, 1, 2) / 255, channels)
    if len(images) > 0 and images_BCHW.shape[2:] != (pixels, pixels):
        images_BCHW = functional.interpolate(images_BCHW, (pixels, pixels), mode="bilinear", antialias=True)
    # Interpolation may leave [0, 1] by a rounding error.
    return images_BCHW.reshape(len(images), channels, pixels, pixels).clamp(0, 1).contiguous()


def _with_channels(images_BCHW: torch.Tensor, channels: int) -> torch.Tensor:
    if channels == images_BCHW.shape[1]:
        return images_BCHW
    if channels == 3:
        return images_BCHW.expand(-1, 3, -1, -1)
    luma_C = torch.tensor([0.299, 0.587, 0.114])
    return (images_BCHW * luma_C.view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
