"""Tensors with a JSON header as safetensors that notice when they were damaged.

safetensors checks its layout only: a flipped bit in a tensor is another number. The header therefore holds a
SHA-256 over itself and every tensor's name, type, shape and bytes.
"""

import hashlib
import json
from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from experts.checkpoint import MAX_HEADER_BYTES
from experts.errors import CorruptState

__all__ = ["seal", "tensors_digest", "unseal"]

_ENTRY = "modulemesh"


def seal(tensors: Mapping[str, torch.Tensor], header: Mapping[str, object]) -> bytes:
    """The same bytes for equal tensors and header.

    Args:
        tensors: Of any type, on any device.
        header: A JSON object.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    # One metadata entry only: safetensors keeps several in an order that changes from run to run.
    return save(contiguous, metadata={_ENTRY: _canonical([header, tensors_digest(contiguous, header)])})


def unseal(data: bytes, name: str) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """Tensors (copies, on the CPU) and header that `seal` wrote; safe on any bytes.

    Args:
        data: The bytes.
        name: What they should be, for the error.

    Raises:
        CorruptState: If they are not what `seal` wrote, to the bit.
    """
    header_bytes = int.from_bytes(data[:8], "little")
    if len(data) < 8 or header_bytes > MAX_HEADER_BYTES:
        raise CorruptState(name, reason=f"header of {header_bytes} bytes in {len(data)}, {MAX_HEADER_BYTES} allowed")
    try:
        tensors = load(data)
        # Parsed only after safetensors, which bounds its depth.
        header, digest = json.loads(json.loads(data[8 : 8 + header_bytes])["__metadata__"][_ENTRY])
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as exc:
        raise CorruptState(name, reason=f"not sealed safetensors: {exc}") from exc
    if not isinstance(header, dict) or tensors_digest(tensors, header) != digest:
        raise CorruptState(name, reason="the digest does not match")
    return tensors, header


def tensors_digest(tensors: Mapping[str, torch.Tensor], header: Mapping[str, object]) -> str:
    """SHA-256 over the header and each tensor's name, type, shape and bytes: 64 lowercase hex characters."""
    hashed = hashlib.sha256()
    forms = [[name, str(tensor.dtype), list(tensor.shape)] for name, tensor in sorted(tensors.items())]
    hashed.update(_canonical([header, forms]).encode())
    for _, tensor in sorted(tensors.items()):
        hashed.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
