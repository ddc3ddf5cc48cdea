"""Tensors in hivemind's protobuf, to and from numpy: what they claim is checked before their bytes are looked at.

hivemind decodes a tensor by what it says of itself: any dtype, any shape, six compressions. Here the receiver says
what it expects, float32 and the shape of a row, and everything else is refused.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from hivemind.proto import runtime_pb2
from hivemind.utils.streaming import split_for_streaming

from protocol.errors import FrameTooLarge, MalformedTensor
from protocol.limits import MAX_COUNTER, MAX_FRAME_BYTES

__all__ = ["COMPRESSIONS", "Gathering", "NO_COMPRESSION", "TensorSpec", "pack_tensor", "require_rows", "split_tensor"]

NO_COMPRESSION: Final = frozenset({runtime_pb2.NONE})
COMPRESSIONS: Final = frozenset(
    {
        runtime_pb2.NONE,
        runtime_pb2.FLOAT16,
        runtime_pb2.MEANSTD_16BIT,
        runtime_pb2.UNIFORM_8BIT,
        runtime_pb2.QUANTILE_8BIT,
    }
)
"""All of hivemind's but the one that needs a package of its own."""

_CODEBOOK: Final = 256
_PART_BYTES: Final = 1024 * 1024
"""Of a tensor in one message of a stream: above, copies dominate (measured); hivemind reads any size."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A float32 tensor that is expected: any number of rows of one shape."""

    name: str
    """For errors."""
    row: tuple[int, ...]
    """At least one dimension."""


def pack_tensor(array: np.ndarray) -> runtime_pb2.Tensor:
    """A float32 array, uncompressed, as hivemind would send it."""
    data = np.ascontiguousarray(array, dtype="<f4").tobytes()
    return runtime_pb2.Tensor(buffer=data, size=array.shape, dtype="float32", compression=runtime_pb2.NONE)


def split_tensor(tensor: runtime_pb2.Tensor) -> Sequence[runtime_pb2.Tensor]:
    """The parts in which a tensor goes over a stream."""
    return tuple(split_for_streaming(tensor, _PART_BYTES))


