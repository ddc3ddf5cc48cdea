"""Whole nodes of one mesh in one process: real parts, real digits, a network that the test decides about."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch

from experts.averaging import Averaged
from experts.data.dataset import ImageDataset
from experts.data.named import load_named
from experts.router.ridge import RouterConfig
from experts.router.statistics import ClassStatistics
from experts.trunk.base import Trunk, calibrate, features_of
from experts.trunk.codec import trunk_to_bytes
from experts.trunk.images import prepare_images
from experts.trunk.whitened import WhitenedConfig, fit_whitened
from meshnode.advertiser import Advertiser
from meshnode.averaging.averager import Averager, Hooks
from meshnode.averaging.catchup import catch_up
from meshnode.averaging.settings import AveragerConfig
from meshnode.blobs import BlobPuller
from meshnode.compute import Compute
from meshnode.contributions import Contributions
from meshnode.directory import Directory
from meshnode.dropping import Dropping
from meshnode.forms import chosen_form
from meshnode.handlers import Handlers
from meshnode.home import Home
from meshnode.hosted import HostedExpert
from meshnode.hosting import ExpertHost
from meshnode.inference import RoutedInference
from meshnode.mesh import MESH_SETTING, Mesh
from meshnode.pacing import Pacer
from meshnode.placement import Placement, PlacementConfig
from meshnode.replicas import Replicas
from meshnode.serving import Serving
from meshnode.state.rows import Reached
from meshnode.state.state import State
from meshnode.transport.memory import MemoryNetwork, MemoryTransport
from protocol.framing import Frame
from protocol.identifiers import ExpertUid, PeerId, digest_of
from protocol.records import PeerRecord
from protocol.signing import SigningKey
from protocol.spec import ExpertForm, ImageInput, MeshSpec, decode_spec, encode_spec, mesh_id_of

__all__ = [
    "MESH",
    "PIXELS",
    "ROUTER",
    "MemoryNode",
    "announce_all",
    "digits",
    "form",
    "key_of",
    "memory_network",
    "memory_node",
    "memory_nodes",
    "mesh_blobs",
    "statistics_of",
    "tiny_trunk",
]

torch.set_num_threads(1)  # as the daemon does; several spin against each other on a busy machine

PIXELS = 16
CALL_TIMEOUT_S = 5.0
ROUTER = RouterConfig()
NO_PLACEMENT = PlacementConfig(room=0)


@cache
def key_of(name: str) -> SigningKey:
    """The key of the peer `name`, made once a run: it takes a tenth of a second."""
    return SigningKey.generate()


@cache
def _digits() -> tuple[ImageDataset, ImageDataset]:
    return load_named("digits")


def digits(*classes: str, test: bool = False) -> ImageDataset:
    """Real digits of these classes; all of them when none is named."""
    data = _digits()[1 if test else 0]
    return data.of_classes(classes) if classes else data


@cache
def tiny_trunk() -> Trunk:
    """32 whitened-patch features of the digits 0 and 1."""
    images = prepare_images(digits("0", "1").images[:64], 1, PIXELS)
    trunk = fit_whitened(images, WhitenedConfig(num_patches=4, pool=2), seed=0)
    calibrate(trunk, images)
    return trunk


def form(kind: str, /, **settings: object) -> ExpertForm:
    """A form of expert that reads the trunk's features: 8 channels on 2 x 2 positions."""
    return chosen_form(kind, settings, feature_dim=tiny_trunk().feature_dim, feature_map=(8, 2, 2))


@cache
def mesh_blobs() -> tuple[bytes, bytes]:
    """Spec and trunk as the founder keeps them."""
    trunk = trunk_to_bytes(tiny_trunk())
    spec = MeshSpec(
        name="digits",
        input=ImageInput(channels=1, pixels=PIXELS),
        trunk=digest_of(trunk),
        feature_dim=tiny_trunk().feature_dim,
        expert=form("mlp", hidden=4),
        calibration="64 digits",
    )
    return encode_spec(spec), trunk


