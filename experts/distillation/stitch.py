"""Section-to-module distillation: a module learns to carry what a section of a teacher computes.

    L = 1/(B D) sum_b || A f(h_b) + a - z_b ||^2        z = (section(x) - m) / s

f is the module (an expert, or a layer inside it: `experts.networks.head.Head`), A the *stitch*, a linear map between
two spaces that have nothing in common but the items. m and s are fixed by the training set, so that a module which says
nothing is at 1 or below (features that hardly vary hardly count), and one that says all at 0. Module and stitch descend
together; then the stitch is thrown away or kept, and the module is where an expert starts.

Modules matched to modules one by one are Lo et al.'s M2MKD (2024, arXiv:2402.16918); linear stitches between networks
are Lenc and Vedaldi's (2015, arXiv:1411.5908). Of maps, the stitch is a 1x1 convolution: one linear map at every
position, after both are averaged to the coarser of the two grids.

Legend: B batch, N items, S the module's output, D the section's, C channel of a map, H height, W width.
"""

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from experts.descent import DescentRun
from experts.errors import MalformedDataset, NothingToLearnFrom, SettingOutOfRange, ShapeMismatch
from experts.materialise import materialise
from experts.optimizers import Adam

__all__ = ["StitchConfig", "StitchData", "StitchRun", "least_squares_stitch"]

_PAD = 0.01
"""Share of the overall deviation that is added to every s, as for a trunk's features."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StitchConfig:
    """How a module and its stitch are trained.

    Raises:
        SettingOutOfRange: If a field is outside its range.
    """

    steps: int = 1000
    """Adam's steps, at least 1."""

    batch_size: int = 32
    """Items drawn per step, with replacement, at least 1."""

    lr: float = 0.01
    """Adam's learning rate, above 0."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise SettingOutOfRange(name, getattr(self, name), allowed="at least 1")
        if not 0.0 < self.lr < math.inf:
            raise SettingOutOfRange("lr", self.lr, allowed="finite and above 0")


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class StitchData:
    """What the module sees of each item, and what the section says of it; made by `from_section`.

    Raises:
        NothingToLearnFrom: If there are no items.
        ShapeMismatch: If inputs and targets differ in number, or the targets are neither vectors nor maps.
    """

    inputs_ND: Tensor
    """What the module takes: trunk features ``(N, D)``, or whatever else, one item a row."""

    targets_ND: Tensor
    """z: ``(N, D)`` of vectors, ``(N, C, H, W)`` of maps."""

    def __post_init__(self) -> None:
        if self.targets_ND.ndim not in (2, 4) or len(self.targets_ND) != len(self.inputs_ND):
            expected = (len(self.inputs_ND), "D") if self.targets_ND.ndim != 4 else (len(self.inputs_ND), "C", "H", "W")
            raise ShapeMismatch("section's outputs", expected=expected, got=tuple(self.targets_ND.shape))
        if len(self.inputs_ND) == 0:
            raise NothingToLearnFrom("section-to-module distillation")

    @classmethod
    def from_section(cls, inputs_ND: Tensor, outputs_ND: Tensor) -> "StitchData":
        """Items with what a section gave for them, which is normalised here.

        Of each feature, or each channel of a map over all positions, m is the mean and s the deviation plus 1% of the
        deviation of all together, so that a feature which hardly varies does not count as much as the others.

        Args:
            inputs_ND: As the field.
            outputs_ND: Of `TeacherSection`: ``(N, D)`` or ``(N, C, H, W)``.

        Raises:
            NothingToLearnFrom, ShapeMismatch: As the class.
            MalformedDataset: If the section gives the same number everywhere.
        """
        cls(inputs_ND=inputs_ND, targets_ND=outputs_ND)
        rows_ND = _rows(outputs_ND).double()
        overall = float(rows_ND.std(correction=0))
        # Well above what rounding leaves of constant features.
        if overall <= 1e-6 * float(rows_ND.square().mean().sqrt()):
            raise MalformedDataset("section's outputs", reason="they are all the same number")
        mean_D, deviation_D = rows_ND.mean(dim=0), rows_ND.std(dim=0, correction=0) + _PAD * overall
        form = (-1, 1, 1) if outputs_ND.ndim == 4 else (-1,)
        targets_ND = (outputs_ND.double() - mean_D.view(form)) / deviation_D.view(form)
        return cls(inputs_ND=inputs_ND, targets_ND=targets_ND.to(outputs_ND.dtype))


class StitchRun(DescentRun):
    """Training of a module against a section, advanced by its caller; iterating yields the loss of every step.

    The module is trained in place, and `stitch` with it; `to_bytes` holds both.
    """

    def __init__(self, module: nn.Module, data: StitchData, config: StitchConfig, generator: torch.Generator) -> None:
        """
        Args:
            module: Maps inputs to vectors ``(B, S)`` if the targets are such, to maps if they are; draws no random
                numbers. What it shares with a larger network (see `Head`) is trained there.
            data: The items.
            config: How to train.
            generator: Draws the stitch's first weights and the batches, and belongs to this run alone.

        Raises:
            ShapeMismatch: If the module gives something else.
        """
        with torch.no_grad():
            output_1S = module(data.inputs_ND[:1])
        targets_ND = data.targets_ND
        if output_1S.ndim != targets_ND.ndim:
            expected = ("B", "C", "H", "W") if targets_ND.ndim == 4 else ("B", "S")
            raise ShapeMismatch("module's output", expected=expected, got=tuple(output_1S.shape))
        is_map = targets_ND.ndim == 4
        self.module = module
        stitch = _new_stitch(output_1S.shape[1], targets_ND.shape[1], is_map=is_map, generator=generator)
        self.stitch = stitch.to(targets_ND.device)
        self.config = config
        self._inputs_ND = data.inputs_ND
        self._grid = _coarser(output_1S, targets_ND) if is_map else None
        self._targets_ND = self._pooled(targets_ND)
        both = nn.ModuleDict({"student": module, "stitch": self.stitch})
        super().__init__(both, Adam(dict(both.named_parameters())), generator, steps=config.steps, lr=config.lr)

    @torch.no_grad()
    def outputs(self) -> Tensor:
        """The module's outputs for all items as the stitch takes them: ``(N, S)``, of maps ``(N, C, H, W)``."""
        parts = torch.split(self._inputs_ND, self.config.batch_size)
        return torch.cat([self._pooled(self.module(part_BD)) for part_BD in parts])

    @property
    def targets(self) -> Tensor:
        """z of all items, on the grid that both are averaged to."""
        return self._targets_ND

    def _loss(self) -> Tensor:
        # With replacement, so that the generator is the whole state of the draw.
        rows_B = torch.randint(len(self._inputs_ND), (self.config.batch_size,), generator=self._generator)
        outputs_BS = self._pooled(self.module(self._inputs_ND[rows_B]))
        return functional.mse_loss(self.stitch(outputs_BS), self._targets_ND[rows_B])

    def _terms(self) -> dict[str, object]:
        terms: dict[str, object] = dataclasses.asdict(self.config)
        # No step depends on how many are to follow.
        del terms["steps"]
        return terms | {"optimizer": "adam", "targets": list(self._targets_ND.shape)}

    def _pooled(self, values: Tensor) -> Tensor:
        return values if self._grid is None else functional.adaptive_avg_pool2d(values, self._grid)


