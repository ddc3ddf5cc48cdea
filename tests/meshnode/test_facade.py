"""The node's experts as hivemind's clients see them: a cell each, answers in the mesh's width, weights untouched."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from mesh_in_memory import MESH, MemoryNode, form, memory_network, memory_node
from torch import nn

from experts.architectures.base import probabilities
from experts.checkpoint import weights_to_bytes
from meshnode import facade as facade_module
from meshnode.compute import Compute
from meshnode.facade import Facade, input_gradient
from meshnode.mesh import Mesh
from meshnode.telemetry.instruments import Instruments
from meshnode.transport.moe.interface import CellAnswers, ExpertInfo
from protocol.errors import Busy, UnknownExpert
from protocol.grid import MAX_CELL_ATTEMPTS, cell_of
from protocol.identifiers import ExpertUid, PeerId

STRANGER = PeerId("12D3KooWLhHHPJbXxE2XSTMMhCYMfU1VnPb914j2vRuSj1hZFhga")
D = MESH.spec.feature_dim


class FakeNetwork:
    """A DHT that takes what it is told, and says who was there before."""

    def __init__(self, peer_id: PeerId) -> None:
        self.held: dict[str, str] = {}
        self.peer_id = peer_id
        self.declared: list[tuple[frozenset[str], float]] = []
        """Each declaration: its cells, and when it expires."""
        self.taking = True
        self.answers: CellAnswers | None = None

    @asynccontextmanager
    async def answering(self, answers: CellAnswers) -> AsyncIterator[None]:
        self.answers = answers
        try:
            yield
        finally:
            self.answers = None

    async def declare(self, cells: Sequence[str], *, expires_at: float) -> bool:
        self.declared.append((frozenset(cells), expires_at))
        if self.taking:
            self.held |= dict.fromkeys(cells, self.peer_id)
        return self.taking

    async def holders(self, cells: Sequence[str]) -> Mapping[str, str]:
        return {cell: self.held[cell] for cell in cells if cell in self.held}

    @property
    def cells(self) -> frozenset[str]:
        """Those last declared."""
        return self.declared[-1][0]

    async def after(self, declarations: int) -> None:
        async with asyncio.timeout(5):
            while len(self.declared) < declarations:
                await asyncio.sleep(0.005)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[MemoryNode]:
    async with memory_node(memory_network(), "a", tmp_path) as made:
        yield made


@pytest.fixture
def network(node: MemoryNode) -> FakeNetwork:
    return FakeNetwork(node.peer_id)


def facade_of(node: MemoryNode, network: FakeNetwork, *, mesh: Mesh = MESH, ttl_s: float = 60.0) -> Facade:
    return Facade(network, node.transport, mesh, node.host, node.compute, ttl_s=ttl_s)


def wide(width: int) -> Mesh:
    return replace(MESH, spec=msgspec.structs.replace(MESH.spec, moe_width=width))


def cell(node: MemoryNode, uid: ExpertUid, attempt: int = 0) -> str:
    return cell_of(MESH.mesh_id, uid, node.peer_id, attempt)


def batch(rows: int, columns: int = D, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


# --- answers ---


async def test_outputs_are_the_experts_probabilities_and_zeros_up_to_the_meshs_width(
    node: MemoryNode, network: FakeNetwork
) -> None:
    expert = await node.spawn("1", "0")
    await node.learn(expert.uid, seed=1)
    facade = facade_of(node, network)
    await facade.declare()
    here = cell(node, expert.uid)
    assert facade.describe(here) == ExpertInfo(inputs=(D,), outputs=(32,), expert=expert.uid, classes=("0", "1"))
    features = batch(5)
    outputs = await facade.forward(here, features)
    assert (outputs.dtype, outputs.shape) == (np.float32, (5, 32))
    expected = probabilities(node.host.get(expert.uid).module, torch.from_numpy(features)).numpy()
    np.testing.assert_allclose(outputs[:, :2], expected, rtol=0, atol=1e-7)
    assert not outputs[:, 2:].any()


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("mlp", {"hidden": 4}), ("linear", {}), ("adapter", {}), ("conv", {"filters": 2}), ("deep", {})],
)
async def test_the_gradient_is_autograds_own_and_no_weight_changes(
    node: MemoryNode, network: FakeNetwork, kind: str, settings: dict[str, object]
) -> None:
    expert = await node.spawn("0", "1", "2", form=form(kind, **settings))
    await node.learn(expert.uid, seed=1)
    module = node.host.get(expert.uid).module
    facade, here = facade_of(node, network, mesh=wide(5)), cell(node, expert.uid)
    await facade.declare()
    features, grads = batch(7), batch(7, 5, seed=1)
    before = weights_to_bytes(module)

    gradient = await facade.backward(here, features, grads)

    leaf = torch.from_numpy(features).requires_grad_()
    padded = nn.functional.pad(torch.softmax(module(leaf), dim=-1), (0, 2))
    (expected,) = torch.autograd.grad((padded * torch.from_numpy(grads)).sum(), leaf)
    assert (gradient.dtype, gradient.shape) == (np.float32, (7, D))
    np.testing.assert_allclose(gradient, expected.numpy(), rtol=0, atol=1e-6)
    assert expected.abs().max() > 1e-4, "the example says something"
    assert node.host.get(expert.uid).module is module
    assert weights_to_bytes(module) == before
    assert all(parameter.grad is None for parameter in module.parameters())
    # What is said of the padding, which is constant, has no effect.
    grads[:, 3:] += 100
    assert np.array_equal(await facade.backward(here, features, grads), gradient)


def test_the_gradient_is_taken_also_where_gradients_are_off() -> None:
    module, features, grads = nn.Linear(4, 3), torch.randn(2, 4), torch.randn(2, 3)
    with torch.no_grad():
        without = input_gradient(module, features, grads)
    torch.testing.assert_close(without, input_gradient(module, features, grads), rtol=0, atol=0)
    assert not features.requires_grad


async def test_a_batch_without_rows_is_answered_without_rows(node: MemoryNode, network: FakeNetwork) -> None:
    expert = await node.spawn("0", "1")
    facade, here = facade_of(node, network), cell(node, expert.uid)
    await facade.declare()
    assert (await facade.forward(here, batch(0))).shape == (0, 32)
    assert (await facade.backward(here, batch(0), batch(0, 32))).shape == (0, D)


async def test_a_cell_where_nobody_is_is_an_unknown_expert(node: MemoryNode, network: FakeNetwork) -> None:
    expert = await node.spawn("0", "1")
    facade = facade_of(node, network)
    with pytest.raises(UnknownExpert):  # hosted, but not declared yet
        facade.describe(cell(node, expert.uid))
    await facade.declare()
    facade.describe(cell(node, expert.uid))
    for other in ("", "ffn.1", cell(node, expert.uid, attempt=1)):
        with pytest.raises(UnknownExpert):
            await facade.forward(other, batch(1))
        with pytest.raises(UnknownExpert):
            await facade.backward(other, batch(1), batch(1, 32))


async def test_requests_are_counted_as_those_of_peers_are(node: MemoryNode, network: FakeNetwork) -> None:
    expert, compute = await node.spawn("0", "1"), Compute(max_waiting=0)
    instruments = Instruments()
    facade = Facade(network, node.transport, MESH, node.host, compute, ttl_s=60.0, instruments=instruments)
    await facade.declare()
    await facade.forward(cell(node, expert.uid), batch(1))
    with pytest.raises(Busy):
        await facade.backward(cell(node, expert.uid), batch(1), batch(1, 32))
    compute.close()
    counted = instruments.inference_requests
    assert counted.labels("server", "ok")._value.get() == 1
    assert counted.labels("server", "busy")._value.get() == 1


# --- declarations ---


async def test_every_replica_has_a_cell_of_its_own_for_the_life_of_a_lease(
    node: MemoryNode, network: FakeNetwork
) -> None:
    uids = [(await node.spawn(*classes)).uid for classes in ("01", "23", "45")]
    assert await facade_of(node, network, ttl_s=30.0).declare()
    assert network.declared == [(frozenset(cell(node, uid) for uid in uids), node.transport.now_s() + 30.0)]


async def test_a_cell_that_another_peer_has_declared_means_the_next_attempt(
    node: MemoryNode, network: FakeNetwork
) -> None:
    first, second = (await node.spawn("0", "1")).uid, (await node.spawn("2", "3")).uid
    network.held = {cell(node, first, 0): STRANGER, cell(node, first, 1): STRANGER, cell(node, second, 1): STRANGER}
    facade = facade_of(node, network)
    await facade.declare()
    assert network.cells == {cell(node, first, 2), cell(node, second, 0)}
    # Taken over while it was ours: whoever knows the old cell is still answered.
    network.held[cell(node, second, 0)] = STRANGER
    await facade.declare()
    assert network.cells == {cell(node, first, 2), cell(node, second, 2)}
    assert facade.describe(cell(node, second, 0)) == facade.describe(cell(node, second, 2))
    with pytest.raises(UnknownExpert):
        facade.describe(cell(node, first, 0))


async def test_a_node_that_starts_again_takes_up_its_own_cells(node: MemoryNode, network: FakeNetwork) -> None:
    uid = (await node.spawn("0", "1")).uid
    network.held[cell(node, uid)] = STRANGER
    await facade_of(node, network).declare()
    network.held.pop(cell(node, uid))  # the stranger's lease has run out
    await facade_of(node, network).declare()
    assert network.cells == {cell(node, uid)}
    await facade_of(node, network).declare()
    assert network.cells == {cell(node, uid)}


async def test_two_experts_that_meet_in_one_cell_are_parted(
    node: MemoryNode, network: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crowded(mesh_id: str, uid: ExpertUid, peer_id: PeerId, attempt: int) -> str:
        return f"mm_x.0.0.{attempt}"

    monkeypatch.setattr(facade_module, "cell_of", crowded)
    uids = {(await node.spawn(*classes)).uid for classes in ("01", "23", "45")}
    facade = facade_of(node, network)
    for _ in range(2):
        await facade.declare()
        assert network.cells == {"mm_x.0.0.0", "mm_x.0.0.1", "mm_x.0.0.2"}
        assert {facade.describe(place).expert for place in network.cells} == uids


async def test_an_expert_without_a_free_cell_is_left_out_and_tried_anew(
    node: MemoryNode, network: FakeNetwork, caplog: pytest.LogCaptureFixture
) -> None:
    taken, free = (await node.spawn("0", "1")).uid, (await node.spawn("2", "3")).uid
    network.held = {cell(node, taken, attempt): STRANGER for attempt in range(MAX_CELL_ATTEMPTS)}
    facade = facade_of(node, network)
    assert await facade.declare()
    assert network.cells == {cell(node, free)}
    assert "declared all cells" in caplog.text
    network.held.pop(cell(node, taken, 5))
    await facade.declare()
    assert network.cells == {cell(node, free), cell(node, taken, 5)}


async def test_an_expert_with_more_classes_than_the_width_is_not_declared_and_that_is_said_once(
    node: MemoryNode, network: FakeNetwork, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    wider, fits = (await node.spawn("0", "1", "2")).uid, (await node.spawn("3", "4")).uid
    facade = facade_of(node, network, mesh=wide(2))
    for _ in range(3):
        await facade.declare()
        assert network.cells == {cell(node, fits)}
    assert len([record for record in caplog.records if "moe_width" in record.getMessage()]) == 1
    with pytest.raises(UnknownExpert):
        facade.describe(cell(node, wider))


@asynccontextmanager
async def running(facade: Facade) -> AsyncIterator[None]:
    task = asyncio.ensure_future(facade.run())
    try:
        yield
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_declarations_are_renewed_at_a_third_of_their_life(node: MemoryNode, network: FakeNetwork) -> None:
    await node.spawn("0", "1")
    began_s = asyncio.get_running_loop().time()
    async with running(facade_of(node, network, ttl_s=0.3)):
        await network.after(4)
        assert network.answers is not None
    assert asyncio.get_running_loop().time() - began_s >= 0.3
    assert network.answers is None, "whoever leaves answers no more"


async def test_a_new_expert_is_declared_at_once_and_a_new_generation_is_no_news(
    node: MemoryNode, network: FakeNetwork
) -> None:
    first = (await node.spawn("0", "1")).uid
    facade = facade_of(node, network)
    async with running(facade):
        await network.after(1)
        await node.learn(first, seed=1)
        facade.changed()
        await asyncio.sleep(0.05)
        assert len(network.declared) == 1
        second = (await node.spawn("2", "3")).uid
        facade.changed()
        await network.after(2)
    assert network.cells == {cell(node, first), cell(node, second)}


async def test_declarations_that_were_not_taken_are_made_again_soon(
    node: MemoryNode, network: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facade_module, "RETRY_S", 0.02)
    await node.spawn("0", "1")
    network.taking = False
    async with running(facade_of(node, network)):
        await network.after(3)
        network.taking = True
        await network.after(4)
        await asyncio.sleep(0.1)
        assert len(network.declared) <= 5


async def test_a_node_that_hosts_nothing_declares_nothing_and_waits(node: MemoryNode, network: FakeNetwork) -> None:
    facade = facade_of(node, network)
    async with running(facade):
        await network.after(1)
        await asyncio.sleep(0.05)
        assert [cells for cells, _ in network.declared] == [frozenset()]
