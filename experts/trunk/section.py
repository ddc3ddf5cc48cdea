"""A section of a teacher as a trunk: its output, averaged over a small grid, is the features.

    Phi(x) = pool(section((x - mean) / deviation))      of a map (C, H, W): C * pool^2 features
    Phi(x) = section((x - mean) / deviation)            of a vector (D,)

A section of our own networks travels as its layers and weights, and peers need neither the teacher nor any library it
came from. A section of another library's network is a trunk on this machine only.

Legend: B batch, C channel, H height, W width, D feature.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import nn
from torch.nn import functional

from experts.checkpoint import load_tensors
from experts.errors import SectionNotPortable, SettingOutOfRange, ShapeMismatch, UnknownTrunk
from experts.teachers.network import InputForm
from experts.teachers.sections import TeacherSection
from experts.trunk.base import Trunk
from experts.trunk.layers import build_layers, output_shape

__all__ = ["SectionTrunk", "trunk_of_section"]

_MAX_PIXELS = 512
_MAX_POOL = 16


class SectionTrunk(Trunk):
    """Phi of a section; made by `trunk_of_section`, or from the bytes of another.

    Args:
        network: From normalised images to the section's output.
        form: Of the images.
        section_shape: What the network gives for one image: (C, H, W) or (D,).
        pool: Side of the grid that a map is averaged over, 1 to 16 and not above its own; 1 for a vector.
        layers: The network as data; None if it cannot be told to a peer.
    Raises: ShapeMismatch: If the output is neither a map nor a vector. SettingOutOfRange: If ``pool`` is not allowed.
    """

    kind: ClassVar[str] = "section"

    def __init__(
        self,
        network: nn.Module,
        *,
        form: InputForm,
        section_shape: tuple[int, ...],
        pool: int,
        layers: list[dict[str, object]] | None,
    ) -> None:
        if len(section_shape) not in (1, 3):
            raise ShapeMismatch("section", expected=("C", "H", "W"), got=section_shape)
        most = min(_MAX_POOL, *section_shape[1:]) if len(section_shape) == 3 else 1
        if type(pool) is not int or not 1 <= pool <= most:
            raise SettingOutOfRange("pool", pool, allowed=f"1 to {most}")
        feature_dim = section_shape[0] * pool**2
        super().__init__(input_channels=form.channels, input_pixels=form.pixels, feature_dim=feature_dim)
        self.form = form
        """Of the images it takes."""
        self.pool = pool
        """Side of the grid of features."""
        self.network = network
        self._is_map = len(section_shape) == 3
        self._layers = layers
        self.requires_grad_(False)

    @property
    def feature_map(self) -> tuple[int, int, int] | None:
        """The section's channels over the grid; of a vector, one cell."""
        return (self.feature_dim // self.pool**2, self.pool, self.pool)

    def section(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """The section's output, pooled: ``(B, D)``."""
        mean_C11 = images_BCHW.new_tensor(self.form.mean).view(-1, 1, 1)
        deviation_C11 = images_BCHW.new_tensor(self.form.deviation).view(-1, 1, 1)
        normalised_BCHW = (images_BCHW - mean_C11) / deviation_C11
        # Channels last in memory, as for `EfficientNetTrunk`.
        output: torch.Tensor = self.network(normalised_BCHW.contiguous(memory_format=torch.channels_last))
        if self._is_map:
            output = functional.adaptive_avg_pool2d(output, self.pool)
        return output.flatten(start_dim=1)

    def to_config(self) -> dict[str, object]:
        """Layers, form of the images and pooling.

        Raises: SectionNotPortable: If the section is of another library's network.
        """
        if self._layers is None:
            assert isinstance(self.network, TeacherSection)
            raise SectionNotPortable(self.network.cut, reason="its layers are another library's")
        form: dict[str, object] = {
            "channels": self.form.channels,
            "pixels": self.form.pixels,
            "mean": list(self.form.mean),
            "deviation": list(self.form.deviation),
        }
        return {"form": form, "layers": self._layers, "pool": self.pool}

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> Self:
        """The inverse of `to_config`; input of 1 to 512 pixels."""
        match config:
            case {"form": dict(given), "layers": list(layers), "pool": int(pool), **rest} if not rest:
                form = _form_from(given)
            case _:
                raise UnknownTrunk(cls.kind, reason=f"keys {sorted(map(str, config))}, or one of another type")
        shape = output_shape(layers, (form.channels, form.pixels, form.pixels))
        network = build_layers(layers, (form.channels, form.pixels, form.pixels))
        try:
            return cls(network, form=form, section_shape=shape, pool=pool, layers=layers)
        except (ShapeMismatch, SettingOutOfRange) as exc:
            raise UnknownTrunk(cls.kind, reason=str(exc)) from exc


def trunk_of_section(section: TeacherSection, *, pool: int = 1, pixels: int | None = None) -> SectionTrunk:
    """A trunk of what a section computes; m and s are left to `calibrate`.

    Args:
        section: Of our own network, and the trunk can travel; of any other, and it serves here alone.
        pool: Side of the grid that a map is averaged over.
        pixels: Height and width of the trunk's images, if they should differ from the teacher's: a section of
            convolutions takes any.
    Raises: ShapeMismatch: If the section's output is neither a map nor a vector, or it does not take images of that
        size. SettingOutOfRange: If ``pool`` or ``pixels`` is not allowed. UnknownTrunk: If the section is larger than a
        trunk may be.
    """
    form = section.form if pixels is None else _resized(section.form, pixels)
    try:
        layers, steps = section.layers()
    except SectionNotPortable:
        return _local(section, form, pool)
    input_shape = (form.channels, form.pixels, form.pixels)
    shape = output_shape(layers, input_shape)
    # On the meta device torch's own initialisation draws nothing from the global stream.
    with torch.device("meta"):
        trunk = SectionTrunk(
            build_layers(layers, input_shape), form=form, section_shape=shape, pool=pool, layers=layers
        )
    tensors = {"mean_D": torch.zeros(trunk.feature_dim), "deviation_D": torch.ones(trunk.feature_dim)}
    for index, step in enumerate(steps):
        tensors |= {f"network.{index}.{name}": value for name, value in step.state_dict().items()}
    load_tensors(trunk, tensors)
    return trunk


def _local(section: TeacherSection, form: InputForm, pool: int) -> SectionTrunk:
    like = next(section.parameters(), torch.zeros(()))
    try:
        shape = tuple(section(like.new_zeros(1, form.channels, form.pixels, form.pixels)).shape[1:])
    # What a foreign module raises for a size it does not take is not for us to know.
    except (RuntimeError, ValueError, AssertionError) as exc:
        given = (form.channels, form.pixels, form.pixels)
        taken = (section.form.channels, section.form.pixels, section.form.pixels)
        raise ShapeMismatch(f"images of the section up to {section.cut}", expected=taken, got=given) from exc
    return SectionTrunk(section, form=form, section_shape=shape, pool=pool, layers=None)


def _resized(form: InputForm, pixels: int) -> InputForm:
    return InputForm(channels=form.channels, pixels=pixels, mean=form.mean, deviation=form.deviation)


def _form_from(given: Mapping[str, Any]) -> InputForm:
    if given.keys() != {"channels", "pixels", "mean", "deviation"}:
        raise UnknownTrunk(SectionTrunk.kind, reason=f"keys {sorted(map(str, given))} of the form")
    try:
        form = InputForm(**given)
    except SettingOutOfRange as exc:
        raise UnknownTrunk(SectionTrunk.kind, reason=str(exc)) from exc
    if form.pixels > _MAX_PIXELS:
        raise UnknownTrunk(SectionTrunk.kind, reason=f"pixels = {form.pixels}")
    return form
