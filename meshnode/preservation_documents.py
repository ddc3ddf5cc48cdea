"""Experts that change their form, as the HTTP API and the command line show them."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import msgspec
from msgspec import UnsetType

from experts.errors import UnknownArchitecture
from meshnode.mesh import Mesh
from meshnode.migration_order import Migration
from protocol.identifiers import ExpertUid, PeerId
from protocol.lineage import Lineage, Succession
from protocol.records import ExpertAdvert
from protocol.spec import ExpertForm

__all__ = ["lineage_document", "migration_document"]


def migration_document(migration: Migration) -> dict[str, Any]:
    """An order, as it stands."""
    return {
        "uid": migration.uid,
        "successor": migration.successor,
        "kind": migration.form.kind,
        "config": migration.form.config,
        "transfer": asdict(migration.config),
        "steps": migration.steps,
        "margin": migration.margin,
        "state": migration.state,
        "done": migration.done,
        "total": migration.total,
        "left_s": migration.left_s,
        "followed": migration.followed,
        "accuracy": msgspec.to_builtins(migration.accuracy),
        "layers": msgspec.to_builtins(migration.layers),
        "error": migration.error,
    }


def lineage_document(
    mesh: Mesh, advert: ExpertAdvert, lineage: Lineage | None, names: Mapping[PeerId, str]
) -> dict[str, Any]:
    """An expert and those that it was made from, the oldest first.

    Args:
        advert: What is said of the expert.
        lineage: None of an expert that was made from none.
        names: Of peers, as far as they are known just now.
    """
    steps = lineage.steps if lineage else ()
    first = (steps[0].parent, steps[0].parent_form) if steps else (advert.uid, advert.form)
    classes = advert.classes
    return {
        "uid": advert.uid,
        "classes": list(classes),
        "experts": [
            {**_expert(mesh, *first, classes), **_NOT_MADE},
            *({**_expert(mesh, step.uid, step.form, classes), **_making(step, names)} for step in steps),
        ],
    }


_NOT_MADE: Mapping[str, None] = dict.fromkeys(
    ("parent", "source", "method", "layers", "accuracy", "made_at", "peer_id", "peer_name")
)
"""What is not to be said of one that was made from none."""


def _making(step: Succession, names: Mapping[PeerId, str]) -> dict[str, Any]:
    return {
        "parent": step.parent,
        "method": msgspec.to_builtins(step.method),
        "layers": msgspec.to_builtins(step.layers),
        "accuracy": msgspec.to_builtins(step.accuracy),
        "made_at": step.made_at,
        "source": None if isinstance(step.source, UnsetType) else msgspec.to_builtins(step.source),
        "peer_id": step.peer_id,
        "peer_name": names.get(step.peer_id),
    }


def _expert(mesh: Mesh, uid: ExpertUid, form: ExpertForm, classes: tuple[str, ...]) -> dict[str, Any]:
    try:
        parameters = mesh.architecture(form, len(classes)).num_parameters
    except UnknownArchitecture:  # of a kind that was installed where it was made, and is not here
        parameters = None
    return {"uid": uid, "kind": form.kind, "config": form.config, "parameters": parameters}
