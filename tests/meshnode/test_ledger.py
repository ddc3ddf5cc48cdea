"""The ledger: rows come back as written, writes are all or nothing, and foreign files are refused."""

import dataclasses
import errno
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshnode.errors import StateTooNew, StateUnreadable
from meshnode.state import ledger as ledger_module
from meshnode.state import schema
from meshnode.state.ledger import Ledger
from meshnode.state.rows import (
    ContributionRow,
    DecisionRow,
    ExpertRow,
    Generation,
    Reached,
    SpareRow,
    TaskRow,
    WithdrawalRow,
)
from meshnode.state.schema import SCHEMA_VERSION
from protocol.errors import UnknownExpert
from protocol.identifiers import Digest, ExpertUid, PeerId, digest_of

UID = ExpertUid(digest_of(b"expert"))
EXPERT = ExpertRow(
    uid=UID,
    architecture={"kind": "mlp", "hidden": 8, "input_scale": 0.3},
    classes=("zèbre", "cat"),
    origin=digest_of(b"other weights"),
)
REACHED = Reached(run="run", steps=50)
CONTRIBUTION = ContributionRow(
    peer_id=PeerId("Qm" + "a" * 44),
    task="digits",
    version=2,
    sealed=b"\0\xff",
    statistics=digest_of(b"statistics"),
)


