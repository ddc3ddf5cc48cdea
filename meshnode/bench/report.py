"""A run of ``meshnode bench serve``: everything that its table, its picture and ``serve.json`` are made from."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from meshnode import __version__
from meshnode.bench.load import Load
from meshnode.bench.statistics import Measured, PeerShare, Spread
from meshnode.errors import ExitCode, exit_code_for

__all__ = ["MeshSeen", "Report", "TrafficUsed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class MeshSeen:
    """The mesh as the client found it."""

    mesh_id: str
    name: str
    experts: int
    replicas: int
    peers: int
    """Those that hold a replica."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrafficUsed:
    """Bytes between the client and its peers since the end of the warm-up, by kind; without the DHT's."""

    sent: Mapping[str, int] = field(default_factory=dict)
    received: Mapping[str, int] = field(default_factory=dict)

    @property
    def sent_bytes(self) -> int:
        return sum(self.sent.values())

    @property
    def received_bytes(self) -> int:
        return sum(self.received.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What was asked of which mesh, and what came of it."""

    mesh: MeshSeen
    load: Load
    images: str
    """What the mesh was asked about, in words."""
    measured: Measured
    traffic: TrafficUsed
    is_interrupted: bool
    """Whether the run was cut off before its end; the figures are then those of the part that was run."""

    @property
    def exit_code(self) -> ExitCode:
        """How the command ends: as its most frequent failure does if nothing else came back."""
        if self.is_interrupted:
            return ExitCode.INTERRUPTED
        if self.measured.failures and not self.measured.answered:
            return exit_code_for(next(iter(self.measured.failures)))
        return ExitCode.OK

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for ``serve.json`` and ``--json``."""
        measured = self.measured
        return {
            "schema": "meshnode.bench_serve/1",
            "version": __version__,
            "mesh": {
                "id": self.mesh.mesh_id,
                "name": self.mesh.name,
                "experts": self.mesh.experts,
                "replicas": self.mesh.replicas,
                "peers": self.mesh.peers,
            },
            "load": {
                "loop": "closed" if self.load.rate_per_s is None else "open",
                **asdict(self.load),
                "images": self.images,
            },
            "interrupted": self.is_interrupted,
            "window_s": _rounded(measured.window_s),
            "requests": {
                "offered": measured.offered,
                "answered": measured.answered,
                "partial": measured.partial,
                "failed": measured.failed,
                "not_sent": measured.not_sent,
                "cut_off": measured.cut_off,
                "warm_up": measured.warm_up,
            },
            "answered_ratio": _rounded(measured.answered_ratio),
            "failures": dict(measured.failures),
            "offered_per_s": None if self.load.rate_per_s is None else _rounded(measured.offered_per_s),
            "answered_per_s": _rounded(measured.answered_per_s),
            "rows_per_s": _rounded(measured.rows_per_s),
            "latency_ms": _spread(measured.latency_ms),
            "asking_ms": _spread(measured.asking_ms),
            "late_ms": None if self.load.rate_per_s is None else _spread(measured.late_ms),
            "traffic": {
                "sent_bytes": self.traffic.sent_bytes,
                "received_bytes": self.traffic.received_bytes,
                "sent": dict(self.traffic.sent),
                "received": dict(self.traffic.received),
            },
            "peers": [_peer(peer, measured.peers) for peer in measured.peers],
            "intervals": [asdict(interval) for interval in measured.intervals],
        }


def _spread(spread: Spread) -> dict[str, float | int | None]:
    # A point in a name is an operator to jq and its like.
    figures = {name.replace(".", "_"): _rounded(value) for name, value in spread.figures.items()}
    return {"count": spread.count} | figures


def _rounded(value: float | None) -> float | None:
    # To microseconds or millionths: what is beyond says nothing.
    return None if value is None else round(value, 6 if value < 1 else 3)


def _peer(peer: PeerShare, peers: tuple[PeerShare, ...]) -> dict[str, Any]:
    rows = sum(other.rows for other in peers)
    return {
        "peer_id": peer.peer_id,
        "name": peer.peer_name,
        "rows": peer.rows,
        "share": _rounded(peer.rows / rows) if rows else None,
        "calls": peer.calls,
        "failures": peer.failures,
        "call_ms": _spread(peer.call_ms),
    }
