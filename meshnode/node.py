"""The daemon put together: lock, identity, state, network, API and, once it belongs to one, its mesh.

Parts start in the order in which they need each other and close in the reverse. A node that has no mesh yet is up all
the same: it answers its user, keeps trying its bootstrap addresses, and takes the mesh of the first peer that has one.
"""

import asyncio
import logging
import os
import signal
import sys
import time
from contextlib import AsyncExitStack
from typing import Any

import numpy as np
import psutil
import torch
import uvloop

from experts.errors import MalformedDataset
from meshnode import __version__
from meshnode.api.server import ApiServer
from meshnode.bootstrap import Bootstrap
from meshnode.compute import Compute
from meshnode.config import NodeConfig
from meshnode.device import Device, choose_device
from meshnode.documents import (
    averaging_document,
    expert_documents,
    infer_document,
    peer_documents,
    training_document,
)
from meshnode.errors import ExitCode, PortInUse
from meshnode.handlers import Handlers
from meshnode.home import DaemonNote, Home
from meshnode.identity import api_key, load_or_create_identity
from meshnode.lock import DaemonLock
from meshnode.logs import configure_logs
from meshnode.mesh import Mesh, load_mesh, pull_mesh
from meshnode.runtime import MeshRuntime
from meshnode.state.state import State
from meshnode.transport.hivemind import HivemindConfig, HivemindTransport, TransportFailed
from meshnode.transport.interface import Transport
from protocol.errors import Draining, MalformedTensor, NotReady
from protocol.identifiers import MeshId

__all__ = ["Node", "run_node"]

DRAIN_S = 3.0
"""How long a stop waits for requests under way and for the mesh to be told."""

log = logging.getLogger(__name__)


