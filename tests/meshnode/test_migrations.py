"""An expert carried over on a node with a real worker: what loses hardly anything takes its place."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from mesh_in_memory import MESH, announce_all, memory_network
from migrated_experts import CLASSES, WIDER
from trained_nodes import TrainedNode, trained_node
from training_nodes import until

from meshnode.errors import NoSuchPeerOrExpert, Refused
from meshnode.hosted import MIGRATED
from meshnode.migration_order import MigrationRequest, WantedForm
from protocol.errors import MalformedMessage
from protocol.identifiers import ExpertUid, digest_of
from protocol.lineage import decode_lineage


def wider(hidden: int = 6, **asked: object) -> MigrationRequest:
    return MigrationRequest(to=WantedForm(kind="mlp", settings={"hidden": hidden}), **asked)


async def answers(trained: TrainedNode, uid: ExpertUid) -> np.ndarray:
    features = np.random.default_rng(0).normal(size=(5, MESH.spec.feature_dim)).astype(np.float32)
    return (await trained.node.host.answer(uid, features)).probabilities


async def test_what_loses_nothing_takes_the_old_ones_place_with_its_lineage(tmp_path: Path) -> None:
    async with trained_node(memory_network(), "a", tmp_path) as here:
        old = await here.learned()
        before, old_weights = await answers(here, old), here.node.host.get(old).weights
        migration = await here.over(here.migrations.order(old, wider(steps=20)))
        assert (migration.state, migration.error) == ("done", None)
        (new,) = here.node.host.experts.values()
        assert (new.uid, new.ancestors, new.classes) == (migration.successor, (old,), CLASSES)
        assert new.architecture == MESH.architecture(WIDER, 2)
        assert np.abs(await answers(here, new.uid) - before).max() < 0.2
        assert np.array_equal(await answers(here, old), before), "who asks for the old one is still answered by it"
        assert new.lineage is not None
        step = decode_lineage(here.node.state.blobs.get(new.lineage)).last
        assert (step.parent, step.parent_weights, step.weights) == (old, old_weights, new.weights)
        assert (step.peer_id, step.accuracy, step.layers) == (
            here.node.peer_id,
            migration.accuracy,
            migration.layers,
        )
        assert step.method.distillation_steps == 20
        (told,) = here.told("expert_succeeded")
        assert (told["expert"], told["succeeds"], told["cause"]) == (new.uid, old, MIGRATED)

        # And once more, from there.
        further = await here.over(here.migrations.order(new.uid, wider(9)))
        (newest,) = here.node.host.experts.values()
        assert (newest.uid, newest.ancestors) == (further.successor, (old, new.uid))
        assert newest.lineage is not None
        assert decode_lineage(here.node.state.blobs.get(newest.lineage)).steps[0] == step


async def test_after_a_roll_back_it_is_made_anew_though_this_nodes_own_record_still_lists_it(tmp_path: Path) -> None:
    async with trained_node(memory_network(), "a", tmp_path) as here:
        old = await here.learned()
        made = await here.over(here.migrations.order(old, wider(steps=1)))
        await announce_all([here.node])
        await here.node.host.roll_back(made.successor)
        assert made.successor in here.node.directory.experts()
        again = await here.over(here.migrations.order(old, wider(steps=20)))
        assert (again.state, again.followed) == ("done", False)
        lineage = here.node.host.get(again.successor).lineage
        assert lineage is not None
        assert decode_lineage(here.node.state.blobs.get(lineage)).last.method.distillation_steps == 20


async def test_what_would_lose_too_much_is_refused_with_both_figures(tmp_path: Path) -> None:
    async with trained_node(memory_network(), "a", tmp_path) as here:
        old = await here.learned()
        weights = here.node.host.get(old).weights
        # Nothing is carried over, and nothing fitted.
        migration = await here.over(here.migrations.order(old, wider(beta=0.0, refit=False, steps=0)))
        assert migration.state == "refused"
        assert migration.error is not None
        assert migration.accuracy is not None
        assert migration.accuracy.new < migration.accuracy.old - 0.01
        for figure in (migration.accuracy.old, migration.accuracy.new):
            assert f"{figure:.1%}" in str(migration.error["message"])
        (kept,) = here.node.host.experts.values()
        assert (kept.uid, kept.weights) == (old, weights)
        assert here.told("migration_failed")
        # Unless its user does not mind.
        minded = await here.over(here.migrations.order(old, wider(beta=0.0, refit=False, steps=0, margin=1.0)))
        assert minded.state == "done"


async def test_an_order_that_cannot_be_carried_out_is_refused_at_once(tmp_path: Path) -> None:
    async with trained_node(memory_network(), "a", tmp_path) as here:
        old = await here.learned()
        with pytest.raises(NoSuchPeerOrExpert):
            here.migrations.order(ExpertUid(digest_of(b"nobody's")), wider())
        with pytest.raises(Refused, match="has that form already"):
            here.migrations.order(old, wider(4))
        with pytest.raises(Refused, match="known kinds"):
            here.migrations.order(old, MigrationRequest(to=WantedForm(kind="none")))
        with pytest.raises(Refused, match="depth"):
            here.migrations.order(old, MigrationRequest(to=WantedForm(kind="mlp", settings={"depth": 3})))
        with pytest.raises(MalformedMessage, match="beta"):
            here.migrations.order(old, wider(beta=2.0))
        migration = here.migrations.order(old, wider())
        assert here.migrations.order(old, wider()) is migration, "it is under way"
        with pytest.raises(Refused, match="another form"):
            here.migrations.order(old, wider(7))
        await here.over(migration)
        with pytest.raises(Refused, match="retired"):
            here.migrations.order(old, wider(7))


async def test_without_training_nothing_is_carried_over(tmp_path: Path) -> None:
    async with trained_node(memory_network(), "a", tmp_path, train=False) as here:
        old = await here.learned()
        with pytest.raises(Refused, match="training is switched off"):
            here.migrations.order(old, wider())


async def test_without_data_it_fails_and_says_what_to_do(tmp_path: Path) -> None:
    async with trained_node(memory_network(), "a", tmp_path, data=False) as here:
        old = await here.learned()
        migration = await here.over(here.migrations.order(old, wider()))
        assert migration.state == "failed"
        assert migration.error is not None
        assert "no image left of 0, 1" in str(migration.error["message"])
        assert old in here.node.host.experts


async def test_a_kind_with_nothing_in_common_fails_and_the_worker_lives_on(tmp_path: Path) -> None:
    async with trained_node(memory_network(), "a", tmp_path) as here:
        old = await here.learned()
        failed = await here.over(here.migrations.order(old, MigrationRequest(to=WantedForm(kind="adapter"))))
        assert failed.state == "failed"
        assert failed.error is not None
        assert "nothing can be carried over" in str(failed.error["message"])
        assert (await here.over(here.migrations.order(old, wider()))).state == "done"
        assert here.trainer is not None
        assert here.trainer.status.restarts == 0


async def test_a_worker_killed_in_the_middle_leaves_the_old_one_and_the_next_order_is_carried_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshnode.trainer.service.RESTART_S", 0.05)
    async with trained_node(memory_network(), "a", tmp_path) as here:
        old = await here.learned()
        weights = here.node.host.get(old).weights
        killed = here.migrations.order(old, wider(steps=100_000))
        await until(lambda: killed.state == "distilling" and killed.done)
        assert here.trainer is not None
        assert here.trainer.status.state == "migrating"
        assert here.trainer.status.pid is not None
        os.kill(here.trainer.status.pid, signal.SIGKILL)
        await here.over(killed)
        assert killed.state == "failed"
        assert killed.error is not None
        assert "ended by itself" in str(killed.error["message"])
        (kept,) = here.node.host.experts.values()
        assert (kept.uid, kept.weights) == (old, weights)
        assert (await here.over(here.migrations.order(old, wider()))).state == "done"


async def test_a_disk_that_fails_at_the_end_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with trained_node(memory_network(), "a", tmp_path) as here:
        old = await here.learned()

        def full(*args: object, **kwargs: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(here.node.state, "succeed", full)
        failed = await here.over(here.migrations.order(old, wider()))
        assert failed.state == "failed"
        assert old in here.node.host.experts
        monkeypatch.undo()
        assert (await here.over(here.migrations.order(old, wider()))).state == "done"


async def test_an_order_waits_for_the_task_that_is_being_learned(tmp_path: Path) -> None:
    async with trained_node(memory_network(), "a", tmp_path) as here:
        old = await here.learned()
        assert here.trainer is not None
        async with here.trainer.borrow("learning"):
            migration = here.migrations.order(old, wider())
            await until(lambda: here.trainer.status.state == "learning")
            assert migration.state == "waiting"
        assert (await here.over(migration)).state == "done"