MESH = Mesh(mesh_id=mesh_id_of(mesh_blobs()[0]), spec=decode_spec(mesh_blobs()[0]), trunk=tiny_trunk())


@cache
def statistics_of(*classes: str, num_images: int = 120) -> bytes:
    """Router statistics of the first real digits of these classes."""
    part = digits(*classes).select(range(num_images))
    features = features_of(tiny_trunk(), part.images)
    return ClassStatistics.from_features(features, part.labels, fingerprint=MESH.fingerprint).to_bytes()


def memory_network(*, delay_s: float = 0.0, loss_ratio: float = 0.0) -> MemoryNetwork:
    return MemoryNetwork(random.Random(2), delay_s=delay_s, loss_ratio=loss_ratio)


@dataclass(kw_only=True)
class MemoryNode:
    """The parts of one node, put together as the daemon does, without its process, API and trainer."""

    name: str
    key: SigningKey
    network: MemoryNetwork
    transport: MemoryTransport
    state: State
    compute: Compute
    directory: Directory
    host: ExpertHost
    contributions: Contributions
    puller: BlobPuller
    replicas: Replicas
    averager: Averager
    dropping: Dropping
    placement: Placement
    handlers: Handlers
    inference: RoutedInference
    advertiser: Advertiser

    @property
    def peer_id(self) -> PeerId:
        return self.key.peer_id

    async def announce(self, *, leaving: bool = False) -> None:
        self.network.now_s += 0.01  # a record replaces an earlier one only
        assert await self.advertiser.publish(leaving=leaving)

    async def spawn(
        self, *classes: str, weights: bytes | None = None, form: ExpertForm = MESH.spec.expert
    ) -> HostedExpert:
        """Host the expert of this form that answers for these classes."""
        architecture = MESH.architecture(form, len(classes))
        return await self.host.adopt(MESH.uid_of(classes, form), tuple(sorted(classes)), architecture, weights)

    async def learn(self, uid: ExpertUid, *, seed: int) -> np.ndarray:
        """Move a replica somewhere, as a finished training run would; returns where to."""
        generator = torch.Generator().manual_seed(seed)
        vector = self.host.snapshot(uid)
        learned = vector + torch.randn(len(vector), generator=generator).numpy()
        await self.host.checkpoint(uid, learned, deltas_applied=0, reached=Reached(run="run", steps=1))
        return learned

    async def contribute(self, task: str, statistics: bytes) -> None:
        await self.contributions.contribute(self.key, task, statistics, issued_at=self.network.now_s)
        await self.contributions.solve()

    def go_silent(self) -> None:
        """From now on requests are taken in and never answered."""
        self.transport.serve(_never)


async def announce_all(nodes: Iterable[MemoryNode]) -> None:
    """Everybody says what it hosts, then everybody looks."""
    for node in nodes:
        await node.announce()
    for node in nodes:
        await node.directory.refresh()


@asynccontextmanager
async def memory_node(
    network: MemoryNetwork,
    name: str,
    folder: Path,
    *,
    averager: AveragerConfig | None = None,
    place: PlacementConfig = NO_PLACEMENT,
) -> AsyncIterator[MemoryNode]:
    """A node on `network` whose home is below `folder`; it takes up what an earlier one of its name has left."""
    key = key_of(name)
    transport = network.join(key.peer_id)
    compute = Compute()
    try:
        with State(Home(folder / name)) as state:
            for blob in mesh_blobs():
                state.blobs.put(blob)
            state.set_setting(MESH_SETTING, MESH.mesh_id)
            node = _put_together(network, transport, state, compute, name, averager or AveragerConfig(), place)
            await node.host.load()
            await node.contributions.load(now_s=network.now_s)
            yield node
    finally:
        await transport.aclose()
        compute.close()


