"""What happens to a node, told once: as a line of the log, and to whoever passes it on (MQTT)."""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from meshnode.logs import get_logger

__all__ = ["Event", "Events"]

log = get_logger("meshnode")


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something that happened."""

    number: int
    """Counts from 1 at the node's start, without gaps: a gap at a listener is a loss on the way."""
    time_s: float
    """Seconds since the epoch."""
    kind: str
    """Such as ``task_learned``; the kinds are listed in docs/mqtt.md."""
    facts: dict[str, Any]
    """Plain data that JSON can hold."""

    def document(self) -> dict[str, Any]:
        """The event for programs, ``meshnode.event/1``."""
        return {
            "schema": "meshnode.event/1",
            "id": self.number,
            "time": round(self.time_s, 3),
            "type": self.kind,
            **self.facts,
        }


Listener = Callable[[Event], None]


class Events:
    """Passes events on, at once and in order. A listener must neither wait nor raise."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Pass every event from now on to `listener`; the function returned ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def emit(self, kind: str, *, level: Literal["debug", "info", "warning"] = "info", **facts: Any) -> None:
        """Something happened.

        Args:
            kind: Its name, in words joined by underscores.
            level: Of the log line: "debug" for what goes on all the time, "warning" for what a person may have to do
                something about.
            facts: What, in plain data.
        """
        getattr(log, level)(kind.replace("_", " "), **facts)
        event = Event(number=next(self._numbers), time_s=time.time(), kind=kind, facts=facts)
        for listener in tuple(self._listeners):
            listener(event)
