"""The ``meshnode`` command put together: its groups, its global options, and how every run of it ends."""

import os
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, cast

import typer

from meshnode.cli.bench import bench
from meshnode.cli.config import config
from meshnode.cli.demo import demo
from meshnode.cli.doctor import doctor
from meshnode.cli.evaluation import evaluation
from meshnode.cli.experts import experts
from meshnode.cli.forget import forget
from meshnode.cli.identity import identity
from meshnode.cli.infer import infer
from meshnode.cli.init import init
from meshnode.cli.options import in_order
from meshnode.cli.output import Output
from meshnode.cli.peers import peers
from meshnode.cli.privacy import privacy
from meshnode.cli.report import report
from meshnode.cli.run import run
from meshnode.cli.session import Session
from meshnode.cli.status import status
from meshnode.cli.stop import stop
from meshnode.cli.teacher import teacher
from meshnode.cli.train import train
from meshnode.cli.version import version
from meshnode.cli.why import why
from meshnode.errors import ExitCode, NodeError, exit_code_of
from meshnode.home import Home, default_home
from protocol.errors import ModuleMeshError

__all__ = ["run_line"]

app = typer.Typer(
    name="meshnode",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="A node of a ModuleMesh: small experts that live on many machines and answer together.",
    epilog="These options may also follow the command. To begin, try `meshnode demo`.",
)
app.command("demo")(demo)
app.command("init")(init)
app.command("run")(run)
app.command("stop")(stop)
app.command("status")(status)
app.command("why")(why)
app.command("doctor")(doctor)
app.command("id")(identity)
app.add_typer(peers, name="peers")
app.add_typer(experts, name="experts")
app.add_typer(train, name="train")
app.add_typer(teacher, name="teacher")
app.command("infer")(infer)
app.command("forget")(forget)
app.command("privacy")(privacy)
app.add_typer(bench, name="bench")
app.command("eval")(evaluation)
app.command("report")(report)
app.add_typer(config, name="config")
app.command("version")(version)


class _LogFormat(StrEnum):
    AUTO = "auto"
    TEXT = "text"
    JSON = "json"


# Typer carries click within itself in some versions and imports it in others: the usage error of either.
_UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__base__)


@app.callback()
def _globals(  # noqa: PLR0913  # a parameter an option
    context: typer.Context,
    *,
    home: Annotated[
        str | None,
        typer.Option(
            envvar="MESHNODE_HOME",
            metavar="DIR",
            help="The node's folder; the platform's data folder if not given.",
        ),
    ] = None,
    api: Annotated[
        str | None, typer.Option(metavar="URL", help="The daemon to talk to, if not this home's own.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout, failures included.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Results and errors only.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more on stderr.")] = False,
    log_format: Annotated[
        _LogFormat | None,
        typer.Option(metavar="auto|text|json", help="How `run` writes its log: text for people, JSON for programs."),
    ] = None,
    no_color: Annotated[bool, typer.Option("--no-color", help="No colours; so does the variable NO_COLOR.")] = False,
) -> None:
    del no_color  # in the environment by now, for rich and for processes started from here
    verbosity = int(verbose) - int(quiet)
    context.obj = Session(
        home=_home(home),
        api_url=api,
        output=Output(as_json=as_json, verbosity=verbosity),
        log_format=log_format,
    )


def _home(folder: str | None) -> Home:
    if folder is None:
        return default_home()
    if not folder:  # a variable that is not set; the current folder is certainly not meant
        raise typer.BadParameter("the name of the node's folder is empty", param_hint="--home")
    home = Home(Path(folder).expanduser())
    if home.path.exists() and not home.path.is_dir():
        raise typer.BadParameter(f"{folder} is a file, and the node's folder is wanted", param_hint="--home")
    return home


def run_line(argv: Sequence[str]) -> int:
    """Run one command line, the program's name left out; returns its exit code."""
    arguments = in_order(argv)
    if "--no-color" in arguments.globals:
        os.environ["NO_COLOR"] = "1"
    # From the words, not from what typer parsed: a line that cannot be parsed fails in the form it asks for.
    output = Output(as_json="--json" in arguments.globals)
    command = typer.main.get_command(app)
    try:
        words = [*arguments.globals, *(arguments.command or ["--help"])]
        ended = command.main(words, prog_name="meshnode", standalone_mode=False)
    except _UsageError as exc:
        command_path = exc.ctx.command_path if exc.ctx is not None else "meshnode"
        output.failure("usage", exc.format_message(), f"`{command_path} --help` shows what is accepted.")
        return ExitCode.USAGE
    except (NodeError, ModuleMeshError) as exc:
        output.failure(str(exc.code), exc.message, exc.hint)
        return exit_code_of(exc)
    except OSError as exc:
        if exc.filename is None:
            raise
        output.failure("failure", f"{exc.filename}: {exc.strerror}", "Check the disk, the path and its permissions.")
        return ExitCode.FAILURE
    except (KeyboardInterrupt, typer.Abort):
        return ExitCode.INTERRUPTED
    return ended if isinstance(ended, int) else ExitCode.OK
