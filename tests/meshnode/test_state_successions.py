"""A successor takes its place whole or not at all, whenever the process dies, and is kept with all it needs."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dying import die_at_step

from meshnode.home import Home
from meshnode.state.rows import ExpertRow
from meshnode.state.state import KEPT_GENERATIONS, State
from protocol.errors import UnknownExpert
from protocol.identifiers import ExpertUid, digest_of

OLD, NEW, NEWEST = (ExpertUid(digest_of(name)) for name in (b"old", b"new", b"newest"))
LINEAGE = b"how the new one was made"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def host(state: State) -> None:
    state.add_expert(OLD, architecture={"kind": "mlp"}, classes=("a", "b"))
    state.commit_generation(OLD, b"old weights", cause="trained")


def succeed(state: State, old: ExpertUid = OLD, uid: ExpertUid = NEW, *, weights: bytes = b"new weights") -> None:
    ancestors = {NEW: (OLD,), NEWEST: (OLD, NEW)}[uid]
    row = ExpertRow(
        uid=uid,
        architecture={"kind": "linear"},
        classes=("a", "b"),
        origin=digest_of(weights),
        ancestors=ancestors,
        lineage=digest_of(LINEAGE),
    )
    state.succeed(old, row, weights, LINEAGE, cause="migrated", round_=3)


def standings(state: State) -> dict[ExpertUid, str]:
    return {row.uid: row.standing for row in state.hosted_experts()}


def assert_whole(state: State) -> None:
    """Every expert has what it takes to serve it, and what its advert names."""
    for row in state.hosted_experts():
        generation = state.current(row.uid)
        assert generation is not None
        assert generation == state.ledger.generations(row.uid)[0]
        assert (row.lineage is None) == (not row.ancestors)
        if row.lineage is not None:
            assert state.blobs.get(row.lineage) == LINEAGE


def kill_at_every_step(home: Home, act: Callable[[State], None]) -> Iterator[State]:
    """What each kill leaves of a copy of the home, and in the end what no kill does."""
    for step in range(1, 100):
        trial = Home(home.path.with_name(f"killed at {step}"))
        shutil.copytree(home.path, trial.path)
        child = os.fork()
        if child == 0:
            die_at_step(step, lambda trial=trial: _act_in(trial, act))
        _, status = os.waitpid(child, 0)
        exit_code = os.waitstatus_to_exitcode(status)
        with State(trial) as state:
            assert_whole(state)
            yield state
        if exit_code == 0:
            return
        assert exit_code == 137
    pytest.fail("the child never came to its end")


def _act_in(home: Home, act: Callable[[State], None]) -> None:
    with State(home) as state:
        act(state)


def test_a_successors_first_generation_descends_from_the_weights_of_the_old_one(home: Home) -> None:
    with State(home) as state:
        host(state)
        succeed(state)
    with State(home) as state:
        (first,) = state.ledger.generations(NEW)
        assert (first.cause, first.round, first.parent) == ("migrated", 3, digest_of(b"old weights"))
        assert standings(state) == {OLD: "retired", NEW: "current"}


def test_a_kill_at_every_step_of_a_succession_leaves_the_old_one_current_or_the_new(home: Home) -> None:
    def act(state: State) -> None:
        succeed(state)
        state.collect_garbage()

    with State(home) as state:
        host(state)
    left = [standings(state) for state in kill_at_every_step(home, act)]
    is_made = [found == {OLD: "retired", NEW: "current"} for found in left]
    assert all(made or found == {OLD: "current"} for made, found in zip(is_made, left, strict=True))
    assert is_made == sorted(is_made), "once it is made, a later kill does not unmake it"
    assert is_made.count(False) > 10
    assert is_made.count(True) > 1


def test_a_kill_at_every_step_of_a_roll_back_leaves_the_one_current_or_the_other(home: Home) -> None:
    with State(home) as state:
        host(state)
        succeed(state)
    left = [
        (standings(state), state.is_declined(NEW))
        for state in kill_at_every_step(home, lambda state: state.roll_back(NEW, OLD))
    ]
    before, after = ({OLD: "retired", NEW: "current"}, False), ({OLD: "current", NEW: "declined"}, True)
    assert left == [before] * left.count(before) + [after] * left.count(after)
    assert min(left.count(before), left.count(after)) > 0


def test_what_a_retired_expert_and_a_lineage_need_survives_the_garbage_and_restarts(home: Home) -> None:
    with State(home) as state:
        host(state)
        for number in range(5):
            state.commit_generation(OLD, b"%d" % number, cause="trained")
        succeed(state)
        succeed(state, NEW, NEWEST, weights=b"newest weights")
        state.collect_garbage()
    with State(home) as state:
        assert state.collect_garbage() == ()
        assert_whole(state)
        assert standings(state) == {OLD: "retired", NEW: "retired", NEWEST: "current"}
        assert len(state.ledger.generations(OLD)) == KEPT_GENERATIONS


def test_the_blobs_of_a_succession_that_came_anew_are_garbage(home: Home) -> None:
    with State(home) as state:
        host(state)
        succeed(state, weights=b"first try")
        state.roll_back(NEW, OLD)
        assert state.is_declined(NEW)
        succeed(state, weights=b"second try")
        assert not state.is_declined(NEW)
    with State(home) as state:
        assert state.collect_garbage() == (digest_of(b"first try"),)
        assert_whole(state)


def test_what_cannot_be_succeeded_or_rolled_back_changes_nothing(home: Home) -> None:
    with State(home) as state:
        host(state)
        with pytest.raises(UnknownExpert):
            succeed(state, NEW, NEWEST)
        with pytest.raises(UnknownExpert):
            state.roll_back(OLD, NEW)
        assert standings(state) == {OLD: "current"}
        state.decline(NEWEST)
    with State(home) as state:
        assert state.is_declined(NEWEST)
        assert not state.is_declined(NEW)


def test_what_a_successor_had_before_it_was_declined_is_deleted_once_it_comes_anew(home: Home) -> None:
    with State(home) as state:
        host(state)
        succeed(state, weights=b"first")
        state.roll_back(NEW, OLD)
        assert digest_of(b"first") not in state.collect_garbage(), "a declined one is kept"
        succeed(state, weights=b"second")
        assert state.collect_garbage() == (digest_of(b"first"),)
        assert_whole(state)
