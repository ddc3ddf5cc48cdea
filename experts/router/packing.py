"""Tensors of declared names and types as bytes: safetensors that are checked before anything is made of them.

The format (https://huggingface.co/docs/safetensors, "Format") gives every tensor's type, shape and place in a header
whose length is bounded; it has to account for every byte behind it, so no header makes a reader allocate more than it
was sent. `experts.checkpoint` reads and writes it; what only statistics ask for is here.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from experts.checkpoint import MAX_HEADER_BYTES, read_safetensors, write_safetensors
from experts.errors import CorruptWeights, UnsafeStatistics

__all__ = ["pack", "unpack"]


def pack(tensors: Mapping[str, Tensor], config: Mapping[str, object]) -> bytes:
    """Tensors and a JSON object as bytes, the same for equal arguments.

    Raises:
        UnsafeStatistics: If a reader would not take it: a value is not finite, or the header is too long.
    """
    _require_finite(tensors)
    data = write_safetensors(tensors, config)
    header_bytes = int.from_bytes(data[:8], "little")
    if header_bytes > MAX_HEADER_BYTES:
        raise UnsafeStatistics(f"names and counts take {header_bytes} bytes, {MAX_HEADER_BYTES} are allowed")
    return data


def unpack(data: bytes, types: Mapping[str, torch.dtype]) -> tuple[dict[str, Tensor], dict[str, object]]:
    """What `pack` wrote; safe on bytes from anyone.

    Args:
        data: The bytes.
        types: The tensors that there have to be, no more and no fewer, and their types.

    Returns: The tensors, of whatever shape they came in, and the JSON object.

    Raises:
        UnsafeStatistics: If the bytes are not such a file, or a floating value is not finite.
    """
    try:
        tensors, config = read_safetensors(data)
    except CorruptWeights as exc:
        raise UnsafeStatistics(exc.reason) from exc
    if {name: tensor.dtype for name, tensor in tensors.items()} != dict(types):
        raise UnsafeStatistics(f"tensors {', '.join(f'{name} {tensor.dtype}' for name, tensor in tensors.items())}")
    _require_finite(tensors)
    return tensors, config


def _require_finite(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise UnsafeStatistics(f"a value of {name} is not a finite {tensor.dtype}")
