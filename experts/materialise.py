"""Memory for a module that was built on the meta device, where torch's own initialisation draws no random number."""

import torch
from torch import nn

__all__ = ["materialise"]


def materialise(module: nn.Module) -> None:
    """Give the module's parameters and buffers memory on the CPU; their values are undefined until they are set.

    `nn.Module.to_empty` does the same by way of torch's symbolic shapes, and importing those, with all of sympy,
    costs every process that loads a weight time and memory.
    """
    empty = {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in module.state_dict().items()}
    module.load_state_dict(empty, assign=True)