def require_rows(array: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """An array of our own side that is about to be sent.

    Raises:
        MalformedTensor: Not what `spec` says, or not finite.
    """
    if array.dtype != np.float32 or array.ndim != 1 + len(spec.row) or array.shape[1:] != spec.row:
        wanted = f"float32 of shape {('any', *spec.row)}"
        raise MalformedTensor(spec.name, f"expected {wanted}, got {array.dtype.name} of shape {array.shape}")
    return _finite(array, spec)


class Gathering:
    """Collects the tensors of one message or stream, part by part, and never holds more than they may have.

    All tensors have the same number of rows.

    Args:
        specs: What is expected, in this order.
        compressions: Which are taken.
        num_rows: How many rows there must be; None takes the first tensor's word.
        max_bytes: Of all tensors together, both as they come and as float32.
    """

    def __init__(
        self,
        specs: Sequence[TensorSpec],
        *,
        compressions: Collection[int] = NO_COMPRESSION,
        num_rows: int | None = None,
        max_bytes: int = MAX_FRAME_BYTES,
    ) -> None:
        self._specs = specs
        self._compressions = compressions
        self._num_rows = num_rows
        self._bytes_left = max_bytes
        self._gathered: list[tuple[int, int, bytearray]] = []
        """Of each tensor begun: compression, bytes it will have, bytes so far."""

    def add(self, part: runtime_pb2.Tensor) -> None:
        """Take the next part; one with a dtype begins the next tensor.

        Raises:
            MalformedTensor: Not the beginning of what is expected, or more than was announced.
            FrameTooLarge: It announces more than may be sent.
        """
        if part.dtype or not self._gathered:
            self._begin(part)
        elif not part.buffer:
            raise MalformedTensor(self._spec.name, "an empty part")
        _, wanted, data = self._gathered[-1]
        if len(data) + len(part.buffer) > wanted:
            raise MalformedTensor(self._spec.name, f"more than the {wanted} bytes that its shape takes")
        data += part.buffer

    @property
    def complete(self) -> bool:
        """Whether all bytes that were announced are here, and no tensor is missing."""
        return len(self._gathered) == len(self._specs) and all(
            len(data) == wanted for _, wanted, data in self._gathered
        )

    def finish(self) -> list[np.ndarray]:
        """All tensors, as arrays that are finite and nobody else's.

        Raises:
            MalformedTensor: One is missing, incomplete, or not finite.
        """
        if len(self._gathered) < len(self._specs):
            raise MalformedTensor(self._specs[len(self._gathered)].name, "missing")
        arrays = []
        for spec, (compression, wanted, data) in zip(self._specs, self._gathered, strict=True):
            if len(data) != wanted:
                raise MalformedTensor(spec.name, f"{len(data)} bytes, its shape takes {wanted}")
            assert self._num_rows is not None
            arrays.append(_finite(_DECODERS[compression](data, (self._num_rows, *spec.row)), spec))
        return arrays

    @property
    def _spec(self) -> TensorSpec:
        return self._specs[len(self._gathered) - 1]

    def _begin(self, part: runtime_pb2.Tensor) -> None:
        if len(self._gathered) == len(self._specs):
            raise MalformedTensor("", f"more than {len(self._specs)} tensors")
        spec = self._specs[len(self._gathered)]
        if part.dtype != "float32":
            raise MalformedTensor(spec.name, f"expected float32, got {part.dtype[:32] or 'no dtype'}")
        if part.compression not in self._compressions:
            raise MalformedTensor(spec.name, f"compression {part.compression} is not taken")
        if len(part.size) != 1 + len(spec.row) or tuple(part.size[1:]) != spec.row:
            raise MalformedTensor(spec.name, f"expected shape {('any', *spec.row)}, got {tuple(part.size[:8])}")
        rows = part.size[0]
        if self._num_rows is None:
            self._num_rows = rows
        if rows != self._num_rows:
            raise MalformedTensor(spec.name, f"{rows} rows, expected {self._num_rows}")
        size = rows * math.prod(spec.row)
        if 4 * size > self._bytes_left:
            raise FrameTooLarge(min(4 * size, MAX_COUNTER), self._bytes_left)
        self._bytes_left -= 4 * size
        wanted = _ENCODED_BYTES[part.compression](size, size // spec.row[-1])
        self._gathered.append((part.compression, wanted, bytearray()))


def _finite(array: np.ndarray, spec: TensorSpec) -> np.ndarray:
    if not np.isfinite(array).all():
        raise MalformedTensor(spec.name, "has values that are not finite")
    return array


def _plain(data: bytearray, shape: tuple[int, ...]) -> np.ndarray:
    return np.frombuffer(data, "<f4").reshape(shape)


def _halves(data: bytearray, shape: tuple[int, ...]) -> np.ndarray:
    return np.frombuffer(data, "<f2").astype(np.float32).reshape(shape)


def _scaled_halves(data: bytearray, shape: tuple[int, ...]) -> np.ndarray:
    """Values that were brought to mean 0 and deviation 1 along the last axis; then all means, then all deviations."""
    size = math.prod(shape)
    values = np.frombuffer(data, "<f2", count=size).astype(np.float32).reshape(shape)
    means, deviations = np.frombuffer(data, "<f4", offset=2 * size).reshape(2, *shape[:-1], 1)
    with np.errstate(over="ignore", invalid="ignore"):  # whoever sends such numbers is told that they are not finite
        return np.asarray(values * deviations + means)


def _looked_up(data: bytearray, shape: tuple[int, ...]) -> np.ndarray:
    """The number of values in the codebook, the codebook, and an index for each element."""
    num_values = int.from_bytes(data[:8], "little", signed=True)
    if num_values != _CODEBOOK:
        raise MalformedTensor("", f"a codebook of {num_values} values, {_CODEBOOK} are expected")
    codebook = np.frombuffer(data, "<f4", offset=8, count=_CODEBOOK)
    return np.asarray(codebook[np.frombuffer(data, np.uint8, offset=8 + codebook.nbytes)].reshape(shape))


_DECODERS: Final[Mapping[int, Callable[[bytearray, tuple[int, ...]], Any]]] = {
    runtime_pb2.NONE: _plain,
    runtime_pb2.FLOAT16: _halves,
    runtime_pb2.MEANSTD_16BIT: _scaled_halves,
    runtime_pb2.UNIFORM_8BIT: _looked_up,
    runtime_pb2.QUANTILE_8BIT: _looked_up,
}

_ENCODED_BYTES: Final[Mapping[int, Callable[[int, int], int]]] = {
    runtime_pb2.NONE: lambda size, rows: 4 * size,
    runtime_pb2.FLOAT16: lambda size, rows: 2 * size,
    runtime_pb2.MEANSTD_16BIT: lambda size, rows: 2 * size + 8 * rows,
    runtime_pb2.UNIFORM_8BIT: lambda size, rows: 8 + 4 * _CODEBOOK + size,
    runtime_pb2.QUANTILE_8BIT: lambda size, rows: 8 + 4 * _CODEBOOK + size,
}
"""What a tensor of so many elements, and rows along the last axis, takes."""
