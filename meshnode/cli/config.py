"""``meshnode config``: the settings in force, where each came from, and whether a file can be followed."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from meshnode.cli.output import listing
from meshnode.cli.session import Session
from meshnode.errors import ConfigInvalid, DaemonNotRunning, ExitCode, NodeError
from meshnode.printable import printable

if TYPE_CHECKING:  # pydantic takes a tenth of a second, which every other command would pay too
    from meshnode.settings.config import SettingsRefused

__all__ = ["config"]

config = typer.Typer(help="The settings: what holds, where it was written, and what can be set.")


@config.callback()
def _group() -> None:
    """The settings: what holds, where it was written, and what can be set."""


@config.command("show")
def show(
    context: typer.Context,
    only: Annotated[
        str | None, typer.Argument(metavar="[SETTING or SECTION]", help="Such as net.port or net; all if not given.")
    ] = None,
    origin: Annotated[
        bool, typer.Option("--origin", help="Also say where each value was written: default, file, env or flag.")
    ] = False,
) -> None:
    """Show the settings in force.

    Those of the running daemon, with the options it was started with; without one, those of config.toml and the
    environment.
    """
    session = Session.of(context)
    document = _in_force(session)
    shown = [entry for entry in document["settings"] if only is None or only in _names_of(entry)]
    if only is not None and not shown:
        raise _no_such(only)
    columns = ("NAME", "VALUE", "ORIGIN") if origin else ("NAME", "VALUE")
    rows = [(entry["name"], _text(entry["value"]) or "-", _origin(entry))[: len(columns)] for entry in shown]
    session.output.result({**document, "settings": shown}, listing(columns, rows))


@config.command("get")
def get(
    context: typer.Context,
    setting: Annotated[str, typer.Argument(metavar="SETTING", help="Such as net.port.")],
) -> None:
    """Print one bare value, for scripts.

    Lists have commas, as in the environment; what is not set is an empty line.
    """
    session = Session.of(context)
    found = [entry for entry in _in_force(session)["settings"] if entry["name"] == setting]
    if not found:
        raise _no_such(setting)
    session.output.result({"schema": "meshnode.setting/1", **found[0]}, _unfolded(_text(found[0]["value"])))


@config.command("validate")
def validate(
    context: typer.Context,
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="Checked alone; without it, config.toml and the environment are."),
    ] = None,
) -> None:
    """Say whether the settings are valid.

    If not, every problem is listed, with where it was written, and the exit code is 3. Without FILE the home's
    config.toml is checked together with the MESHNODE_ variables, as `meshnode run` would.
    """
    from meshnode.settings.config import SettingsRefused, load_settings  # noqa: PLC0415  # with pydantic

    session = Session.of(context)
    path = (file or session.home.config_toml).absolute()
    if not path.exists():
        if file is not None:
            raise ConfigInvalid(f"{path} does not exist", hint="Without FILE the home's own config.toml is checked.")
        session.output.note(f"{path} does not exist, so the defaults hold.")
    try:
        if file is None:
            load_settings(session.home)
        else:
            # What the environment says here is not meant for whatever node the file is for.
            load_settings(session.home, file=file, environment={})
    except SettingsRefused as exc:
        _show_problems(session, path, exc)
        raise typer.Exit(ExitCode.CONFIG_INVALID) from exc
    session.output.result(
        {"schema": "meshnode.config-check/1", "path": str(path), "valid": True, "problems": []}, Text("valid")
    )


@config.command("path")
def path(context: typer.Context) -> None:
    """Print where config.toml is, or would be."""
    session = Session.of(context)
    file = session.home.config_toml.absolute()
    document = {"schema": "meshnode.config-path/1", "path": str(file), "exists": file.exists()}
    session.output.result(document, _unfolded(str(file)))


@config.command("schema")
def schema(context: typer.Context) -> None:
    """Print the JSON Schema of config.toml.

    Many editors complete and check settings with it as they are typed.
    """
    from meshnode.settings.documents import config_schema  # noqa: PLC0415  # with pydantic

    document = config_schema()
    shown = _unfolded(json.dumps(document, indent=2))
    Session.of(context).output.result({"schema": "meshnode.config-schema/1", **document}, shown)


def _in_force(session: Session) -> dict[str, Any]:
    """The daemon's settings document; without a daemon, the one it would have if it were started here and now."""
    try:
        document = session.client().get("config")
    except NodeError as exc:
        # A daemon that was asked for by its URL is not replaced by a guess.
        if exc.code != DaemonNotRunning.code or session.api_url is not None:
            raise
        from meshnode.settings.config import load_settings  # noqa: PLC0415  # with pydantic
        from meshnode.settings.documents import settings_document  # noqa: PLC0415

        document = settings_document(load_settings(session.home))
        session.output.note(f"No daemon runs for {session.home.path}: these are the settings it would start with.")
    else:
        _note_pending(session, document)
    return document


def _note_pending(session: Session, running: Mapping[str, Any]) -> None:
    """Say so if the file has been edited since the daemon read it."""
    if Path(running["path"]).resolve() != session.home.config_toml.resolve():
        return  # --api names the daemon of another home
    from meshnode.settings.config import SettingsRefused  # noqa: PLC0415  # with pydantic
    from meshnode.settings.documents import pending_settings  # noqa: PLC0415

    try:
        pending = pending_settings(running, session.home)
    except SettingsRefused as exc:
        session.output.note(f"config.toml has changed, and no daemon would start with it now: {exc.message}")
        return
    if pending:
        names = ", ".join(pending)
        session.output.note(f"config.toml has changed since the daemon started; a restart takes up {names}.")


def _show_problems(session: Session, path: Path, refused: "SettingsRefused") -> None:
    problems = refused.problems
    error = {"code": refused.code, "message": refused.message, "hint": refused.hint}
    document = {
        "schema": "meshnode.config-check/1",
        "path": str(path),
        "valid": False,
        "problems": [
            {
                "setting": problem.setting,
                "reason": problem.reason,
                "where": problem.where,
                "did_you_mean": problem.nearest,
            }
            for problem in problems
        ],
        "error": error,
    }
    rows = [(problem.setting or "-", problem.reason, problem.where, problem.nearest or "-") for problem in problems]
    session.output.result(document, listing(("SETTING", "PROBLEM", "WRITTEN IN", "DID YOU MEAN"), rows))
    if not session.output.as_json:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        session.output.failure(refused.code, f"{count} in the settings", None)


def _no_such(name: str) -> typer.BadParameter:
    from meshnode.settings.config import nearest_setting  # noqa: PLC0415  # with pydantic

    nearest = nearest_setting(name)
    if nearest == name:
        return typer.BadParameter(f"{name} is a section: `meshnode config show {name}` shows its settings")
    return typer.BadParameter(f"there is no setting {name!r}" + (f"; did you mean {nearest}?" if nearest else ""))


def _names_of(entry: Mapping[str, Any]) -> Iterator[str]:
    """What a setting can be asked for by: its section's name and its own."""
    yield entry["name"].partition(".")[0]
    yield entry["name"]


def _origin(entry: Mapping[str, Any]) -> str:
    return f"{entry['origin']} ({entry['source']})" if entry["source"] else entry["origin"]


def _text(value: object) -> str:
    """A value bare: words as in TOML, lists with commas as in the environment, empty for what is not set."""
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case list():
            return ",".join(map(str, value))
        case _:
            return str(value)


def _unfolded(text: str) -> Text:
    """For copying: whatever the terminal's width, its own lines only."""
    lines = (printable(line) for line in text.splitlines())
    return Text("\n".join(lines), no_wrap=True, overflow="ignore")
