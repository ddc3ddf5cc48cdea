"""The daemon put together: lock, identity, state, network, API and, once it belongs to one, its mesh.

Parts start in the order in which they need each other and close in the reverse. A node that has no mesh yet is up all
the same: it answers its user, keeps trying its bootstrap addresses, and takes the mesh of the first peer that has one.
"""

import asyncio
import gc
import json
import os
import signal
import sys
from collections.abc import Coroutine
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch
import uvloop
from prometheus_client import disable_created_metrics

from meshnode.api.server import ApiServer
from meshnode.banner import banner
from meshnode.bootstrap import Bootstrap
from meshnode.compute import Compute
from meshnode.device import Device, choose_device
from meshnode.errors import ExitCode, NodeError, PortInUse
from meshnode.handlers import Handlers
from meshnode.home import DaemonNote, Home
from meshnode.identity import api_key, load_or_create_identity
from meshnode.lock import DaemonLock
from meshnode.logs import configure_logs, get_logger, keep_secret, log_settings
from meshnode.mesh import Mesh, load_mesh, pull_mesh
from meshnode.pacing import Pacer
from meshnode.runtime import MeshRuntime
from meshnode.settings.config import NodeConfig, Settings
from meshnode.state.state import State
from meshnode.telemetry import Telemetry
from meshnode.telemetry.events import Events
from meshnode.transport.hivemind import HivemindConfig, HivemindTransport, TransportFailed
from meshnode.transport.interface import Transport
from meshnode.view import NodeView
from protocol.errors import MeshMismatch, ModuleMeshError
from protocol.identifiers import MeshId
from protocol.signing import SigningKey

__all__ = ["run_node"]

FIRST_TRY_S = 0.5
"""How long the banner waits for the bootstrap addresses' first answers; one that is near has answered by then."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""The last is what a terminal says when it is closed."""

SWITCH_S = 0.0005
"""How long a thread of this process may keep the interpreter while the loop, and so every answer, waits for it."""

LEAVE_S = 2.0
"""How long a stop waits until the mesh has been told of it."""

log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Node:
    """The parts of a started daemon."""

    home: Home
    config: NodeConfig
    device: Device
    key: SigningKey
    state: State
    compute: Compute
    telemetry: Telemetry
    transport: HivemindTransport
    handlers: Handlers
    pacer: Pacer
    bootstrap: Bootstrap
    view: NodeView
    as_json: bool

    async def live(self) -> None:
        """Take up the mesh this node belongs to, say that it is ready, and run its services for ever."""
        mesh = load_mesh(self.state)
        if mesh is not None:
            if self.config.mesh.id not in (None, mesh.mesh_id):
                raise MeshMismatch(expected=MeshId(str(self.config.mesh.id)), got=mesh.mesh_id)
            await self._belong(mesh)
        with suppress(TimeoutError):  # a silent address is retried; the banner says so
            # Not wait_for: that of Python 3.11 loses a cancellation that comes together with the event.
            async with asyncio.timeout(FIRST_TRY_S):
                await self.bootstrap.tried.wait()
        # Threads beside the loop are asked for the interpreter sooner than after the usual five milliseconds.
        sys.setswitchinterval(SWITCH_S)
        # What is there by now stays: to look through all of torch for garbage now and then would hold up every answer.
        gc.freeze()
        self.home.write_daemon_note(DaemonNote(os.getpid(), self.view.url))
        _tell_ready(self.view, self.telemetry.events, as_json=self.as_json)
        if mesh is None:
            wanted = MeshId(self.config.mesh.id) if self.config.mesh.id else None
            timeout_s = self.config.net.call_timeout_s
            mesh, peer_id = await pull_mesh(self.state, self.transport, wanted=wanted, timeout_s=timeout_s)
            await self._belong(mesh)
            self.telemetry.events.emit("mesh_joined", mesh=mesh.spec.name, mesh_id=mesh.mesh_id, peer=peer_id)
        assert self.view.runtime is not None
        async with asyncio.TaskGroup() as group:
            group.create_task(self.view.runtime.run(), name="mesh")
            if self.view.mqtt is not None:
                group.create_task(self.view.mqtt.run(), name="mqtt")

    async def _belong(self, mesh: Mesh) -> None:
        config = self.config
        mesh.trunk.to(self.device.used)
        runtime = MeshRuntime(
            self.home,
            config,
            self.state,
            self.transport,
            self.key,
            mesh,
            self.compute,
            self.device,
            self.telemetry,
            self.pacer,
            self.transport.moe if config.serve.hivemind else None,
        )
        averager = runtime.averager if config.average.enabled else None
        self.handlers.attach(mesh, runtime.serving if config.serve.enabled else None, averager)
        await runtime.start()
        self.view.runtime = runtime
        if config.mqtt.enabled:
            # Most nodes tell no broker: they need not load the client.
            from meshnode.mqtt.publisher import MqttPublisher  # noqa: PLC0415
            from meshnode.mqtt_documents import MqttDocuments  # noqa: PLC0415

            documents, events = MqttDocuments(self.view), self.telemetry.events
            self.view.mqtt = MqttPublisher(config.mqtt, mesh.spec.name, self.transport.peer_id, documents, events)

    async def hand_over(self) -> None:
        """See to it that what only this node holds is not gone with it, as far as somebody takes it."""
        self.handlers.leave_rounds()
        if self.view.runtime is not None:
            await self.view.runtime.hand_over()

    async def leave(self) -> None:
        """Tell the mesh that this node stops; its lease would, only later."""
        if self.view.runtime is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(LEAVE_S):
                    await self.view.runtime.leave()


