"""Trunk features kept on disk, so that a study in many runs computes those of an image once.

Kept is Phi(x), before m and s: trunks that differ only in what they were calibrated on share it, as they do when
the same study is made in other orders of the classes.

Legend: N images, D feature.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from experts.errors import CorruptState
from experts.sealed import seal, tensors_digest, unseal
from experts.trunk.base import Trunk
from experts.trunk.images import prepare_images

__all__ = ["FeatureStore"]

_BATCH = 16
"""Images at a time, as in `features_of`."""

_CALIBRATED = ("mean_D", "deviation_D")


class FeatureStore:
    """Features by digest of section and images, in a folder that may be deleted at any time."""

    def __init__(self, folder: Path) -> None:
        """
        Args:
            folder: Made when something is first written. Nothing is ever removed from it.
        """
        self._folder = folder

    def features(self, trunk: Trunk, images: NDArray[np.uint8]) -> torch.Tensor:
        """What `features_of` gives, read from the disk where it has been computed before.

        Args:
            trunk: On the CPU.
            images: uint8 ``(N, H, W)`` or ``(N, H, W, 3)``, N at least 1.

        Returns: h, float32 ``(N, D)`` in [-8, 8].

        Raises:
            MalformedDataset: If the images are not such an array.
        """
        return trunk.normalised(self.section(trunk, images))

    def section(self, trunk: Trunk, images: NDArray[np.uint8]) -> torch.Tensor:
        """Phi(x), float32 ``(N, D)``, which does not depend on m and s; otherwise as `features`."""
        pixels = torch.from_numpy(np.require(images, requirements="W"))  # torch wraps no read-only memory
        section = {name: value for name, value in trunk.state_dict().items() if name not in _CALIBRATED}
        form = {"kind": trunk.kind, "config": trunk.to_config()}
        name = f"{tensors_digest(section, form)}-{tensors_digest({'images': pixels}, {})}"
        path = self._folder / f"{name}.safetensors"
        raw_ND = _read(path, name)
        if raw_ND is None:
            raw_ND = _run(trunk, images)
            self._folder.mkdir(parents=True, exist_ok=True)
            _write(path, seal({"features": raw_ND}, {"name": name}))
        return raw_ND


def _read(path: Path, name: str) -> torch.Tensor | None:
    """The kept features; None if there are none, or they are damaged."""
    try:
        tensors, header = unseal(path.read_bytes(), "features")
    except (FileNotFoundError, CorruptState):
        return None
    return tensors["features"] if header == {"name": name} else None


def _run(trunk: Trunk, images: NDArray[np.uint8]) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat(
            [
                trunk.section(prepare_images(images[start : start + _BATCH], trunk.input_channels, trunk.input_pixels))
                for start in range(0, len(images), _BATCH)
            ]
        )


def _write(path: Path, data: bytes) -> None:
    """The whole file or none: another process may be reading, and this one may be stopped."""
    descriptor, partial = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)
