"""The mesh that serving is measured on: scikit-learn's digits, a trunk of 256 features, homes that host its experts.

Homes are made here, in the parent, and opened by the daemons and children that live in them.

Legend: B batch, D feature, C class.
"""

import asyncio
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from bench_serving_modules import FEATURES, HIDDEN
from torch.nn import functional

from experts.architectures.base import Architecture, probabilities
from experts.checkpoint import load_weights, weights_to_bytes
from experts.combine import ExpertResponse, combine
from experts.data.dataset import class_columns
from experts.data.named import load_named
from experts.data.npz import save_task
from experts.router.gating import gate
from experts.router.ridge import solve_ridge
from experts.router.statistics import ClassStatistics, sum_contributions
from experts.trunk.base import calibrate, features_of
from experts.trunk.codec import trunk_from_bytes, trunk_to_bytes
from experts.trunk.images import prepare_images
from experts.trunk.whitened import WhitenedConfig, fit_whitened
from meshnode.compute import Compute
from meshnode.forms import chosen_form, form_of
from meshnode.home import Home
from meshnode.hosting import ExpertHost
from meshnode.identity import load_or_create_identity
from meshnode.mesh import MESH_SETTING, Mesh
from meshnode.runtime import contributions_of, router_config
from meshnode.state.state import State
from protocol.identifiers import ExpertUid, digest_of
from protocol.spec import ImageInput, MeshSpec, decode_spec, encode_spec, mesh_id_of

__all__ = ["Expert", "Ground"]

PIXELS = 16
TRUNK = WhitenedConfig(num_patches=32, pool=2)
"""2 * 32 * 2^2 = 256 features."""

STEPS, RATE = 150, 0.05
"""Of an expert's training by Adam: enough for two digits, in a tenth of a second."""


@dataclass(frozen=True, eq=False, slots=True)
class Expert:
    """An expert of the mesh, with weights or with the initial ones that its uid determines."""

    uid: ExpertUid
    classes: tuple[str, ...]
    architecture: Architecture
    weights: bytes | None = None


class Ground:
    """Makes experts and homes of one mesh in one folder.

    Args:
        folder: Exists, and is empty.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.train, self.test = load_named("digits")
        images = prepare_images(self.train.images, 1, PIXELS)
        trunk = fit_whitened(images, TRUNK, seed=0)
        calibrate(trunk, images)
        assert trunk.feature_dim == FEATURES
        self._trunk = trunk_to_bytes(trunk)
        form = chosen_form("mlp", {"hidden": HIDDEN}, feature_dim=FEATURES, feature_map=trunk.feature_map)
        self._spec = encode_spec(
            MeshSpec(
                name="bench",
                input=ImageInput(channels=1, pixels=PIXELS),
                trunk=digest_of(self._trunk),
                feature_dim=FEATURES,
                expert=form,
                calibration="the digits' training part",
            )
        )
        (folder / "spec").write_bytes(self._spec)
        (folder / "trunk").write_bytes(self._trunk)
        self.mesh = Mesh(
            mesh_id=mesh_id_of(self._spec), spec=decode_spec(self._spec), trunk=trunk_from_bytes(self._trunk)
        )

    def expert(self, *classes: str, architecture: Architecture | None = None) -> Expert:
        """The untrained expert for these classes, of the mesh's own form or another one."""
        names = tuple(sorted(classes))
        form = form_of(architecture) if architecture else self.mesh.spec.expert
        built = architecture or self.mesh.architecture(form, len(names))
        return Expert(self.mesh.uid_of(names, form), names, built)

    def trained(self, *classes: str) -> Expert:
        """One that has learned the training images of its classes."""
        expert = self.expert(*classes)
        rows = [row for row, label in enumerate(self.train.labels) if label in expert.classes]
        features_BD = self._train_features[rows]
        columns_B = class_columns([self.train.labels[row] for row in rows], expert.classes)
        module = expert.architecture.build(expert.uid)
        optimizer = torch.optim.Adam(module.parameters(), lr=RATE)
        for _ in range(STEPS):
            optimizer.zero_grad()
            functional.cross_entropy(module(features_BD), columns_B).backward()
            optimizer.step()
        return Expert(expert.uid, expert.classes, expert.architecture, weights_to_bytes(module))

    def home(self, name: str, experts: Sequence[Expert], *, knows_router: bool = False, config: str = "") -> Home:
        """A home of the mesh that hosts these experts.

        Args:
            name: Of its folder, new.
            experts: Whom.
            knows_router: Whether it has contributed the statistics of all digits.
            config: Its config.toml.
        """
        home = Home(self._folder / name)
        home.create()
        home.config_toml.write_text(config, encoding="utf-8")
        asyncio.run(self._fill(home, experts, knows_router=knows_router))
        return home

    def data(self) -> Path:
        """A folder with one task: all digits of the training part."""
        folder = self._folder / "data"
        if not folder.exists():
            folder.mkdir()
            save_task(folder / "digits.npz", self.train)
        return folder

    def answer_here(self, experts: Sequence[Expert], *, top_k: int) -> tuple[tuple[str, ...], np.ndarray]:
        """The mesh's computation on the test images in this one process: y = sum_i g_i(x) E_i(x).

        Returns: The class of each image, and the outputs ``(B, C)`` with the classes in sorted order.
        """
        settings = self.mesh.spec.router
        router = solve_ridge(sum_contributions({("bench", "digits"): self._statistics}), router_config(settings))
        features_BD = features_of(self.mesh.trunk, self.test.images)
        classes = {str(expert.uid): expert.classes for expert in experts}
        gates = gate(router.scores(features_BD), router.classes, classes, tau=settings.tau, top_k=top_k)
        responses = {}
        for expert in experts:
            module = expert.architecture.build(expert.uid)
            if expert.weights is not None:
                load_weights(module, expert.weights)
            rows = gates.rows_of(expert.uid)
            responses[str(expert.uid)] = ExpertResponse(expert.classes, rows, probabilities(module, features_BD[rows]))
        names = sorted(set(itertools.chain.from_iterable(classes.values())))
        combined = combine(gates, responses, names, settings.renormalise)
        columns_B = combined.outputs_BC.argmax(dim=1).tolist()
        return tuple(names[column] for column in columns_B), combined.outputs_BC.numpy()

    @cached_property
    def _train_features(self) -> torch.Tensor:
        return features_of(self.mesh.trunk, self.train.images)

    @cached_property
    def _statistics(self) -> ClassStatistics:
        return ClassStatistics.from_features(self._train_features, self.train.labels, fingerprint=self.mesh.fingerprint)

    async def _fill(self, home: Home, experts: Sequence[Expert], *, knows_router: bool) -> None:
        key, compute = load_or_create_identity(home), Compute()
        try:
            with State(home) as state:
                for blob in (self._spec, self._trunk):
                    state.blobs.put(blob)
                state.set_setting(MESH_SETTING, self.mesh.mesh_id)
                host = ExpertHost(state, compute)
                for expert in experts:
                    await host.adopt(expert.uid, expert.classes, expert.architecture, expert.weights)
                if knows_router:
                    contributions = contributions_of(self.mesh, state, compute)
                    await contributions.contribute(key, "digits", self._statistics.to_bytes(), issued_at=time.time())
        finally:
            compute.close()


def settings_toml(**sections: Mapping[str, object]) -> str:
    """Settings as a config.toml; values are numbers, truths, texts and lists of texts."""
    lines = []
    for section, settings in sections.items():
        lines += [f"[{section}]", *(f"{name} = {_toml(value)}" for name, value in settings.items())]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)
