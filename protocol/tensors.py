"""Tensors on the wire: a typed header each, then raw little-endian bytes in C order, end to end.

No copy is made where the memory allows it. Everything a header claims is checked before a byte is read:
what it says about sizes must add up to exactly the bytes that are there.

Shape legend: B batch, D feature, C class. None of them is assumed here; callers say the shape they need.
"""

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from protocol import limits
from protocol.errors import FrameTooLarge, MalformedTensor

__all__ = [
    "Dtype",
    "TensorHeader",
    "TensorHeaders",
    "announced_bytes",
    "pack_tensors",
    "require_header",
    "require_tensor",
    "unpack_tensors",
]

Dtype = Literal["bool", "float16", "float32", "float64", "int32", "int64", "uint8"]
"""The element types a peer may send; names as numpy's, order always little-endian."""

_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "bool": np.dtype("?"),
    "float16": np.dtype("<f2"),
    "float32": np.dtype("<f4"),
    "float64": np.dtype("<f8"),
    "int32": np.dtype("<i4"),
    "int64": np.dtype("<i8"),
    "uint8": np.dtype("u1"),
}


_NAMES: Final = {order: name for name, dtype in _DTYPES.items() for order in (dtype, dtype.newbyteorder())}
"""Of arrays' types, in either byte order: what is known is swapped rather than refused."""

_ITEM_BYTES: Final = {name: dtype.itemsize for name, dtype in _DTYPES.items()}


class TensorHeader(msgspec.Struct, frozen=True, array_like=True):
    """What the bytes of one tensor mean."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=limits.MAX_TENSOR_NAME_CHARS)]
    dtype: Dtype
    shape: Annotated[
        tuple[Annotated[int, msgspec.Meta(ge=0, le=limits.MAX_FRAME_BYTES)], ...],
        msgspec.Meta(max_length=limits.MAX_TENSOR_DIMS),
    ]

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor; Python's integers cannot overflow, whatever the dimensions."""
        return math.prod(self.shape) * _ITEM_BYTES[self.dtype]


TensorHeaders = Annotated[tuple[TensorHeader, ...], msgspec.Meta(max_length=limits.MAX_TENSORS_PER_MESSAGE)]


def pack_tensors(
    tensors: Mapping[str, npt.NDArray[Any]],
) -> tuple[tuple[TensorHeader, ...], list[memoryview]]:
    """Headers and bytes of named tensors, in the mapping's order.

    The views share the arrays' memory where these are contiguous and little-endian: don't write to an array
    before its frame is sent.

    Raises:
        MalformedTensor: A dtype that is not in `Dtype`, a name or shape beyond the limits, too many tensors.
        FrameTooLarge: Together more than ``MAX_FRAME_BYTES``.
    """
    _check_count(len(tensors))
    headers = []
    views = []
    for name, array in tensors.items():
        header = _header_of(name, array)
        headers.append(header)
        wire_array = np.ascontiguousarray(array, dtype=_DTYPES[header.dtype])
        # A flat byte view: memoryview.cast refuses arrays with a dimension of 0, numpy's view does not.
        views.append(wire_array.reshape(-1).view(np.uint8).data)
    _check_total(headers)
    return tuple(headers), views


def announced_bytes(headers: Sequence[TensorHeader]) -> int:
    """Bytes of the tensors that these headers, as they were decoded, announce together.

    Raises:
        MalformedTensor: A name is used twice.
        FrameTooLarge: They claim more than ``MAX_FRAME_BYTES``.
    """
    if len({header.name for header in headers}) != len(headers):
        raise MalformedTensor(", ".join(header.name for header in headers), "a name is used twice")
    return _check_total(headers)


def unpack_tensors(
    headers: Sequence[TensorHeader], buffer: bytes | bytearray | memoryview
) -> dict[str, npt.NDArray[Any]]:
    """The named tensors in ``buffer``, as views of it (as copies where alignment needs it).

    They can be written to where the buffer can: whoever gives it away gives them away.

    Args:
        headers: Of which `announced_bytes` is known.
        buffer: Their bytes, one tensor's after another's.

    Raises:
        MalformedTensor: The sizes do not add up to ``buffer``, or a bool is neither 0 nor 1.
    """
    view = memoryview(buffer).cast("B")
    tensors: dict[str, npt.NDArray[Any]] = {}
    offset = 0
    for header in headers:
        end = offset + header.num_bytes
        if end > len(view):
            raise MalformedTensor(header.name, f"it ends at byte {end}, the body has {len(view)}")
        tensors[header.name] = _array_of(header, view[offset:end])
        offset = end
    if offset != len(view):
        raise MalformedTensor("", f"the headers claim {offset} bytes, the body has {len(view)}")
    return tensors


