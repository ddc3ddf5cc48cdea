"""How a vector travels in fewer bytes: codecs, each a pair of pure functions between float32 and one payload.

    none      x                                                                           4 bytes a value
    float16   the nearest float16; beyond +-65504, +-65504                                2
    int8      s_b = max over block b of |x_i|, / 127;   q_i = round(x_i / s_b)            1 + 4/256
    topk      the ceil(P/16) values of largest magnitude as float16, with their places    6/16

Blocks with a scale of their own keep one large value from costing all others their precision (Dettmers et al. 2022,
"8-bit Optimizers via Block-wise Quantization", arXiv:2110.02861, sec. 2.1). topk is Aji and Heafield 2017
(arXiv:1704.05021). What a codec rounds off or leaves out is not lost where its sender keeps it for the next time:
`experts.averaging.share`.

A payload may come from anyone: `payload_header` tells how long it has to be before a byte of it is read, and `decode`
refuses by name another type or size, what is not finite, and levels or places out of range. All rounding is the
encoder's: what it wrote is decoded exactly, to the same bits on every machine, and encoding that again loses nothing.

Legend: P parameters, K values kept, Q blocks.
"""

from collections.abc import Mapping
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from experts.errors import CorruptWeights, MalformedPayload, ShapeMismatch, UnknownCodec

__all__ = ["CODECS", "Codec", "PayloadDtype", "codec_named"]

PayloadDtype = Literal["float16", "float32", "uint8"]

Vector = NDArray[np.float32]
Payload = NDArray[Any]

_LARGEST_HALF = 65504.0
"""The largest finite float16."""

_BLOCK = 256
"""Values that share a scale: four bytes of scale are then 1.6% of what travels."""

_LEVELS = 127

_SCALE_MASK = np.uint32(0xFFFFFF80)
"""Keeps 17 of a scale's 24 significant bits, so that its product with any level, seven bits, is exact in float32."""

_LEAST_SCALE = np.finfo(np.float32).tiny
"""Below it float32 has fewer bits to keep. The values of such a block, none above 1.5e-36, become 0."""

_LARGEST_SCALE = np.float32(2.0**121 * (1 + 2.0**-7 + 2.0**-14))
"""That of float32's largest value: above it a product could overflow."""

_KEPT_OF = 16
"""topk keeps one value of so many."""


class Codec(Protocol):
    """One way for a vector to travel. Stateless, and safe in any number of threads."""

    @property
    def name(self) -> str:
        """One of `CODECS`."""

    def encode(self, vector: Vector) -> Payload:
        """The payload: a 1-D array as `payload_header` says, which may share the vector's memory.

        Args:
            vector: float32 ``(P,)``; P may be 0.

        Raises:
            ShapeMismatch: If it has other than one dimension.
            CorruptWeights: If it is not float32, or a value is not finite: what nobody would take is not sent.
        """

    def decode(self, payload: Payload, length: int) -> Vector:
        """The vector, as near to the encoded one as the codec gets; safe on a payload from anyone.

        Args:
            payload: As from `encode`.
            length: P, at least 0; the receiver's own.

        Returns: float32 ``(P,)``, finite. It may share the payload's memory and be read-only.

        Raises:
            MalformedPayload: If the payload is not one of a finite vector of this length.
        """

    def payload_header(self, length: int) -> tuple[PayloadDtype, int]:
        """Type and number of elements of the payload of any vector of this length, exactly."""


def codec_named(name: str) -> Codec:
    """The codec of a name.

    Raises:
        UnknownCodec: If it is not one of `CODECS`.
    """
    if name not in _BY_NAME:
        raise UnknownCodec(name, known=CODECS)
    return _BY_NAME[name]


class _Float32:
    """The values as they are."""

    name = "none"

    def encode(self, vector: Vector) -> Payload:
        return _checked(vector)

    def decode(self, payload: Payload, length: int) -> Vector:
        _require_fitting(self, payload, length)
        _require_finite(self, payload)
        return payload.astype(np.float32, copy=False)

    def payload_header(self, length: int) -> tuple[PayloadDtype, int]:
        return "float32", length


class _Float16:
    """Rounded: off by at most 2^-11 of a value or 2^-25, whichever is more, where it does not saturate."""

    name = "float16"

    def encode(self, vector: Vector) -> Payload:
        return _halves(_checked(vector))

    def decode(self, payload: Payload, length: int) -> Vector:
        _require_fitting(self, payload, length)
        _require_finite(self, payload)
        return payload.astype(np.float32)

    def payload_header(self, length: int) -> tuple[PayloadDtype, int]:
        return "float16", length