def least_squares_stitch(outputs_NS: Tensor, targets_ND: Tensor) -> tuple[Tensor, Tensor]:
    """The stitch of least L for a module as it is: what descent on the stitch alone ends in.

    Args:
        outputs_NS: Of the module, ``(N, S)``, or maps on the targets' grid.
        targets_ND: z, ``(N, D)``, or maps.

    Returns: A ``(D, S)`` and a ``(D,)``, float64; where several are as good, the smallest.

    Raises:
        ShapeMismatch: If the two differ in items or grid.
    """
    rows_NS, rows_ND = _rows(outputs_NS).double(), _rows(targets_ND).double()
    if outputs_NS.shape[2:] != targets_ND.shape[2:] or len(rows_NS) != len(rows_ND):
        expected = (len(targets_ND), "S", *targets_ND.shape[2:])
        raise ShapeMismatch("module's outputs", expected=expected, got=tuple(outputs_NS.shape))
    # With the means taken out first the smallest solution does not hold a itself down.
    mean_S, mean_D = rows_NS.mean(dim=0), rows_ND.mean(dim=0)
    # gelsd: the one of torch's drivers that copes with outputs that depend on each other.
    weight_SD = torch.linalg.lstsq((rows_NS - mean_S).cpu(), (rows_ND - mean_D).cpu(), driver="gelsd").solution
    weight_DS = weight_SD.T.to(targets_ND.device)
    return weight_DS, mean_D - weight_DS @ mean_S


def _rows(values: Tensor) -> Tensor:
    """Vectors as they are, of maps every position a row."""
    return values if values.ndim == 2 else values.movedim(1, -1).flatten(end_dim=-2)


def _coarser(first: Tensor, second: Tensor) -> tuple[int, int]:
    return min(first.shape[2], second.shape[2]), min(first.shape[3], second.shape[3])


def _new_stitch(inputs: int, outputs: int, *, is_map: bool, generator: torch.Generator) -> nn.Linear | nn.Conv2d:
    """A and a uniform in +-1/sqrt(S), the range of torch's own layers."""
    # On the meta device torch's own initialisation draws nothing from the global stream.
    with torch.device("meta"):
        stitch = nn.Conv2d(inputs, outputs, 1) if is_map else nn.Linear(inputs, outputs)
    materialise(stitch)
    bound = 1 / math.sqrt(inputs)
    for parameter in stitch.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return stitch
