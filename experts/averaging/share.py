"""One member's share of a butterfly exchange: what it sends, what it reduces for all, and what it takes home.

The parameters are cut into as many slices as there are members, and member i reduces the slice i of all. Without
compression the slices travel as they are. With it, what travels is the difference to a reference that all members
hold, and whatever the code cannot say stays where it is: a member keeps the part of its own difference that it did not
send, and a reducer takes in what its mean lost. Both are part of the next difference, which is the error feedback of
Seide et al. (2014) and Karimireddy et al. (2019, algorithm 1), with the parameters themselves as the memory. So the
weighted sum of all replicas is the same before and after, whatever the code.

Legend: P parameters, M members, S entries of a slice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from experts.averaging.compression import Codec, PayloadDtype, codec_named

__all__ = ["Averaged", "Share"]

Vector = npt.NDArray[np.float32]
Payload = npt.NDArray[np.generic]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Averaged:
    """What an exchange comes to at one member."""

    mean: Vector
    """The members' common mean, float32 ``(P,)``: the same bits at all of them."""
    delta: Vector
    """What to add to the replica, float32 ``(P,)``."""


class Share:
    """One member's side of one exchange. Pure arithmetic, all of it slow enough for a thread if P is large.

    Args:
        vector: The replica's parameters, float32 ``(P,)``; not changed.
        reference: Parameters that all members hold alike, float32 ``(P,)``; of no matter without compression.
        codec: The members' compression.
        weights: What each member's parameters count for, in the order of the members; above 0.
        index: Which of the members this is.
    """

    def __init__(
        self, vector: Vector, reference: Vector | None, codec: Codec, weights: Sequence[float], index: int
    ) -> None:
        self._codec = codec
        # A mean has as many large entries as all its members' parts: it does not fit the code of one part's.
        self._mean_codec = codec_named("int8") if codec.name == "topk" else codec
        self._is_exact = codec.name == "none"
        self._weights = weights
        self._index = index
        bounds = np.linspace(0, len(vector), len(weights) + 1).astype(int)
        self._slices = [slice(start, stop) for start, stop in pairwise(bounds)]
        self._reference = None if self._is_exact else reference
        self._wanted = vector if self._reference is None else vector - self._reference
        self._sent = self._wanted if self._is_exact else self._wanted.copy()
        self._lost: Vector | None = None
        """Of the own slice's mean, what its code could not say, float32 ``(S,)``."""

    @property
    def num_parameters(self) -> int:
        return len(self._wanted)

    @property
    def part_header(self) -> tuple[PayloadDtype, int]:
        """Type and number of elements of the others' parts of the own slice."""
        return self._codec.payload_header(self._length(self._index))

    def _length(self, index: int) -> int:
        """S of the slice that the member ``index`` reduces."""
        return int(self._slices[index].stop - self._slices[index].start)

    def part_for(self, index: int) -> Payload:
        """What to send to the member ``index``, which is another."""
        payload = self._codec.encode(self._wanted[self._slices[index]])
        if not self._is_exact:
            self._sent[self._slices[index]] = self._codec.decode(payload, self._length(index))
        return payload

    def reduce(self, parts: Mapping[int, Payload]) -> Payload:
        """The coded mean of the own slice.

        Args:
            parts: Every other member's part of it, by the member's index.

        Raises:
            MalformedPayload: A part cannot be decoded.
        """
        total = self._weights[self._index] * self._wanted[self._slices[self._index]].astype(np.float64)
        for index, part in parts.items():
            total += self._weights[index] * self._codec.decode(part, len(total))
        total /= sum(self._weights)
        mean = total.astype(np.float32)
        payload = self._mean_codec.encode(mean)
        if not self._is_exact:
            self._lost = mean - self._mean_codec.decode(payload, len(mean))
        return payload

    def conclude(self, means: Sequence[Payload]) -> Averaged:
        """What the exchange comes to.

        Args:
            means: The coded mean of each slice, in the order of the members; the own one as `reduce` made it.

        Raises:
            MalformedPayload: A mean cannot be decoded.
        """
        codec = self._mean_codec
        mean = np.concatenate([codec.decode(payload, self._length(index)) for index, payload in enumerate(means)])
        delta = mean - self._sent
        if self._lost is not None:
            own = self._slices[self._index]
            delta[own] += self._lost * (sum(self._weights) / self._weights[self._index])
        return Averaged(mean=mean if self._reference is None else self._reference + mean, delta=delta)
