"""hivemind's own clients and servers, unmodified, in the DHT of a mesh: each finds and uses the other's experts.

hivemind's DHT and server fork, so they run as programs of their own: `hivemind_client.py` and `hivemind_server.py`
beside this folder.
"""

import asyncio
import json
import math
import os
import select
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.p2p import PeerID
from hivemind.utils.timed_storage import get_dht_time
from integration_nodes import (
    RUN_MARK,
    Daemon,
    Daemons,
    complaints,
    digits_test,
    end_process,
    eventually,
    found,
    save_shard,
    shards,
)
from integration_pulled import Pulled, pull, transport_in
from torch import nn

from experts.checkpoint import weights_to_bytes
from experts.trunk.base import features_of
from meshnode import MeshClient
from meshnode.transport.moe.client import ForeignExpert
from protocol.declarations import Declaration, declarations_of
from protocol.errors import PeerUnreachable
from protocol.grid import cell_of, grid_name
from protocol.identifiers import ExpertUid, PeerId
from protocol.records import record_key

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

TESTS = Path(__file__).resolve().parents[1]
CLASSES = ("0", "1", "2", "3")
WITH_HIVEMIND = {"MESHNODE_SERVE__HIVEMIND": "true", "MESHNODE_AVERAGE__ENABLED": "false"}
"""Without averaging the two replicas of an expert differ, so that it shows whose weights a cell answers with."""

PROGRAM_S = 60.0
"""hivemind is imported, forked and connected; the search of a grid looks up sixteen prefixes a row. 8 s on a quiet
machine."""

ATTEMPTS = 3
"""hivemind forks a process that has threads: one start of its server in twenty hangs for ever."""


