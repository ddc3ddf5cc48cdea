"""A network that a file declares is built only as far as the file could fill it.

    numbers asked for <= 2 bytes of the file + 10 million        tensors <= 20,000

Declaring a network of a trillion weights takes one line, and building it would take the machine's memory before its
weights are found missing. A weight takes a byte or more of the file. The 2 is for layers that a library replaces
while it builds, the 10 million for tables that it computes and no file has.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from experts.errors import MalformedTeacher

__all__ = ["no_larger_than"]

_REPLACED = 2
_COMPUTED = 10_000_000
_MAX_TENSORS = 20_000
"""Above any published classifier of images: modules cost memory too."""

_building: ContextVar[bool] = ContextVar("building", default=False)
"""Torch's hooks see every module of the process; what other threads build is not the file's."""


@contextlib.contextmanager
def no_larger_than(*files: Path) -> Iterator[None]:
    """Modules built in this thread meanwhile have together no more numbers than these files could fill.

    What exceeds it is refused when it is made part of a module, before anything is written to it: memory that a system
    hands out on paper.

    Raises: MalformedTeacher: From within, if they ask for more.
    """
    most = _REPLACED * sum(file.stat().st_size for file in files) + _COMPUTED
    num_tensors = num_numbers = 0

    def count(_module: nn.Module, _name: str, tensor: torch.Tensor | None) -> None:
        nonlocal num_tensors, num_numbers
        if tensor is None or not _building.get():
            return
        num_tensors += 1
        num_numbers += tensor.numel()
        if num_tensors > _MAX_TENSORS or num_numbers > most:
            raise MalformedTeacher(str(files[0]), reason="it declares a larger network than it has weights for")

    # Torch's types leave out that a hook may return nothing.
    with contextlib.ExitStack() as hooks:
        hooks.callback(_building.reset, _building.set(True))
        for register in (register_module_parameter_registration_hook, register_module_buffer_registration_hook):
            hooks.callback(register(count).remove)
        yield
