"""Request bodies, and images out of them: JSON nested lists, or one uint8 ``.npy`` array.

Shapes: B batch, H height, W width, C channels.

Both forms are checked in full before they reach the node, and no decoder can be made to allocate more than a
small multiple of its input. numpy's own ``.npy`` reader is not used: it evaluates the header as Python, lets
TypeError, TokenError and RecursionError escape on garbage, and allocates whatever the header claims.
"""

import math
import re
from typing import Annotated, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request

from meshnode.forget_order import ForgetRequest
from meshnode.migration_order import MigrationRequest
from protocol.errors import FrameTooLarge, MalformedMessage, MalformedTensor

__all__ = [
    "InferRequest",
    "forget_request_from_json",
    "image_array",
    "images_from_npy",
    "infer_request_from_json",
    "migration_request_from_json",
    "whole_body",
]

T = TypeVar("T")

_Pixel = Annotated[int, msgspec.Meta(ge=0, le=255)]
_Row = list[_Pixel | list[_Pixel]]


class InferRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The JSON body of an ``infer`` call."""

    images: list[list[_Row]]
    """``(B, H, W)`` or ``(B, H, W, C)`` nested lists of pixels 0..255."""
    top_k: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """Experts asked per row; None means the mesh's own setting."""
    task: str | None = None
    """Whose classes may be named, where the mesh tells tasks apart."""
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] | None = None
    """Longest wait for the answer in seconds; None means the node's own setting."""


async def whole_body(request: Request, limit_bytes: int) -> bytes:
    """The body; FrameTooLarge as soon as it passes the limit, before the rest is read."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit_bytes:
            raise FrameTooLarge(len(body), limit_bytes)
    return bytes(body)


def infer_request_from_json(body: bytes) -> InferRequest:
    """Decode and check a JSON body; MalformedMessage names the field that is wrong."""
    return _from_json(body, InferRequest)


def migration_request_from_json(body: bytes) -> MigrationRequest:
    """As `infer_request_from_json`."""
    return _from_json(body, MigrationRequest)


def forget_request_from_json(body: bytes) -> ForgetRequest:
    """As `infer_request_from_json`."""
    return _from_json(body, ForgetRequest)


def _from_json(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as exc:
        raise MalformedMessage(reason=str(exc)) from exc


def image_array(images: list[list[_Row]]) -> NDArray[np.uint8]:
    """Nested lists as one array; MalformedTensor if their lengths differ or a dimension is missing."""
    try:
        array = np.array(images, dtype=np.uint8)
    except (ValueError, TypeError) as exc:
        raise MalformedTensor("images", "the nested lists differ in length") from exc
    return _require_batch(array)


def images_from_npy(body: bytes) -> NDArray[np.uint8]:
    """A read-only view on the pixels of a ``.npy`` body (format 1.0, dtype uint8, C order).

    Raises: MalformedTensor: If the body is anything else.
    """
    header_end = 10 + int.from_bytes(body[8:10], "little")
    found = _NPY_HEADER.fullmatch(body, 10, header_end) if body.startswith(_NPY_MAGIC) else None
    if found is None or header_end > len(body):
        raise MalformedTensor("images", "the body is not a .npy array of dtype uint8 in C order")
    shape = tuple(int(dim) for dim in re.findall(rb"\d+", found["shape"]))
    pixels = np.frombuffer(body, dtype=np.uint8, offset=header_end)
    if math.prod(shape) != pixels.size:
        raise MalformedTensor("images", f"shape {shape} was announced and {pixels.size} pixels came")
    return _require_batch(pixels.reshape(shape))


_NPY_MAGIC = b"\x93NUMPY\x01\x00"
# As numpy.save writes it for uint8; at most four dimensions of at most nine digits.
_NPY_HEADER = re.compile(
    rb"\{'descr': '[|<>]?u1', 'fortran_order': False, "
    rb"'shape': \((?P<shape>[0-9]{1,9}(?:, ?[0-9]{1,9}){0,3},?)\), ?\}\s*"
)


def _require_batch(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if array.ndim not in (3, 4) or array.size == 0:
        raise MalformedTensor(
            "images", f"shape {array.shape} is neither (B, H, W) nor (B, H, W, C) of one image or more"
        )
    return array
