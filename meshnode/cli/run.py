"""``meshnode run``: the daemon, in the foreground."""

import os
import signal
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

from meshnode.cli.init import write_starter_config
from meshnode.cli.session import Session
from meshnode.errors import ExitCode

__all__ = ["run"]

_LOG_LEVELS = {-1: "warning", 1: "debug"}


def _end_at_once(_number: int, _frame: FrameType | None) -> NoReturn:
    os._exit(ExitCode.INTERRUPTED)


def run(  # noqa: PLR0913  # a parameter an option
    context: typer.Context,
    *,
    join: Annotated[
        list[str] | None,
        typer.Option(metavar="ADDR", help="A peer's multiaddress to start from; may be repeated."),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(metavar="PORT", min=0, max=65535, help="TCP port for peers; 0 takes any free one."),
    ] = None,
    listen: Annotated[str | None, typer.Option(metavar="HOST", help="Address to listen on for peers.")] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="What other peers see.")] = None,
    device: Annotated[str | None, typer.Option(metavar="auto|cpu|cuda:N", help="Where torch computes.")] = None,
    require_gpu: Annotated[bool, typer.Option("--require-gpu", help="Exit with 11 instead of using the CPU.")] = False,
    no_train: Annotated[bool, typer.Option("--no-train", help="Learn nothing; only serve and average.")] = False,
    no_serve: Annotated[bool, typer.Option("--no-serve", help="Answer no other peer's inference.")] = False,
    api: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Where the local HTTP API listens.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", file_okay=False, help="A folder of task files (*.npz), learned by name order."),
    ] = None,
) -> None:
    """Run the node until it is stopped.

    Options override config.toml for this run only. SIGTERM or Ctrl+C drains it; a second one forces. With --json,
    one document on stdout says when it is ready.
    """
    session = Session.of(context)
    # None leaves the file and the environment their word.
    given = {
        "net.join": join,
        "net.port": port,
        "net.listen": listen,
        "node.name": name,
        "compute.device": device,
        "compute.require_gpu": True if require_gpu else None,
        "train.enabled": False if no_train else None,
        "train.data": None if data is None else str(data.absolute()),
        "serve.enabled": False if no_serve else None,
        "api.listen": api,
        "log.level": _LOG_LEVELS.get(session.output.verbosity),
        "log.format": session.log_format,
    }
    from meshnode.settings.config import load_settings  # noqa: PLC0415  # pydantic is for init and run only

    settings = load_settings(session.home, given)
    write_starter_config(session.home)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Until the node is up there is nothing to drain, and imports do not stand being interrupted.
        signal.signal(number, _end_at_once)
    from meshnode.node import run_node  # noqa: PLC0415  # with torch and hivemind, once the settings are known good

    raise typer.Exit(run_node(session.home, settings, as_json=session.output.as_json))
