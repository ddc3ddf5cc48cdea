"""Ledger and blobs together: every kill leaves a state that can be read, and nothing acknowledged is lost."""

import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from dying import die_at_step

from meshnode import home as home_module
from meshnode.errors import StateTooNew
from meshnode.home import Home
from meshnode.state.ledger import Ledger
from meshnode.state.rows import NewWeights, Reached, TaskRow
from meshnode.state.state import KEPT_GENERATIONS, State
from protocol.errors import BlobCorrupt, UnknownExpert
from protocol.identifiers import Digest, ExpertUid, MeshId, PeerId, digest_of
from protocol.records import RouterContribution
from protocol.spec import ExpertForm, ImageInput, MeshSpec, encode_spec

UID = ExpertUid(digest_of(b"expert"))
OTHER = ExpertUid(digest_of(b"other expert"))
REACHED = Reached(run="run", steps=50)
WEIGHTS = ((UID, b"two"), (OTHER, b"first"), (UID, b"three"))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.fixture
def state(home: Home) -> Iterator[State]:
    with State(home) as state:
        host(state)
        yield state


def host(state: State, uid: ExpertUid = UID) -> None:
    state.add_expert(uid, architecture={"kind": "mlp"}, classes=("a", "b"))


def commit(state: State, weights: bytes, uid: ExpertUid = UID) -> Digest:
    return state.commit_generation(uid, weights, cause="trained", reached=REACHED, now_s=1000.0).digest


def contribution(statistics: bytes, *, version: int = 1, task: str = "digits") -> RouterContribution:
    return RouterContribution(
        mesh_id=MeshId("0" * 64),
        peer_id=PeerId("Qm" + "a" * 44),
        task=task,
        version=version,
        statistics=digest_of(statistics),
        samples={"a": 3},
        issued_at=1000.0,
    )


def spoil(home: Home, digest: Digest) -> None:
    path = home.blobs / digest
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


# --- generations ---


def test_generations_form_a_chain(state: State) -> None:
    first = state.commit_generation(UID, b"one", cause="initial", now_s=1000.0)
    second = state.commit_generation(UID, b"two", cause="trained", reached=REACHED, now_s=1010.0)
    assert (first.number, first.parent, first.reached, first.created_at) == (1, None, None, 1000.0)
    assert (second.number, second.parent, second.cause) == (2, first.digest, "trained")
    assert second.reached == REACHED
    assert state.current(UID) == second
    assert state.blobs.get(second.digest) == b"two"


def test_without_a_moment_the_clock_gives_it(state: State) -> None:
    before = time.time()
    assert before <= state.commit_generation(UID, b"one", cause="initial").created_at <= time.time()


def test_a_committed_generation_is_there_after_a_restart(home: Home) -> None:
    with State(home) as state:
        host(state)
        digest = commit(state, b"one")
    with State(home) as state:
        assert [row.uid for row in state.hosted_experts()] == [UID]
        current = state.current(UID)
        assert current is not None
        assert current.digest == digest


def test_an_expert_without_generations_has_no_current_one(state: State) -> None:
    assert state.current(UID) is None
    assert state.current(OTHER) is None


def test_weights_of_an_expert_not_hosted_are_refused_and_not_stored(state: State) -> None:
    with pytest.raises(UnknownExpert) as caught:
        commit(state, b"one", OTHER)
    assert caught.value.uid == OTHER
    assert state.blobs.digests() == ()


