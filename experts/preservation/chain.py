"""A network as a chain of layers with units: the form in which knowledge is scored, mapped and carried over.

    a_0 = s x,    a_k = after(act(norm(W_k a_{k-1} + b_k)))        logits = a_K

A *unit* is an output of a layer: a neuron, or a filter with its map. Units can be reordered, doubled or left out if the
columns of the next layer follow; single weights cannot, as a hidden layer's order means nothing.

Legend: B batch, D feature, U units of a stage, I units before it, C class; P positions of a unit.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

__all__ = [
    "ACTIVATIONS",
    "Chain",
    "MeanOverPositions",
    "Stage",
    "answers_by_item",
    "bias_of",
    "columns_by_unit",
    "conv_layer",
    "linear_layer",
]

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
    "tanh": torch.tanh,
    "identity": lambda values: values,
}


class MeanOverPositions(nn.Module):
    """``(B, U, H, W)`` to ``(B, U)``."""

    def forward(self, maps_BUHW: Tensor) -> Tensor:
        """The mean of each map."""
        return maps_BUHW.mean(dim=(2, 3))


class Stage(nn.Module):
    """Weights, a normalisation, an activation, and how each unit reaches the next stage.

    Args:
        name: As in the architecture it is of.
        weights: The layer.
        activation: Of `ACTIVATIONS`.
        norm: Layer normalisation over the units; None for none.
        after: Acts on each unit's map alone, and flattens it if the next stage is linear; None passes it on.
        skip: Whether the chain's scaled input is added.
    """

    def __init__(
        self,
        name: str,
        weights: nn.Linear | nn.Conv2d,
        *,
        activation: str = "identity",
        norm: nn.LayerNorm | None = None,
        after: nn.Module | None = None,
        skip: bool = False,
    ) -> None:
        super().__init__()
        self.name = name
        self.weights = weights
        self.activation = activation
        self.norm = norm
        self.after = after
        self.skip = skip

    @property
    def units(self) -> int:
        """U."""
        return self.weights.weight.shape[0]

    @property
    def is_map(self) -> bool:
        """Whether its units are filters."""
        return isinstance(self.weights, nn.Conv2d)


class Chain(nn.Module):
    """Stages one after another, the last of which gives the logits.

    Args:
        stages: At least one.
        input_scale: Factor s on the features.
        input_map: Channels, height and width that the features are reshaped to; None leaves them a vector.
    """

    def __init__(
        self, stages: list[Stage], *, input_scale: float = 1.0, input_map: tuple[int, int, int] | None = None
    ) -> None:
        super().__init__()
        self._stages = nn.ModuleList(stages)
        self.input_scale = input_scale
        self.input_map = input_map

    @property
    def stages(self) -> list[Stage]:
        """The last one's units are the classes."""
        return [stage for stage in self._stages if isinstance(stage, Stage)]

    @property
    def hidden(self) -> list[Stage]:
        """All but the last."""
        return self.stages[:-1]

    @property
    def output(self) -> Stage:
        """The last."""
        return self.stages[-1]

    @property
    def inputs(self) -> int:
        """Units before the first stage: features, or channels of the map."""
        return self.stages[0].weights.weight.shape[1]

    @property
    def feature_dim(self) -> int:
        """D."""
        if self.input_map is None:
            return self.inputs
        channels, height, width = self.input_map
        return channels * height * width

    def with_stages(self, stages: list[Stage]) -> "Chain":
        """Other stages behind the same scaled features."""
        return Chain(stages, input_scale=self.input_scale, input_map=self.input_map)

    def with_outputs(self, rows: Sequence[int]) -> "Chain":
        """For these of its classes alone, in this order."""
        weight, bias = self.output.weights.weight.detach()[list(rows)], bias_of(self.output)[list(rows)]
        return self.with_stages([*self.hidden, Stage(self.output.name, linear_layer(weight, bias))])

    def forward(self, features_BD: Tensor) -> Tensor:
        """Logits ``(B, C)``."""
        return self.trace(features_BD)[-1]

    def trace(self, features_BD: Tensor) -> list[Tensor]:
        """What each stage's units are after their activation: ``(B, U)``, or maps ``(B, U, H, W)``."""
        scaled = self.scaled(features_BD)
        values, outputs = scaled, []
        for stage in self.stages:
            values = ACTIVATIONS[stage.activation](self._before(stage, values, scaled))
            outputs.append(values)
            if stage.after is not None:
                values = stage.after(values)
        return outputs

    def inputs_of(self, index: int, features_BD: Tensor) -> Tensor:
        """What a stage's weights are applied to: ``(B, columns)``, or a map."""
        if index == 0:
            return self.scaled(features_BD)
        stage, outputs = self.stages[index - 1], self.trace(features_BD)[index - 1]
        return outputs if stage.after is None else stage.after(outputs)

    def sums_of(self, index: int, features_BD: Tensor) -> Tensor:
        """What a stage's weights give, before all that follows: ``(B, U)``, or maps."""
        sums: Tensor = self.stages[index].weights(self.inputs_of(index, features_BD))
        return sums

    def scaled(self, features_BD: Tensor) -> Tensor:
        """What the first stage is applied to."""
        scaled = features_BD * self.input_scale
        return scaled if self.input_map is None else scaled.reshape(len(scaled), *self.input_map)

    def _before(self, stage: Stage, values: Tensor, scaled: Tensor) -> Tensor:
        before: Tensor = stage.weights(values)
        if stage.norm is not None:
            before = stage.norm(before)
        return before + scaled if stage.skip else before


def columns_by_unit(weights: nn.Linear | nn.Conv2d, inputs: int) -> Tensor:
    """A layer's weights by the unit that each belongs to, a view ``(U, I, P)``.

    A convolution has one column for each place of its kernel; a linear layer behind a flattened map one for each of the
    map's positions.

    Args:
        weights: The layer.
        inputs: I, the units of the stage before.
    """
    return weights.weight.reshape(weights.weight.shape[0], inputs, -1)


def answers_by_item(answers: Tensor) -> Tensor:
    """What units answer, ``(N, U)``; of units that are maps, each map's mean."""
    return answers if answers.ndim == 2 else answers.mean(dim=(2, 3))


def bias_of(stage: Stage) -> Tensor:
    """A stage's bias ``(U,)``, zero if it has none."""
    bias = stage.weights.bias
    return torch.zeros(stage.units) if bias is None else bias.detach()


def linear_layer(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer of given weights ``(U, I)``, its bias zero if there is none."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight = nn.Parameter(weight.detach().clone())
    layer.bias = nn.Parameter(torch.zeros(len(weight)) if bias is None else bias.detach().clone())
    return layer


def conv_layer(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """A convolution of given filters ``(U, I, K, K)``, K odd, with zeros around the map."""
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], padding=weight.shape[2] // 2, device="meta")
    layer.weight, layer.bias = nn.Parameter(weight.detach().clone()), nn.Parameter(bias.detach().clone())
    return layer
