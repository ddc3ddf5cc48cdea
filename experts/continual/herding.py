"""A bounded memory of exemplars: of each class the items whose mean feature is that of the whole class.

Herding as in iCaRL (Rebuffi et al. 2017, arXiv:1611.07725, algorithms 4 and 5): with features of length 1, the k-th
exemplar of a class is

    p_k = argmin_x || mu_c - (phi(x) + sum_{j<k} phi(p_j)) / k ||

so exemplars stand in the order of their worth, and a class gives up its last ones where others need the place. iCaRL
sees a class as a whole; here it may come in parts: mu_c is the mean of all items ever seen, and the exemplars are
chosen anew out of those kept and those that come. So, unlike in the other buffers, larger parts are better ones.

Legend: N items, H height, W width, D feature, C class.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from experts.continual.buffers import ReplayBuffer
from experts.errors import CorruptState, MalformedDataset, SettingOutOfRange
from experts.sealed import seal, unseal

__all__ = ["Features", "HerdingBuffer", "herded"]

Features = Callable[[NDArray[np.uint8]], Tensor]
"""From images to trunk features ``(N, D)``, always the same of the same images."""


class HerdingBuffer(ReplayBuffer):
    """Exemplars of each class, in equal numbers."""

    kind: ClassVar[str] = "herding"

    def __init__(self, capacity: int | None, features: Features, *, max_bytes: int | None = None) -> None:
        """
        Args:
            capacity: Images kept, at least 1; None if only bytes bound them.
            features: What means are of; kept images are looked at again whenever their class comes.
            max_bytes: Of pixels, at least 1; None if only the number bounds them.

        Raises:
            SettingOutOfRange: If a bound is not positive, or there is none.
        """
        super().__init__(capacity, max_bytes)
        self._features = features
        self._seen_of: dict[str, int] = {}  # in the order in which classes came
        self._sum_of: dict[str, Tensor] = {}  # of features of length 1, float64 (D,)

    def drop(self, rows: Collection[int], gone: Mapping[str, int]) -> None:
        """As `ReplayBuffer.drop`. A sum cannot be taken apart: the mean of a class that something leaves is, from then
        on, that of its exemplars that stay, as if no other item had been seen."""
        removed = self._remove(rows)
        for name in self._seen_of.keys() & (gone.keys() | removed.keys()):
            del self._sum_of[name]
            items, _ = self.labelled({name})
            if len(items):
                self._sum_of[name] = self._unit(items).sum(dim=0)
                self._seen_of[name] = len(items)
            else:
                del self._seen_of[name]
        self.num_seen = sum(self._seen_of.values())

    def to_bytes(self) -> bytes:
        """Contents and means, with a digest."""
        words = {"labels": self._labels, "seen": list(self._seen_of.items())}
        tensors = {
            "bounds": torch.tensor([self.capacity or 0, self.max_bytes or 0], dtype=torch.int64),
            "images": torch.from_numpy(self.images),
            "words": torch.frombuffer(bytearray(json.dumps(words).encode()), dtype=torch.uint8),
        }
        if self._seen_of:
            tensors["sums"] = torch.stack([self._sum_of[name] for name in self._seen_of])
        return seal(tensors, {"kind": self.kind})

    @classmethod
    def from_bytes(cls, data: bytes, features: Features) -> "HerdingBuffer":
        """The buffer that `to_bytes` saved.

        Args:
            data: The bytes.
            features: As before they were saved.

        Raises:
            CorruptState: If the bytes are not those of such a buffer, to the bit.
        """
        tensors, header = unseal(data, _NAME)
        if header != {"kind": cls.kind}:
            raise CorruptState(_NAME, reason=f"it is of kind {header.get('kind')!r}, not {cls.kind}")
        try:
            words = json.loads(tensors["words"].numpy().tobytes())
            capacity, max_bytes = (bound or None for bound in tensors["bounds"].tolist())
            buffer = cls(capacity, features, max_bytes=max_bytes)
            images, labels = tensors["images"].numpy(), words["labels"]
            if labels:
                buffer._images = np.zeros((buffer.limit_of(images), *images.shape[1:]), dtype=np.uint8)
                buffer._set(buffer._images, images, labels)
            buffer._seen_of = {name: int(count) for name, count in words["seen"]}
            buffer._sum_of = dict(zip(buffer._seen_of, tensors.get("sums", ()), strict=True))
        except (KeyError, ValueError, TypeError, MalformedDataset, SettingOutOfRange) as exc:
            raise CorruptState(_NAME, reason=str(exc)) from exc
        buffer.num_seen = sum(buffer._seen_of.values())
        return buffer

    def _take(self, kept: NDArray[np.uint8], images: NDArray[np.uint8], labels: Sequence[str]) -> None:
        coming: dict[str, NDArray[np.uint8]] = {}
        unit_of: dict[str, Tensor] = {}
        for name in dict.fromkeys(labels):
            coming[name] = images[[row for row, label in enumerate(labels) if label == name]]
            unit_of[name] = self._unit(coming[name])
        self.num_seen += len(labels)
        for name, unit_ND in unit_of.items():
            self._seen_of[name] = self._seen_of.get(name, 0) + len(unit_ND)
            self._sum_of[name] = self._sum_of.get(name, torch.zeros(1)) + unit_ND.sum(dim=0)
        stay: list[NDArray[np.uint8]] = []
        names: list[str] = []
        for name, quota in _quotas(list(self._seen_of), len(kept)).items():
            items, _ = self.labelled({name})
            if name in coming:
                units = [self._unit(items)] if len(items) else []
                items = np.concatenate([items, coming[name]])
                mean_D = self._sum_of[name] / self._seen_of[name]
                items = items[herded(torch.cat([*units, unit_of[name]]), mean_D, quota)]
            stay.append(items[:quota])
            names += [name] * len(stay[-1])
        self._set(kept, np.concatenate([kept[:0], *stay]), names)

    def _unit(self, images: NDArray[np.uint8]) -> Tensor:
        """Features of length 1, float64 ``(N, D)``."""
        return functional.normalize(self._features(images).double())

    def _set(self, kept: NDArray[np.uint8], images: NDArray[np.uint8], labels: Sequence[str]) -> None:
        kept[: len(images)] = images
        self._labels = list(labels)


def herded(unit_ND: Tensor, mean_D: Tensor, count: int) -> list[int]:
    """Rows in the order in which herding chooses them.

    Args:
        unit_ND: Features of length 1, ``(N, D)``.
        mean_D: What the mean of those chosen is to be.
        count: How many, at least 0; all if there are fewer.
    """
    chosen: list[int] = []
    sum_D = torch.zeros_like(mean_D)
    free_N = torch.ones(len(unit_ND), dtype=torch.bool)
    for number in range(1, min(count, len(unit_ND)) + 1):
        off_N = (mean_D - (unit_ND + sum_D) / number).square().sum(dim=1)
        row = int(torch.where(free_N, off_N, torch.inf).argmin())
        chosen.append(row)
        free_N[row] = False
        sum_D = sum_D + unit_ND[row]
    return chosen


def _quotas(classes: Sequence[str], limit: int) -> dict[str, int]:
    """Equal shares of the places, the remainder to the classes that came first."""
    share, left = divmod(limit, len(classes)) if classes else (0, 0)
    return {name: share + (place < left) for place, name in enumerate(classes)}


_NAME = "replay buffer"
