"""What was decided on tasks and what came of them, in the ledger: as a record for people, and to go on after a kill.

A decision is written before anything is learned by it, so that a task that was interrupted is not decided anew, on
evidence that its own learning has changed meanwhile. It goes when its task is forgotten.
"""

import time

from experts.errors import CorruptState
from meshnode.logs import get_logger
from meshnode.state.ledger import Ledger
from meshnode.state.rows import DecisionRow
from meshnode.trainer.deciding import Decided
from meshnode.trainer.task_file import TaskFile
from protocol.identifiers import Digest

__all__ = ["FAILED", "History"]

FAILED = "failed"

log = get_logger(__name__)


class History:
    """The record, read from the ledger each time."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def decision_on(self, task: TaskFile) -> Decided | None:
        """What was decided on this content of the task; None if nothing was, or nothing that can be read."""
        row = self._row_of(task)
        if row is None or row.decision is None:
            return None
        try:
            return Decided.from_dict(row.decision)
        except CorruptState as exc:
            log.warning("a kept decision cannot be read and is made anew", task=task.name, reason=str(exc))
            return None

    def decided(self, task: TaskFile, decided: Decided) -> None:
        """Keep a decision, over one that was made on the same content."""
        self._ledger.put_decision(
            DecisionRow(
                task=task.name,
                digest=Digest(task.digest),
                at=time.time(),
                decision=decided.to_dict(),
                outcome=None,
                facts=_facts_of(task),
            )
        )

    def ended(self, task: TaskFile, outcome: str, facts: dict[str, object]) -> None:
        """Keep what came of a task, decided on or not."""
        row = self._row_of(task)
        self._ledger.put_decision(
            DecisionRow(
                task=task.name,
                digest=Digest(task.digest),
                at=time.time() if row is None else row.at,
                decision=None if row is None else row.decision,
                outcome=outcome,
                facts={**_facts_of(task), **facts},
            )
        )

    def entries(self) -> tuple[dict[str, object], ...]:
        """What is over, for programs, the newest last."""
        return tuple(_document(row) for row in self._ledger.decisions() if row.outcome is not None)

    def last(self) -> dict[str, object] | None:
        """The newest decision, whether what it is on is over or not; None before any."""
        row = self._ledger.last_decision()
        return None if row is None else _document(row)

    def failures(self) -> dict[tuple[str, str], str]:
        """Why tasks failed, by name and digest."""
        rows = (row for row in self._ledger.decisions() if row.outcome == FAILED)
        return {(row.task, row.digest): str(row.facts.get("reason", "")) for row in rows}

    def _row_of(self, task: TaskFile) -> DecisionRow | None:
        return self._ledger.decision_on(task.name, Digest(task.digest))


def _document(row: DecisionRow) -> dict[str, object]:
    return {
        "task": row.task,
        "digest": row.digest,
        "decided_at": round(row.at, 3),
        "outcome": row.outcome,
        "decision": row.decision,
        **row.facts,
    }


def _facts_of(task: TaskFile) -> dict[str, object]:
    return {"classes": task.classes, "unlabelled": task.unlabelled}