@contextmanager
def program(name: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A program beside the tests, with pipes; whatever it forked is ended with it."""
    process = subprocess.Popen(
        [sys.executable, str(TESTS / name), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent)},
    )
    try:
        yield process
    finally:
        for left in _processes_of(name):
            end_process(left)
        process.communicate()


def _processes_of(name: str) -> list[psutil.Process]:
    """The processes that this run has started under that program's name: a fork has its parent's."""
    found_ones = []
    for candidate in psutil.process_iter():
        with suppress(psutil.Error):
            if name in " ".join(candidate.cmdline()) and candidate.environ().get(RUN_MARK[0]) == RUN_MARK[1]:
                found_ones.append(candidate)
    return found_ones


@dataclass(frozen=True)
class RunningMesh:
    nodes: dict[str, Daemon]
    pulled: Pulled
    cells: dict[str, tuple[ExpertUid, PeerId]]
    """Whose cell each is, by cell, in the order in which they are asked."""

    @property
    def addresses(self) -> list[str]:
        return [node.address for node in self.nodes.values()]

    def features(self, number: int) -> np.ndarray:
        """Trunk features of so many test images, float32 ``(number, D)``."""
        features = features_of(self.pulled.trunk, digits_test(CLASSES, 60).images)
        return features.repeat(-(-number // len(features)), 1)[:number].numpy()

    def outputs(self, cell: str, features: torch.Tensor) -> torch.Tensor:
        """What is right, of the weights that the cell's peer advertises."""
        advert, module = self.pulled.replicas[self.cells[cell]]
        width = self.pulled.spec.moe_width
        return nn.functional.pad(torch.softmax(module(features), dim=-1), (0, width - len(advert.classes)))


@pytest.fixture(scope="module")
def mesh(_no_process_is_left_by_a_module: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    folder = tmp_path_factory.mktemp("mesh")
    first, second = shards(2)
    save_shard(folder / "ann", "1", first, CLASSES[:2])
    save_shard(folder / "ann", "2", first, CLASSES[2:])
    save_shard(folder / "ben", "1", second, CLASSES[:2])
    with Daemons.within(folder / "homes") as made:
        ann = made.make("ann", data=folder / "ann", env=WITH_HIVEMIND)
        found(ann.home, folder / "ann" / "1.npz")
        ann.launch().wait_ready()
        ben = made.make("ben", data=folder / "ben", join=[ann.address], env=WITH_HIVEMIND).launch().wait_ready()
        for node, tasks in ((ann, 2), (ben, 1)):
            node.wait_for(lambda node, tasks=tasks: len(node.status()["training"]["learned"]) == tasks, "all learned")
        for node in (ann, ben):
            node.wait_for(lambda node: sum(len(expert["replicas"]) for expert in node.experts()) == 3, "all known")
        pulled = asyncio.run(_pulled(folder / "stranger", ann.address))
        cells = {cell_of(pulled.mesh_id, uid, peer, 0): (uid, peer) for uid, peer in pulled.replicas}
        assert len(cells) == 3
        asyncio.run(_until_declared(ann.address, list(cells)))
        yield RunningMesh({"ann": ann, "ben": ben}, pulled, cells)
        for node in (ben, ann):
            assert node.terminate() == 0
            assert complaints(node.stderr) == []


async def _pulled(folder: Path, address: str) -> Pulled:
    async with transport_in(folder, client_only=True) as transport:
        return await pull(transport, await transport.connect(address))


async def _until_declared(address: str, cells: list[str]) -> None:
    async with await MeshClient.join([address]) as client, asyncio.timeout(20):
        while len(await client.foreign_experts(cells)) < len(cells):
            await asyncio.sleep(0.2)


@pytest.fixture(scope="module")
def answer(mesh: RunningMesh, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """What hivemind's clients found and were told, asked once for all tests here."""
    folder = tmp_path_factory.mktemp("client")
    generator = np.random.default_rng(1)
    asked = {
        "addresses": mesh.addresses,
        "cells": [*mesh.cells, f"{grid_name(mesh.pulled.mesh_id)}.0.0.0"],
        "prefix": grid_name(mesh.pulled.mesh_id),
    }
    width = mesh.pulled.spec.moe_width
    arrays = {}
    for kind, number in (("small", 20), ("large", 2200), ("mixture", 3)):
        arrays[f"{kind}_inputs"] = mesh.features(number)
        arrays[f"{kind}_grads"] = generator.standard_normal((number, width)).astype(np.float32)
    assert arrays["large_inputs"].nbytes > 4 * 2**20
    np.savez(folder / "request.npz", asked=json.dumps(asked), **arrays)
    for _ in range(ATTEMPTS):
        files = (folder / "request.npz", folder / "answer.npz")
        with suppress(subprocess.TimeoutExpired), program("hivemind_client.py", *files) as client:
            _, err = client.communicate(timeout=PROGRAM_S)
            assert client.returncode == 0, err
            eventually(lambda: not _processes_of("hivemind_client.py"), within_s=5, what="its forks have ended")
            break
    return dict(np.load(folder / "answer.npz")) | arrays


def test_what_is_found_says_which_expert_it_is_and_what_its_columns_mean(
    mesh: RunningMesh, answer: Mapping[str, Any]
) -> None:
    *infos, nobody = json.loads(str(answer["told"]))["infos"]
    assert nobody is None
    assert infos == [
        {"peer_id": peer, "expert": uid, "classes": list(mesh.pulled.classes_of(uid))}
        for uid, peer in mesh.cells.values()
    ]


@pytest.mark.parametrize("kind", ["small", "large"])
def test_a_remote_expert_answers_forward_and_backward_as_its_own_weights_do(
    mesh: RunningMesh, answer: Mapping[str, Any], kind: str
) -> None:
    grads = torch.from_numpy(answer[f"{kind}_grads"])
    for number, cell in enumerate(mesh.cells):
        inputs = torch.from_numpy(answer[f"{kind}_inputs"]).requires_grad_()
        outputs = mesh.outputs(cell, inputs)
        (gradients,) = torch.autograd.grad(outputs, inputs, grads)
        np.testing.assert_allclose(
            answer[f"{kind}_outputs_{number}"], outputs.detach().numpy(), rtol=0, atol=1e-6, strict=True
        )
        np.testing.assert_allclose(
            answer[f"{kind}_gradients_{number}"], gradients.numpy(), rtol=0, atol=1e-6, strict=True
        )
    # Two replicas of one expert that have learned apart: each cell answers with its own peer's weights.
    distinct = {tuple(answer[f"{kind}_outputs_{number}"][:20].ravel()) for number in range(len(mesh.cells))}
    assert len(distinct) == len(mesh.cells)


def test_a_remote_mixture_finds_all_replicas_by_beam_search_and_learns_through_them(
    mesh: RunningMesh, answer: Mapping[str, Any]
) -> None:
    chosen = json.loads(str(answer["told"]))["chosen"]
    assert [sorted(row) for row in chosen] == [sorted(mesh.cells)] * 3
    inputs = torch.from_numpy(answer["mixture_inputs"]).requires_grad_()
    weight, bias = (torch.from_numpy(answer[f"mixture_{name}"]).requires_grad_() for name in ("weight", "bias"))
    scores = (inputs @ weight.T + bias).split_with_sizes((16, 256, 256), dim=-1)
    logits = torch.stack(
        [
            sum(part[:, int(place)] for part, place in zip(scores, cell.split(".")[1:], strict=True))
            for cell in mesh.cells
        ],
        dim=1,
    )
    outputs_BKW = torch.stack([mesh.outputs(cell, inputs) for cell in mesh.cells], dim=1)
    outputs = (torch.softmax(logits, dim=1)[:, :, None] * outputs_BKW).sum(dim=1)
    outputs.backward(torch.from_numpy(answer["mixture_grads"]))
    np.testing.assert_allclose(answer["mixture_outputs"], outputs.detach().numpy(), rtol=0, atol=1e-6, strict=True)
    assert inputs.grad is not None
    assert weight.grad is not None
    np.testing.assert_allclose(answer["mixture_gradients"], inputs.grad.numpy(), rtol=0, atol=1e-6, strict=True)
    np.testing.assert_allclose(answer["mixture_weight_gradients"], weight.grad.numpy(), rtol=0, atol=1e-6, strict=True)


@pytest.fixture(scope="module")
def server(mesh: RunningMesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, nn.Module]]:
    """hivemind's own server: who it is, and the module that two of its experts have."""
    weights = tmp_path_factory.mktemp("server") / "weights.npz"
    for _ in range(ATTEMPTS):
        with program("hivemind_server.py", weights, *mesh.addresses) as process:
            assert process.stdout is not None
            ready, _, _ = select.select([process.stdout], [], [], PROGRAM_S / 2)
            if not ready:
                continue
            said = process.stdout.readline()
            assert said, process.communicate()[1]
            module = nn.Sequential(nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 5))
            module.load_state_dict({name: torch.from_numpy(value) for name, value in np.load(weights).items()})
            yield json.loads(said)["peer_id"], module
            process.communicate(timeout=PROGRAM_S)  # it ends when its stdin does
            assert process.returncode == 0
            eventually(lambda: not _processes_of("hivemind_server.py"), within_s=5, what="its forks have ended")
            return
    raise AssertionError("hivemind's server did not start")


async def test_our_client_uses_the_experts_of_hiveminds_own_server(
    mesh: RunningMesh, server: tuple[str, nn.Module]
) -> None:
    peer_id, module = server
    generator = np.random.default_rng(2)
    async with await MeshClient.join(mesh.addresses[1:]) as client:
        async with asyncio.timeout(20):
            while len(experts := await client.foreign_experts(["strange.3.5", "strange.3.6"])) < 2:
                await asyncio.sleep(0.2)
        assert {expert.peer_id for expert in experts.values()} == {peer_id}
        # In one message, and in parts of a batch beyond p2pd's 4 MiB; the second expert answers in float16.
        for cell, tolerance in (("strange.3.5", 1e-6), ("strange.3.6", 1e-3)):
            expert = experts[cell]
            assert (expert.info.inputs, expert.info.outputs) == ((24,), (5,))
            for number in (7, 50_000):
                inputs = generator.standard_normal((number, 24)).astype(np.float32)
                grads = generator.standard_normal((number, 5)).astype(np.float32)
                leaf = torch.from_numpy(inputs).requires_grad_()
                outputs = module(leaf)
                (gradients,) = torch.autograd.grad(outputs, leaf, torch.from_numpy(grads))
                answered = await expert.forward(inputs, timeout_s=20.0)
                np.testing.assert_allclose(answered, outputs.detach().numpy(), rtol=0, atol=tolerance, strict=True)
                back = await _gradient(expert, inputs, grads)
                np.testing.assert_allclose(back, gradients.numpy(), rtol=0, atol=tolerance, strict=True)
        # One that takes two tensors is left out, and one that nobody has declared.
        asked = ["strange.3.5", "strange.4.0", "strange.4.1"]
        assert list(await client.foreign_experts(asked)) == ["strange.3.5"]


async def _gradient(expert: ForeignExpert, inputs: np.ndarray, grads: np.ndarray) -> np.ndarray:
    """Asked again where p2pd has lost the end of the answer: this server has no optimizer that would take a step."""
    for _ in range(ATTEMPTS - 1):
        with suppress(PeerUnreachable):
            return await expert.backward(inputs, grads, timeout_s=20.0)
    return await expert.backward(inputs, grads, timeout_s=20.0)


async def test_no_call_of_theirs_has_changed_a_weight(
    mesh: RunningMesh, answer: Mapping[str, Any], tmp_path: Path
) -> None:
    assert answer["large_gradients_0"].any(), "they did call"
    now = await _pulled(tmp_path / "stranger", mesh.addresses[0])
    for replica, (advert, module) in mesh.pulled.replicas.items():
        assert now.replicas[replica][0] == advert
        assert weights_to_bytes(now.replicas[replica][1]) == weights_to_bytes(module)


@asynccontextmanager
async def _plain_node(addresses: list[str]) -> AsyncIterator[DHTNode]:
    """A plain hivemind node, without any guard, that stores nothing for others."""
    node = await DHTNode.create(
        initial_peers=addresses, client_mode=True, use_relay=False, auto_nat=False, nat_port_map=False
    )
    try:
        yield node
    finally:
        await node.shutdown()
        await node.protocol.p2p.shutdown()


async def _offer(node: DHTNode, peer_id: str, entry: Declaration, *, ttl_s: float = 60.0) -> bool:
    """Ask one peer to store this; whether it did."""
    dumps = node.protocol.serializer.dumps
    expires_at = get_dht_time() + ttl_s
    (taken,) = await node.protocol.call_store(
        PeerID.from_base58(peer_id),
        [DHTID.generate(entry.key)],
        [dumps(entry.value)],
        [expires_at],
        subkeys=[entry.subkey],
    )
    return bool(taken)


async def test_a_node_without_the_setting_stores_no_declarations_and_one_with_it_nothing_else(
    mesh: RunningMesh, daemons: Daemons
) -> None:
    ann = mesh.nodes["ann"]
    without = daemons.make("cho", join=[ann.address], options=["--no-train"]).launch().wait_ready()
    records = record_key(mesh.pulled.mesh_id)
    async with _plain_node([ann.address, without.address]) as node:
        me = node.peer_id.to_base58()
        entries = declarations_of("other.3.20.200", me)
        for entry in entries:
            assert await _offer(node, ann.peer_id, entry)
            assert not await _offer(node, without.peer_id, entry)
        keys = [DHTID.generate(entry.key) for entry in entries]
        for peer_id, holds in ((ann.peer_id, True), (without.peer_id, False)):
            found_there = await node.protocol.call_find(PeerID.from_base58(peer_id), keys)
            assert [found_there[key][0] is not None for key in keys] == [holds] * 3
        # Whoever has declared it answers nothing: our client leaves it out instead of waiting.
        async with await MeshClient.join([ann.address]) as client:
            assert await client.foreign_experts([entries[0].key], timeout_s=5.0) == {}
        own, longer, shorter = entries
        refused = {
            "too long a life": (own, 301.0),
            "a life without end": (own, math.inf),
            "no life at all": (longer, math.nan),
            "a mark that nobody is there": (Declaration("other.5.", -1, None), 60.0),
            "under another prefix": (longer._replace(key=shorter.key), 60.0),
            "under another coordinate": (longer._replace(subkey=201), 60.0),
            "something else": (own._replace(value={"peer": me}), 60.0),
            "a cell aimed at the mesh's records": (own._replace(key=records), 300.0),
        }
        for what, (entry, ttl_s) in refused.items():
            assert not await _offer(node, ann.peer_id, entry, ttl_s=ttl_s), what
    # The mesh goes on as before: its records are there, and its nodes find one another by them alone.
    assert {peer["name"] for peer in ann.get("peers")["peers"]} == {"ann", "ben", "cho"}
    assert len(without.experts()) == 2
    assert without.terminate() == 0
    assert complaints(without.stderr) == []
