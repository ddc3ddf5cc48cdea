"""Pickles of tables, lists, numbers, text and byte arrays, read without running anything that they name.

A pickle may name any function and have it called (https://docs.python.org/3/library/pickle.html, "Restricting
globals"). Here three names of numpy's are known, under which it stores an array, and each stands for a class of this
file that keeps what it is given. Every other name is refused before anything is called.
"""

import math
import pickle
import struct
from pathlib import Path

from experts.errors import MalformedDataset, PickleRefused

__all__ = ["PlainArray", "read_plain_pickle"]

_BROKEN = (
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    ImportError,
    IndexError,
    KeyError,
    MemoryError,
    OSError,
    OverflowError,
    TypeError,
    ValueError,
    struct.error,
)
"""What reading a damaged pickle raises."""

_BYTE_TYPES = ("u1", "|u1")


class PlainArray:
    """An array of bytes as a pickle describes it."""

    shape: tuple[int, ...] = ()
    content: bytes = b""
    """In C order, as many as the shape says."""

    def __setstate__(self, state: object) -> None:
        """Takes what ``numpy.ndarray.__reduce__`` has put down: version, shape, type, Fortran order, bytes."""
        match state:
            case (int(), tuple() as shape, _PlainType() as kind, bool() as fortran, str() | bytes() as content):
                # Python 2 had one type for text and bytes, which is read as text in Latin-1: a character a byte.
                data = content.encode("latin-1") if isinstance(content, str) else content
            case _:
                raise pickle.UnpicklingError("an array that is not one of plain bytes")
        plain = kind.name in _BYTE_TYPES and not fortran and all(type(size) is int and size >= 0 for size in shape)
        if not plain or math.prod(shape) != len(data):
            raise pickle.UnpicklingError(f"an array of {kind.name}, {shape}, in {len(data)} bytes")
        self.shape, self.content = shape, data


class _PlainType:
    """``numpy.dtype``: its name alone."""

    def __init__(self, name: str = "", *_: object) -> None:
        self.name = name

    def __setstate__(self, _: object) -> None:
        """Byte order and alignment: nothing to one byte."""


class _Reconstruct:
    """``numpy.core.multiarray._reconstruct``: an empty array, whose state comes later."""

    def __new__(cls, *_: object) -> PlainArray:  # type: ignore[misc]
        return PlainArray()

    def __setstate__(self, _: object) -> None:
        """A class that had none would take a state as its own attributes."""


_KNOWN: dict[tuple[str, str], type] = {
    ("numpy.core.multiarray", "_reconstruct"): _Reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _Reconstruct,
    ("numpy", "ndarray"): PlainArray,
    ("numpy", "dtype"): _PlainType,
}
"""The second is numpy 2's name for the first."""


# The one in Python: the one in C sets aside memory for as many objects as a damaged file says it will remember.
class _PlainUnpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str, /) -> type:
        known = _KNOWN.get((module, name))
        if known is None:
            raise _NameRefused(f"{module}.{name}")
        return known


class _NameRefused(Exception):
    """Not one of what reading raises by itself."""


def read_plain_pickle(path: Path) -> object:
    """What a pickle of Python 2 or 3 holds, arrays as `PlainArray`.

    Raises:
        PickleRefused: If it names anything but numpy's arrays: it may be a program.
        MalformedDataset: If it cannot be read, is damaged, or has an array of something else than bytes.
    """
    try:
        with path.open("rb") as file:
            return _PlainUnpickler(file, encoding="latin-1").load()
    except _NameRefused as exc:
        raise PickleRefused(str(path), remedy=f"this one names {exc}, which no data set needs") from exc
    except _BROKEN as exc:
        raise MalformedDataset(str(path), reason=f"cannot be read as a pickle of data: {exc}") from exc
