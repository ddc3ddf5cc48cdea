"""What the demo measured: everything the table, the picture and ``summary.json`` are made from."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from experts.evaluation.metrics import AccuracyMatrix

__all__ = ["Accident", "DemoResult", "MethodResult"]


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodResult:
    """One row of the table."""

    name: str
    matrix: AccuracyMatrix | None
    """a[t][i], where the method was measured after every task; None when only at the end."""
    accuracy: float
    """Class-incremental, after the last task, over all classes; in [0, 1]."""
    moved_bytes: int
    """What had to be sent: between the nodes, or of training data to the one machine that holds it all."""
    query_p50_ms: float | None
    """Median time of a routed query of one image; None where nothing is routed."""

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "accuracy": self.accuracy,
            "forgetting": self.matrix.forgetting() if self.matrix else None,
            "matrix": self.matrix.to_dict() if self.matrix else None,
            "moved_bytes": self.moved_bytes,
            "query_p50_ms": self.query_p50_ms,
        }


@dataclass(slots=True)
class Accident:
    """What became of the queries while a node was killed and came back."""

    node: str
    asked: int = 0
    answered: int = 0
    failed_over: int = 0
    """Answered by another replica than the one first asked."""
    slowest_ms: float = 0.0
    away_s: float = 0.0
    """From the kill until the node had its state back and answered."""
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoResult:
    """The whole demo."""

    dataset: str
    seed: int
    mesh_id: str
    tasks: tuple[tuple[str, ...], ...]
    methods: tuple[MethodResult, ...]
    hosts: Mapping[str, tuple[str, ...]]
    """Names of the nodes that hold a replica, by expert uid."""
    expert_classes: Mapping[str, tuple[str, ...]]
    routing: Counter[tuple[str, str]]
    """Test images by (true class, uid of the expert that answered)."""
    accident: Accident
    rounds_committed: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for ``summary.json`` and ``--json``."""
        return {
            "schema": "meshnode.demo/1",
            "dataset": self.dataset,
            "seed": self.seed,
            "mesh": self.mesh_id,
            "tasks": [list(task) for task in self.tasks],
            "methods": {method.name: method.to_dict() for method in self.methods},
            "experts": [
                {"uid": uid, "classes": list(classes), "hosts": list(self.hosts[uid])}
                for uid, classes in self.expert_classes.items()
            ],
            "routing": [
                {"class": name, "expert": uid, "images": count} for (name, uid), count in sorted(self.routing.items())
            ],
            "kill": {
                "node": self.accident.node,
                "asked": self.accident.asked,
                "answered": self.accident.answered,
                "failed_over": self.accident.failed_over,
                "slowest_ms": self.accident.slowest_ms,
                "away_s": self.accident.away_s,
            },
            "rounds_committed": self.rounds_committed,
            "seconds": self.seconds,
        }
