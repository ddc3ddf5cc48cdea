"""The ledger's tables, and how those of every earlier version become the present ones."""

import sqlite3
from pathlib import Path
from typing import Final

from meshnode.errors import StateTooNew, StateUnreadable

__all__ = ["SCHEMA_VERSION", "prepare"]

SCHEMA_VERSION: Final = 8

_FORGETTING: Final = (
    """CREATE TABLE withdrawals (
        peer_id TEXT NOT NULL,
        task TEXT NOT NULL,
        version INTEGER NOT NULL,
        sealed BLOB NOT NULL,
        PRIMARY KEY (peer_id, task)
    ) STRICT""",
    """CREATE TABLE forgotten (
        kind TEXT NOT NULL,         -- task or peer
        name TEXT NOT NULL,
        PRIMARY KEY (kind, name)
    ) STRICT""",
)

_DECISIONS: Final = (
    """CREATE TABLE decisions (
        task TEXT NOT NULL,
        digest TEXT NOT NULL,       -- of its file
        at REAL NOT NULL,           -- Unix seconds
        decision TEXT,              -- JSON object; NULL if none was made
        outcome TEXT,               -- NULL while it is under way
        facts TEXT NOT NULL,        -- JSON object
        PRIMARY KEY (task, digest)
    ) STRICT""",
)

_SPARE: Final = (
    """CREATE TABLE spare (
        uid TEXT PRIMARY KEY,
        since REAL NOT NULL,        -- Unix seconds
        cause TEXT NOT NULL,
        instead TEXT,               -- uid; NULL for one that is unused
        handed_on INTEGER NOT NULL
    ) STRICT""",
)

_SCHEMA: Final = (
    "CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT",
    """CREATE TABLE experts (
        uid TEXT PRIMARY KEY,
        kind TEXT NOT NULL,
        architecture TEXT NOT NULL, -- JSON object
        classes TEXT NOT NULL,      -- JSON array
        origin TEXT,                -- digest; NULL for the initial weights
        ancestors TEXT NOT NULL DEFAULT '[]', -- JSON array of uids, the oldest first
        lineage TEXT,               -- digest; NULL without ancestors
        standing TEXT NOT NULL DEFAULT 'current',
        placed INTEGER NOT NULL DEFAULT 0
    ) STRICT""",
    "CREATE TABLE declined (uid TEXT PRIMARY KEY) STRICT",
    "CREATE TABLE dropped (uid TEXT PRIMARY KEY, at REAL NOT NULL) STRICT",  # Unix seconds
    """CREATE TABLE generations (
        uid TEXT NOT NULL REFERENCES experts (uid) ON DELETE CASCADE,
        number INTEGER NOT NULL,
        digest TEXT NOT NULL,
        cause TEXT NOT NULL,
        parent_digest TEXT,
        created_at REAL NOT NULL,   -- Unix seconds
        steps INTEGER NOT NULL,     -- of the run
        run TEXT,                   -- NULL before any
        round INTEGER NOT NULL DEFAULT 0,
        tasks TEXT,                 -- JSON array of names; NULL where unknown
        PRIMARY KEY (uid, number)
    ) STRICT""",
    """CREATE TABLE contributions (
        peer_id TEXT NOT NULL,
        task TEXT NOT NULL,
        version INTEGER NOT NULL,
        sealed BLOB NOT NULL,
        statistics TEXT NOT NULL,   -- digest
        PRIMARY KEY (peer_id, task)
    ) STRICT""",
    """CREATE TABLE tasks (
        name TEXT PRIMARY KEY,
        digest TEXT NOT NULL,
        state TEXT NOT NULL,
        learned_at REAL             -- Unix seconds
    ) STRICT""",
    *_FORGETTING,
    *_DECISIONS,
    *_SPARE,
)

_UPGRADES: Final = (
    # No run of before can be gone on with, for none of them has a name.
    ("ALTER TABLE generations ADD COLUMN run TEXT",),
    (
        "ALTER TABLE experts ADD COLUMN origin TEXT",
        "ALTER TABLE generations ADD COLUMN round INTEGER NOT NULL DEFAULT 0",
    ),
    (
        "ALTER TABLE experts ADD COLUMN ancestors TEXT NOT NULL DEFAULT '[]'",
        "ALTER TABLE experts ADD COLUMN lineage TEXT",
        "ALTER TABLE experts ADD COLUMN standing TEXT NOT NULL DEFAULT 'current'",
        "CREATE TABLE declined (uid TEXT PRIMARY KEY) STRICT",
    ),
    ("ALTER TABLE generations ADD COLUMN tasks TEXT", *_FORGETTING),
    (
        "ALTER TABLE experts ADD COLUMN placed INTEGER NOT NULL DEFAULT 0",
        "CREATE TABLE dropped (uid TEXT PRIMARY KEY, at REAL NOT NULL) STRICT",
    ),
    _DECISIONS,
    _SPARE,
)
"""From each version to the next, the first one's first; a column that is added stands where a new ledger has it."""


def prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Make the tables, or bring them up to date, and check the file through.

    Raises:
        StateTooNew: A later version of this program wrote it; it was not touched.
        StateUnreadable: It is damaged.
        sqlite3.DatabaseError: It is damaged further, or no ledger.
    """
    connection.row_factory = sqlite3.Row
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise StateTooNew(path, found=version, supported=SCHEMA_VERSION)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    if version < SCHEMA_VERSION:
        # One transaction, the version in it: a kill in between leaves a file that still counts as it was.
        connection.execute("BEGIN IMMEDIATE")
        upgrades = (statement for upgrade in _UPGRADES[version - 1 :] for statement in upgrade)
        for statement in _SCHEMA if version == 0 else upgrades:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("COMMIT")
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise StateUnreadable(path, verdict)
