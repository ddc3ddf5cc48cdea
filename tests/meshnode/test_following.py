"""A node follows what its peers have carried over, after a look of its own; what loses too much it declines."""

import asyncio
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from mesh_in_memory import announce_all, memory_network
from migrated_experts import WIDER, learned_weights
from successions import migrate, other_weights
from trained_nodes import TrainedNode, trained_node
from training_nodes import until

from meshnode.following import RETRY_S
from meshnode.hosted import FOLLOWED
from meshnode.migration_order import MigrationRequest, WantedForm
from meshnode.replicas import Fetched, Replicas
from meshnode.transport.memory import MemoryNetwork
from protocol.errors import UnknownBlob
from protocol.identifiers import ExpertUid, digest_of
from protocol.lineage import Accuracy

GOOD, BAD = Accuracy(old=0.99, new=0.99, samples=100), Accuracy(old=0.99, new=0.9, samples=100)
REQUEST = MigrationRequest(to=WantedForm(kind="mlp", settings={"hidden": 6}))


def maker(network: MemoryNetwork, folder: Path) -> AbstractAsyncContextManager[TrainedNode]:
    """The node "a", whose successors are made by hand."""
    return trained_node(network, "a", folder, train=False)


async def succeeded(
    maker: TrainedNode, old: ExpertUid, *, weights: bytes | None = None, accuracy: Accuracy | None = GOOD
) -> ExpertUid:
    """Have a node serve a successor that nobody looked at, a good one unless told, and say this of it."""
    weights = weights or learned_weights(hidden=6)
    expert = maker.node.host.get(old)
    return (await migrate(maker.node, expert, WIDER, weights=weights, accuracy=accuracy)).uid


async def see(*nodes: TrainedNode) -> None:
    """Everybody says what it hosts, everybody looks, and those who follow are told so."""
    await announce_all([trained.node for trained in nodes])
    for trained in nodes:
        trained.following.look_again()


async def test_a_peers_new_form_is_followed_after_a_look_at_ones_own_images(tmp_path: Path) -> None:
    network = memory_network()
    async with maker(network, tmp_path) as a, trained_node(network, "b", tmp_path) as b:
        old = await a.learned()
        await b.learned()
        new = await succeeded(a, old, accuracy=BAD)
        await see(a, b)
        await until(lambda: new in b.node.host.experts)
        mine, theirs = a.node.host.get(new), b.node.host.get(new)
        assert (mine.weights, mine.origin, mine.lineage) == (theirs.weights, theirs.origin, theirs.lineage)
        assert old in b.node.host.retired
        (told,) = b.told("expert_succeeded")
        assert (told["expert"], told["succeeds"], told["cause"]) == (new, old, FOLLOWED)
        assert told["new_accuracy"] > BAD.new, "as it was here, not as its maker says"


async def test_what_is_worse_on_ones_own_images_is_declined_whatever_its_maker_says(tmp_path: Path) -> None:
    network = memory_network()
    async with maker(network, tmp_path) as a, trained_node(network, "b", tmp_path) as b:
        old = await a.learned()
        await b.learned()
        new = await succeeded(a, old, weights=other_weights(WIDER, 2))
        await see(a, b)
        await until(lambda: b.told("successor_declined"))
        assert b.node.host.experts.keys() == {old}
        assert b.node.state.is_declined(new)
        (told,) = b.told("successor_declined")
        assert (told["expert"], told["successor"]) == (old, new)
        assert "held-out images" in told["reason"]
        await see(a, b)
        assert b.following.successor_of(old) is None, "once is enough"


@pytest.mark.parametrize("train", [True, False], ids=["no images here", "training off"])
@pytest.mark.parametrize(
    ("accuracy", "taken"), [(GOOD, True), (BAD, False), (None, False)], ids=["good", "bad", "untold"]
)
async def test_without_images_of_ones_own_the_lineages_figures_count(
    tmp_path: Path, train: bool, accuracy: Accuracy | None, taken: bool
) -> None:
    network = memory_network()
    async with (
        maker(network, tmp_path) as a,
        trained_node(network, "b", tmp_path, data=False, train=train) as b,
    ):
        old = await a.learned()
        await b.learned()
        new = await succeeded(a, old, accuracy=accuracy)
        await see(a, b)
        await until(lambda: b.told("expert_succeeded") or b.told("successor_declined"))
        assert b.node.host.experts.keys() == {new if taken else old}
        assert b.node.state.is_declined(new) == (not taken)


async def test_a_successor_that_was_rolled_back_is_not_followed_again(tmp_path: Path) -> None:
    network = memory_network()
    async with maker(network, tmp_path) as a, trained_node(network, "b", tmp_path) as b:
        old = await a.learned()
        await b.learned()
        new = await succeeded(a, old)
        await see(a, b)
        await until(lambda: old in b.node.host.retired)
        await b.node.host.roll_back(new)
        await see(a, b)
        assert b.following.successor_of(old) is None
        assert b.node.host.experts.keys() == {old}
        # Its user may still ask for it: it is had from the peer, with the peer's weights.
        migration = await b.over(b.migrations.order(old, REQUEST))
        assert (migration.state, migration.followed) == ("done", True)
        assert b.node.host.get(new).weights == a.node.host.get(new).weights


async def test_what_cannot_be_had_is_tried_again(tmp_path: Path) -> None:
    network = memory_network()
    async with maker(network, tmp_path) as a, trained_node(network, "b", tmp_path) as b:
        old = await a.learned()
        await b.learned()
        new = await succeeded(a, old)
        await announce_all([a.node, b.node])
        network.partition(frozenset({a.node.peer_id}))
        assert b.following.successor_of(old) == new
        with pytest.raises(UnknownBlob):
            await b.following.follow(old, new)
        assert not b.node.state.is_declined(new)
        network.partition()
        b.following.look_again()
        await until(lambda: new in b.node.host.experts)


async def test_what_fails_again_and_again_is_not_tried_with_every_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, tries = memory_network(), []

    async def refused(_replicas: Replicas, uid: ExpertUid) -> Fetched:
        tries.append(uid)
        raise UnknownBlob(digest_of(b"weights"))

    async with (
        maker(network, tmp_path) as a,
        trained_node(network, "b", tmp_path, data=False, train=False) as b,
    ):
        old = await a.learned()
        await b.learned()
        new = await succeeded(a, old)
        now_s = 100.0
        b.following.now_s = lambda: now_s
        with monkeypatch.context() as broken:
            broken.setattr(Replicas, "fetch", refused)
            await see(a, b)
            await until(lambda: tries)
            for _ in range(3):
                b.following.look_again()
                await asyncio.sleep(0.02)
            assert tries == [new]
            now_s += RETRY_S
            b.following.look_again()
            await until(lambda: tries == [new, new])
        now_s += RETRY_S
        b.following.look_again()
        await until(lambda: new in b.node.host.experts)


async def test_an_order_for_what_a_peer_has_made_takes_the_peers(tmp_path: Path) -> None:
    network = memory_network()
    async with maker(network, tmp_path) as a, trained_node(network, "b", tmp_path) as b:
        old = await a.learned()
        await b.learned()
        new = await succeeded(a, old)
        await announce_all([a.node, b.node])
        migration = await b.over(b.migrations.order(old, REQUEST))
        assert (migration.state, migration.followed, migration.layers) == ("done", True, ())
        assert migration.successor == new
        assert b.node.host.get(new).weights == a.node.host.get(new).weights
