"""What a node shows of itself and does on request: the one object behind its HTTP API.

The daemon (`meshnode.node`) fills in the parts as they start; before that, answers say what is still missing.
"""

import asyncio
import os
import time
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from prometheus_client import generate_latest

from experts.errors import MalformedDataset
from meshnode import __version__
from meshnode.bootstrap import Bootstrap
from meshnode.compute import Compute
from meshnode.device import Device
from meshnode.documents import (
    averaging_document,
    expert_documents,
    hosted_document,
    infer_document,
    left_out_documents,
    peer_documents,
    pull_document,
    specialization_document,
    training_document,
)
from meshnode.errors import NoSuchPeerOrExpert, Refused
from meshnode.forget_order import ForgetRequest
from meshnode.gauges import NodeGauges
from meshnode.migration_order import MigrationRequest
from meshnode.migrations import not_current
from meshnode.preservation_documents import lineage_document, migration_document
from meshnode.privacy_documents import forget_document, privacy_document
from meshnode.runtime import MeshRuntime
from meshnode.settings.config import Settings
from meshnode.settings.documents import settings_document
from meshnode.telemetry import Telemetry
from meshnode.transport.interface import Transport
from protocol.errors import Draining, MalformedTensor, NotReady
from protocol.identifiers import Digest, ExpertUid, PeerId
from protocol.lineage import decode_lineage

if TYPE_CHECKING:
    from meshnode.mqtt.publisher import MqttPublisher

__all__ = ["NodeView"]