class Node:
    """One daemon; what the API shows of it is `meshnode.api.service.NodeService`."""

    def __init__(self, home: Home, config: NodeConfig, device: Device) -> None:
        self._home = home
        self._config = config
        self._device = device
        self._began_s = psutil.Process().create_time()
        self._stop = asyncio.Event()
        self._transport: Transport | None = None
        self._bootstrap: Bootstrap | None = None
        self._runtime: MeshRuntime | None = None
        self._state = "starting"
        self._url = ""

    async def run(self) -> None:
        """Run until asked to stop.

        Raises:
            NodeError: It cannot start, with what to do about it.
            TransportFailed: p2pd has ended by itself.
        """
        config = self._config
        async with AsyncExitStack() as stack:
            stack.enter_context(DaemonLock(self._home))
            key = load_or_create_identity(self._home)
            state = stack.enter_context(State(self._home))
            compute = Compute(max_waiting=config.serve.queue)
            stack.callback(compute.close)
            transport = await self._open_transport()
            stack.push_async_callback(transport.aclose)
            self._transport = transport
            handlers = Handlers(state.blobs, config.node.name, transport.now_s)
            transport.serve(handlers)
            self._bootstrap = Bootstrap(transport, config.net.join)
            api = await stack.enter_async_context(ApiServer(self, config.api.listen, api_key(self._home)))
            self._url = api.url
            _say(self._banner())

            async def belong(mesh: Mesh) -> MeshRuntime:
                mesh.trunk.to(self._device.used)
                runtime = MeshRuntime(self._home, config, state, transport, key, mesh, compute, self._device)
                averager = runtime.averager if config.average.enabled else None
                handlers.attach(mesh, runtime.host if config.serve.enabled else None, averager)
                await runtime.start()
                self._runtime = runtime
                return runtime

            mesh = load_mesh(state)
            runtime = await belong(mesh) if mesh else None
            self._home.write_daemon_note(DaemonNote(os.getpid(), api.url))
            self._state = "ready" if runtime else "waiting"
            _say(f"Ready in {time.time() - self._began_s:.1f} s.")

            async def live() -> None:
                nonlocal runtime
                if runtime is None:
                    wanted = MeshId(config.mesh.id) if config.mesh.id else None
                    found, peer_id = await pull_mesh(
                        state, transport, wanted=wanted, timeout_s=config.net.call_timeout_s
                    )
                    log.info("mesh %s (%s) pulled from %s", found.spec.name, found.mesh_id, peer_id)
                    runtime = await belong(found)
                    self._state = "ready"
                await runtime.run()

            try:
                await self._until_stopped(live(), self._bootstrap.run(), _watch(transport))
            finally:
                self._state = "draining"
                handlers.drain()
            if runtime is not None:
                async with asyncio.timeout(DRAIN_S):
                    await runtime.leave()

    async def _open_transport(self) -> HivemindTransport:
        net = self._config.net
        try:
            return await HivemindTransport.open(
                HivemindConfig(
                    identity_path=self._home.identity_key,
                    listen_host=net.listen,
                    port=net.port,
                    announce=net.announce,
                )
            )
        except TransportFailed as failure:
            if "address already in use" in failure.reason:
                raise PortInUse(net.listen, net.port) from failure
            raise

    async def _until_stopped(self, *services: Any) -> None:
        """Run the services until a stop is asked for; the first one to fail ends the node with its error."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(service) for service in services]
                await self._stop.wait()
                for task in tasks:
                    task.cancel()
        except BaseExceptionGroup as failures:
            raise _first(failures) from failures

    def _banner(self) -> str:
        assert self._transport is not None
        lines = [
            f"ModuleMesh {__version__}, node {self._config.node.name}",
            f"  peer id    {self._transport.peer_id}",
            f"  device     {self._device.used} ({self._device.reason})",
            *(f"  listening  {address}" for address in self._transport.addresses),
            *(f"  bootstrap  {address}" for address in self._config.net.join),
            f"  api        {self._url}",
        ]
        return "\n".join(lines)

    # --- meshnode.api.service.NodeService ---

    def status(self) -> dict[str, Any]:
        """One document that says how the node is and why."""
        transport, runtime = self._transport, self._runtime
        assert transport is not None
        assert self._bootstrap is not None
        mesh = runtime.mesh if runtime else None
        return {
            "schema": "meshnode.status/1",
            "name": self._config.node.name,
            "peer_id": transport.peer_id,
            "mesh": {"id": mesh.mesh_id, "name": mesh.spec.name} if mesh else None,
            "state": self._state,
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
            "uptime_s": round(time.time() - self._began_s, 1),
            "version": __version__,
            "pid": os.getpid(),
            "url": self._url,
        }

    def identity(self) -> dict[str, Any]:
        """Who this node is and where it is reached."""
        assert self._transport is not None
        return {
            "schema": "meshnode.id/1",
            "name": self._config.node.name,
            "peer_id": self._transport.peer_id,
            "addresses": list(self._transport.addresses),
        }

    def peers(self) -> list[dict[str, Any]]:
        """Live peers of the mesh, this node among them."""
        if self._runtime is None:
            return []
        assert self._transport is not None
        return peer_documents(self._runtime, self._transport.peer_id, self._transport.now_s())

    def experts(self, *, local: bool) -> list[dict[str, Any]]:
        """Experts hosted here, or known in the mesh."""
        return expert_documents(self._runtime, local=local) if self._runtime else []

    def averaging(self) -> dict[str, Any]:
        """Rounds so far."""
        return averaging_document(self._runtime) if self._runtime else {}

    def training(self) -> dict[str, Any]:
        """What the trainer does."""
        if self._runtime is None:
            return {"state": "waiting"}
        return training_document(self._runtime) if self._config.train.enabled else {"state": "disabled"}

    def ready(self) -> bool:
        """Whether the node takes work."""
        return self._state == "ready"

    async def infer(self, images: np.ndarray, *, top_k: int | None, timeout_s: float | None) -> dict[str, Any]:
        """Routed inference over the mesh."""
        if self._state == "draining":
            raise Draining
        if self._runtime is None:
            raise NotReady(self._reason())
        try:
            prediction = await self._runtime.inference.predict(
                images, top_k=top_k, timeout_s=timeout_s or self._config.serve.timeout_s
            )
        except MalformedDataset as exc:
            raise MalformedTensor("images", str(exc)) from exc
        return infer_document(prediction)

    async def train_now(self) -> dict[str, Any]:
        """Look for new task files now."""
        if self._runtime is None:
            raise NotReady(self._reason())
        self._runtime.trainer.look_again()
        return self.training()

    def request_shutdown(self) -> None:
        """Begin to drain; a second request ends the process at once."""
        if self._stop.is_set():
            os._exit(ExitCode.INTERRUPTED)
        self._stop.set()

    def _reason(self) -> str:
        if self._runtime is not None:
            return "stopping" if self._state == "draining" else "serving its mesh"
        assert self._bootstrap is not None
        failed = [f"{state.address}: {state.error}" for state in self._bootstrap.states if state.error]
        if failed:
            return "no mesh yet, no bootstrap address answers: " + "; ".join(failed)
        if self._bootstrap.states:
            return "no mesh yet: asking the peers of the bootstrap addresses"
        return "no mesh yet: found one with `meshnode init --mesh`, or give a peer with --join"

    def _router(self) -> dict[str, Any]:
        view = self._runtime.contributions.view if self._runtime else None
        if view is None:
            return {"contributions": 0, "samples": {}}
        return {"contributions": view.contributions, "samples": dict(view.samples)}


def run_node(home: Home, config: NodeConfig) -> int:
    """Run a daemon in the foreground until SIGTERM or SIGINT; returns the command's exit code."""
    configure_logs(config.log.level)
    torch.set_num_threads(config.compute.threads or 1)
    device = choose_device(config.compute.device, require_gpu=config.compute.require_gpu)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(home, config, device))


async def _run(home: Home, config: NodeConfig, device: Device) -> int:
    node = Node(home, config, device)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, node.request_shutdown)
    loop.set_exception_handler(_note_stray)
    await node.run()
    return ExitCode.OK


async def _watch(transport: Transport) -> None:
    raise TransportFailed(await transport.wait_failed())


def _note_stray(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Errors of tasks nobody awaits: hivemind's, when a peer goes away in mid-stream. Ours live in task groups."""
    log.debug("stray task: %s", context.get("message"), exc_info=context.get("exception"))


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first failure that is no group and no cancellation."""
    for failure in failures.exceptions:
        return _first(failure) if isinstance(failure, BaseExceptionGroup) else failure
    raise AssertionError("a group of exceptions is never empty")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
