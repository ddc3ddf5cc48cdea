"""``meshnode init``: a node's folder, its identity, and, if asked, a new mesh. What exists is kept."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from meshnode.cli.form_settings import form_settings
from meshnode.cli.output import facts
from meshnode.cli.session import Session
from meshnode.cli.starter_config import starter_config
from meshnode.errors import ResourceAbsent
from meshnode.home import Home, create_atomically

__all__ = ["init", "write_starter_config"]

_PRIVACY_NOTICE = (
    "A mesh is public. Founding it from this data publishes, to anyone who joins, the mean and deviation of "
    "the data's features and, with a whitened trunk, the small image patches it is built from. The images "
    "themselves and their labels stay here."
)


_SET_EXPERT = "mlp"
"""Whose settings `--expert-set` gives where no kind is named."""


class _Trunk(StrEnum):
    WHITENED = "whitened"
    EFFICIENTNET_B4 = "efficientnet-b4"
    EFFICIENTNET_E5 = "efficientnet-e5"
    EFFICIENTNET_E5_B4 = "efficientnet-e5-b4"
    EFFICIENTNET_E5C40 = "efficientnet-e5c40"


def init(  # noqa: PLR0913  # a parameter an option
    context: typer.Context,
    *,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What other peers see; this machine's name if not given."),
    ] = None,
    join: Annotated[
        list[str] | None,
        typer.Option(metavar="ADDR", help="A peer's multiaddress to start from; may be repeated."),
    ] = None,
    mesh: Annotated[
        str | None, typer.Option(metavar="NAME", help="Found a new mesh of this name; needs --data.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="TASK.npz", dir_okay=False, help="The images the new mesh's trunk is made from."),
    ] = None,
    trunk: Annotated[
        _Trunk,
        typer.Option(
            metavar="|".join(_Trunk),
            help="The new mesh's feature extractor: fitted to the data, or sections of a network trained on ImageNet.",
        ),
    ] = _Trunk.WHITENED,
    pixels: Annotated[
        int,
        typer.Option(metavar="N", min=4, max=1024, help="Width and height the new mesh's images are scaled to."),
    ] = 32,
    expert_budget: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Most parameters of a new expert, whose form then follows; 8% of a task model unless given.",
        ),
    ] = None,
    expert: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="One form for all new experts instead: mlp, deep, linear, conv, adapter or an installed one.",
        ),
    ] = None,
    expert_set: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A setting of that form, such as hidden=16; may be repeated."),
    ] = None,
    statistics_norm: Annotated[
        float | None,
        typer.Option(
            metavar="R",
            min=1e-6,
            max=1e6,
            help="Norm that features are clipped to where members of the new mesh add noise; none can unless given.",
        ),
    ] = None,
) -> None:
    """Make a node's folder, settings and identity.

    With --mesh, also found a new mesh that others can join. What exists already is kept as it is.
    """
    if (mesh is None) != (data is None):
        raise typer.BadParameter("--mesh and --data go together: a mesh is founded from a task file's images")
    of_a_mesh = {
        "--expert-budget": expert_budget,
        "--expert": expert,
        "--expert-set": expert_set or None,
        "--statistics-norm": statistics_norm,
    }
    if mesh is None and (given := [option for option, value in of_a_mesh.items() if value is not None]):
        raise typer.BadParameter(f"{', '.join(given)}: of a new mesh, which takes --mesh and --data")
    if expert_budget is not None and (expert or expert_set):
        raise typer.BadParameter("--expert-budget chooses the form: it does not go with --expert or --expert-set")
    if data is not None and not data.is_file():
        raise ResourceAbsent(f"there is no task file {data}", hint="Give an .npz file of images and labels.")
    expert_settings = form_settings(expert_set or (), "--expert-set")
    from meshnode.settings.config import load_config  # noqa: PLC0415  # pydantic is for init and run only

    session = Session.of(context)
    # Checks them: nothing is written of values that could not be read back.
    load_config(session.home, {"node.name": name, "net.join": join or None})
    wrote_config = write_starter_config(session.home, name=name, join=join or ())
    if not wrote_config and (name is not None or join):
        session.output.note(f"{session.home.config_toml} was left as it is; change name and join there.")
    made_identity, peer_id = _ensure_identity(session.home)
    founded = None
    if mesh is not None and data is not None:
        session.output.note(_PRIVACY_NOTICE)
        from meshnode.founding import Founding, found_mesh  # noqa: PLC0415  # with torch

        founding = Founding(
            name=mesh,
            data=data,
            trunk=trunk.value,
            pixels=pixels,
            expert=expert or (_SET_EXPERT if expert_set else None),
            expert_settings=expert_settings,
            expert_budget=expert_budget,
            statistics_norm=statistics_norm,
        )
        mesh_id = found_mesh(session.home, founding)
        founded = {"id": str(mesh_id), "name": mesh}
    document = {
        "schema": "meshnode.init/1",
        "home": str(session.home.path),
        "config": {"path": str(session.home.config_toml), "created": wrote_config},
        "identity": {"peer_id": peer_id, "created": made_identity},
        "mesh": founded,
    }
    lines = [
        ("home", document["home"]),
        ("config", f"{session.home.config_toml} ({_written(wrote_config)})"),
        ("identity", f"{peer_id} ({_written(made_identity)})"),
        *([("mesh", f"{founded['name']}  {founded['id']}")] if founded else []),
    ]
    session.output.result(document, facts(lines))


def write_starter_config(home: Home, *, name: str | None = None, join: Sequence[str] = ()) -> bool:
    """Make the home's folders and, unless there is one, its config.toml; say whether this call wrote it.

    The values are those of a configuration that was loaded, and so checked, before.
    """
    home.create()
    if home.config_toml.exists():
        return False
    return create_atomically(home.config_toml, starter_config(name=name, join=join).encode())


def _ensure_identity(home: Home) -> tuple[bool, str]:
    """Whether the key was made now, and the peer id it gives."""
    from meshnode.identity import api_key, load_or_create_identity  # noqa: PLC0415  # with cryptography

    absent = not home.identity_key.exists()
    key = load_or_create_identity(home)
    api_key(home)
    return absent, str(key.peer_id)


def _written(created: bool) -> str:
    return "created" if created else "kept as it was"
