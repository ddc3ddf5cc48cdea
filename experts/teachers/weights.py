"""Weights of a teacher from a file: safetensors only. A pickle is refused by its name and by its bytes, unread.

A pickle is a program for a stack machine, and reading it runs it (docs.python.org, library/pickle: "Never unpickle
data that could have come from an untrusted source"). safetensors cannot carry code.
"""

import io
import os
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from experts.errors import CorruptWeights, PickleRefused, UnknownTeacher

__all__ = ["PICKLE_SUFFIXES", "fit_weights", "path_given", "read_weights", "refuse_pickle"]

PICKLE_SUFFIXES = frozenset({".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth", ".pt2", ".tar", ".th"})
"""Endings under which PyTorch and others write pickles; such a file is not even opened."""

_TAR_MAGIC_AT = 257
"""Where a tar archive says "ustar" (POSIX.1, pax); PyTorch wrote tar archives of pickles before 0.1.10."""


def path_given(text: str) -> Path:
    """A path as a user writes it: ``~`` is home, ``~somebody`` nobody knows is a name like any other."""
    return Path(os.path.expanduser(text))


def refuse_pickle(path: Path) -> None:
    """Passes what is no pickle, nor an archive of one; none of it is unpickled to find out.

    What is no file passes too: its reader says so.

    Raises: PickleRefused: If its name or its bytes say so. CorruptWeights: If it cannot be read.
    """
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise PickleRefused(str(path))
    if not path.is_file():
        return
    try:
        with path.open("rb") as file:
            head = file.read(_TAR_MAGIC_AT + 5)
            file.seek(max(0, path.stat().st_size - 1))
            last = file.read(1)
    except OSError as exc:
        raise CorruptWeights(f"{path}: unreadable: {exc}") from exc
    if head.startswith(b"PK") and zipfile.is_zipfile(path):
        raise PickleRefused(str(path))
    if head[_TAR_MAGIC_AT:] == b"ustar":
        raise PickleRefused(str(path))
    # A safetensors header of 640 bytes begins as a pickle of protocol 2 does; it goes on otherwise.
    if not head[8:9] == b"{" and (_begins_as_pickle(head) or (last == b"." and _has_pickle_ops(head))):
        raise PickleRefused(str(path))


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, on the CPU, of whatever types.

    Raises: PickleRefused: As `refuse_pickle`. UnknownTeacher: If there is no such file. CorruptWeights: If it is not
        safetensors.
    """
    refuse_pickle(path)
    if not path.is_file():
        raise UnknownTeacher(str(path), reason=f"there is no file {path.absolute()}")
    try:
        return load_file(path)
    except (OSError, SafetensorError, KeyError, ValueError) as exc:
        raise CorruptWeights(f"{path}: not a safetensors file: {exc}") from exc


def fit_weights(network: nn.Module, tensors: Mapping[str, torch.Tensor], *, source: str) -> None:
    """Copies tensors into a network that has exactly these; on an error the network is unchanged.

    Floats of another width become the network's own; whole numbers have to be whole numbers.

    Args:
        source: Where they are from, for the error.
    Raises: CorruptWeights: If a name is missing or foreign, a shape or a kind of number differs, or a value is
        not finite.
    """
    own = network.state_dict()
    if tensors.keys() != own.keys():
        missing, foreign = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
        raise CorruptWeights(f"{source}: missing tensors {missing[:5]}, foreign tensors {foreign[:5]}")
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise CorruptWeights(f"{source}: {name} has shape {tuple(tensor.shape)}, not {tuple(own[name].shape)}")
        if tensor.dtype != own[name].dtype and not (tensor.is_floating_point() and own[name].is_floating_point()):
            raise CorruptWeights(f"{source}: {name} is {tensor.dtype}, not {own[name].dtype}")
        # As the network has them: a number that float64 holds may be infinite here, and of float8 torch cannot say.
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.to(own[name].dtype)).all()):
            raise CorruptWeights(f"{source}: {name} has values that are not finite")
    network.load_state_dict(tensors)


def _begins_as_pickle(head: bytes) -> bool:
    """Protocols 2 and later begin with the opcode PROTO and their number (docs.python.org, library/pickletools)."""
    return len(head) >= 2 and head[0] == 0x80 and 2 <= head[1] <= 5


def _has_pickle_ops(head: bytes) -> bool:
    """Whether the first bytes are opcodes of a pickle, as protocols 0 and 1 begin; decoding runs none of them."""
    try:
        next(pickletools.genops(io.BytesIO(head)))
    except (ValueError, IndexError, StopIteration):
        return False
    return True
