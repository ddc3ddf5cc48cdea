"""Founding a mesh: its trunk is made and calibrated from one task file, its spec written once and for all."""

from pathlib import Path

import torch

from experts.data.npz import load_task
from experts.errors import ExpertsError
from experts.trunk.base import Trunk, calibrate
from experts.trunk.codec import trunk_to_bytes
from experts.trunk.efficientnet import load_efficientnet
from experts.trunk.images import prepare_images
from experts.trunk.whitened import WhitenedConfig, fit_whitened
from meshnode.errors import Refused, ResourceAbsent
from meshnode.home import Home
from meshnode.lock import DaemonLock
from meshnode.mesh import MESH_SETTING
from meshnode.state.state import State
from protocol.identifiers import MeshId
from protocol.spec import ImageInput, MeshSpec, encode_spec, mesh_id_of

__all__ = ["found_mesh"]

PATCH_SEED = 0
"""Which patches of the founder's data become filters; recorded in the trunk by its digest."""


def found_mesh(home: Home, *, name: str, data: Path, trunk: str, pixels: int) -> MeshId:
    """Make a mesh from a task file and keep its spec and trunk in this home, which belongs to it from then on.

    Args:
        name: The mesh's name for people.
        data: Task file; what the trunk's m, s and patches reveal of it becomes public.
        trunk: ``whitened``, ``efficientnet-b4`` or ``efficientnet-e5``.
        pixels: Width and height that images are resized to.

    Raises:
        Refused: The home already belongs to a mesh.
        ResourceAbsent: The file or an optional package cannot be used.
        AlreadyRunning: A daemon runs on this home.
    """
    with DaemonLock(home), State(home) as state:
        existing = state.get_setting(MESH_SETTING)
        if existing is not None:
            raise Refused(f"this home already belongs to mesh {existing}", hint="Found another mesh in another --home.")
        try:
            images = load_task(data)
            channels = 3 if trunk.startswith("efficientnet") else images.channels
            made = _make_trunk(trunk, prepare_images(images.images, channels, pixels))
        except ExpertsError as exc:
            raise ResourceAbsent(f"no mesh can be founded on {data}: {exc}") from exc
        trunk_digest = state.blobs.put(trunk_to_bytes(made))
        classes = ", ".join(f"{label} ({count})" for label, count in images.class_counts.items())
        spec = encode_spec(
            MeshSpec(
                name=name,
                input=ImageInput(channels=channels, pixels=pixels),
                trunk=trunk_digest,
                feature_dim=made.feature_dim,
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
        made = load_efficientnet(kind.removeprefix("efficientnet-").upper(), pixels=images_BCHW.shape[-1])
    calibrate(made, images_BCHW)
    return made
