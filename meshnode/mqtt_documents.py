"""What the MQTT topics say of a node, read from its view; fulfils `meshnode.mqtt.publisher.MqttSource`."""

from collections.abc import Mapping
from typing import Any

import psutil

from meshnode.view import NodeView

__all__ = ["MqttDocuments"]


class MqttDocuments:
    """The documents of one node's topics, small enough to be sent at intervals."""

    def __init__(self, view: NodeView) -> None:
        self._view = view
        self._process = psutil.Process()
        self._process.cpu_percent()  # the first call begins the span that the next one measures

    def info(self) -> Mapping[str, Any]:
        """What does not change while the node runs."""
        status = self._view.status()
        return {name: status[name] for name in ("name", "peer_id", "mesh", "device", "addresses", "version", "url")}

    def state(self) -> Mapping[str, Any]:
        """What the node is doing and why; changes seldom enough to be sent when it does."""
        status = self._view.status()
        training = status["training"]
        return {
            "state": status["state"],
            "reason": status["reason"],
            "peers": status["peers"],
            "experts": {name: status["experts"][name] for name in ("local", "mesh")},
            "training": {name: training.get(name) for name in ("state", "reason", "task", "stage")},
        }

    def telemetry(self) -> Mapping[str, Mapping[str, Any]]:
        """Figures, by topic."""
        status = self._view.status()
        training = status["training"]
        return {
            "system": self._system(status["uptime_s"]),
            "net": {"peers": status["peers"], "connected": status["connected"], **status["traffic"]},
            "train": {name: training.get(name) for name in ("state", "task", "stage", "done", "total", "loss")},
            "serve": status["serving"],
        }

    def experts(self) -> Mapping[str, Mapping[str, Any]]:
        """The experts hosted here."""
        runtime = self._view.runtime
        return {
            uid: {"classes": expert.classes, "generation": expert.generation, "weights": expert.weights}
            for uid, expert in (runtime.host.experts if runtime else {}).items()
        }

    def _system(self, uptime_s: float) -> dict[str, Any]:
        """Of the daemon, its trainer and its p2pd together; the processor time is the daemon's alone."""
        family = [self._process, *self._process.children(recursive=True)]
        return {
            "uptime_s": uptime_s,
            "processes": len(family),
            "daemon_cpu_percent": self._process.cpu_percent(),
            "rss_bytes": sum(_rss_bytes(process) for process in family),
        }


def _rss_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0  # it ended just now