async def run(home: Home, settings: Settings, device: Device, *, as_json: bool) -> None:
    """Run a daemon until it is asked to stop.

    Raises:
        NodeError: It cannot start, or can no longer run, with what to do about it.
    """
    async with AsyncExitStack() as stack:
        node = await _start(stack, home, settings, device, as_json=as_json)
        _stop_on_signals(node.view)
        try:
            await _until(node.view.stop_requested, node.live(), node.bootstrap.run(), _watch(node.transport))
            await node.hand_over()
        finally:
            node.view.stop_requested.set()
            node.view.handed_over.set()
            node.handlers.drain()
        await node.leave()


async def _start(stack: AsyncExitStack, home: Home, settings: Settings, device: Device, *, as_json: bool) -> _Node:
    """Everything that needs no mesh, started in order; `stack` closes it in the reverse order."""
    config = settings.config
    stack.enter_context(DaemonLock(home))
    key = load_or_create_identity(home)
    state = stack.enter_context(State(home))
    compute = Compute(max_waiting=config.serve.queue, max_batch=config.serve.max_batch)
    stack.callback(compute.close)
    telemetry = Telemetry()
    transport = await _open_transport(home, config, telemetry)
    stack.push_async_callback(transport.aclose)
    pacer = Pacer(config.net.up_bytes_per_second)
    handlers = Handlers(state.blobs, transport.peer_id, config.node.name, transport.now_s, pacer)
    transport.serve(handlers, handlers.admit)
    bootstrap = Bootstrap(transport, config.net.join, telemetry)
    view = NodeView(settings, device, transport, bootstrap, compute, telemetry)
    bearer_key = api_key(home)
    keep_secret(bearer_key)
    api = await stack.enter_async_context(ApiServer(view, config.api.listen, bearer_key))
    view.url = api.url
    return _Node(
        home=home,
        config=config,
        device=device,
        key=key,
        state=state,
        compute=compute,
        telemetry=telemetry,
        transport=transport,
        handlers=handlers,
        pacer=pacer,
        bootstrap=bootstrap,
        view=view,
        as_json=as_json,
    )


def run_node(home: Home, settings: Settings, *, as_json: bool = False) -> int:
    """Run a daemon in the foreground until SIGTERM or SIGINT.

    Args:
        home: Its folder.
        settings: Those in force.
        as_json: Whether to tell on stdout, with one JSON document, that it is ready.

    Returns: The command's exit code.
    """
    config = settings.config
    configure_logs(config.log.level, config.log.format)
    disable_created_metrics()  # type: ignore[no-untyped-call] # each counter would come with a second series that says when it was made
    torch.set_num_threads(config.compute.threads or 1)
    device = choose_device(config.compute.device, require_gpu=config.compute.require_gpu)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(home, settings, device, as_json=as_json))
    except (NodeError, ModuleMeshError) as exc:
        if log_settings().format == "json":  # else the command says so, in the same words
            log.critical("node failed", code=str(exc.code), reason=exc.message, hint=exc.hint)
        raise
    finally:
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # all is closed: nothing is left to hasten
    log.info("node stopped")
    return ExitCode.OK


async def _open_transport(home: Home, config: NodeConfig, telemetry: Telemetry) -> HivemindTransport:
    net = config.net
    try:
        return await HivemindTransport.open(
            HivemindConfig(
                identity_path=home.identity_key,
                listen_host=net.listen,
                port=net.port,
                announce=net.announce,
                moe=config.serve.hivemind,
            ),
            telemetry.instruments,
        )
    except TransportFailed as failure:
        if "address already in use" in failure.reason:
            raise PortInUse(net.listen, net.port) from failure
        raise


def _stop_on_signals(view: NodeView) -> None:
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, _stop_or_force, view)
    loop.set_exception_handler(_note_stray)


def _stop_or_force(view: NodeView) -> None:
    """A first signal drains, a second one ends the process at once."""
    if view.draining:
        os._exit(ExitCode.INTERRUPTED)
    view.request_shutdown()


async def _until(stop: asyncio.Event, *services: Coroutine[Any, Any, None]) -> None:
    """Run the services until `stop` is set; the first one to fail ends the node with its error."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(service) for service in services]
            await stop.wait()
            for task in tasks:
                task.cancel()
    except BaseExceptionGroup as failures:
        raise _first(failures) from failures


async def _watch(transport: Transport) -> None:
    raise TransportFailed(await transport.wait_failed())


def _note_stray(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Errors of tasks nobody awaits: hivemind's, when a peer goes away in mid-stream. Ours live in task groups."""
    log.debug("stray task", reason=context.get("message"), exc_info=context.get("exception"))


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first failure that is no group and no cancellation."""
    for failure in failures.exceptions:
        return _first(failure) if isinstance(failure, BaseExceptionGroup) else failure
    raise AssertionError("a group of exceptions is never empty")


def _tell_ready(view: NodeView, events: Events, *, as_json: bool) -> None:
    """Say who this node is and that it is up: a banner for people, the same facts as a log line for programs.

    With `as_json` they are also a document on stdout, for whoever started this node and waits for it.
    """
    status, ready_s = view.status(), round(view.uptime_s, 3)
    facts = {name: status[name] for name in ("name", "peer_id", "mesh", "device", "addresses", "bootstrap", "url")}
    with_banner = log_settings().format == "text" and log_settings().level in ("debug", "info")
    if with_banner:
        print(banner(status), f"Ready in {ready_s:.1f} s.", sep="\n", file=sys.stderr, flush=True)
    events.emit("node_ready", level="debug" if with_banner else "info", ready_s=ready_s, **facts)
    if as_json:
        print(json.dumps({"schema": "meshnode.ready/1", "pid": os.getpid(), "ready_s": ready_s, **facts}), flush=True)
