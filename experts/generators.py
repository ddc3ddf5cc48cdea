"""Randomness with a name: every consumer has a stream of its own, and initial weights are portable.

Two nodes that spawn the same expert at the same time must hold the same initial weights, whatever their
versions of torch and numpy. Neither library promises its *distributions* across versions, but the words of
the counter-based generator Philox-4x64-10 are fixed by its definition (Salmon et al. 2011, "Parallel random
numbers: as easy as 1, 2, 3", doi:10.1145/2063384.2063405). So we take raw words and map them ourselves.
"""

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch

__all__ = ["portable_uniform", "torch_generator"]


def portable_uniform(seed: bytes | str, label: str, shape: Sequence[int]) -> torch.Tensor:
    """Uniform numbers that are the same bits on every platform and version.

    The Philox key is the first 16 bytes of ``sha256(len(seed) || seed || label)``, read little-endian, its
    counter starts at 0, and of every 64-bit word the top 24 bits become one float32, exactly.

    Args:
        seed: What the stream belongs to, such as an expert's uid; text is taken as UTF-8.
        label: Which of the seed's streams, such as a parameter's name; streams do not overlap.
        shape: Shape of the result; an empty shape is one number.
    Returns: float32 of ``shape``, in [0, 1), multiples of 2^-24, filled in C order.
    """
    seed_bytes = seed.encode() if isinstance(seed, str) else seed
    # The length keeps ("ab", "c") and ("a", "bc") apart.
    digest = hashlib.sha256(len(seed_bytes).to_bytes(8, "little") + seed_bytes + label.encode()).digest()
    philox = np.random.Philox(counter=0, key=int.from_bytes(digest[:16], "little"))
    words = philox.random_raw(math.prod(shape)).astype(np.uint64)
    uniform = (words >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
    return torch.from_numpy(uniform).reshape(tuple(shape))


def torch_generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator for one named consumer, independent of every other name's.

    Streams shared between consumers make one method's draws change another's data; a stream per name cannot.

    Args:
        seed: The run's seed, any integer.
        name: The consumer, such as "replay" or "batches".
    Returns: A fresh generator; the same seed and name give the same stream for one version of torch.
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    # torch takes any 64-bit seed; 63 bits stay clear of its signed conversion.
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