class _Int8:
    """Levels of a scale per block: off by at most half a scale, 1/254 of the block's largest magnitude.

    The payload is Q scales, little-endian float32, then P levels, int8 in [-127, 127].
    """

    name = "int8"

    def encode(self, vector: Vector) -> Payload:
        num_scales = _num_blocks(len(_checked(vector)))
        blocks = np.zeros((num_scales, _BLOCK), np.float32)
        blocks.reshape(-1)[: len(vector)] = vector
        largest_Q = np.maximum(blocks.max(axis=1), -blocks.min(axis=1))
        scales_Q = ((largest_Q / np.float32(_LEVELS)).view(np.uint32) & _SCALE_MASK).view(np.float32)
        scales_Q[scales_Q < _LEAST_SCALE] = 0.0
        blocks /= np.where(scales_Q > 0, scales_Q, np.float32(np.inf))[:, np.newaxis]
        np.rint(blocks, out=blocks)
        payload = np.empty(self.payload_header(len(vector))[1], np.uint8)
        payload[: 4 * num_scales] = scales_Q.astype("<f4").view(np.uint8)
        payload[4 * num_scales :].view(np.int8)[:] = blocks.reshape(-1)[: len(vector)]
        return payload

    def decode(self, payload: Payload, length: int) -> Vector:
        _require_fitting(self, payload, length)
        num_scales = _num_blocks(length)
        scales_Q = _read(payload[: 4 * num_scales], "<f4")
        levels_P = _read(payload[4 * num_scales :], "i1")
        if not bool(((scales_Q >= 0) & (scales_Q <= _LARGEST_SCALE)).all()):  # not true of NaN either
            raise MalformedPayload(self.name, reason=f"a scale is not in [0, {_LARGEST_SCALE:g}]")
        if length and int(levels_P.min()) < -_LEVELS:
            raise MalformedPayload(self.name, reason=f"a level is below -{_LEVELS}")
        blocks = np.zeros((num_scales, _BLOCK), np.float32)
        blocks.reshape(-1)[:length] = levels_P
        blocks *= scales_Q[:, np.newaxis]
        return blocks.reshape(-1)[:length]

    def payload_header(self, length: int) -> tuple[PayloadDtype, int]:
        return "uint8", 4 * _num_blocks(length) + length


class _TopK:
    """The largest magnitudes; of equal ones at the edge those that come first.

    The payload is K places, little-endian uint32, strictly increasing, then their values, little-endian float16: what
    float16 rounds off them is far less than what the other fifteen sixteenths leave out, and a quarter of the bytes of
    a float32 payload is saved.
    """

    name = "topk"

    def encode(self, vector: Vector) -> Payload:
        kept = _num_kept(len(_checked(vector)))
        places_K = _largest(np.abs(vector), kept)
        payload = np.empty(self.payload_header(len(vector))[1], np.uint8)
        payload[: 4 * kept] = places_K.astype("<u4").view(np.uint8)
        payload[4 * kept :] = _halves(vector[places_K]).astype("<f2").view(np.uint8)
        return payload

    def decode(self, payload: Payload, length: int) -> Vector:
        _require_fitting(self, payload, length)
        kept = _num_kept(length)
        places_K = _read(payload[: 4 * kept], "<u4")
        values_K = _read(payload[4 * kept :], "<f2")
        if not bool((places_K[1:] > places_K[:-1]).all()):
            raise MalformedPayload(self.name, reason="places do not increase")
        if kept and int(places_K[-1]) >= length:
            raise MalformedPayload(self.name, reason=f"place {int(places_K[-1])} of {length} values")
        _require_finite(self, values_K)
        vector = np.zeros(length, np.float32)
        vector[places_K] = values_K
        return vector

    def payload_header(self, length: int) -> tuple[PayloadDtype, int]:
        return "uint8", 6 * _num_kept(length)


_ALL: tuple[Codec, ...] = (_Float32(), _Float16(), _Int8(), _TopK())
_BY_NAME: Mapping[str, Codec] = {codec.name: codec for codec in _ALL}

CODECS = tuple(_BY_NAME)
"""Every name that `codec_named` knows, from the most bytes to the fewest."""


def _num_blocks(length: int) -> int:
    return -(-length // _BLOCK)


def _num_kept(length: int) -> int:
    return -(-length // _KEPT_OF)


def _largest(magnitudes: Vector, kept: int) -> NDArray[np.int64]:
    """Places of the ``kept`` largest, in increasing order."""
    if kept == 0:
        return np.empty(0, np.int64)
    # A threshold first, and not argpartition: that makes an index of every value, and leaves them to be sorted.
    threshold = np.partition(magnitudes, -kept)[-kept]
    above = np.flatnonzero(magnitudes > threshold)
    at = np.flatnonzero(magnitudes == threshold)[: kept - len(above)]
    return np.sort(np.concatenate([above, at]))


def _halves(values: Vector) -> NDArray[np.float16]:
    return np.clip(values, -_LARGEST_HALF, _LARGEST_HALF).astype(np.float16)


def _read(part: Payload, dtype: str) -> Payload:
    """Bytes as numbers of this type."""
    return np.ascontiguousarray(part).view(dtype)


def _checked(vector: Vector) -> Vector:
    if vector.ndim != 1:
        raise ShapeMismatch("vector", expected=("P",), got=vector.shape)
    if vector.dtype != np.float32:
        raise CorruptWeights(f"a vector of {vector.dtype}, not float32")
    if not bool(np.isfinite(vector).all()):
        raise CorruptWeights("a vector has values that are not finite")
    return vector


def _require_fitting(codec: Codec, payload: Payload, length: int) -> None:
    dtype, size = codec.payload_header(length)
    # In either byte order. (numpy takes its time for names.)
    if payload.dtype.newbyteorder("=") != dtype or payload.shape != (size,):
        got = f"{payload.dtype.name} {payload.shape}"
        raise MalformedPayload(codec.name, reason=f"{got} for {length} values, not {dtype} {(size,)}")


def _require_finite(codec: Codec, values: Payload) -> None:
    if not bool(np.isfinite(values).all()):
        raise MalformedPayload(codec.name, reason="a value is not finite")