def require_header(
    headers: Iterable[TensorHeader], name: str, *, dtype: Dtype, num_dims: Container[int]
) -> TensorHeader:
    """The header of the tensor ``name``, known to announce what the receiver needs before a byte of it is here.

    Args:
        headers: Of a message.
        name: Which one is needed.
        dtype: The element type it must have.
        num_dims: How many dimensions it may have.

    Raises:
        MalformedTensor: It is absent or something else.
    """
    header = next((header for header in headers if header.name == name), None)
    if header is None:
        raise MalformedTensor(name, "missing")
    if header.dtype != dtype:
        raise MalformedTensor(name, f"expected {dtype}, got {header.dtype}")
    if len(header.shape) not in num_dims:
        raise MalformedTensor(name, f"got {len(header.shape)} dimensions")
    return header


def require_tensor(
    tensors: Mapping[str, npt.NDArray[Any]],
    name: str,
    *,
    dtype: Dtype,
    shape: tuple[int | None, ...],
    finite: bool = False,
) -> npt.NDArray[Any]:
    """The tensor ``name``, known to be what the caller needs.

    Args:
        tensors: Named tensors of a message.
        name: Which one is needed.
        dtype: The element type it must have; nothing is converted.
        shape: Its dimensions, None for one of any size (0 included).
        finite: Whether NaN and infinities are refused.

    Raises:
        MalformedTensor: It is absent or something else.
    """
    array = tensors.get(name)
    if array is None:
        raise MalformedTensor(name, f"missing; the message has {sorted(tensors)}")
    if array.dtype != _DTYPES[dtype]:
        raise MalformedTensor(name, f"expected {dtype}, got {array.dtype.name}")
    fits = len(shape) == array.ndim and all(
        want is None or want == have for want, have in zip(shape, array.shape, strict=True)
    )
    if not fits:
        wanted = tuple("any" if size is None else size for size in shape)
        raise MalformedTensor(name, f"expected shape {wanted}, got {array.shape}")
    if finite and not np.isfinite(array).all():
        raise MalformedTensor(name, "has values that are not finite")
    return array


def _header_of(name: str, array: npt.NDArray[Any]) -> TensorHeader:
    dtype: Any = _NAMES.get(array.dtype) or array.dtype.name  # numpy takes its time for names
    header = TensorHeader(name, dtype, array.shape)
    _check_header(header)
    return header


def _check_header(header: TensorHeader) -> None:
    """The limits of the struct, for headers that were built and not decoded."""
    if header.dtype not in _DTYPES:
        raise MalformedTensor(header.name, f"{header.dtype} does not travel; one of {sorted(_DTYPES)} does")
    if not 1 <= len(header.name) <= limits.MAX_TENSOR_NAME_CHARS:
        raise MalformedTensor(header.name, f"names have 1 to {limits.MAX_TENSOR_NAME_CHARS} characters")
    if len(header.shape) > limits.MAX_TENSOR_DIMS:
        raise MalformedTensor(header.name, f"{len(header.shape)} dimensions, at most {limits.MAX_TENSOR_DIMS}")
    if any(not 0 <= size <= limits.MAX_FRAME_BYTES for size in header.shape):
        raise MalformedTensor(header.name, f"impossible shape {header.shape}")


def _check_count(num_tensors: int) -> None:
    if num_tensors > limits.MAX_TENSORS_PER_MESSAGE:
        raise MalformedTensor("", f"{num_tensors} tensors, at most {limits.MAX_TENSORS_PER_MESSAGE}")


def _check_total(headers: Iterable[TensorHeader]) -> int:
    total_bytes = sum(header.num_bytes for header in headers)
    if total_bytes > limits.MAX_FRAME_BYTES:
        raise FrameTooLarge(min(total_bytes, limits.MAX_COUNTER), limits.MAX_FRAME_BYTES)
    return total_bytes


def _array_of(header: TensorHeader, view: memoryview) -> npt.NDArray[Any]:
    dtype = _DTYPES[header.dtype]
    if header.dtype == "bool" and (np.frombuffer(view, dtype=np.uint8) > 1).any():
        raise MalformedTensor(header.name, "a bool is neither 0 nor 1")
    array = np.frombuffer(view, dtype=dtype).reshape(header.shape)
    if array.flags.aligned:
        return array
    # Frames are not padded; vectorised code (torch's too) may assume alignment.
    return array.copy()