@asynccontextmanager
async def memory_nodes(
    network: MemoryNetwork,
    names: Sequence[str],
    folder: Path,
    *,
    averager: AveragerConfig | None = None,
    place: PlacementConfig = NO_PLACEMENT,
) -> AsyncIterator[tuple[MemoryNode, ...]]:
    """Several nodes, in the order of `names`."""
    if not names:
        yield ()
        return
    async with (
        memory_node(network, names[0], folder, averager=averager, place=place) as first,
        memory_nodes(network, names[1:], folder, averager=averager, place=place) as others,
    ):
        yield (first, *others)


def _put_together(  # noqa: PLR0917 - in the order in which they are made
    network: MemoryNetwork,
    transport: MemoryTransport,
    state: State,
    compute: Compute,
    name: str,
    averager_config: AveragerConfig,
    place: PlacementConfig,
) -> MemoryNode:
    directory = Directory(transport, MESH.mesh_id, refresh_s=60.0, objection=MESH.objection_to)
    host = ExpertHost(state, compute, now_s=transport.now_s)
    contributions = Contributions(
        state, compute, MESH.mesh_id, ROUTER, feature_dim=MESH.spec.feature_dim, fingerprint=MESH.fingerprint
    )

    puller = BlobPuller(transport, state.blobs, timeout_s=CALL_TIMEOUT_S)
    replicas = Replicas(
        mesh=MESH,
        state=state,
        host=host,
        directory=directory,
        puller=puller,
        compute=compute,
        own_samples=partial(contributions.own_samples, transport.peer_id),
    )

    async def apply(uid: ExpertUid, averaged: Averaged, number: int) -> None:
        await host.apply_round(uid, averaged, number=number)

    async def behind(uid: ExpertUid) -> None:
        await catch_up(uid, directory, host, puller, apply=apply)

    def describe(issued_at: float, expires_at: float, leaving: bool) -> PeerRecord:
        return PeerRecord(
            mesh_id=MESH.mesh_id,
            peer_id=transport.peer_id,
            peer_name=name,
            issued_at=issued_at,
            expires_at=expires_at,
            leaving=leaving,
            experts=tuple(sorted((expert.advert() for expert in host.experts.values()), key=lambda advert: advert.uid)),
            contributions=contributions.index,
            withdrawals=contributions.withdrawals,
            room_bytes=placement.room_bytes,
        )

    hooks = Hooks(apply=apply, catch_up=behind, weight=lambda uid: 1.0, pacer=Pacer(None))
    averager = Averager(transport, directory, host, averager_config, hooks)
    dropping = Dropping(
        host=host, directory=directory, averager=averager, transport=transport, timeout_s=CALL_TIMEOUT_S
    )
    placement = Placement(
        me=transport.peer_id,
        mesh=MESH,
        state=state,
        host=host,
        directory=directory,
        replicas=replicas,
        dropping=dropping,
        config=place,
        now_s=transport.now_s,
        rng=random.Random(name),
    )
    inference = RoutedInference(MESH, lambda: contributions.view, directory, transport, compute, host)
    handlers = Handlers(state.blobs, transport.peer_id, name, transport.now_s)
    handlers.attach(MESH, Serving(MESH.spec.feature_dim, host, inference, compute), averager)
    transport.serve(handlers, handlers.admit)
    return MemoryNode(
        name=name,
        key=key_of(name),
        network=network,
        transport=transport,
        state=state,
        compute=compute,
        directory=directory,
        host=host,
        contributions=contributions,
        puller=puller,
        replicas=replicas,
        averager=averager,
        dropping=dropping,
        placement=placement,
        handlers=handlers,
        inference=inference,
        advertiser=Advertiser(
            transport,
            key_of(name),
            describe,
            ttl_s=60.0,
            published=directory.take,
        ),
    )


async def _never(sender: PeerId, request: Frame) -> Frame:
    await asyncio.Event().wait()
    raise AssertionError("unreachable")