class NodeView:
    """A node as its user sees it; fulfils `meshnode.api.service.NodeService`.

    Args:
        settings: Those in force.
        device: What torch computes on, and why.
        transport: Started.
        bootstrap: How it stands with the addresses to join through.
        compute: The threads that torch runs in.
        telemetry: Is told of the stop; ``/metrics`` reads its instruments and the node together.
    """

    def __init__(
        self,
        settings: Settings,
        device: Device,
        transport: Transport,
        bootstrap: Bootstrap,
        compute: Compute,
        telemetry: Telemetry,
    ) -> None:
        self.config = settings.config
        self._settings = settings
        self._file_at_start = _content(settings.path)
        self.device = device
        self.transport = transport
        self.bootstrap = bootstrap
        self.compute = compute
        self._events = telemetry.events
        self._registry = telemetry.instruments.registry
        self._registry.register(NodeGauges(self))
        self._began_s: float = psutil.Process().create_time()
        self.runtime: MeshRuntime | None = None
        """The node's part in its mesh, once it belongs to one."""
        self.mqtt: MqttPublisher | None = None
        """Tells a broker, if the settings say so and the node belongs to a mesh."""
        self.url = ""
        """Where this view is served."""
        self.stop_requested = asyncio.Event()
        self.handed_over = asyncio.Event()
        """Set when a stopping node waits for nobody any more."""

    @property
    def uptime_s(self) -> float:
        """Seconds since the process began."""
        return time.time() - self._began_s

    @property
    def draining(self) -> bool:
        """Whether it is stopping and takes no new work."""
        return self.stop_requested.is_set()

    @property
    def state(self) -> str:
        """ "waiting" (for a mesh), "ready" or "draining"."""
        if self.draining:
            return "draining"
        return "waiting" if self.runtime is None else "ready"

    def status(self) -> dict[str, Any]:
        """One document that says how the node is and why."""
        transport, runtime = self.transport, self.runtime
        mesh = runtime.mesh if runtime else None
        return {
            "schema": "meshnode.status/1",
            "name": self.config.node.name,
            "peer_id": transport.peer_id,
            "mesh": {"id": mesh.mesh_id, "name": mesh.spec.name} if mesh else None,
            "state": self.state,
            "reason": self.reason,
            "device": {"used": self.device.used, "reason": self.device.reason},
            "addresses": list(transport.addresses),
            "listen": {"host": self.config.net.listen, "loopback": ip_address(self.config.net.listen).is_loopback},
            "bootstrap": [
                {"address": state.address, "state": state.state, "error": state.error}
                for state in self.bootstrap.states
            ],
            "connected": self.bootstrap.num_connected,
            "peers": len(self.peers()),
            "experts": self._experts(),
            "training": self._training(),
            "averaging": self.averaging(),
            "placement": self._placement(),
            "handover": self._handover(),
            "serving": {"enabled": self.config.serve.enabled, "queue": self.compute.waiting},
            "router": self._router(),
            "mqtt": self._mqtt(),
            "config": {
                "path": str(self._settings.path),
                "changed": _content(self._settings.path) != self._file_at_start,
            },
            "traffic": {
                "sent_bytes": transport.traffic.sent_bytes,
                "received_bytes": transport.traffic.received_bytes,
                "sent": dict(transport.traffic.sent),
                "received": dict(transport.traffic.received),
            },
            "uptime_s": round(self.uptime_s, 1),
            "version": __version__,
            "pid": os.getpid(),
            "url": self.url,
        }

    def identity(self) -> dict[str, Any]:
        """Who this node is and where it is reached."""
        return {
            "schema": "meshnode.id/1",
            "name": self.config.node.name,
            "peer_id": self.transport.peer_id,
            "addresses": list(self.transport.addresses),
        }

    def peers(self) -> list[dict[str, Any]]:
        """Live peers of the mesh, this node among them."""
        if self.runtime is None:
            return []
        return peer_documents(self.runtime, self.transport.peer_id, self.transport.now_s())

    def experts(self, *, local: bool) -> list[dict[str, Any]]:
        """Experts hosted here, or known in the mesh."""
        return expert_documents(self.runtime, local=local) if self.runtime else []

    def specialization(self) -> dict[str, Any]:
        """Who works for which class."""
        if self.runtime is None:
            return {"schema": "meshnode.specialization/1", "tasks": [], "measured": None}
        return specialization_document(self.runtime)

    def averaging(self) -> dict[str, Any]:
        """Rounds so far."""
        if self.runtime is None or not self.config.average.enabled:
            return {"enabled": self.config.average.enabled}
        return averaging_document(self.runtime)

    def training(self) -> dict[str, Any]:
        """What the trainer does, and what was decided on tasks and came of them, also before this start."""
        history = list(self.runtime.trainer.history) if self.runtime else []
        return self._training() | {"history": history}

    def _training(self) -> dict[str, Any]:
        """What the trainer does."""
        data = self.config.train.data
        folder = {"data": None if data is None else str(data)}
        if not self.config.train.enabled:
            return {"state": "disabled", "reason": "train.enabled is false", **folder}
        if self.runtime is None:
            return {"state": "waiting", "reason": "the node has no mesh yet", **folder}
        return training_document(self.runtime) | folder

    def ready(self) -> bool:
        """Whether the node takes work."""
        return self.state == "ready"

    async def infer(self, images: np.ndarray, *, top_k: int | None, timeout_s: float | None) -> dict[str, Any]:
        """Routed inference over the mesh."""
        try:
            prediction = await self._at_work().inference.predict(
                images, top_k=top_k, timeout_s=timeout_s or self.config.serve.timeout_s
            )
        except MalformedDataset as exc:
            raise MalformedTensor("images", str(exc)) from exc
        return infer_document(prediction)

    async def train_now(self) -> dict[str, Any]:
        """Look for new task files now."""
        if not self.config.train.enabled:
            raise Refused("training is switched off", hint="Leave out --no-train, or set enabled = true in [train].")
        if self.runtime is None:
            raise NotReady(self.reason)
        self.runtime.trainer.look_again()
        return self.training()

    def pull_expert(self, uid: str, peer_id: str | None) -> dict[str, Any]:
        """Have a replica pulled and hosted."""
        runtime, known = self._at_work(), ExpertUid(Digest(uid))
        if known not in runtime.host.experts:
            listing = runtime.directory.experts().get(known)
            if listing is None:
                raise NoSuchPeerOrExpert(uid)
            if peer_id is not None and all(replica.peer_id != peer_id for replica in listing.replicas):
                raise NoSuchPeerOrExpert(peer_id)
        return pull_document(runtime.replica_pulls.order(known, None if peer_id is None else PeerId(peer_id)))

    def expert_pull(self, uid: str) -> dict[str, Any]:
        """How far that is."""
        pull = self.runtime.replica_pulls.newest(ExpertUid(Digest(uid))) if self.runtime else None
        if pull is None:
            raise NoSuchPeerOrExpert(uid)
        return pull_document(pull)

    async def expert_file(self, uid: str) -> bytes:
        """A hosted expert as a file."""
        runtime, hosted = self._at_work(), ExpertUid(Digest(uid))
        if hosted not in runtime.host.experts:
            raise NoSuchPeerOrExpert(uid)
        return await runtime.replicas.export(hosted)

    async def import_expert(self, data: bytes, *, replace: bool) -> dict[str, Any]:
        """Host the expert of a file."""
        return {"expert": hosted_document(await self._at_work().replicas.take(data, replace=replace))}

    async def drop_expert(self, uid: str, *, force: bool) -> dict[str, Any]:
        """Stop hosting a replica."""
        runtime, gone = self._at_work(), ExpertUid(Digest(uid))
        kept = runtime.host.find(gone)
        if kept is None:
            raise NoSuchPeerOrExpert(uid)
        if kept.standing != "current":
            raise not_current(kept)
        await runtime.dropping.drop(gone, least_others=0 if force else 1, asked=True)
        return {"uid": gone, "classes": list(kept.classes)}

    def migrate_expert(self, uid: str, request: MigrationRequest) -> dict[str, Any]:
        """Have a hosted expert carried over into another form."""
        return migration_document(self._at_work().migrations.order(ExpertUid(Digest(uid)), request))

    def expert_migration(self, uid: str) -> dict[str, Any]:
        """How far that is."""
        migration = self.runtime.migrations.newest(ExpertUid(Digest(uid))) if self.runtime else None
        if migration is None:
            raise NoSuchPeerOrExpert(uid)
        return migration_document(migration)

    async def roll_back_expert(self, uid: str) -> dict[str, Any]:
        """Serve what an expert succeeded again, in its place."""
        runtime, gone = self._at_work(), ExpertUid(Digest(uid))
        kept = runtime.host.find(gone)
        if kept is not None and kept.standing != "current":
            raise not_current(kept)
        expert = await runtime.host.roll_back(gone)
        self._events.emit("expert_rolled_back", expert=gone, current=expert.uid)
        return {"uid": gone, "expert": hosted_document(expert)}

    async def expert_lineage(self, uid: str) -> dict[str, Any]:
        """Where an expert comes from."""
        runtime, asked = self._at_work(), ExpertUid(Digest(uid))
        hosted, listing = runtime.host.find(asked), runtime.directory.experts().get(asked)
        advert = hosted.advert() if hosted else listing.replicas[0].advert if listing else None
        if advert is None:
            raise NoSuchPeerOrExpert(uid)
        holders = [replica.peer_id for replica in listing.replicas] if listing else []
        data = await runtime.replicas.lineage(advert, holders)
        lineage = None if data is None else decode_lineage(data)
        names = {record.peer_id: record.peer_name for record in runtime.directory.records()}
        return lineage_document(runtime.mesh, advert, lineage, names)

    async def forget(self, request: ForgetRequest) -> dict[str, Any]:
        """Forget a task or what a peer contributed, or let it come back."""
        return forget_document(await self._at_work().forgetting.carry_out(request))

    def privacy(self) -> dict[str, Any]:
        """What leaves this machine, and with which protection."""
        if self.runtime is None:
            raise NotReady(self.reason)
        return privacy_document(self.runtime, self.config, self.transport)

    def _at_work(self) -> MeshRuntime:
        """The node's part in its mesh, while it takes work."""
        if self.draining:
            raise Draining
        if self.runtime is None:
            raise NotReady(self.reason)
        return self.runtime

    def request_shutdown(self) -> None:
        """Begin to drain; asking again changes nothing."""
        if not self.draining:
            self.stop_requested.set()
            self._events.emit("node_stopping")

    async def handover(self, *, wait_s: float) -> dict[str, Any]:
        """What a stopping node has handed over, and what not."""
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self.handed_over.wait()
        return self._handover() | {"over": self.handed_over.is_set()}

    def _handover(self) -> dict[str, Any]:
        if self.runtime is None:
            return {"under_way": False, "taken": {}, "left": [], "reason": None}
        return self.runtime.handover.document()

    @property
    def reason(self) -> str:
        """Why the state is what it is, in words."""
        if self.runtime is not None:
            if self.draining:
                return "handing over" if self.runtime.handover.under_way else "stopping"
            return "serving its mesh"
        failed = [f"{state.address}: {state.error}" for state in self.bootstrap.states if state.error]
        if failed:
            return "no mesh yet, no bootstrap address answers: " + "; ".join(failed)
        if self.bootstrap.states:
            return "no mesh yet: asking the peers of the bootstrap addresses"
        return "no mesh yet: found one with `meshnode init --mesh`, or give a peer with --join"

    def settings(self) -> dict[str, Any]:
        """The settings in force, each with where it came from."""
        return settings_document(self._settings)

    def metrics(self) -> bytes:
        """What has been measured, in Prometheus's text format."""
        return generate_latest(self._registry)

    def _experts(self) -> dict[str, Any]:
        """How many there are, and those that are left out, with the reason."""
        runtime = self.runtime
        return {
            "local": len(runtime.host.experts) if runtime else 0,
            "retired": len(runtime.host.retired) if runtime else 0,
            "mesh": len(runtime.directory.current()) if runtime else 0,
            "left_out": left_out_documents(runtime) if runtime else [],
        }

    def _placement(self) -> dict[str, Any]:
        """What there are too few replicas of in the mesh, and what is hosted here for that reason."""
        runtime, place = self.runtime, self.config.place
        return {
            "enabled": place.enabled,
            "replicas": place.replicas,
            "placed": sum(expert.placed for expert in runtime.host.experts.values()) if runtime else 0,
            "room_bytes": runtime.placement.room_bytes if runtime else 0,
            "short": [
                {"uid": short.uid, "replicas": short.num_holders, "reason": short.reason}
                for short in (runtime.placement.shortages() if runtime else ())
            ],
        }

    def _mqtt(self) -> dict[str, Any]:
        if self.mqtt is None:
            error = "the node has no mesh yet" if self.config.mqtt.enabled else None
            return {"enabled": self.config.mqtt.enabled, "connected": False, "error": error, "dropped": 0}
        return {
            "enabled": True,
            "connected": self.mqtt.connected,
            "error": self.mqtt.error,
            "dropped": self.mqtt.dropped,
        }

    def _router(self) -> dict[str, Any]:
        view = self.runtime.contributions.view if self.runtime else None
        if view is None:
            return {"contributions": 0, "samples": {}}
        return {"contributions": view.contributions, "samples": dict(view.samples)}


def _content(path: Path) -> bytes | None:
    """Of the settings file: a few lines, so reading it holds up nobody. None if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return None