def test_a_corrupt_newest_generation_gives_way_to_the_one_before_and_says_so(
    state: State, home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    digests = [commit(state, weights) for weights in (b"one", b"two", b"three")]
    spoil(home, digests[2])
    with caplog.at_level(logging.WARNING):
        current = state.current(UID)
    assert current is not None
    assert (current.number, current.digest) == (2, digests[1])
    assert "'generation': 3" in caplog.text
    assert UID in caplog.text


def test_a_lost_blob_counts_as_corrupt_and_losing_all_leaves_none(state: State, home: Home) -> None:
    digests = [commit(state, weights) for weights in (b"one", b"two")]
    (home.blobs / digests[1]).unlink()
    current = state.current(UID)
    assert current is not None
    assert current.number == 1
    (home.blobs / digests[0]).unlink()
    assert state.current(UID) is None


def test_after_a_fall_back_numbers_go_on_and_the_parent_is_what_was_loaded(state: State, home: Home) -> None:
    digests = [commit(state, weights) for weights in (b"one", b"two")]
    spoil(home, digests[1])
    assert state.current(UID) is not None
    third = state.commit_generation(UID, b"three", cause="trained", now_s=1000.0)
    assert third.number == 3  # 2 has been advertised with other weights
    assert third.parent == digests[0]


def test_committing_the_lost_weights_again_restores_them(state: State, home: Home) -> None:
    digest = commit(state, b"one")
    spoil(home, digest)
    commit(state, b"one")
    assert state.blobs.get(digest) == b"one"


def test_generations_of_several_experts_are_kept_together(state: State) -> None:
    host(state, OTHER)
    before = commit(state, b"one")
    new = [NewWeights(uid=uid, weights=weights, cause="averaged", round=3) for uid, weights in WEIGHTS]
    generations = state.commit_generations(new)
    assert [(made.uid, made.number, made.parent) for made in generations] == [
        (UID, 2, before),
        (OTHER, 1, None),
        (UID, 3, digest_of(b"two")),
    ]
    assert {made.round for made in generations} == {3}
    assert [state.blobs.get(made.digest) for made in generations] == [b"two", b"first", b"three"]
    assert (state.current(UID), state.current(OTHER)) == (generations[2], generations[1])


def test_one_foreign_expert_keeps_all_from_being_written(state: State) -> None:
    commit(state, b"one")
    with pytest.raises(UnknownExpert):
        state.commit_generations([NewWeights(uid=uid, weights=weights, cause="averaged") for uid, weights in WEIGHTS])
    assert len(state.ledger.generations(UID)) == 1
    assert state.blobs.digests() == (digest_of(b"one"),)


# --- kills and failing disks ---


def test_a_crash_between_blob_and_row_leaves_an_orphan_that_is_collected(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_args: object, **_kwargs: object) -> None:
        raise Killed

    with State(home) as state:
        host(state)
        kept = commit(state, b"one")
        with monkeypatch.context() as patch:
            patch.setattr(Ledger, "add_generations", killed)
            with pytest.raises(Killed):
                commit(state, b"two")
    with State(home) as state:
        current = state.current(UID)
        assert current is not None
        assert current.digest == kept
        assert state.collect_garbage() == (digest_of(b"two"),)
        assert state.blobs.digests() == (kept,)


@pytest.mark.parametrize("uids", [(UID,), (UID, OTHER)], ids=["one", "several"])
def test_a_kill_at_every_step_of_a_commit_keeps_all_the_old_generations_or_all_the_new(
    home: Home, uids: tuple[ExpertUid, ...]
) -> None:
    """A forked child commits, and dies at its k-th call that touches the disk, for every k."""
    with State(home) as state:
        for uid in uids:
            host(state, uid)
            commit(state, b"generation 0", uid)
    outcomes = set()
    for step in range(1, 60):
        new = [NewWeights(uid=uid, weights=b"generation %d of " % step + uid.encode(), cause="trained") for uid in uids]
        child = os.fork()
        if child == 0:
            die_at_step(step, lambda new=new: _commit_in(home, new))
        _, status = os.waitpid(child, 0)
        exit_code = os.waitstatus_to_exitcode(status)
        with State(home) as state:
            current = [state.current(uid) for uid in uids]
            assert current == [state.ledger.generations(uid)[0] for uid in uids], "a row without its blob"
            (is_new,) = {
                found is not None and found.digest == digest_of(one.weights)
                for found, one in zip(current, new, strict=True)
            }
            outcomes.add(is_new)
            assert not [name for name in os.listdir(home.blobs) if name.endswith(".tmp")]
            if exit_code == 0:
                assert is_new
                break
        assert exit_code == 137
    else:
        pytest.fail("the child never came to its end")
    assert step > 5
    assert outcomes == {True, False}


WRITER = """
import os, sys
from pathlib import Path
from meshnode.home import Home
from meshnode.state.state import State
from protocol.identifiers import ExpertUid
with State(Home(Path(sys.argv[1]))) as state:
    while True:
        weights = os.urandom(3000)
        digest = state.commit_generation(ExpertUid(sys.argv[2]), weights, cause="trained", now_s=1.0).digest
        os.write(1, (digest + "\\n").encode())
        state.collect_garbage()
"""


def test_a_kill_at_a_random_moment_loses_nothing_that_was_acknowledged(home: Home) -> None:
    with State(home) as state:
        host(state)
    rng = random.Random(19)
    acknowledged = 0
    for _ in range(8):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(home.path), UID], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            first = writer.stdout.readline()
            time.sleep(rng.uniform(0, 0.1))
            writer.send_signal(signal.SIGKILL)
            printed = [first, *writer.stdout.read().splitlines(keepends=True)]
        digests = [Digest(line.strip()) for line in printed if line.endswith("\n")]
        acknowledged += len(digests)
        with State(home) as state:
            generations = state.ledger.generations(UID)
            assert digests[-1] in [generation.digest for generation in generations[:2]]
            for generation in generations[:KEPT_GENERATIONS]:
                state.blobs.get(generation.digest)
    assert acknowledged > 8


