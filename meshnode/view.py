"""What a node shows of itself and does on request: the one object behind its HTTP API.

The daemon (`meshnode.node`) fills in the parts as they start; before that, answers say what is still missing.
"""

import asyncio
import os
import time
from typing import Any

import numpy as np
import psutil

from experts.errors import MalformedDataset
from meshnode import __version__
from meshnode.bootstrap import Bootstrap
from meshnode.config import NodeConfig
from meshnode.device import Device
from meshnode.documents import (
    averaging_document,
    expert_documents,
    infer_document,
    peer_documents,
    training_document,
)
from meshnode.errors import ExitCode
from meshnode.runtime import MeshRuntime
from meshnode.transport.interface import Transport
from protocol.errors import Draining, MalformedTensor, NotReady

__all__ = ["NodeView"]


class NodeView:
    """A node as its user sees it; fulfils `meshnode.api.service.NodeService`.

    Args:
        config: The settings in force.
        device: What torch computes on, and why.
        transport: Started.
        bootstrap: How it stands with the addresses to join through.
    """

    def __init__(self, config: NodeConfig, device: Device, transport: Transport, bootstrap: Bootstrap) -> None:
        self._config = config
        self._device = device
        self._transport = transport
        self._bootstrap = bootstrap
        self._began_s: float = psutil.Process().create_time()
        self.runtime: MeshRuntime | None = None
        """The node's part in its mesh, once it belongs to one."""
        self.draining = False
        """Whether it is stopping and takes no new work."""
        self.url = ""
        """Where this view is served."""
        self.stop_requested = asyncio.Event()

    @property
    def uptime_s(self) -> float:
        """Seconds since the process began."""
        return time.time() - self._began_s

    @property
    def state(self) -> str:
        """ "waiting" (for a mesh), "ready" or "draining"."""
        if self.draining:
            return "draining"
        return "waiting" if self.runtime is None else "ready"

    def banner(self) -> str:
        """Who this node is, for the terminal it was started from."""
        lines = [
            f"ModuleMesh {__version__}, node {self._config.node.name}",
            f"  peer id    {self._transport.peer_id}",
            f"  device     {self._device.used} ({self._device.reason})",
            *(f"  listening  {address}" for address in self._transport.addresses),
            *(f"  bootstrap  {address}" for address in self._config.net.join),
            f"  api        {self.url}",
        ]
        return "\n".join(lines)

    def status(self) -> dict[str, Any]:
        """One document that says how the node is and why."""
        transport, runtime = self._transport, self.runtime
        mesh = runtime.mesh if runtime else None
        return {
            "schema": "meshnode.status/1",
            "name": self._config.node.name,
            "peer_id": transport.peer_id,
            "mesh": {"id": mesh.mesh_id, "name": mesh.spec.name} if mesh else None,
            "state": self.state,
            "reason": self._reason(),
            "device": {"used": self._device.used, "reason": self._device.reason},
            "addresses": list(transport.addresses),
            "bootstrap": [
                {
                    "address": state.address,
                    "state": "connected" if state.connected else "retrying",
                    "error": state.error,
                }
                for state in self._bootstrap.states
            ],
            "peers": len(self.peers()),
            "experts": {"local": len(self.experts(local=True)), "mesh": len(self.experts(local=False))},
            "training": self.training(),
            "averaging": self.averaging(),
            "router": self._router(),
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
            "name": self._config.node.name,
            "peer_id": self._transport.peer_id,
            "addresses": list(self._transport.addresses),
        }

    def peers(self) -> list[dict[str, Any]]:
        """Live peers of the mesh, this node among them."""
        if self.runtime is None:
            return []
        return peer_documents(self.runtime, self._transport.peer_id, self._transport.now_s())

    def experts(self, *, local: bool) -> list[dict[str, Any]]:
        """Experts hosted here, or known in the mesh."""
        return expert_documents(self.runtime, local=local) if self.runtime else []

    def averaging(self) -> dict[str, Any]:
        """Rounds so far."""
        return averaging_document(self.runtime) if self.runtime else {}

    def training(self) -> dict[str, Any]:
        """What the trainer does."""
        if self.runtime is None:
            return {"state": "waiting"}
        return training_document(self.runtime) if self._config.train.enabled else {"state": "disabled"}

    def ready(self) -> bool:
        """Whether the node takes work."""
        return self.state == "ready"

    async def infer(self, images: np.ndarray, *, top_k: int | None, timeout_s: float | None) -> dict[str, Any]:
        """Routed inference over the mesh."""
        if self.draining:
            raise Draining
        if self.runtime is None:
            raise NotReady(self._reason())
        try:
            prediction = await self.runtime.inference.predict(
                images, top_k=top_k, timeout_s=timeout_s or self._config.serve.timeout_s
            )
        except MalformedDataset as exc:
            raise MalformedTensor("images", str(exc)) from exc
        return infer_document(prediction)

    async def train_now(self) -> dict[str, Any]:
        """Look for new task files now."""
        if self.runtime is None:
            raise NotReady(self._reason())
        self.runtime.trainer.look_again()
        return self.training()

    def request_shutdown(self) -> None:
        """Begin to drain; a second request ends the process at once."""
        if self.stop_requested.is_set():
            os._exit(ExitCode.INTERRUPTED)
        self.stop_requested.set()

    def _reason(self) -> str:
        if self.runtime is not None:
            return "stopping" if self.draining else "serving its mesh"
        failed = [f"{state.address}: {state.error}" for state in self._bootstrap.states if state.error]
        if failed:
            return "no mesh yet, no bootstrap address answers: " + "; ".join(failed)
        if self._bootstrap.states:
            return "no mesh yet: asking the peers of the bootstrap addresses"
        return "no mesh yet: found one with `meshnode init --mesh`, or give a peer with --join"

    def _router(self) -> dict[str, Any]:
        view = self.runtime.contributions.view if self.runtime else None
        if view is None:
            return {"contributions": 0, "samples": {}}
        return {"contributions": view.contributions, "samples": dict(view.samples)}
