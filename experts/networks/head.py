"""The head of a network: what it computes up to the output of one module inside it, and nothing after.

A *cut* names that output: the module's path (``layers.7``), with ``#2`` behind it for the second time the module is
called in a pass, ``#3`` for the third. Where execution stops is found by running the network, so nothing is assumed of
how it is written.
"""

import re
from typing import Any

import torch
from torch import nn

from experts.errors import UnknownCut

__all__ = ["Head", "cut_name", "split_cut"]

_CUT = re.compile(r"([^#]+)(?:#([1-9][0-9]{0,5}))?")


class Head(nn.Module):
    """A network that stops at a cut and returns the output there; gradients flow as in the whole.

    Its parameters are all of the network's, which it shares. Not to be called by two threads at once.

    Args:
        network: Any module.
        cut: The output to stop at.
    Raises: UnknownCut: If the network has no such module.
    """

    def __init__(self, network: nn.Module, cut: str) -> None:
        super().__init__()
        path, self._call = split_cut(cut)
        if path not in dict(network.named_modules(remove_duplicate=False)):
            raise UnknownCut(cut, reason="the network has no such module")
        self.network = network
        self.cut = cut
        """The output it stops at."""
        self._path = path

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The output at the cut, as the module there gives it.

        Raises: UnknownCut: If the module is not called as often, or gives something else than one tensor.
        """
        num_calls = 0

        def stop(_module: nn.Module, _inputs: tuple[Any, ...], output: object) -> None:
            nonlocal num_calls
            num_calls += 1
            if num_calls == self._call:
                raise _Reached(output)

        handle = self.network.get_submodule(self._path).register_forward_hook(stop)
        try:
            self.network(*inputs)
        except _Reached as reached:
            if not isinstance(reached.output, torch.Tensor):
                raise UnknownCut(self.cut, reason="its output is not one tensor") from None
            return reached.output
        finally:
            handle.remove()
        raise UnknownCut(self.cut, reason=f"the module is called {num_calls} times")


def cut_name(path: str, call: int) -> str:
    """The cut after a module's ``call``-th call of a pass, counted from 1."""
    return path if call == 1 else f"{path}#{call}"


def split_cut(cut: str) -> tuple[str, int]:
    """The inverse of `cut_name`.

    Raises: UnknownCut: If it is not of that form.
    """
    match = _CUT.fullmatch(cut)
    if match is None:
        raise UnknownCut(cut, reason="not a module's path, with #2 for its second call")
    return match[1], int(match[2] or 1)


class _Reached(Exception):
    """No error: how execution leaves a network half-way."""

    def __init__(self, output: object) -> None:
        super().__init__()
        self.output = output
