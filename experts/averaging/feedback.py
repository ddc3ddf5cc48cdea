"""Error feedback: what a codec leaves out of a vector is added to the next one, so that nothing is lost for good.

    p_t = x_t + e_t,    payload_t = encode(p_t),    e_{t+1} = p_t - decode(payload_t),    e_0 = 0

x_t is what there is to send and e_t the residual. By induction sum_{s<=t} decode(payload_s) + e_{t+1} = sum_{s<=t} x_s:
what was sent is behind by one residual, however long it goes on (Seide et al. 2014, "1-Bit Stochastic Gradient Descent
and its Application to Data-Parallel Distributed Training of Speech DNNs", Interspeech, sec. 3.1; Karimireddy et al.
2019, arXiv:1901.09847, algorithm 2).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from experts.averaging.compression import Codec
from experts.errors import ShapeMismatch

__all__ = ["compress"]


def compress(
    codec: Codec, vector: NDArray[np.float32], residual: NDArray[np.float32] | None
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """A vector's payload together with what earlier ones left out, and what this one leaves out.

    Nothing is kept here: a caller puts the new residual in the old one's place once it knows that the payload arrived,
    and drops it if the round did not commit.

    Args:
        codec: How it travels.
        vector: x_t, float32 ``(P,)``.
        residual: e_t, float32 ``(P,)``; None for the first vector, when nothing is left over.

    Returns: The payload, and e_{t+1}, float32 ``(P,)``: all zeros with the codec ``none``.

    Raises:
        ShapeMismatch: If the vector has other than one dimension, or the residual is not as long.
        CorruptWeights: If the vector is not float32, or its sum with the residual is not finite.
    """
    if residual is not None and residual.shape != vector.shape:
        raise ShapeMismatch("residual", expected=vector.shape, got=residual.shape)
    with np.errstate(over="ignore"):  # the codec refuses it by name
        owed = vector if residual is None else vector + residual
    payload = codec.encode(owed)
    return payload, owed - codec.decode(payload, len(owed))
