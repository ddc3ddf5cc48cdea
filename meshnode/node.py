"""The daemon put together: lock, identity, state, network, API and, once it belongs to one, its mesh.

Parts start in the order in which they need each other and close in the reverse. A node that has no mesh yet is up all
the same: it answers its user, keeps trying its bootstrap addresses, and takes the mesh of the first peer that has one.
"""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Coroutine
from contextlib import AsyncExitStack, suppress
from typing import Any

import torch
import uvloop

from meshnode.api.server import ApiServer
from meshnode.bootstrap import Bootstrap
from meshnode.compute import Compute
from meshnode.config import NodeConfig
from meshnode.device import Device, choose_device
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
from meshnode.view import NodeView
from protocol.identifiers import MeshId

__all__ = ["run_node"]

LEAVE_S = 2.0
"""How long a stop waits until the mesh has been told of it."""

log = logging.getLogger(__name__)


async def run(home: Home, config: NodeConfig, device: Device) -> None:
    """Run a daemon until it is asked to stop.

    Raises:
        NodeError: It cannot start, or can no longer run, with what to do about it.
    """
    async with AsyncExitStack() as stack:
        stack.enter_context(DaemonLock(home))
        key = load_or_create_identity(home)
        state = stack.enter_context(State(home))
        compute = Compute(max_waiting=config.serve.queue)
        stack.callback(compute.close)
        transport = await _open_transport(home, config)
        stack.push_async_callback(transport.aclose)
        handlers = Handlers(state.blobs, config.node.name, transport.now_s)
        transport.serve(handlers)
        bootstrap = Bootstrap(transport, config.net.join)
        view = NodeView(config, device, transport, bootstrap)
        api = await stack.enter_async_context(ApiServer(view, config.api.listen, api_key(home)))
        view.url = api.url
        _stop_on_signals(view)
        _say(config, view.banner())

        async def belong(mesh: Mesh) -> MeshRuntime:
            mesh.trunk.to(device.used)
            runtime = MeshRuntime(home, config, state, transport, key, mesh, compute, device)
            averager = runtime.averager if config.average.enabled else None
            handlers.attach(mesh, runtime.host if config.serve.enabled else None, averager)
            await runtime.start()
            view.runtime = runtime
            return runtime

        async def live() -> None:
            runtime = view.runtime
            if runtime is None:
                wanted = MeshId(config.mesh.id) if config.mesh.id else None
                timeout_s = config.net.call_timeout_s
                found, peer_id = await pull_mesh(state, transport, wanted=wanted, timeout_s=timeout_s)
                log.info("mesh %s (%s) pulled from %s", found.spec.name, found.mesh_id, peer_id)
                runtime = await belong(found)
            await runtime.run()

        mesh = load_mesh(state)
        if mesh is not None:
            await belong(mesh)
        home.write_daemon_note(DaemonNote(os.getpid(), api.url))
        _say(config, f"Ready in {view.uptime_s:.1f} s.")
        try:
            await _until(view.stop_requested, live(), bootstrap.run(), _watch(transport))
        finally:
            view.draining = True
            handlers.drain()
        if view.runtime is not None:
            with suppress(TimeoutError):  # the lease tells the mesh too, only later
                async with asyncio.timeout(LEAVE_S):
                    await view.runtime.leave()


def run_node(home: Home, config: NodeConfig) -> int:
    """Run a daemon in the foreground until SIGTERM or SIGINT; returns the command's exit code."""
    configure_logs(config.log.level)
    torch.set_num_threads(config.compute.threads or 1)
    device = choose_device(config.compute.device, require_gpu=config.compute.require_gpu)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(home, config, device))
    return ExitCode.OK


async def _open_transport(home: Home, config: NodeConfig) -> HivemindTransport:
    net = config.net
    try:
        return await HivemindTransport.open(
            HivemindConfig(
                identity_path=home.identity_key, listen_host=net.listen, port=net.port, announce=net.announce
            )
        )
    except TransportFailed as failure:
        if "address already in use" in failure.reason:
            raise PortInUse(net.listen, net.port) from failure
        raise


def _stop_on_signals(view: NodeView) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, view.request_shutdown)
    loop.set_exception_handler(_note_stray)


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
    log.debug("stray task: %s", context.get("message"), exc_info=context.get("exception"))


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first failure that is no group and no cancellation."""
    for failure in failures.exceptions:
        return _first(failure) if isinstance(failure, BaseExceptionGroup) else failure
    raise AssertionError("a group of exceptions is never empty")


def _say(config: NodeConfig, text: str) -> None:
    if config.log.level in ("debug", "info"):
        print(text, file=sys.stderr, flush=True)
