"""The ledger: what the node hosts, has learned, and has been told, in SQLite.

Every write is one transaction that is on the disk when the method returns (WAL, ``synchronous=FULL``). The
ledger names blobs by digest and never holds their bytes.
"""

import contextlib
import dataclasses
import errno
import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from meshnode.errors import StateTooNew, StateUnreadable
from meshnode.state.rows import (
    ContributionRow,
    DecisionRow,
    ExpertRow,
    Forgotten,
    Generation,
    Reached,
    SpareRow,
    Standing,
    TaskRow,
    WithdrawalRow,
    all_tasks,
)
from meshnode.state.schema import prepare
from protocol.errors import UnknownExpert
from protocol.identifiers import Digest, ExpertUid, PeerId

__all__ = ["Ledger"]

MAX_DECISIONS: Final = 500
"""Kept at most, the newest: each is about a kilobyte."""

_INSERT_EXPERT: Final = "INSERT INTO experts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"


class Ledger:
    """The ledger in one file, between `open` and `close`. Safe to use from several threads of one process.

    Reads and writes raise OSError if the disk is full or fails, a write having changed nothing then, and
    StateUnreadable if the file turns out to be damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None

    def open(self) -> Self:
        """Open the file, or make it, and check it through.

        Raises:
            StateTooNew: A later version of this program wrote it; it was not touched.
            StateUnreadable: It is damaged, is no ledger, or may not be opened.
        """
        try:
            connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as exc:
            raise StateUnreadable(self._path, str(exc)) from exc
        try:
            prepare(connection, self._path)
        except sqlite3.DatabaseError as exc:
            connection.close()
            raise StateUnreadable(self._path, str(exc)) from exc
        except (StateTooNew, StateUnreadable):
            connection.close()
            raise
        self._connection = connection
        return self

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def setting(self, key: str) -> str | None:
        """The value last set, or None."""
        rows = self._rows("SELECT value FROM settings WHERE key = ?", key)
        return rows[0]["value"] if rows else None

    def set_setting(self, key: str, value: str) -> None:
        """Remember ``value`` under ``key``."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (key, value))

    def settings(self) -> dict[str, str]:
        """All settings, sorted by key."""
        return {row["key"]: row["value"] for row in self._rows("SELECT * FROM settings ORDER BY key")}

    def add_expert(self, expert: ExpertRow) -> None:
        """Host an expert. One that is hosted stays as it is: its uid stands for all that is written here."""
        with self._transaction() as db:
            db.execute(f"{_INSERT_EXPERT} ON CONFLICT DO NOTHING", _expert_values(expert))
            db.execute("DELETE FROM dropped WHERE uid = ?", (expert.uid,))

    def keep(self, uid: ExpertUid) -> None:
        """Host an expert for a reason of this node's own from now on, whatever the mesh has of it."""
        with self._transaction() as db:
            db.execute("UPDATE experts SET placed = 0 WHERE uid = ?", (uid,))

    def drop(self, uids: Iterable[ExpertUid], *, at: float | None) -> None:
        """Forget experts with all their generations, all at once.

        Args:
            uids: Those hosted here.
            at: When they were unwanted, in Unix seconds, which is remembered; None if they may come back.
        """
        with self._transaction() as db:
            for uid in uids:
                db.execute("DELETE FROM experts WHERE uid = ?", (uid,))
                if at is not None:
                    db.execute("INSERT OR REPLACE INTO dropped VALUES (?, ?)", (uid, at))

    def dropped(self) -> dict[ExpertUid, float]:
        """When each expert was dropped that was unwanted and has not been hosted since, in Unix seconds."""
        return {row["uid"]: row["at"] for row in self._rows("SELECT * FROM dropped")}

    def succeed(self, old: ExpertUid, expert: ExpertRow, generation: Generation) -> Generation:
        """Have an expert take another one's place, all at once.

        Args:
            old: A current one; retired from now on.
            expert: The new one. If it is kept as declined, it comes anew: what was kept of it belongs to another
                succession, and is forgotten.
            generation: Its first one, whose blob is stored already; the number is of no matter.

        Returns: The generation with its number.

        Raises:
            UnknownExpert: `old` is not hosted here, or not as current.
        """
        with self._transaction() as db:
            self._change_standing(db, old, "current", "retired")
            db.execute(
                f"{_INSERT_EXPERT} ON CONFLICT DO UPDATE SET origin = excluded.origin, lineage = excluded.lineage, "
                "standing = excluded.standing, placed = excluded.placed",
                _expert_values(expert),
            )
            written = _write_generation(db, generation, inherits=False)
            db.execute("DELETE FROM generations WHERE uid = ? AND number < ?", (expert.uid, written.number))
            db.execute("DELETE FROM declined WHERE uid = ?", (expert.uid,))
            db.execute("DELETE FROM dropped WHERE uid = ?", (expert.uid,))
        return written

    def start_over(self, generation: Generation) -> Generation:
        """Write a generation that has nothing of the expert's others, and forget these, all at once.

        Args:
            generation: As for `add_generation`; its tasks are taken as they stand.

        Raises:
            UnknownExpert: The expert is not hosted here.
        """
        with self._transaction() as db:
            written = _write_generation(db, generation, inherits=False)
            db.execute("DELETE FROM generations WHERE uid = ? AND number < ?", (written.uid, written.number))
        return written

    def roll_back(self, uid: ExpertUid, to: ExpertUid) -> None:
        """Have a retired expert take its place back from its successor, which is declined, all at once.

        Raises:
            UnknownExpert: One of them is not kept here, or not as what it has to be.
        """
        with self._transaction() as db:
            self._change_standing(db, uid, "current", "declined")
            self._change_standing(db, to, "retired", "current")
            db.execute("INSERT OR IGNORE INTO declined VALUES (?)", (uid,))

    def decline(self, uid: ExpertUid) -> None:
        """Remember that a successor is not wanted, hosted or not."""
        with self._transaction() as db:
            db.execute("INSERT OR IGNORE INTO declined VALUES (?)", (uid,))

    def is_declined(self, uid: ExpertUid) -> bool:
        """Whether this was remembered."""
        return bool(self._rows("SELECT 1 FROM declined WHERE uid = ?", uid))

    def retire(self, uid: ExpertUid) -> None:
        """Have a current expert be one no more, though nothing has succeeded it.

        Raises:
            UnknownExpert: It is not hosted here, or not as current.
        """
        with self._transaction() as db:
            self._change_standing(db, uid, "current", "retired")

    def revive(self, uid: ExpertUid) -> None:
        """Have a retired expert be current again, and nobody think that the mesh can do without it, all at once.

        Raises:
            UnknownExpert: It is not kept here as retired.
        """
        with self._transaction() as db:
            self._change_standing(db, uid, "retired", "current")
            db.execute("UPDATE experts SET placed = 0 WHERE uid = ?", (uid,))
            db.execute("DELETE FROM spare WHERE uid = ?", (uid,))

    def put_spare(self, row: SpareRow) -> None:
        """Write that the mesh could do without an expert, over what was written of it before."""
        with self._transaction() as db:
            values = (row.uid, row.since, row.cause, row.instead, row.handed_on)
            db.execute("INSERT OR REPLACE INTO spare VALUES (?, ?, ?, ?, ?)", values)

    def drop_spare(self, uid: ExpertUid) -> None:
        """It could not, after all."""
        with self._transaction() as db:
            db.execute("DELETE FROM spare WHERE uid = ?", (uid,))

    def spare(self) -> dict[ExpertUid, SpareRow]:
        """All that it could do without, by uid, sorted."""
        rows = self._rows("SELECT * FROM spare ORDER BY uid")
        return {row["uid"]: SpareRow(**row | {"handed_on": bool(row["handed_on"])}) for row in rows}

    @staticmethod
    def _change_standing(db: sqlite3.Connection, uid: ExpertUid, before: Standing, after: Standing) -> None:
        changed = db.execute("UPDATE experts SET standing = ? WHERE uid = ? AND standing = ?", (after, uid, before))
        if not changed.rowcount:
            raise UnknownExpert(uid)

    def experts(self) -> tuple[ExpertRow, ...]:
        """All experts kept here, whatever their standing, sorted by uid."""
        return tuple(
            ExpertRow(
                uid=row["uid"],
                architecture=json.loads(row["architecture"]),
                classes=tuple(json.loads(row["classes"])),
                origin=row["origin"],
                ancestors=tuple(json.loads(row["ancestors"])),
                lineage=row["lineage"],
                standing=row["standing"],
                placed=bool(row["placed"]),
            )
            for row in self._rows("SELECT * FROM experts ORDER BY uid")
        )

    def add_generations(self, generations: Sequence[Generation]) -> tuple[Generation, ...]:
        """Write experts' next generations, whose blobs are stored already; all of them or none.

        Args:
            generations: Their numbers are of no matter; their tasks are those since each expert's newest one.

        Returns: The same, each with the number after its expert's newest one's, and with that one's tasks too.

        Raises:
            UnknownExpert: An expert is not hosted here.
        """
        with self._transaction() as db:
            return tuple(_write_generation(db, generation) for generation in generations)

    def generations(self, uid: ExpertUid) -> tuple[Generation, ...]:
        """What is kept of an expert, the newest first; empty for one that is not hosted."""
        rows = self._rows("SELECT * FROM generations WHERE uid = ? ORDER BY number DESC", uid)
        return tuple(
            Generation(
                uid=uid,
                number=row["number"],
                digest=row["digest"],
                cause=row["cause"],
                parent=row["parent_digest"],
                created_at=row["created_at"],
                reached=None if row["run"] is None else Reached(run=row["run"], steps=row["steps"]),
                round=row["round"],
                tasks=_tasks_of(row["tasks"]),
            )
            for row in rows
        )

    def drop_generations(self, uid: ExpertUid, *, below: int) -> None:
        """Forget the expert's generations with numbers lower than ``below``."""
        with self._transaction() as db:
            db.execute("DELETE FROM generations WHERE uid = ? AND number < ?", (uid, below))

    def add_contribution(self, row: ContributionRow) -> bool:
        """Write a contribution over an older version of the same peer and task.

        Returns:
            Whether it was written; False if this version or a newer one is held, or was withdrawn.
        """
        with self._transaction() as db:
            withdrawn = "SELECT 1 FROM withdrawals WHERE peer_id = ? AND task = ? AND version >= ?"
            if db.execute(withdrawn, (row.peer_id, row.task, row.version)).fetchone():
                return False
            db.execute("DELETE FROM withdrawals WHERE peer_id = ? AND task = ?", (row.peer_id, row.task))
            written = db.execute(
                """INSERT INTO contributions VALUES (?, ?, ?, ?, ?)
                ON CONFLICT (peer_id, task) DO UPDATE
                SET version = excluded.version, sealed = excluded.sealed, statistics = excluded.statistics
                WHERE excluded.version > contributions.version""",
                (row.peer_id, row.task, row.version, row.sealed, row.statistics),
            )
            return written.rowcount > 0

    def contributions(self) -> tuple[ContributionRow, ...]:
        """All contributions, sorted by peer and task."""
        return tuple(ContributionRow(**row) for row in self._rows("SELECT * FROM contributions ORDER BY peer_id, task"))

    def add_withdrawal(self, row: WithdrawalRow) -> None:
        """Write a withdrawal over an older one, and drop what it withdraws. A newer contribution stays alone."""
        with self._transaction() as db:
            key = (row.peer_id, row.task)
            held = db.execute("SELECT version FROM contributions WHERE peer_id = ? AND task = ?", key).fetchone()
            if held and held["version"] > row.version:
                return
            db.execute("DELETE FROM contributions WHERE peer_id = ? AND task = ?", key)
            db.execute(
                """INSERT INTO withdrawals VALUES (?, ?, ?, ?)
                ON CONFLICT (peer_id, task) DO UPDATE SET version = excluded.version, sealed = excluded.sealed
                WHERE excluded.version > withdrawals.version""",
                (*key, row.version, row.sealed),
            )

    def withdrawals(self) -> tuple[WithdrawalRow, ...]:
        """All withdrawals, sorted by peer and task."""
        return tuple(WithdrawalRow(**row) for row in self._rows("SELECT * FROM withdrawals ORDER BY peer_id, task"))

    def drop_contributions(self, peer_id: PeerId) -> None:
        """Forget what a peer contributed, as if it had never come."""
        with self._transaction() as db:
            db.execute("DELETE FROM contributions WHERE peer_id = ?", (peer_id,))

    def forget(self, kind: Forgotten, name: str) -> None:
        """Remember that something is to stay forgotten."""
        with self._transaction() as db:
            db.execute("INSERT OR IGNORE INTO forgotten VALUES (?, ?)", (kind, name))

    def unforget(self, kind: Forgotten, name: str) -> None:
        """It may come back."""
        with self._transaction() as db:
            db.execute("DELETE FROM forgotten WHERE kind = ? AND name = ?", (kind, name))

    def forgotten(self, kind: Forgotten) -> tuple[str, ...]:
        """All of this kind, sorted."""
        return tuple(row["name"] for row in self._rows("SELECT name FROM forgotten WHERE kind = ? ORDER BY name", kind))

    def drop_task(self, name: str) -> None:
        """Forget how far a task has come, and what was decided on it."""
        with self._transaction() as db:
            db.execute("DELETE FROM decisions WHERE task = ?", (name,))
            db.execute("DELETE FROM tasks WHERE name = ?", (name,))

    def put_task(self, row: TaskRow) -> None:
        """Write how far a task has come, over what was written of it before."""
        with self._transaction() as db:
            values = (row.name, row.digest, row.state, row.learned_at)
            db.execute("INSERT OR REPLACE INTO tasks VALUES (?, ?, ?, ?)", values)

    def tasks(self) -> tuple[TaskRow, ...]:
        """All tasks, sorted by name."""
        return tuple(TaskRow(**row) for row in self._rows("SELECT * FROM tasks ORDER BY name"))

    def put_decision(self, row: DecisionRow) -> None:
        """Write what was decided on a task's content, over what was written of it before; the oldest ones go."""
        with self._transaction() as db:
            decision = None if row.decision is None else _to_json(row.decision)
            values = (row.task, row.digest, row.at, decision, row.outcome, _to_json(row.facts))
            db.execute("INSERT OR REPLACE INTO decisions VALUES (?, ?, ?, ?, ?, ?)", values)
            db.execute(
                """DELETE FROM decisions WHERE rowid NOT IN
                (SELECT rowid FROM decisions ORDER BY at DESC, rowid DESC LIMIT ?)""",
                (MAX_DECISIONS,),
            )

    def decisions(self) -> tuple[DecisionRow, ...]:
        """All that are kept, the oldest first."""
        return tuple(map(_decision, self._rows("SELECT * FROM decisions ORDER BY at, rowid")))

    def decision_on(self, task: str, digest: Digest) -> DecisionRow | None:
        """What is kept of one content of a task."""
        rows = self._rows("SELECT * FROM decisions WHERE task = ? AND digest = ?", task, digest)
        return _decision(rows[0]) if rows else None

    def last_decision(self) -> DecisionRow | None:
        """The newest row with a decision."""
        query = "SELECT * FROM decisions WHERE decision IS NOT NULL ORDER BY at DESC, rowid DESC LIMIT 1"
        rows = self._rows(query)
        return _decision(rows[0]) if rows else None

    def _rows(self, query: str, *values: str) -> list[dict[str, Any]]:
        with self._translated() as db:
            return [dict(row) for row in db.execute(query, values)]

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All that the block writes, or nothing of it."""
        with self._translated() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")

    @contextlib.contextmanager
    def _translated(self) -> Iterator[sqlite3.Connection]:
        """The connection, alone; SQLite's errors become those the class promises."""
        with self._lock:
            assert self._connection is not None, "the ledger is not open"
            try:
                yield self._connection
            except sqlite3.OperationalError as exc:
                full = exc.sqlite_errorcode == sqlite3.SQLITE_FULL
                raise OSError(errno.ENOSPC if full else errno.EIO, str(exc), str(self._path)) from exc
            except sqlite3.IntegrityError:
                raise  # a bug of ours: the file is as good as before
            except sqlite3.DatabaseError as exc:
                raise StateUnreadable(self._path, str(exc)) from exc


