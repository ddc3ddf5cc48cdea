"""Founding a mesh: its trunk is made and calibrated from one task file, its spec written once and for all."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import torch

from experts.continual.sizing import DEFAULT_MAX_PARAMETERS, choose_architecture
from experts.data.npz import load_task
from experts.errors import ExpertsError, SettingOutOfRange, UnknownArchitecture
from experts.trunk.base import Trunk, calibrate
from experts.trunk.codec import trunk_to_bytes
from experts.trunk.efficientnet import load_efficientnet
from experts.trunk.images import prepare_images
from experts.trunk.whitened import WhitenedConfig, fit_whitened
from meshnode.errors import Refused, ResourceAbsent
from meshnode.forms import chosen_form, form_of
from meshnode.home import Home
from meshnode.lock import DaemonLock
from meshnode.mesh import MESH_SETTING
from meshnode.state.state import State
from protocol.identifiers import MeshId
from protocol.spec import ExpertForm, ImageInput, MeshSpec, encode_spec, mesh_id_of

__all__ = ["TRUNK_NAMES", "Founding", "found_mesh"]

PATCH_SEED = 0
"""Which patches of the founder's data become filters; recorded in the trunk by its digest."""


_TAPS = {
    "efficientnet-b4": "B4",
    "efficientnet-e5": "E5",
    "efficientnet-e5-b4": "E5+B4",
    "efficientnet-e5c40": "E5c40",
}
"""What the names of pretrained trunks stand for in `experts.trunk.efficientnet`."""

TRUNK_NAMES = ("whitened", *_TAPS)
"""The trunks a mesh can be founded with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Founding:
    """What a new mesh is to be."""

    name: str
    """For people."""
    data: Path
    """Task file; what the trunk's m, s and patches reveal of it becomes public."""
    trunk: str = "whitened"
    """One of `TRUNK_NAMES`."""
    pixels: int = 32
    """Width and height that images are resized to."""
    expert: str | None = None
    """Kind of newly spawned experts, of the registry; None for what there is room for within the budget."""
    expert_settings: Mapping[str, object] = field(default_factory=dict)
    """Of that kind, by name; those not given have their usual values."""
    expert_budget: int | None = None
    """Most parameters of a newly spawned expert where no kind is named; None for `DEFAULT_MAX_PARAMETERS`."""
    statistics_norm: float | None = None
    """To which features are clipped where statistics are noised; None if none may be."""


def found_mesh(home: Home, founding: Founding) -> MeshId:
    """Make a mesh from a task file and keep its spec and trunk in this home, which belongs to it from then on.

    Raises:
        Refused: The home already belongs to a mesh, there are no such experts, or none is within the budget.
        ResourceAbsent: The file or an optional package cannot be used.
        AlreadyRunning: A daemon runs on this home.
    """
    with DaemonLock(home), State(home) as state:
        existing = state.get_setting(MESH_SETTING)
        if existing is not None:
            raise Refused(f"this home already belongs to mesh {existing}", hint="Found another mesh in another --home.")
        try:
            images = load_task(founding.data)
            channels = 3 if founding.trunk in _TAPS else images.channels
            made = _make_trunk(founding.trunk, prepare_images(images.images, channels, founding.pixels))
        except ExpertsError as exc:
            raise ResourceAbsent(f"no mesh can be founded on {founding.data}: {exc}") from exc
        form, budget = _experts(founding, made)
        trunk_digest = state.blobs.put(trunk_to_bytes(made))
        classes = ", ".join(f"{label} ({count})" for label, count in images.class_counts.items())
        spec = encode_spec(
            MeshSpec(
                name=founding.name,
                input=ImageInput(channels=channels, pixels=founding.pixels),
                trunk=trunk_digest,
                feature_dim=made.feature_dim,
                expert=form,
                expert_budget=budget,
                statistics_norm=msgspec.UNSET if founding.statistics_norm is None else founding.statistics_norm,
                calibration=f"m and s: {len(images)} images of the founder's: {classes}"[:2048],
            )
        )
        state.blobs.put(spec)
        mesh_id = mesh_id_of(spec)
        state.set_setting(MESH_SETTING, mesh_id)
    return mesh_id


def _make_trunk(kind: str, images_BCHW: torch.Tensor) -> Trunk:
    if kind == "whitened":
        made: Trunk = fit_whitened(images_BCHW, WhitenedConfig(), seed=PATCH_SEED)
    else:
        made = load_efficientnet(_TAPS[kind], pixels=images_BCHW.shape[-1])
    calibrate(made, images_BCHW)
    return made


def _experts(founding: Founding, trunk: Trunk) -> tuple[ExpertForm, int | msgspec.UnsetType]:
    """The form of experts, and the budget that it follows from, if it does."""
    if founding.expert is None:
        budget = DEFAULT_MAX_PARAMETERS if founding.expert_budget is None else founding.expert_budget
        return _form_within(budget, trunk.feature_dim), budget
    try:
        form = chosen_form(
            founding.expert,
            founding.expert_settings,
            feature_dim=trunk.feature_dim,
            feature_map=trunk.feature_map,
        )
    except UnknownArchitecture as exc:
        raise Refused(
            f"no mesh of such experts: {exc}",
            hint="`meshnode init --help` tells of --expert and of --expert-set NAME=VALUE, a setting of the kind.",
        ) from exc
    return form, msgspec.UNSET


def _form_within(budget: int, feature_dim: int) -> ExpertForm:
    """For two classes: an expert for fewer would have nothing to tell apart."""
    try:
        return form_of(choose_architecture(feature_dim, 2, max_parameters=budget))
    except SettingOutOfRange as exc:
        raise Refused(
            f"an expert of at most {budget} parameters has no room for two classes on {feature_dim} features: it takes "
            f"{exc.allowed}",
            hint="Raise --expert-budget, or take a --trunk with fewer features.",
        ) from exc
