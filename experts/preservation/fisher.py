"""How much a parameter matters: the diagonal of the Fisher information, from each sample's own gradient.

    I(theta) = E_{x ~ D} [ (dL(E(x), y) / dtheta)^2 ]                                (proposal, section 2.4, step 1)

The square stands inside the mean: that of a batch's mean gradient is another number, which vanishes at a minimum.

One backward pass gives what all samples of a chunk need. With a layer's inputs a and the loss's gradients delta at its
outputs, the gradient of its weights is sum_p delta_p a_p^T over the positions p that it is applied to, where a
convolution's a_p is the patch under its kernel (Goodfellow 2015, arXiv:1510.01799; Rochette et al. 2019,
arXiv:1912.06015). With a single position the square is a product, and the mean over samples one product of matrices,
(Delta^2)^T A^2 / N. What is not of this form, such as a normalisation's gains or a layer that is applied twice, is
differentiated for each sample by `torch.func`.

Legend: B batch (a chunk of samples), C class, N samples; of one layer: G groups, K inputs of an output (of a
convolution: under its kernel), O outputs of a group, P positions.
"""

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from experts.preservation.labels import FisherKind, labels_of

__all__ = ["FisherKind", "fisher_diagonal"]

_BYTES = 8
"""Of a float64, in which losses, squares and sums are taken: a model can be surer of a label than a float32 that holds
its probability can say."""


