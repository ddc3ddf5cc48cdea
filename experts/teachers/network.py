"""A teacher that is a network: any classifier of images, frozen, with names for its columns and a form for its input.

    logits(x) = f((x - mean) / deviation)[:, columns]

Legend: B batch, C class (the teacher's own), H height, W width.

Every loader of `experts.teachers.named` ends here, whatever library the network is from. The caller prepares images
to the form with `experts.trunk.images.prepare_images(images, form.channels, form.pixels)`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import torch
from torch import nn

from experts.errors import MalformedTeacher, SettingOutOfRange, ShapeMismatch

__all__ = ["InputForm", "NetworkTeacher"]

_BATCH = 32
"""Images at a time when scoring; a network of 224 px takes some 10 MB of activations an image."""
_MAX_PIXELS = 4096
"""Height and width a file may ask for: a bound against nonsense, above any published classifier."""
_MAX_SHIFT = 1e6
_MIN_DEVIATION = 1e-6
"""Far outside any library's; a form from a file or a peer must not make infinities of images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InputForm:
    """What images a network takes, and how their values in [0, 1] are normalised: (x - mean) / deviation."""

    channels: int
    """1 (grey) or 3 (red, green, blue)."""
    pixels: int
    """Height and width, 1 to 4096."""
    mean: tuple[float, ...]
    """One a channel, within +-1e6."""
    deviation: tuple[float, ...]
    """One a channel, 1e-6 to 1e6."""

    def __post_init__(self) -> None:
        if type(self.channels) is not int or self.channels not in (1, 3):
            raise SettingOutOfRange("channels", self.channels, allowed="1 or 3")
        if type(self.pixels) is not int or not 1 <= self.pixels <= _MAX_PIXELS:
            raise SettingOutOfRange("pixels", self.pixels, allowed=f"1 to {_MAX_PIXELS}")
        # Whole numbers and lists come from JSON; one form has one digest.
        for name in ("mean", "deviation"):
            object.__setattr__(self, name, _floats(name, getattr(self, name), self.channels))
        if min(self.deviation) < _MIN_DEVIATION:
            raise SettingOutOfRange("deviation", self.deviation, allowed=f"{_MIN_DEVIATION:g} or more")


class NetworkTeacher:
    """A frozen network over named classes; a `Teacher`.

    Args:
        network: From normalised images ``(B, channels, pixels, pixels)`` to logits ``(B, C)``. It is put in
            evaluation mode and its weights are frozen; the teacher owns it from here on.
        name: What the user calls it by (``timm:resnet18``); not part of the digest.
        architecture: What is computed with the weights: a kind of `experts.teachers.kinds`, if it is to be saved.
        classes: The C names, in the order of the network's columns.
        form: Of the images it takes.
        config: What the kind has to know besides, a JSON object; None for nothing.
    Raises: MalformedTeacher: If there is no class, or a name is empty or occurs twice.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        architecture: str,
        classes: Sequence[str],
        form: InputForm,
        config: Mapping[str, object] | None = None,
    ) -> None:
        _require_distinct(name, classes)
        self.network = network.eval().requires_grad_(False)
        """From normalised images to logits in the network's own order of columns."""
        self.name = name
        self.architecture = architecture
        self.config: Mapping[str, object] = {} if config is None else dict(config)
        self.form = form
        self.network_classes = tuple(classes)
        """The names in the order of the network's own columns."""
        self.columns_C = torch.tensor(sorted(range(len(classes)), key=classes.__getitem__))
        """For each of `classes`, its column among the network's."""
        self._classes = tuple(sorted(classes))

    @property
    def classes(self) -> tuple[str, ...]:
        """The sorted names of the C classes it scores."""
        return self._classes

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of weights, classes, form and architecture: all that the answer depends on.

        Equal digests mean equal logits up to the arithmetic of the machine; computed once, when first asked for.
        """
        declared = {
            "architecture": self.architecture,
            "config": self.config,
            "classes": self.network_classes,
            "form": asdict(self.form),
        }
        digest = hashlib.sha256(json.dumps(declared, sort_keys=True, separators=(",", ":")).encode())
        _add_tensors(digest, self.network.state_dict())
        return digest.hexdigest()

    def normalised(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Images in [0, 1] as the network takes them, of the same shape and device.

        Raises: ShapeMismatch: If the images are not of the teacher's form.
        """
        form = (self.form.channels, self.form.pixels, self.form.pixels)
        if images_BCHW.ndim != 4 or images_BCHW.shape[1:] != form:
            raise ShapeMismatch("images", expected=("B", *form), got=images_BCHW.shape)
        mean_C = torch.tensor(self.form.mean, dtype=torch.float32, device=images_BCHW.device)
        deviation_C = torch.tensor(self.form.deviation, dtype=torch.float32, device=images_BCHW.device)
        return (images_BCHW - mean_C.view(-1, 1, 1)) / deviation_C.view(-1, 1, 1)

    def logits(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Unnormalised scores ``(B, C)``, columns as in `classes`, without a graph for gradients.

        Args:
            images_BCHW: float32 in [0, 1], of the teacher's form, on the device of the network.
        Raises: ShapeMismatch: If the images are not of that form, or the network does not give C columns.
        """
        with torch.no_grad():
            batches = [self._scores(batch_BCHW) for batch_BCHW in torch.split(images_BCHW, _BATCH)]
        return torch.cat(batches)

    def _scores(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        logits_BC: torch.Tensor = self.network(self.normalised(images_BCHW))
        expected = (len(images_BCHW), len(self._classes))
        if logits_BC.shape != expected:
            raise ShapeMismatch(f"logits of {self.name}", expected=expected, got=logits_BC.shape)
        return logits_BC[:, self.columns_C.to(logits_BC.device)]


def _require_distinct(name: str, classes: Sequence[str]) -> None:
    if not classes or not all(classes):
        raise MalformedTeacher(name, reason="a class without a name, or no class at all")
    twice = sorted({given for given in classes if classes.count(given) > 1}) if len(set(classes)) < len(classes) else []
    if twice:
        raise MalformedTeacher(name, reason=f"class names occur twice: {', '.join(twice[:5])}")


def _floats(name: str, values: object, length: int) -> tuple[float, ...]:
    numbers = tuple(values) if isinstance(values, tuple | list) else ()
    # Compared, not converted: a whole number from JSON may be too large to become a float. NaN is not within.
    within = all(isinstance(x, int | float) and not isinstance(x, bool) and abs(x) <= _MAX_SHIFT for x in numbers)
    if not within or len(numbers) != length:
        raise SettingOutOfRange(name, values, allowed=f"one number a channel, {length}, within +-{_MAX_SHIFT:g}")
    return tuple(float(x) for x in numbers)


def _add_tensors(digest: "hashlib._Hash", tensors: Mapping[str, torch.Tensor]) -> None:
    """Feeds names, types, shapes and bytes, in sorted order; one tensor's copy at a time."""
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        # As bytes, so that types numpy does not know (bfloat16) count too.
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