def _decision(row: dict[str, Any]) -> DecisionRow:
    return DecisionRow(
        task=row["task"],
        digest=row["digest"],
        at=row["at"],
        decision=None if row["decision"] is None else json.loads(row["decision"]),
        outcome=row["outcome"],
        facts=json.loads(row["facts"]),
    )


def _expert_values(expert: ExpertRow) -> tuple[str | bool | None, ...]:
    return (
        expert.uid,
        expert.kind,
        _to_json(expert.architecture),
        _to_json(expert.classes),
        expert.origin,
        _to_json(expert.ancestors),
        expert.lineage,
        expert.standing,
        expert.placed,
    )


def _write_generation(db: sqlite3.Connection, generation: Generation, *, inherits: bool = True) -> Generation:
    uid, reached = generation.uid, generation.reached
    if not db.execute("SELECT 1 FROM experts WHERE uid = ?", (uid,)).fetchone():
        raise UnknownExpert(uid)
    newest = db.execute(
        "SELECT number, tasks FROM generations WHERE uid = ? ORDER BY number DESC LIMIT 1", (uid,)
    ).fetchone()
    number, before = (newest["number"], _tasks_of(newest["tasks"])) if newest else (0, ())
    tasks = all_tasks(before, generation.tasks) if inherits else generation.tasks
    written = dataclasses.replace(generation, number=number + 1, tasks=tasks)
    values = (
        uid,
        written.number,
        written.digest,
        written.cause,
        written.parent,
        written.created_at,
        0 if reached is None else reached.steps,
        None if reached is None else reached.run,
        written.round,
        None if tasks is None else _to_json(tasks),
    )
    db.execute("INSERT INTO generations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
    return written


def _tasks_of(column: str | None) -> tuple[str, ...] | None:
    return None if column is None else tuple(json.loads(column))


def _to_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