@pytest.mark.parametrize("failing", ["posix_fallocate", "fsync", "replace"])
def test_a_failing_disk_leaves_the_current_generation_serving(
    state: State, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = commit(state, b"one")

    def fail(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(home_module.os, failing, fail)
        with pytest.raises(OSError, match="No space"):
            commit(state, b"two")
    current = state.current(UID)
    assert current is not None
    assert current.digest == kept
    assert commit(state, b"two") == digest_of(b"two")


def test_a_state_of_a_later_version_is_refused(home: Home) -> None:
    with State(home) as state:
        state.ledger._rows("PRAGMA user_version = 99")
    with pytest.raises(StateTooNew), State(home):
        pass


# --- garbage ---


def test_three_generations_are_kept_of_each_expert(state: State) -> None:
    host(state, OTHER)
    ours = [commit(state, b"ours %d" % number) for number in range(5)]
    theirs = [commit(state, b"theirs %d" % number, OTHER) for number in range(2)]
    assert state.collect_garbage() == tuple(sorted(ours[:2]))
    assert [generation.digest for generation in state.ledger.generations(UID)] == ours[:1:-1]
    assert state.blobs.digests() == tuple(sorted(ours[2:] + theirs))
    assert state.collect_garbage() == ()


def test_weights_that_a_kept_generation_shares_with_a_dropped_one_stay(state: State) -> None:
    shared = commit(state, b"shared")
    for number in range(3):
        commit(state, b"%d" % number)
    commit(state, b"shared")
    state.collect_garbage()
    assert state.blobs.get(shared) == b"shared"


def test_corrupt_generations_do_not_count_among_those_kept(state: State, home: Home) -> None:
    digests = [commit(state, b"%d" % number) for number in range(5)]
    for digest in digests[2:]:
        spoil(home, digest)
    state.collect_garbage()
    current = state.current(UID)
    assert current is not None
    assert current.digest == digests[1]


def test_a_mesh_spec_and_its_trunk_are_kept_for_the_setting_that_names_the_mesh(home: Home) -> None:
    with State(home) as state:
        trunk = state.blobs.put(b"trunk")
        spec = encode_spec(_spec(trunk))
        state.set_setting("mesh_id", state.blobs.put(spec))
        orphan = state.blobs.put(b"orphan")
    with State(home) as state:
        assert state.get_setting("mesh_id") == digest_of(spec)
        assert state.collect_garbage() == (orphan,)
        assert state.blobs.get(trunk) == b"trunk"


def test_a_blob_that_a_task_names_is_kept(home: Home) -> None:
    with State(home) as state:
        digest = state.blobs.put(b"task")
        state.ledger.put_task(TaskRow(name="digits", digest=digest, state="waiting", learned_at=None))
    with State(home) as state:
        assert state.collect_garbage() == ()


def test_a_blob_just_put_is_spared_until_the_next_start(home: Home) -> None:
    with State(home) as state:
        digest = state.blobs.put(b"to be named in a moment")
        assert state.collect_garbage() == ()
    with State(home) as state:
        assert state.collect_garbage() == (digest,)


# --- contributions ---


def test_contributions_are_kept_with_their_statistics(home: Home) -> None:
    with State(home) as state:
        assert state.add_contribution(contribution(b"s2", task="b"), b"sealed 2", b"s2")
        assert state.add_contribution(contribution(b"s1", task="a"), b"sealed 1", b"s1")
    with State(home) as state:
        assert state.contributions() == (b"sealed 1", b"sealed 2")
        assert state.collect_garbage() == ()
        assert state.blobs.get(digest_of(b"s1")) == b"s1"


def test_a_newer_contribution_replaces_and_its_predecessor_is_garbage(state: State) -> None:
    assert state.add_contribution(contribution(b"old"), b"sealed old", b"old")
    assert state.add_contribution(contribution(b"new", version=2), b"sealed new", b"new")
    assert not state.add_contribution(contribution(b"stale"), b"sealed stale", b"stale")
    assert state.contributions() == (b"sealed new",)
    assert state.collect_garbage() == tuple(sorted([digest_of(b"old"), digest_of(b"stale")]))
    assert state.blobs.has(digest_of(b"new"))


def test_statistics_other_than_those_signed_are_refused(state: State) -> None:
    with pytest.raises(BlobCorrupt):
        state.add_contribution(contribution(b"signed"), b"sealed", b"forged")
    assert state.contributions() == ()
    assert state.blobs.digests() == ()


def test_a_contribution_whose_statistics_are_lost_is_left_out_until_they_come_again(
    state: State, home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    state.add_contribution(contribution(b"statistics"), b"sealed", b"statistics")
    spoil(home, digest_of(b"statistics"))
    with caplog.at_level(logging.WARNING):
        assert state.contributions() == ()
    assert "digits" in caplog.text
    assert not state.add_contribution(contribution(b"statistics"), b"sealed", b"statistics")
    assert state.contributions() == (b"sealed",)


def _spec(trunk: Digest) -> MeshSpec:
    return MeshSpec(
        name="mesh",
        input=ImageInput(channels=1, pixels=8),
        trunk=trunk,
        feature_dim=16,
        expert=ExpertForm("linear", {"feature_dim": 16, "input_scale": 0.3}),
        calibration="random images",
    )


def _commit_in(home: Home, new: Sequence[NewWeights]) -> None:
    with State(home) as state:
        state.commit_generations(new)
        state.collect_garbage()