@torch.enable_grad()  # also for a caller who serves without
def fisher_diagonal(
    module: nn.Module,
    inputs: Tensor,
    labels_N: Tensor | None = None,
    *,
    kind: FisherKind = "empirical",
    generator: torch.Generator | None = None,
    max_bytes: int = 64 * 2**20,
) -> dict[str, Tensor]:
    """E_n[(dL_n / dtheta)^2], for L_n the cross-entropy in nats of the logits of sample n.

    The module computes as it serves, in evaluation mode. All happens to a copy of it: a failure leaves nothing to
    restore, and another thread may go on using the module. A row of its logits has to follow from that row of its
    inputs alone, which is not so of batch normalisation without running statistics; and what has parameters of no plain
    layer must be something that `torch.func.vmap` can batch, which a recurrent layer is not.

    Args:
        module: Maps ``(N, ...)`` to logits ``(N, C)``.
        inputs: ``(N, ...)``, where the module is.
        labels_N: int64, columns of the logits; `true` passes over them.
        kind: Whose labels the loss is of.
        generator: Of the labels that `true` draws, on the CPU; no other random number is drawn.
        max_bytes: Samples are taken in chunks, of one at least, such that their patches and gradients fit.

    Returns:
        By the names of `named_parameters`, frozen ones too: float32 of the parameter's shape, >= 0.

    Raises:
        ShapeMismatch: Labels are not ``(N,)``, or logits not ``(N, C)``.
        SettingOutOfRange: A label is not a column of the logits.
        UndefinedFigure: There are no samples, `empirical` has no labels, or `true` no generator.
    """
    own = copy.deepcopy(module).eval().requires_grad_()
    labels_N = labels_of(own, inputs, labels_N, kind=kind, generator=generator)
    names: dict[Tensor, str] = {parameter: name for name, parameter in own.named_parameters()}
    layers = _plain_layers(own, inputs[:1])
    plain = {parameter for layer in layers for parameter in layer.weights.parameters()}
    rest = {name: parameter.detach() for parameter, name in names.items() if parameter not in plain}
    sums = {name: torch.zeros_like(parameter, dtype=torch.float64) for parameter, name in names.items()}
    needed = sum(layer.held for layer in layers) + max((layer.needed for layer in layers), default=0)
    needed = max(needed, 2 * sum(parameter.numel() for parameter in rest.values()), 1)
    chunk = max(1, max_bytes // (_BYTES * needed))
    for start in range(0, len(inputs), chunk):
        rows = slice(start, start + chunk)
        for parameter, squares in _from_one_pass(own, layers, inputs[rows], labels_N[rows]):
            sums[names[parameter]] += squares.reshape(parameter.shape)
        for name, squares in _sample_by_sample(own, rest, inputs[rows], labels_N[rows]):
            sums[name] += squares
    return {name: (total / len(inputs)).float() for name, total in sums.items()}


class _Layer:
    """A linear layer or a convolution, watched as it is called.

    Attributes:
        calls: Of the last forward pass: what went in, and a zero that was added to what came out. The loss's gradient
            at that zero is delta, also where what came out is overwritten later.
    """

    def __init__(self, weights: nn.Linear | nn.Conv2d) -> None:
        self.weights = weights
        self.calls: list[tuple[Tensor, Tensor]] = []

    def __call__(self, _: nn.Module, args: tuple[Tensor, ...], outputs: Tensor) -> Tensor:
        zero = torch.zeros_like(outputs, requires_grad=True)
        self.calls.append((args[0].detach(), zero))
        return outputs + zero

    @property
    def is_known(self) -> bool:
        """Whether it computes what its type says, with the padding that is unfolded here."""
        # The exact types: a subclass, as that of a parametrised layer, may compute something else.
        if type(self.weights) is nn.Conv2d:
            return self.weights.padding_mode == "zeros" and not isinstance(self.weights.padding, str)
        return type(self.weights) is nn.Linear

    @property
    def held(self) -> int:
        """Numbers that stay of a sample until the backward pass is over."""
        ((inputs, outputs),) = self.calls
        return inputs[0].numel() + outputs[0].numel()

    @property
    def needed(self) -> int:
        """Numbers of a sample while this layer's squares are taken: inputs by position, gradients."""
        ((_, outputs),) = self.calls
        positions = outputs[0].numel() // len(self.weights.weight)
        inputs = self.weights.weight[0].numel() * positions
        if isinstance(self.weights, nn.Conv2d):
            inputs *= self.weights.groups
        return inputs + outputs[0].numel() + (self.weights.weight.numel() if positions > 1 else 0)

    def was_plain(self, rows: int) -> bool:
        """Whether the last pass, over so many samples, called it once and with a row for each."""
        if len(self.calls) != 1:
            return False
        inputs, _ = self.calls[0]
        dimensions = inputs.ndim == 4 if isinstance(self.weights, nn.Conv2d) else inputs.ndim >= 2
        return dimensions and len(inputs) == rows

    def squares(self, deltas: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Sums over the samples of the squares of each one's gradients; deltas have the shape of the outputs."""
        inputs_BGKP, deltas_BGOP = self._by_position(deltas)
        if deltas_BGOP.shape[-1] == 1:
            squared = deltas_BGOP.squeeze(-1).square(), inputs_BGKP.squeeze(-1).square()
            yield self.weights.weight, torch.einsum("bgo,bgk->gok", *squared)
        else:
            yield self.weights.weight, _squared(torch.einsum("bgop,bgkp->bgok", deltas_BGOP, inputs_BGKP))
        if self.weights.bias is not None:
            yield self.weights.bias, _squared(deltas_BGOP.sum(dim=-1))

    def _by_position(self, deltas: Tensor) -> tuple[Tensor, Tensor]:
        ((inputs, _),) = self.calls
        inputs, deltas = inputs.double(), deltas.double()
        layer = self.weights
        if isinstance(layer, nn.Linear):
            inputs_BPK = inputs.reshape(len(inputs), -1, layer.in_features)
            deltas_BPO = deltas.reshape(len(deltas), -1, layer.out_features)
            return inputs_BPK.mT.unsqueeze(1), deltas_BPO.mT.unsqueeze(1)
        assert not isinstance(layer.padding, str)
        patches = nn.functional.unfold(
            inputs, layer.kernel_size, dilation=layer.dilation, padding=layer.padding, stride=layer.stride
        )
        grouped = (len(inputs), layer.groups, -1, patches.shape[-1])
        return patches.reshape(grouped), deltas.reshape(grouped)


def _squared(gradients_B: Tensor) -> Tensor:
    """The sum over samples of squares, which take the place of the gradients: two of these may be too much memory."""
    return gradients_B.square_().sum(dim=0)


def _plain_layers(module: nn.Module, sample: Tensor) -> list[_Layer]:
    """The layers whose gradients follow from what goes in and from delta; seen from forward passes over a sample.

    That is, those that are called once, with a row for each sample, and whose parameters have no other use.
    """
    layers = [_Layer(layer) for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    layers = [layer for layer in layers if layer.is_known]
    # Two numbers of samples: a first dimension that is as long as the batch by chance is so only once.
    for rows in (2, 3):
        logits = _watched(module, layers, torch.cat([sample] * rows))
        uses = _uses(logits)
        layers = [
            layer
            for layer in layers
            if layer.was_plain(rows) and all(uses[parameter] == 1 for parameter in layer.weights.parameters())
        ]
    return layers


def _watched(module: nn.Module, layers: list[_Layer], inputs: Tensor) -> Tensor:
    """The logits of a forward pass that the layers keep track of."""
    with ExitStack() as hooks:
        for layer in layers:
            layer.calls.clear()
            # First of all hooks, to see what the layer itself gives.
            hooks.enter_context(layer.weights.register_forward_hook(layer, prepend=True))
        logits: Tensor = module(inputs)
    return logits


def _uses(logits: Tensor) -> Counter[Tensor]:
    """How many operations that led to the logits took each parameter, from the graph that autograd keeps of them."""
    uses: Counter[Tensor] = Counter()
    seen = {logits.grad_fn}
    todo = [logits.grad_fn]
    while todo:
        node = todo.pop()
        for earlier, _ in () if node is None else node.next_functions:
            # Where a graph ends is a leaf: a parameter, or a zero of ours.
            if earlier is not None and hasattr(earlier, "variable"):
                uses[earlier.variable] += 1
            elif earlier not in seen:
                seen.add(earlier)
                todo.append(earlier)
    return uses


def _from_one_pass(
    module: nn.Module, layers: list[_Layer], inputs: Tensor, labels_B: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """The layers' parameters with sums of squares over the samples."""
    if not layers:
        return
    loss = nn.functional.cross_entropy(_watched(module, layers, inputs).double(), labels_B, reduction="sum")
    for layer, deltas in zip(layers, torch.autograd.grad(loss, [layer.calls[0][1] for layer in layers]), strict=True):
        yield from layer.squares(deltas)


def _sample_by_sample(
    module: nn.Module, parameters: dict[str, Tensor], inputs: Tensor, labels_B: Tensor
) -> Iterator[tuple[str, Tensor]]:
    """The same for any parameters, by name."""
    if not parameters:
        return

    def loss(parameters: dict[str, Tensor], sample: Tensor, label: Tensor) -> Tensor:
        logits_BC = functional_call(module, parameters, (sample.unsqueeze(0),))
        return nn.functional.cross_entropy(logits_BC.double(), label.unsqueeze(0))

    # What the module holds itself is not differentiated, though it requires gradients.
    with torch.no_grad():
        gradients = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, inputs, labels_B)
    for name, gradients_B in gradients.items():
        # Not in place: those of a parameter that has no effect are one zero for all samples.
        yield name, gradients_B.double().square().sum(dim=0)
