"""Images from a file or from stdin, told apart by their first bytes.

B batch, H height, W width, C channels.
"""

import io
import sys
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from meshnode.cli.human import size
from meshnode.errors import ResourceAbsent
from protocol.limits import MAX_FRAME_BYTES

__all__ = ["npy_of", "read_images"]

_DAMAGED = (ValueError, TypeError, EOFError, OSError, tokenize.TokenError, zipfile.BadZipFile, zlib.error)
"""What numpy and Pillow raise on damaged files; numpy's header parser is Python's own tokenizer."""


def read_images(source: str) -> NDArray[np.uint8]:
    """The images of a file, ``-`` meaning stdin, as uint8 ``(B, H, W)`` or ``(B, H, W, C)``.

    A ``.npy`` array, the array ``images`` of an ``.npz``, or one PNG or JPEG. Two dimensions
    are one grey image.

    Raises:
        ResourceAbsent: If the file cannot be read.
        typer.BadParameter: If it holds no such images.
    """
    data = _read(source)
    try:
        if data.startswith(b"\x93NUMPY"):
            return _as_batch(np.load(io.BytesIO(data), allow_pickle=False))
        if data.startswith(b"PK"):
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                return _as_batch(archive["images"])
        return _picture(data)
    except UnidentifiedImageError as exc:
        raise _unusable(source, "it is no .npy, .npz, PNG or JPEG") from exc
    except KeyError as exc:
        raise _unusable(source, "the .npz has no array named images") from exc
    except (*_DAMAGED, Image.DecompressionBombError) as exc:
        raise _unusable(source, str(exc)) from exc


def npy_of(images_BHWC: NDArray[np.uint8]) -> bytes:
    """The array as the ``.npy`` body of an API call; typer.BadParameter if it is more than a call takes."""
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(images_BHWC), allow_pickle=False)
    if file.tell() > MAX_FRAME_BYTES:
        reason = f"its pixels are {size(file.tell())} and one call takes {size(MAX_FRAME_BYTES)}; ask in parts"
        raise typer.BadParameter(reason, param_hint="--input")
    return file.getvalue()


def _read(source: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except OSError as exc:
        raise ResourceAbsent(f"cannot read {source}: {exc.strerror}", hint="Check the path given to --input.") from exc


def _as_batch(array: NDArray[np.generic]) -> NDArray[np.uint8]:
    if array.dtype != np.uint8:
        raise ValueError(f"its pixels are {array.dtype}; convert them to uint8, 0 to 255")
    if array.ndim not in (2, 3, 4) or array.size == 0:
        raise ValueError(f"its shape is {array.shape}; (B, H, W) or (B, H, W, channels) is wanted")
    images: NDArray[np.uint8] = array.astype(np.uint8, copy=False)
    return images[None] if images.ndim == 2 else images


def _picture(data: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as picture:
        if picture.mode.startswith(("I", "F")):
            raise ValueError("its pixels have more than 8 bits; save it with 8 bits a channel")
        grey = picture.mode in ("1", "L", "LA")
        return np.asarray(picture.convert("L" if grey else "RGB"), dtype=np.uint8)[None]


def _unusable(source: str, reason: str) -> typer.BadParameter:
    return typer.BadParameter(f"{source} cannot be used: {reason}", param_hint="--input")
