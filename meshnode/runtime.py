"""A node's part in its mesh: everything that needs the mesh's spec and trunk, put together and run."""

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any

from experts.averaging import Averaged
from experts.router.ridge import RouterConfig
from meshnode.advertiser import Advertiser
from meshnode.averaging.averager import Averager, Hooks
from meshnode.averaging.catchup import catch_up
from meshnode.averaging.settings import AveragerConfig
from meshnode.blobs import BlobPuller
from meshnode.compute import Compute
from meshnode.contributions import Contributions
from meshnode.device import Device
from meshnode.directory import Directory
from meshnode.dropping import Dropping
from meshnode.facade import Facade
from meshnode.following import Following
from meshnode.forgetting import Forgetting
from meshnode.handover import HandOver
from meshnode.home import Home
from meshnode.hosted import HostedExpert
from meshnode.hosting import ExpertHost
from meshnode.inference import RoutedInference
from meshnode.logs import get_logger
from meshnode.mesh import Mesh
from meshnode.migrations import Migrations
from meshnode.pacing import Pacer
from meshnode.placement import Placement, PlacementConfig
from meshnode.replica_pulls import ReplicaPulls
from meshnode.replicas import Replicas
from meshnode.serving import Serving
from meshnode.settings.config import NodeConfig
from meshnode.state.state import State
from meshnode.telemetry import Telemetry
from meshnode.trainer.parts import TrainerParts
from meshnode.trainer.service import LEARNED, Trainer
from meshnode.transport.interface import Transport
from meshnode.transport.moe.interface import MoeNetwork
from protocol.identifiers import ExpertUid
from protocol.records import PeerRecord, fitting
from protocol.signing import SigningKey
from protocol.spec import RouterSettings

__all__ = ["MeshRuntime", "contributions_of", "router_config"]

COLLECT_GARBAGE_S = 60.0
"""Seconds between removals of generations and statistics that were superseded."""

PLACED_WEIGHT = 2.0**-10
"""Above 0, so that replicas of which none learns any more still come to one mean."""

SLOT_REFRESHES = 3
"""Of a turn of placement: one until an adoption is read of, and two for the adoption itself."""

log = get_logger(__name__)

Service = Callable[[], Coroutine[Any, Any, None]]


def router_config(settings: RouterSettings) -> RouterConfig:
    """How the mesh's spec says the router is solved."""
    return RouterConfig(
        kappa=settings.kappa,
        tau=settings.tau,
        top_k=settings.top_k,
        ridge=settings.ridge,
        prior=settings.prior,
        renormalise=settings.renormalise,
    )


def averager_config(config: NodeConfig) -> AveragerConfig:
    """How the settings say that this node averages."""
    average = config.average
    return AveragerConfig(
        period_s=average.every_s,
        timeout_s=average.timeout_s,
        method=average.method,
        group=average.group,
        compression=average.compression,
        weighting=average.weighting,
        min_drift=average.min_drift,
    )


def placement_config(config: NodeConfig) -> PlacementConfig:
    """How the settings say that this node takes part in placement; what is not served is nobody's replica."""
    place = config.place
    takes_in = place.enabled and config.serve.enabled
    return PlacementConfig(
        replicas=place.replicas,
        room=place.room if takes_in else 0,
        room_bytes=place.room_mib * 2**20,
        slot_s=SLOT_REFRESHES * config.net.refresh_s,
    )


def weight_of(expert: HostedExpert, config: NodeConfig, num_samples: int) -> float:
    """What a replica counts for in a mean: the samples it learned from here, or as much as any other.

    One that is here by placement alone has learned nothing: as much as any other, it would draw a replica that is in
    training half the way back in every round. Where parameters travel coded it counts all the same: what a code cannot
    say is kept here times the others' weight over its own.
    """
    if expert.placed and config.average.compression == "none":
        return PLACED_WEIGHT
    return 1.0 if config.average.weighting == "uniform" else float(max(1, num_samples))


def contributions_of(mesh: Mesh, state: State, compute: Compute) -> Contributions:
    """The mesh's router contributions, none taken up yet.

    Args:
        mesh: Says which statistics can be summed, and how the router is solved from them.
        state: Where contributions are kept.
        compute: Where the router is solved.
    """
    config = router_config(mesh.spec.router)
    dim, fingerprint = mesh.spec.feature_dim, mesh.fingerprint
    return Contributions(state, compute, mesh.mesh_id, config, feature_dim=dim, fingerprint=fingerprint)


