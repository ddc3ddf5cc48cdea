"""Where a network can be cut, found by watching one image go through it.

Every module's output is a candidate, whatever the module is called. The cut is *valid* if all that follows depends on
that tensor alone, so that the rest of the network could be computed from it: no skip connection passes it by. Two
checks, and a valid cut passes both.

1.  In the graph that torch records for gradients, every path from the logits to the input leads through the tensor v:

        paths(logits -> v) * paths(v -> input) = paths(logits -> input)

    The counts are exact integers, summed along the graph in one pass. A connection counts even where its derivative
    happens to be 0 (behind a ReLU that is off).
2.  The network is run on another image with v put in its place: the logits must be those of the first image. This
    finds what leaves no trace in the graph: positions of maxima, detached tensors, decisions in Python.
"""

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils._python_dispatch import TorchDispatchMode

from experts.errors import MalformedTeacher, UnknownCut
from experts.networks.head import cut_name, split_cut

__all__ = ["CutPoint", "find_cuts"]

_TOLERANCE = 1e-3
"""Of the difference between the logits of two images: far above what reordered sums change."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CutPoint:
    """The output of one module during a pass."""

    cut: str
    """Its name, as `Head` takes it."""
    output_shape: tuple[int, ...]
    """Of one image: (C, H, W) of a map, (D,) of a vector."""
    state: frozenset[str]
    """Names of the parameters and buffers that were used up to here."""
    num_parameters: int
    """Numbers in those that are parameters; one that has two names counts once."""
    flops: int
    """Of one image up to here: 2 for each multiply-accumulate of products and convolutions."""
    valid: bool
    """Whether all that follows depends on this output alone."""


def find_cuts(
    network: nn.Module, first_1CHW: Tensor, second_1CHW: Tensor, *, only: str | None = None
) -> tuple[CutPoint, ...]:
    """The cut points of a network in order of execution.

    Outputs that are no tensor, do not depend on the image or do not belong to it row by row are left out. Where a
    module passes on the output of its last part, there is one cut point, with the name of the outermost.

    Args:
        network: In evaluation mode; left as it was.
        first_1CHW: An image as the network takes it.
        second_1CHW: Another, as unlike it as can be.
        only: The one cut point that is wanted, which costs two passes; None for all, one pass for each and two more.
    Raises: MalformedTeacher: If the network's output is not one tensor that depends on the image. UnknownCut: If the
        one that is wanted is not among those there are.
    """
    image_1CHW = first_1CHW.detach().clone().requires_grad_()
    seen, logits = _watch(network, image_1CHW)
    if logits.grad_fn is None:
        raise MalformedTeacher("network", reason="its output does not depend on the image, as far as torch can tell")
    outputs = _outermost(seen)
    if only is not None:
        known = ", ".join(output.cut for output in outputs)
        outputs = [output for output in outputs if output.cut == only]
        if not outputs:
            raise UnknownCut(only, reason=f"known cut points: {known}")
    paths = _Paths(logits, image_1CHW)
    with torch.no_grad():
        other = network(second_1CHW.clone())
        tolerance = _TOLERANCE * float((other - logits).abs().max())
        points: list[CutPoint] = []
        for output in outputs:
            valid = paths.all_pass(output.vertex) and _is_replayed(
                network, second_1CHW, output, logits.detach(), tolerance
            )
            used = {name for name, tensor in _state(network) if _storage(tensor) in output.touched}
            sizes = {id(tensor): tensor.numel() for name, tensor in network.named_parameters() if name in used}
            points.append(
                CutPoint(
                    cut=output.cut,
                    output_shape=tuple(output.value.shape[1:]),
                    state=frozenset(used),
                    num_parameters=sum(sizes.values()),
                    flops=output.flops,
                    valid=valid,
                )
            )
    return tuple(points)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Output:
    cut: str
    value: Tensor
    vertex: tuple[Node, int]
    touched: frozenset[int]
    flops: int


def _watch(network: nn.Module, image_1CHW: Tensor) -> tuple[list[_Output], Tensor]:
    """Every candidate of one pass, in order, and the logits with their graph."""
    # Torch's counter brings its compiler with it, which only those who list cuts should pay for.
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415

    seen: list[_Output] = []
    num_calls: dict[str, int] = {}
    counter, touched = FlopCounterMode(display=False), _Touched({_storage(tensor) for _, tensor in _state(network)})

    def watch(path: str) -> Any:
        def hook(_module: nn.Module, _inputs: tuple[Any, ...], output: object) -> None:
            num_calls[path] = num_calls.get(path, 0) + 1
            if not isinstance(output, Tensor) or output.grad_fn is None:
                return
            if output.ndim < 2 or len(output) != 1:
                return
            vertex = (output.grad_fn, output.output_nr)
            flops, storages = counter.get_total_flops(), frozenset(touched.storages)
            # A copy, since whoever takes the output may work in place.
            value = output.detach().clone()
            cut = cut_name(path, num_calls[path])
            seen.append(_Output(cut=cut, value=value, vertex=vertex, touched=storages, flops=flops))

        return hook

    handles = [module.register_forward_hook(watch(path)) for path, module in network.named_modules() if path]
    try:
        with torch.enable_grad(), counter, touched:
            # A copy, since the network may work in place.
            logits = network(image_1CHW.clone())
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(logits, Tensor):
        raise MalformedTeacher("network", reason=f"its output is a {type(logits).__name__}, not a tensor")
    return seen, logits


class _Touched(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes which tensors, known by their memory, an operation has read so far."""

    def __init__(self, storages: Set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.storages: set[int] = set()
        self._noted = storages

    def __torch_dispatch__(
        self, func: Any, _types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.storages |= self._noted & {_storage(tensor) for tensor in _tensors((args, kwargs))}
        return func(*args, **(kwargs or {}))


class _Paths:
    """Numbers of paths in the graph from an output to an input that requires a gradient.

    A vertex is an operation and which of its results; edges lead to what the operation read.
    """

    def __init__(self, output: Tensor, source: Tensor) -> None:
        root = (output.grad_fn, output.output_nr)
        order = _inputs_first(root)
        self._up: dict[tuple[Any, int], int] = {}
        for vertex in order:
            below = _read_by(vertex)
            is_source = getattr(vertex[0], "variable", None) is source
            self._up[vertex] = int(is_source) + sum(self._up[other] for other in below)
        self._down = dict.fromkeys(order, 0) | {root: 1}
        for vertex in reversed(order):
            for other in _read_by(vertex):
                self._down[other] += self._down[vertex]
        self._total = self._up[root]

    def all_pass(self, vertex: tuple[Any, int]) -> bool:
        """Whether every path from the output to the input leads through this vertex."""
        return vertex in self._up and self._down[vertex] * self._up[vertex] == self._total


def _inputs_first(root: tuple[Any, int]) -> list[tuple[Any, int]]:
    """All vertices below the root, each after those it reads."""
    order: list[tuple[Any, int]] = []
    entered: set[tuple[Any, int]] = {root}
    # Without recursion: a deep network has more operations than Python has frames.
    stack: list[tuple[tuple[Any, int], Iterator[tuple[Any, int]]]] = [(root, iter(_read_by(root)))]
    while stack:
        vertex, rest = stack[-1]
        following = next((other for other in rest if other not in entered), None)
        if following is None:
            order.append(vertex)
            stack.pop()
        else:
            entered.add(following)
            stack.append((following, iter(_read_by(following))))
    return order


def _read_by(vertex: tuple[Any, int]) -> list[tuple[Any, int]]:
    return [(node, index) for node, index in vertex[0].next_functions if node is not None]


def _outermost(seen: Sequence[_Output]) -> list[_Output]:
    """One output a vertex: the first, or the module around it that passes it on."""
    chosen: dict[tuple[Node, int], _Output] = {}
    for output in seen:
        first = chosen.setdefault(output.vertex, output)
        if split_cut(first.cut)[0].startswith(f"{split_cut(output.cut)[0]}."):
            chosen[output.vertex] = output
    return list(chosen.values())


def _is_replayed(network: nn.Module, other_1CHW: Tensor, output: _Output, logits: Tensor, tolerance: float) -> bool:
    """Whether the network gives the first image's logits for another image, once the output is put in its place."""
    path, call = split_cut(output.cut)
    num_calls = 0

    def replace(_module: nn.Module, _inputs: tuple[Any, ...], _output: object) -> Tensor | None:
        nonlocal num_calls
        num_calls += 1
        return output.value.clone() if num_calls == call else None

    handle = network.get_submodule(path).register_forward_hook(replace)
    try:
        replayed = network(other_1CHW.clone())
    finally:
        handle.remove()
    difference = float((replayed - logits).abs().max())
    return math.isfinite(difference) and difference <= tolerance


def _state(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from network.named_parameters(remove_duplicate=False)
    yield from network.named_buffers(remove_duplicate=False)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
