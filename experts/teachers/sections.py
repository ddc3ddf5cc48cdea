"""Sections of a teacher: its network up to a cut point, frozen, without what comes after.

    logits(x) = tail(section(x))        at a valid cut

A section's output can be a trunk's features (`experts.trunk.section`), or what an expert's module learns to match
(`experts.distillation.stitch`). For both, any cut serves; a valid one also says that nothing else of the teacher's
answer goes past it.

Legend: B batch, C channel, H height, W width, D feature.
"""

import copy
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from experts.errors import SectionNotPortable
from experts.networks.cuts import CutPoint, find_cuts
from experts.networks.head import Head
from experts.teachers.network import InputForm
from experts.teachers.portable import layers_of, layers_up_to

__all__ = ["Section", "TeacherSection", "TeacherWithNetwork", "list_sections", "section"]

_BATCH = 32
"""Images at a time, as when a teacher scores them; bounds memory."""


class TeacherWithNetwork(Protocol):
    """What sections are taken of."""

    @property
    def network(self) -> nn.Module:
        """Frozen, in evaluation mode, from normalised images to logits."""

    @property
    def form(self) -> InputForm:
        """Of the images it takes."""

    def normalised(self, images_BCHW: Tensor) -> Tensor:
        """Images in [0, 1] as the network takes them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """What a teacher can be cut into."""

    cut: str
    """The cut point: the path of the module whose output it is, ``#2`` behind it for its second call."""
    output_shape: tuple[int, ...]
    """Of one image: (C, H, W) of a map, (D,) of a vector, (tokens, D) between a transformer's layers."""
    num_parameters: int
    """Used up to the cut."""
    flops: int
    """Of one image up to the cut: 2 for each multiply-accumulate of products and convolutions."""
    valid: bool
    """Whether all that follows depends on this output alone."""
    portable: bool
    """Whether peers can build it: as a trunk it can be a mesh's."""


class TeacherSection(nn.Module):
    """A teacher's network up to a cut, as a frozen module of its own.

    Its state holds the weights that are used up to the cut, and no other.
    """

    def __init__(self, head: Head, *, form: InputForm, output_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.head = head
        self.form = form
        """Of the images it takes, as the teacher's."""
        self.output_shape = output_shape
        """Of one image: (C, H, W) or (D,)."""
        self.requires_grad_(False)
        self.eval()

    @property
    def cut(self) -> str:
        """Where the network stops."""
        return self.head.cut

    def forward(self, normalised_BCHW: Tensor) -> Tensor:
        """The output at the cut, a row an image: ``(B, C, H, W)``, ``(B, D)``, or tokens; no graph for gradients.

        Args:
            normalised_BCHW: Images as the network takes them; see `NetworkTeacher.normalised`.
        """
        with torch.no_grad():
            return torch.cat([self.head(batch_BCHW) for batch_BCHW in torch.split(normalised_BCHW, _BATCH)])

    def layers(self) -> tuple[list[dict[str, object]], list[nn.Module]]:
        """The section as data that a peer can build, and the modules that hold its weights, in the same order.

        Raises: SectionNotPortable: If it is not a sequence of layers that every peer knows.
        """
        steps = layers_up_to(self.head.network, self.cut)
        return layers_of(steps, self.cut), steps


def list_sections(teacher: TeacherWithNetwork) -> tuple[Section, ...]:
    """The sections of a teacher, in order of execution.

    Found by letting an image through and watching, so that it holds for any library's modules. It costs as much as
    classifying an image for every cut point.

    Raises: MalformedTeacher: If the network gives no tensor that depends on the image.
    """
    return tuple(
        Section(
            cut=point.cut,
            output_shape=point.output_shape,
            num_parameters=point.num_parameters,
            flops=point.flops,
            valid=point.valid,
            portable=_is_portable(teacher.network, point.cut),
        )
        for point in _cut_points(teacher)
    )


def section(teacher: TeacherWithNetwork, cut: str) -> TeacherSection:
    """The head of a teacher's network, a copy.

    Args:
        cut: Of one of `list_sections`; it need not be valid.
    Raises: UnknownCut: If the teacher has no such cut point. MalformedTeacher: As `list_sections`.
    """
    (point,) = _cut_points(teacher, only=cut)
    network = copy.deepcopy(teacher.network)
    _keep(network, point.state)
    return TeacherSection(Head(network, cut), form=teacher.form, output_shape=point.output_shape)


def _cut_points(teacher: TeacherWithNetwork, *, only: str | None = None) -> tuple[CutPoint, ...]:
    device = next(teacher.network.parameters(), torch.zeros(())).device
    first, second = (teacher.normalised(image_1CHW.to(device)) for image_1CHW in _unlike_images(teacher.form))
    return find_cuts(teacher.network, first, second, only=only)


def _unlike_images(form: InputForm) -> tuple[Tensor, Tensor]:
    """Two images in [0, 1] that networks tell apart: noise, and a ramp from dark to light."""
    shape = (1, form.channels, form.pixels, form.pixels)
    noise_1CHW = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    return noise_1CHW, torch.linspace(0, 1, form.pixels).expand(shape)


def _keep(network: nn.Module, names: frozenset[str]) -> None:
    """Drops the parameters and buffers of other names."""
    for path, module in network.named_modules():
        prefix = f"{path}." if path else ""
        # Torch has no public way to do without one and leave the attribute there.
        for kept in (module._parameters, module._buffers):
            for name in kept:
                if prefix + name not in names:
                    kept[name] = None


def _is_portable(network: nn.Module, cut: str) -> bool:
    try:
        layers_of(layers_up_to(network, cut), cut)
    except SectionNotPortable:
        return False
    return True