class MeshRuntime:
    """The services of one mesh; `start` once, then `run` until it is cancelled.

    Args:
        home: Where the trainer keeps its files.
        config: The node's settings.
        state: What must survive.
        transport: Reaches the peers.
        key: Signs this node's records and contributions.
        mesh: Spec and trunk.
        compute: The threads that torch runs in.
        device: What torch computes on.
        telemetry: Is told what happens.
        pacer: What averaging may send, which it shares with blobs.
        moe: Where hivemind's own clients are; None if they are not served.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - a composition root: what the node already has
        self,
        home: Home,
        config: NodeConfig,
        state: State,
        transport: Transport,
        key: SigningKey,
        mesh: Mesh,
        compute: Compute,
        device: Device,
        telemetry: Telemetry,
        pacer: Pacer,
        moe: MoeNetwork | None = None,
    ) -> None:
        self._config = config
        self._state = state
        self._transport = transport
        self.mesh = mesh
        self.directory = Directory(
            transport, mesh.mesh_id, refresh_s=config.net.refresh_s, objection=mesh.objection_to, telemetry=telemetry
        )
        self.host = ExpertHost(state, compute, device=device.used, now_s=transport.now_s)
        self.contributions = contributions_of(mesh, state, compute)
        self._puller = BlobPuller(transport, state.blobs, timeout_s=config.net.call_timeout_s)
        self.replicas = Replicas(
            mesh=mesh,
            state=state,
            host=self.host,
            directory=self.directory,
            puller=self._puller,
            compute=compute,
            own_samples=partial(self.contributions.own_samples, transport.peer_id),
            telemetry=telemetry,
        )
        self.replica_pulls = ReplicaPulls(self.replicas)
        self.advertiser = Advertiser(
            transport, key, self._describe, ttl_s=config.net.record_ttl_s, published=self.directory.take
        )
        self.inference = RoutedInference(
            mesh,
            lambda: self.contributions.view,
            self.directory,
            transport,
            compute,
            self.host,
            instruments=telemetry.instruments,
        )
        routed = self.inference if config.serve.thin_clients else None
        self.serving = Serving(mesh.spec.feature_dim, self.host, routed, compute, telemetry.instruments)
        self.trainer = Trainer(
            TrainerParts(
                mesh=mesh,
                state=state,
                host=self.host,
                contributions=self.contributions,
                directory=self.directory,
                replicas=self.replicas,
                transport=transport,
                key=key,
                telemetry=telemetry,
            ),
            config.train,
            home.trainer,
            device=device.used,
            threads=config.compute.threads or 1,
            privacy=config.privacy,
        )
        trainer = self.trainer if config.train.enabled else None
        self.following = Following(
            mesh=mesh,
            state=state,
            host=self.host,
            directory=self.directory,
            replicas=self.replicas,
            trainer=trainer,
            margin=config.preserve.margin,
            telemetry=telemetry,
        )
        self.migrations = Migrations(
            mesh=mesh,
            state=state,
            host=self.host,
            directory=self.directory,
            following=self.following,
            trainer=trainer,
            transport=transport,
            margin=config.preserve.margin,
            telemetry=telemetry,
        )
        self.averager = Averager(
            transport,
            self.directory,
            self.host,
            averager_config(config),
            Hooks(apply=self._apply_round, catch_up=self._catch_up, weight=self._weight_of, pacer=pacer),
            telemetry,
        )
        self.forgetting = Forgetting(
            mesh=mesh,
            state=state,
            host=self.host,
            contributions=self.contributions,
            directory=self.directory,
            trainer=trainer,
            transport=transport,
            key=key,
            let_go=self.averager.let_go,
            teachers=tuple(teacher.name for teacher in config.train.teachers),
            telemetry=telemetry,
        )
        self.dropping = Dropping(
            host=self.host,
            directory=self.directory,
            averager=self.averager,
            transport=transport,
            timeout_s=config.net.call_timeout_s,
            telemetry=telemetry,
        )
        self.placement = Placement(
            me=transport.peer_id,
            mesh=mesh,
            state=state,
            host=self.host,
            directory=self.directory,
            replicas=self.replicas,
            dropping=self.dropping,
            config=placement_config(config),
            now_s=transport.now_s,
            rng=random.Random(f"placement {transport.peer_id}"),  # noqa: S311 - nothing secret
        )
        self.handover = HandOver(
            me=transport.peer_id,
            host=self.host,
            directory=self.directory,
            advertiser=self.advertiser,
            placement=self.placement,
            telemetry=telemetry,
        )
        self._gone = False
        """Whether nothing is served here any more."""

        self.facade: Facade | None = None
        if moe is not None and config.serve.enabled:
            ttl_s, instruments = config.net.record_ttl_s, telemetry.instruments
            self.facade = Facade(moe, transport, mesh, self.host, compute, ttl_s=ttl_s, instruments=instruments)

    async def start(self) -> None:
        """Take up what the state holds and say so to the mesh; from here on the experts can be served."""
        await self.host.load()
        await self.contributions.load(now_s=self._transport.now_s())
        await self.advertiser.publish()

    async def run(self) -> None:
        """Run every service for ever. A service that fails ends them all: a half-dead node helps nobody."""
        async with asyncio.TaskGroup() as services:
            for name, service in self._services().items():
                services.create_task(service(), name=name)

    def _services(self) -> Mapping[str, Service]:
        services: dict[str, Service] = {
            "directory": self.directory.run,
            "advertiser": self.advertiser.run,
            "router": self._keep_router,
            "housekeeping": self._keep_house,
            "replica pulls": self.replica_pulls.run,
            "migrations": self.migrations.run,
            "new generations": lambda: self._announce(self.host.changed),
            "new contributions": lambda: self._announce(self.contributions.changed),
        }
        if self._config.train.enabled:
            services["trainer"] = self.trainer.run
        if self._config.preserve.follow:
            services["following"] = self.following.run
        if self._config.place.enabled:
            services["placement"] = self.placement.run
        if self._config.average.enabled:
            services["averager"] = self.averager.run
        if self.facade is not None:
            services["facade"] = self.facade.run
        return services

    def learned_tasks(self) -> list[str]:
        """Names of the task files this node has learned, in the order it learned them."""
        rows = [row for row in self._state.ledger.tasks() if row.state == LEARNED]
        return [row.name for row in sorted(rows, key=lambda row: row.learned_at or 0.0)]

    def tasks_of(self, uid: ExpertUid) -> tuple[str, ...] | None:
        """Names of this node's tasks that an expert hosted here has learned; None where unknown."""
        newest = self._state.ledger.generations(uid)[:1]
        return newest[0].tasks if newest else ()

    def forgotten(self) -> dict[str, list[str]]:
        """What is to stay forgotten here: names of tasks, ids of peers."""
        ledger = self._state.ledger
        return {"tasks": list(ledger.forgotten("task")), "peers": list(ledger.forgotten("peer"))}

    async def hand_over(self) -> None:
        """Serve what nobody else holds until somebody does, for a while; the services have ended."""
        await self.handover.run(self._config.place.handover_s)

    async def leave(self) -> None:
        """Tell the mesh that this node has stopped."""
        self._gone = True
        await self.advertiser.publish(leaving=True)

    async def _keep_router(self) -> None:
        """Take in what peers contributed, and who succeeds whom, whenever the directory has been read."""
        while True:
            await self.directory.refreshed.wait()
            self.directory.refreshed.clear()
            self.following.look_again()
            self.placement.look_again()
            await self.contributions.pull(self._puller, self.directory)
            await self.contributions.solve()

    async def _announce(self, change: asyncio.Event) -> None:
        while True:
            await change.wait()
            change.clear()
            self.advertiser.changed()
            if self.facade is not None:
                self.facade.changed()

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(COLLECT_GARBAGE_S)
            await asyncio.to_thread(self._state.collect_garbage)

    async def _apply_round(self, uid: ExpertUid, averaged: Averaged, number: int) -> None:
        """A committed round changes the served replica and, if it is being trained, the training run."""
        if await self.host.apply_round(uid, averaged, number=number):
            await self.trainer.add_delta(uid, averaged.delta)

    async def _catch_up(self, uid: ExpertUid) -> None:
        """Bring a replica that has missed rounds to where the others are."""
        await catch_up(uid, self.directory, self.host, self._puller, apply=self._apply_round)

    def _weight_of(self, uid: ExpertUid) -> float:
        expert = self.host.get(uid)
        return weight_of(expert, self._config, self.contributions.own_samples(self._transport.peer_id, expert.classes))

    def _describe(self, issued_at: float, expires_at: float, leaving: bool) -> PeerRecord:
        hosted = self.host.experts.values() if self._config.serve.enabled and not self._gone else ()
        adverts = sorted((expert.advert() for expert in hosted), key=lambda advert: advert.uid)
        told = fitting(adverts)
        if len(told) < len(adverts):
            left_out = len(adverts) - len(told)
            log.warning(
                "hosted experts do not fit a record: peers cannot find them", left_out=left_out, hosted=len(adverts)
            )
        return PeerRecord(
            mesh_id=self.mesh.mesh_id,
            peer_id=self._transport.peer_id,
            peer_name=self._config.node.name,
            issued_at=issued_at,
            expires_at=expires_at,
            leaving=leaving,
            experts=told,
            contributions=self.contributions.index,
            withdrawals=self.contributions.withdrawals,
            room_bytes=0 if leaving else self.placement.room_bytes,
        )
