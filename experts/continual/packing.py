"""Words, bytes and statistics as tensors, to be saved together under one seal."""

import json
from collections.abc import Mapping

import torch
from torch import Tensor

from experts.router.statistics import ClassStatistics

__all__ = ["as_bytes", "as_tensor", "statistics_from_tensors", "statistics_to_tensors", "words_from", "words_to"]


def as_tensor(data: bytes) -> Tensor:
    """uint8 ``(N,)``."""
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.zeros(0, dtype=torch.uint8)


def as_bytes(tensor: Tensor) -> bytes:
    """The inverse of `as_tensor`."""
    return tensor.numpy().tobytes()


def words_to(words: object) -> Tensor:
    """A JSON value as a tensor: a header would be too small for many labels."""
    return as_tensor(json.dumps(words).encode())


def words_from(tensor: Tensor) -> object:
    """The inverse of `words_to`.

    Raises: ValueError: If it is none.
    """
    words: object = json.loads(as_bytes(tensor))
    return words


def statistics_to_tensors(statistics: ClassStatistics | None) -> dict[str, Tensor]:
    """To the bit, which the wire form in float32 is not; nothing for None."""
    if statistics is None:
        return {}
    return {
        "statistics/counts": words_to(dict(statistics.counts)),
        "statistics/means": statistics.stacked_means(),
        "statistics/scatter": statistics.scatter,
    }


def statistics_from_tensors(tensors: Mapping[str, Tensor], fingerprint: str | None) -> ClassStatistics | None:
    """The inverse of `statistics_to_tensors`, on what a seal vouches for.

    Raises: KeyError, ValueError: If only a part is there, or parts do not fit.
    """
    if "statistics/counts" not in tensors:
        return None
    counts = words_from(tensors["statistics/counts"])
    if not isinstance(counts, dict):
        raise ValueError("counts are no object")
    means = dict(zip(sorted(counts), tensors["statistics/means"], strict=True))
    return ClassStatistics(counts, means, tensors["statistics/scatter"], fingerprint)
