"""``meshnode status``: what the daemon is, does, and why."""

from collections.abc import Mapping
from typing import Any

import typer

from meshnode.cli.human import size, span, streams_told
from meshnode.cli.output import facts
from meshnode.cli.session import Session

__all__ = ["status"]


def status(context: typer.Context) -> None:
    """Show the running node, what it does and why."""
    session = Session.of(context)
    document = session.client().get("status")
    session.output.result(document, facts(_lines(document)))


def _lines(document: Mapping[str, Any]) -> list[tuple[str, object]]:
    mesh, device, traffic = document["mesh"], document["device"], document["traffic"]
    experts = document["experts"]
    return [
        ("node", f"{document['name']}  {document['peer_id']}"),
        ("state", _because(document["state"], document["reason"])),
        ("mesh", f"{mesh['name']}  {mesh['id']}" if mesh else "none yet"),
        ("device", _because(device["used"], device["reason"])),
        *_column("listening", document["addresses"]),
        *_column("bootstrap", [_bootstrap_line(entry) for entry in document["bootstrap"]]),
        ("peers", document["peers"]),
        ("experts", f"{experts['local']} here, {experts['mesh']} in the mesh"),
        ("training", _activity(document["training"])),
        *_column("streams", streams_told(document["training"]), at_least_one=False),
        ("averaging", _activity(document["averaging"])),
        ("serving", _activity(document["serving"])),
        *_mqtt(document["mqtt"]),
        ("traffic", f"{size(traffic['sent_bytes'])} sent, {size(traffic['received_bytes'])} received"),
        ("uptime", span(document["uptime_s"])),
        ("daemon", f"version {document['version']}, process {document['pid']}, {document['url']}"),
    ]


def _column(name: str, values: list[str], *, at_least_one: bool = True) -> list[tuple[str, object]]:
    """One line a value, named once; none at all may be worth a line too."""
    shown = values or (["none"] if at_least_one else [])
    return [(name if number == 0 else "", value) for number, value in enumerate(shown)]


def _bootstrap_line(entry: Mapping[str, Any]) -> str:
    return f"{entry['address']}  {_because(entry['state'], entry['error'])}"


def _mqtt(mqtt: Mapping[str, Any]) -> list[tuple[str, object]]:
    """How it stands with the broker, if there is to be one."""
    if not mqtt["enabled"]:
        return []
    state = "connected" if mqtt["connected"] else _because("not connected", mqtt["error"])
    return [("mqtt", f"{state}, {mqtt['dropped']} messages dropped" if mqtt["dropped"] else state)]


def _because(state: str, reason: str | None) -> str:
    return f"{state} ({reason})" if reason else state


def _activity(fields: Mapping[str, Any] | None) -> str:
    """What a part of the node says of itself: its state first, then its plain figures by name."""
    if not fields or fields.get("enabled") is False:
        return "off"
    state = _because(str(fields["state"]), fields.get("reason")) if "state" in fields else None
    figures = [
        _figure(name, value)
        for name, value in fields.items()
        if name not in ("schema", "state", "reason", "enabled") and isinstance(value, (str, int, float, bool))
    ]
    return ", ".join([state, *figures] if state else figures) or "on"


def _figure(name: str, value: str | float) -> str:
    if name.endswith("_s") and not isinstance(value, (str, bool)):
        return f"{name[:-2].replace('_', ' ')} {span(value)}"
    shown = (
        ("yes" if value else "no") if isinstance(value, bool) else f"{value:.4g}" if isinstance(value, float) else value
    )
    return f"{name.replace('_', ' ')} {shown}"
