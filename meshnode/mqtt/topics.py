"""Where on the broker a node's messages lie, and how they are written: names and bytes, no network."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["OFFLINE", "ONLINE", "Topics", "encode"]

ONLINE = b"online"
OFFLINE = b"offline"


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics of one node.

    Attributes:
        root: What all of them begin with, with a slash at the end.
    """

    root: str

    @classmethod
    def of_node(cls, prefix: str, mesh_name: str, peer_id: str) -> "Topics":
        """``<prefix>/v1/<mesh>/<peer id>/``.

        The peer id, not the node's name: names need not be unique, and two nodes under one topic would take turns
        at overwriting each other's retained state.
        """
        return cls(f"{prefix}/v1/{_level(mesh_name)}/{_level(peer_id)}/")

    @property
    def status(self) -> str:
        """``online`` or ``offline``."""
        return self.root + "status"

    @property
    def info(self) -> str:
        """What the node is."""
        return self.root + "info"

    @property
    def state(self) -> str:
        """What the node does at the moment."""
        return self.root + "state"

    def telemetry(self, part: str) -> str:
        """Measurements of one part of the node."""
        return f"{self.root}telemetry/{_level(part)}"

    def expert(self, uid: str) -> str:
        """An expert that is hosted here."""
        return f"{self.root}expert/{_level(uid)}/state"

    def event(self, kind: str) -> str:
        """Something that happened."""
        return f"{self.root}event/{_level(kind)}"


def encode(document: Mapping[str, Any], name: str | None = None) -> bytes:
    """The document as JSON, ASCII only.

    Numbers that JSON has no word for (a loss that became NaN) are null, and objects it does not know are their text:
    a slip in what is told must not end the telling.

    Args:
        document: Plain data.
        name: Its schema becomes ``meshnode.mqtt-NAME/1``; None leaves the document as it is.
    """
    whole = document if name is None else {"schema": f"meshnode.mqtt-{name}/1", **document}
    return json.dumps(_finite(whole), default=str, separators=(",", ":")).encode("ascii")


def _level(text: str) -> str:
    """The text as one level of a topic: separators, wildcards and what does not print become underscores."""
    return "".join("_" if char in "/+#" or not char.isprintable() else char for char in text) or "_"


def _finite(value: Any) -> Any:
    match value:
        case float() if not math.isfinite(value):
            return None
        case Mapping():
            return {str(key): _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
        case _:
            return value