BARE = Generation(uid=UID, digest=digest_of(b"w"), cause="trained", parent=None, created_at=1.5, reached=None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with Ledger(path) as ledger:
        yield ledger


def add(ledger: Ledger, data: bytes, parent: Digest | None = None) -> Generation:
    generation = Generation(
        uid=UID, digest=digest_of(data), cause="trained", parent=parent, created_at=1.5, reached=REACHED, round=7
    )
    (written,) = ledger.add_generations([generation])
    return written


def test_everything_written_is_there_after_reopening(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.set_setting("mesh_id", "a")
        ledger.set_setting("mesh_id", "b")
        ledger.add_expert(EXPERT)
        generation = add(ledger, b"1")
        ledger.add_contribution(CONTRIBUTION)
        task = TaskRow(name="digits", digest=digest_of(b"task"), state="learned", learned_at=2.5)
        ledger.put_task(dataclasses.replace(task, state="waiting", learned_at=None))
        ledger.put_task(task)
    with Ledger(path) as ledger:
        assert ledger.setting("mesh_id") == "b"
        assert ledger.setting("other") is None
        assert ledger.settings() == {"mesh_id": "b"}
        assert ledger.experts() == (EXPERT,)
        assert ledger.experts()[0].kind == "mlp"
        assert ledger.generations(UID) == (generation,)
        assert ledger.contributions() == (CONTRIBUTION,)
        assert ledger.tasks() == (task,)
        assert ledger.withdrawals() == ledger.forgotten("task") == ledger.forgotten("peer") == ()


def test_hosting_an_expert_again_changes_nothing(ledger: Ledger) -> None:
    ledger.add_expert(EXPERT)
    add(ledger, b"1")
    ledger.add_expert(EXPERT)
    assert len(ledger.generations(UID)) == 1


def test_generations_count_up_and_never_back(ledger: Ledger) -> None:
    ledger.add_expert(EXPERT)
    first = add(ledger, b"1")
    second = add(ledger, b"2", parent=first.digest)
    assert (first.number, second.number) == (1, 2)
    assert ledger.generations(UID) == (second, first)
    ledger.drop_generations(UID, below=2)
    assert ledger.generations(UID) == (second,)
    assert add(ledger, b"3").number == 3


def test_a_generation_of_a_foreign_expert_is_refused(ledger: Ledger) -> None:
    with pytest.raises(UnknownExpert) as caught:
        add(ledger, b"1")
    assert caught.value.uid == UID
    assert ledger.generations(UID) == ()
    ledger.add_expert(EXPERT)
    assert add(ledger, b"1").number == 1


def test_generations_are_written_all_or_none(ledger: Ledger) -> None:
    ledger.add_expert(EXPERT)
    own = add(ledger, b"1")
    foreign = dataclasses.replace(own, uid=ExpertUid(digest_of(b"foreign")))
    with pytest.raises(UnknownExpert):
        ledger.add_generations([own, foreign])
    assert ledger.generations(UID) == (own,)
    assert [written.number for written in ledger.add_generations([own, own])] == [2, 3]


@pytest.mark.parametrize(("version", "kept"), [(1, False), (2, False), (3, True)])
def test_only_a_newer_contribution_replaces(ledger: Ledger, version: int, kept: bool) -> None:
    assert ledger.add_contribution(CONTRIBUTION)
    other = dataclasses.replace(CONTRIBUTION, version=version, sealed=b"other")
    assert ledger.add_contribution(other) is kept
    assert ledger.contributions() == ((other if kept else CONTRIBUTION),)


def test_contributions_come_in_the_order_of_their_keys_not_of_their_arrival(ledger: Ledger) -> None:
    rows = [
        dataclasses.replace(CONTRIBUTION, peer_id=PeerId("Qm" + peer * 44), task=task)
        for peer, task in [("b", "1"), ("a", "2"), ("a", "1")]
    ]
    for row in rows:
        ledger.add_contribution(row)
    assert ledger.contributions() == tuple(reversed(rows))


def withdrawal(version: int) -> WithdrawalRow:
    return WithdrawalRow(
        peer_id=CONTRIBUTION.peer_id, task=CONTRIBUTION.task, version=version, sealed=b"withdrawn %d" % version
    )


@pytest.mark.parametrize("version", [1, 2, 3])
def test_the_higher_of_contribution_and_withdrawal_stays_in_either_order(path: Path, version: int) -> None:
    """The contribution's version is 2; of equal versions nothing counts."""
    found = []
    for order in (0, 1):
        with Ledger(path.with_name(str(order))) as ledger:
            steps = [lambda: ledger.add_contribution(CONTRIBUTION), lambda: ledger.add_withdrawal(withdrawal(version))]
            for step in steps[:: -1 if order else 1]:
                step()
            found.append((ledger.contributions(), ledger.withdrawals()))
    assert found[0] == found[1] == (((CONTRIBUTION,), ()) if version == 1 else ((), (withdrawal(version),)))


def test_an_older_withdrawal_does_not_replace_a_newer_one_and_a_newer_contribution_ends_it(ledger: Ledger) -> None:
    ledger.add_withdrawal(withdrawal(4))
    ledger.add_withdrawal(withdrawal(3))
    assert ledger.withdrawals() == (withdrawal(4),)
    assert not ledger.add_contribution(dataclasses.replace(CONTRIBUTION, version=4))
    assert ledger.add_contribution(dataclasses.replace(CONTRIBUTION, version=5))
    assert ledger.withdrawals() == ()


def test_what_is_forgotten_is_remembered_until_it_is_lifted(path: Path) -> None:
    with Ledger(path) as ledger:
        for kind, name in (("task", "digits"), ("task", "digits"), ("peer", "digits"), ("task", "boots")):
            ledger.forget(kind, name)
    with Ledger(path) as ledger:
        assert (ledger.forgotten("task"), ledger.forgotten("peer")) == (("boots", "digits"), ("digits",))
        ledger.unforget("task", "digits")
        assert (ledger.forgotten("task"), ledger.forgotten("peer")) == (("boots",), ("digits",))


def test_a_generation_has_the_tasks_of_all_before_it_until_one_starts_over(ledger: Ledger) -> None:
    ledger.add_expert(EXPERT)
    rows = [dataclasses.replace(BARE, tasks=tasks) for tasks in ((), ("b",), (), ("a", "b"), None)]
    made = [*ledger.add_generations(rows[:2]), *ledger.add_generations(rows[2:])]
    assert [generation.tasks for generation in made] == [(), ("b",), ("b",), ("a", "b"), None]
    assert ledger.generations(UID) == tuple(reversed(made))
    over = ledger.start_over(dataclasses.replace(BARE, tasks=("c",)))
    assert (over.number, over.tasks) == (6, ("c",))
    assert ledger.generations(UID) == (over,)
    ledger.drop([UID], at=None)
    assert (ledger.experts(), ledger.generations(UID)) == ((), ())


def test_writers_in_many_threads_never_share_a_number(ledger: Ledger) -> None:
    ledger.add_expert(EXPERT)
    threads = [threading.Thread(target=lambda: [add(ledger, b"x") for _ in range(10)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [generation.number for generation in ledger.generations(UID)] == list(range(40, 0, -1))


def test_writes_are_synced_in_full(path: Path) -> None:
    with Ledger(path) as ledger:
        (row,) = ledger._rows("PRAGMA synchronous")
        assert row["synchronous"] == 2
        (row,) = ledger._rows("PRAGMA journal_mode")
        assert row["journal_mode"] == "wal"


def test_a_full_disk_is_an_os_error_and_changes_nothing(ledger: Ledger) -> None:
    ledger.set_setting("key", "old")
    (row,) = ledger._rows("PRAGMA page_count")
    ledger._rows(f"PRAGMA max_page_count = {row['page_count']}")
    with pytest.raises(OSError, match="full") as caught:
        ledger.set_setting("key", "new" * 100_000)
    assert caught.value.errno == errno.ENOSPC
    assert ledger.setting("key") == "old"
    ledger.set_setting("key", "short")
    assert ledger.setting("key") == "short"


def test_a_ledger_of_a_later_version_is_refused_untouched(path: Path) -> None:
    Ledger(path).open().close()
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    db.close()
    before = path.read_bytes()
    with pytest.raises(StateTooNew) as caught:
        Ledger(path).open()
    assert (caught.value.found, caught.value.supported) == (SCHEMA_VERSION + 1, SCHEMA_VERSION)
    assert path.read_bytes() == before


ADDED = {
    1: ("ALTER TABLE generations DROP COLUMN run",),
    2: ("ALTER TABLE experts DROP COLUMN origin", "ALTER TABLE generations DROP COLUMN round"),
    3: (
        "ALTER TABLE experts DROP COLUMN ancestors",
        "ALTER TABLE experts DROP COLUMN lineage",
        "ALTER TABLE experts DROP COLUMN standing",
        "DROP TABLE declined",
    ),
    4: ("ALTER TABLE generations DROP COLUMN tasks", "DROP TABLE withdrawals", "DROP TABLE forgotten"),
    5: ("ALTER TABLE experts DROP COLUMN placed", "DROP TABLE dropped"),
    6: ("DROP TABLE decisions",),
    7: ("DROP TABLE spare",),
}
"""What each version did not have yet, taken away again."""


@pytest.mark.parametrize("version", ADDED)
def test_a_ledger_of_an_earlier_version_is_taken_over(path: Path, version: int) -> None:
    with Ledger(path) as ledger:
        ledger.add_expert(EXPERT)
        generation = add(ledger, b"1")
        for later in range(version, SCHEMA_VERSION):
            for statement in ADDED[later]:
                ledger._rows(statement)
        ledger._rows(f"PRAGMA user_version = {version}")
    with Ledger(path) as ledger:
        known = dataclasses.replace(
            generation,
            round=7 if version > 2 else 0,
            reached=None if version == 1 else REACHED,
            tasks=() if version > 4 else None,
        )
        assert ledger.generations(UID) == (known,)
        (expert,) = ledger.experts()
        assert expert == dataclasses.replace(EXPERT, origin=EXPERT.origin if version > 2 else None)
        assert (expert.ancestors, expert.lineage, expert.standing) == ((), None, "current")
        newer = add(ledger, b"2")
        assert newer.tasks == known.tasks, "what is not known of its parent is not known of it"
        ledger.succeed(UID, SUCCESSOR, first_of(SUCCESSOR))
    with Ledger(path) as ledger:
        assert ledger.generations(UID)[0] == newer
        assert standings(ledger) == {UID: "retired", SUCCESSOR.uid: "current"}


# --- what the mesh can do without ---


def test_what_the_mesh_can_do_without_is_there_after_reopening_until_it_is_wanted_again(path: Path) -> None:
    unused = SpareRow(uid=UID, since=5.5, cause="unused")
    merged = SpareRow(uid=SUCCESSOR.uid, since=7.0, cause="merged", instead=UID, handed_on=True)
    with Ledger(path) as ledger:
        ledger.add_expert(dataclasses.replace(EXPERT, placed=True))
        ledger.put_spare(dataclasses.replace(unused, since=9.0))
        for row in (unused, merged):
            ledger.put_spare(row)
        ledger.retire(UID)
    with Ledger(path) as ledger:
        assert ledger.spare() == {row.uid: row for row in sorted((unused, merged), key=lambda row: row.uid)}
        assert standings(ledger) == {UID: "retired"}
        with pytest.raises(UnknownExpert):
            ledger.retire(UID)
        ledger.revive(UID)
        assert standings(ledger) == {UID: "current"}
        assert not ledger.experts()[0].placed
        assert ledger.spare() == {merged.uid: merged}
        ledger.drop_spare(merged.uid)
        assert ledger.spare() == {}
        with pytest.raises(UnknownExpert):
            ledger.revive(UID)


# --- successions ---

SUCCESSOR = ExpertRow(
    uid=ExpertUid(digest_of(b"successor")),
    architecture={"kind": "linear"},
    classes=EXPERT.classes,
    origin=digest_of(b"first weights"),
    ancestors=(UID,),
    lineage=digest_of(b"lineage"),
)


def first_of(expert: ExpertRow, data: bytes = b"first weights") -> Generation:
    return Generation(
        uid=expert.uid, digest=digest_of(data), cause="migrated", parent=None, created_at=2.5, reached=None
    )


def standings(ledger: Ledger) -> dict[ExpertUid, str]:
    return {expert.uid: expert.standing for expert in ledger.experts()}


def test_a_successor_takes_the_place_of_one_that_is_kept_and_gives_it_back(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.add_expert(EXPERT)
        kept = add(ledger, b"1")
        assert ledger.succeed(UID, SUCCESSOR, first_of(SUCCESSOR)).number == 1
    with Ledger(path) as ledger:
        assert {expert.uid: expert for expert in ledger.experts()}[SUCCESSOR.uid] == SUCCESSOR
        assert standings(ledger) == {UID: "retired", SUCCESSOR.uid: "current"}
        assert ledger.generations(UID) == (kept,)
        assert not ledger.is_declined(SUCCESSOR.uid)
        ledger.roll_back(SUCCESSOR.uid, UID)
    with Ledger(path) as ledger:
        assert standings(ledger) == {UID: "current", SUCCESSOR.uid: "declined"}
        assert ledger.is_declined(SUCCESSOR.uid)


def test_a_declined_successor_comes_anew_without_what_it_was(ledger: Ledger) -> None:
    ledger.add_expert(EXPERT)
    ledger.succeed(UID, SUCCESSOR, first_of(SUCCESSOR))
    ledger.roll_back(SUCCESSOR.uid, UID)
    again = dataclasses.replace(SUCCESSOR, origin=digest_of(b"other"), lineage=digest_of(b"other lineage"))
    first = ledger.succeed(UID, again, first_of(again, b"other"))
    assert ledger.generations(SUCCESSOR.uid) == (first,)
    assert first.number == 2, "a number is never given twice"
    assert {expert.uid: expert for expert in ledger.experts()}[SUCCESSOR.uid] == again
    assert not ledger.is_declined(SUCCESSOR.uid)


@pytest.mark.parametrize("old", [SUCCESSOR.uid, ExpertUid(digest_of(b"nobody"))], ids=["retired", "unknown"])
def test_only_a_current_expert_is_succeeded_and_a_refusal_changes_nothing(ledger: Ledger, old: ExpertUid) -> None:
    ledger.add_expert(EXPERT)
    ledger.add_expert(dataclasses.replace(SUCCESSOR, standing="retired"))
    third = dataclasses.replace(SUCCESSOR, uid=ExpertUid(digest_of(b"third")))
    before = ledger.experts()
    with pytest.raises(UnknownExpert) as caught:
        ledger.succeed(old, third, first_of(third))
    assert caught.value.uid == old
    assert ledger.experts() == before
    with pytest.raises(UnknownExpert):
        ledger.roll_back(UID, third.uid)
    assert ledger.experts() == before
    assert not ledger.is_declined(UID)


def test_what_is_declined_need_not_be_hosted(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.decline(UID)
        ledger.decline(UID)
    with Ledger(path) as ledger:
        assert ledger.is_declined(UID)
        assert not ledger.is_declined(SUCCESSOR.uid)


def test_a_file_that_is_no_ledger_is_refused_untouched(path: Path) -> None:
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(StateUnreadable) as caught:
        Ledger(path).open()
    assert caught.value.path == path
    assert path.read_bytes() == b"not a database" * 100


def test_a_damaged_ledger_is_refused_at_the_start(path: Path) -> None:
    with Ledger(path) as ledger:
        for number in range(200):
            ledger.set_setting(f"key {number}", "value" * 50)
    damaged = bytearray(path.read_bytes())
    damaged[4096:] = b"\xff" * (len(damaged) - 4096)
    path.write_bytes(damaged)
    with pytest.raises(StateUnreadable):
        Ledger(path).open()


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_a_ledger_whose_making_was_interrupted_is_made_again(
    path: Path, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.touch()
    with monkeypatch.context() as patch:
        patch.setattr(schema, "_SCHEMA", (*schema._SCHEMA[:steps], "interrupted"))
        with pytest.raises(StateUnreadable):
            Ledger(path).open()
    with Ledger(path) as ledger:
        assert ledger.settings() == {}


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StateUnreadable, match="gone"):
        Ledger(tmp_path / "gone" / "ledger.sqlite").open()


def test_closing_twice_is_harmless(path: Path) -> None:
    ledger = Ledger(path).open()
    ledger.close()
    ledger.close()


# --- decisions ---


def decision(task: str, at: float, **changed: object) -> DecisionRow:
    row = DecisionRow(
        task=task,
        digest=digest_of(b"1"),
        at=at,
        decision={"action": "spawn", "spawn": ["zèbre"]},
        outcome=None,
        facts={},
    )
    return dataclasses.replace(row, **changed)  # type: ignore[arg-type]


def test_decisions_are_kept_by_content_and_go_with_their_task(path: Path) -> None:
    under_way = decision("b", 2.0)
    over = dataclasses.replace(under_way, outcome="learned", facts={"seconds": 1.5})
    failed, other = decision("a", 3.0, decision=None, outcome="failed"), decision("b", 1.0, digest=digest_of(b"2"))
    with Ledger(path) as ledger:
        for row in (under_way, failed, other, over):
            ledger.put_decision(row)
    with Ledger(path) as ledger:
        assert ledger.decisions() == (other, over, failed)
        assert (ledger.last_decision(), ledger.decision_on("b", other.digest)) == (over, other)
        assert ledger.decision_on("a", other.digest) is None
        ledger.drop_task("b")
        assert (ledger.decisions(), ledger.last_decision()) == ((failed,), None)


def test_of_decisions_the_newest_are_kept(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "MAX_DECISIONS", 3)
    for number in (3, 1, 4, 2, 5):
        ledger.put_decision(decision(f"task {number}", float(number)))
    assert [row.task for row in ledger.decisions()] == ["task 3", "task 4", "task 5"]


# --- why a replica is here ---


def test_that_a_replica_is_placed_is_kept_until_it_is_wanted_for_itself(path: Path) -> None:
    placed = dataclasses.replace(EXPERT, placed=True)
    with Ledger(path) as ledger:
        ledger.add_expert(placed)
    with Ledger(path) as ledger:
        assert ledger.experts() == (placed,)
        ledger.keep(UID)
    with Ledger(path) as ledger:
        assert ledger.experts() == (EXPERT,)


def test_a_dropped_expert_leaves_nothing_but_that_it_was_unwanted(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.add_expert(EXPERT)
        add(ledger, b"1")
        ledger.drop([UID], at=None)
        assert (ledger.experts(), ledger.generations(UID), ledger.dropped()) == ((), (), {})
        ledger.add_expert(EXPERT)
        ledger.drop([UID], at=12.5)
    with Ledger(path) as ledger:
        assert ledger.dropped() == {UID: 12.5}
        ledger.add_expert(EXPERT)
        assert ledger.dropped() == {}
        assert add(ledger, b"2").number == 1
