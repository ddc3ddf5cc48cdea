"""A node without a mesh takes the mesh of its peers, checked by digest, and keeps it."""

import asyncio
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from mesh_in_memory import MESH, PIXELS, digits, key_of, memory_network, mesh_blobs, tiny_trunk

from experts.trunk.base import features_of
from meshnode import mesh as module
from meshnode.errors import MeshUnreadable
from meshnode.handlers import Handlers
from meshnode.home import Home
from meshnode.mesh import MESH_SETTING, Mesh, load_mesh, pull_mesh
from meshnode.state.state import State
from meshnode.transport.memory import MemoryNetwork
from protocol.identifiers import MeshId, PeerId, digest_of
from protocol.spec import ImageInput, MeshSpec, encode_spec, mesh_id_of

ME, A, B = (key_of(name).peer_id for name in ("me", "a", "b"))


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_AGAIN_S", 0.01)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    with State(Home(tmp_path / "me")) as state:
        yield state


@contextmanager
def member(
    network: MemoryNetwork, peer_id: PeerId, folder: Path, mesh: Mesh, blobs: tuple[bytes, ...]
) -> Iterator[State]:
    with State(Home(folder / peer_id)) as state:
        for blob in blobs:
            state.blobs.put(blob)
        handlers = Handlers(state.blobs, peer_id, "member", lambda: network.now_s)
        handlers.attach(mesh, None, None)
        network.join(peer_id).serve(handlers)
        yield state


def another_mesh() -> tuple[Mesh, bytes]:
    spec = MeshSpec(
        name="another",
        input=ImageInput(channels=1, pixels=PIXELS),
        trunk=digest_of(mesh_blobs()[1]),
        feature_dim=tiny_trunk().feature_dim,
        expert=MESH.spec.expert,
        calibration="another",
    )
    data = encode_spec(spec)
    return Mesh(mesh_id=mesh_id_of(data), spec=spec, trunk=tiny_trunk()), data


async def pull(state: State, network: MemoryNetwork, *, wanted: MeshId | None = None) -> tuple[Mesh, PeerId]:
    async with asyncio.timeout(10):
        return await pull_mesh(state, network.join(ME), wanted=wanted, timeout_s=0.2)


async def test_spec_and_trunk_come_from_a_peer_and_are_there_after_a_restart(tmp_path: Path, state: State) -> None:
    network = memory_network()
    with member(network, A, tmp_path, MESH, mesh_blobs()):
        mesh, source = await pull(state, network)
    assert (mesh.mesh_id, mesh.spec, source) == (MESH.mesh_id, MESH.spec, A)
    images = digits(test=True).images[:20]
    assert torch.equal(features_of(mesh.trunk, images), features_of(tiny_trunk(), images))
    state.close()
    with State(Home(tmp_path / "me")) as again:
        kept = load_mesh(again)
        assert kept is not None
        assert (kept.mesh_id, kept.spec) == (MESH.mesh_id, MESH.spec)
        assert again.collect_garbage() == ()
        assert torch.equal(features_of(kept.trunk, images), features_of(tiny_trunk(), images))


async def test_the_only_mesh_wanted_is_the_only_one_taken(
    tmp_path: Path, state: State, caplog: pytest.LogCaptureFixture
) -> None:
    network = memory_network()
    other, spec = another_mesh()
    with member(network, A, tmp_path, other, (spec, mesh_blobs()[1])):
        with caplog.at_level(logging.WARNING):
            waiting = asyncio.create_task(pull(state, network, wanted=MESH.mesh_id))
            while not caplog.records:
                await asyncio.sleep(0.005)
        assert load_mesh(state) is None
        with member(network, B, tmp_path, MESH, mesh_blobs()):
            mesh, source = await waiting
    assert (mesh.mesh_id, source) == (MESH.mesh_id, B)
    assert other.mesh_id in caplog.text
    assert len(caplog.records) == 1


async def test_it_waits_for_a_peer_that_has_a_mesh(tmp_path: Path, state: State) -> None:
    network = memory_network()
    meshless = network.join(A)
    meshless.serve(Handlers(state.blobs, A, "waiting too", lambda: 0.0))
    waiting = asyncio.create_task(pull(state, network))
    await asyncio.sleep(0.03)
    assert not waiting.done()
    with member(network, B, tmp_path, MESH, mesh_blobs()):
        _, source = await waiting
    assert source == B


@pytest.mark.parametrize("broken", ["trunk absent", "trunk corrupt", "spec corrupt", "spec is none"])
async def test_a_peer_whose_mesh_does_not_fit_its_digests_gives_nothing(
    tmp_path: Path, state: State, broken: str
) -> None:
    network = memory_network()
    spec, trunk = mesh_blobs()
    mesh, blobs = MESH, (spec, trunk)
    if broken == "trunk absent":
        blobs = (spec,)
    elif broken == "spec is none":
        mesh, blobs = Mesh(mesh_id=MeshId(digest_of(b"none")), spec=MESH.spec, trunk=MESH.trunk), (b"none",)
    with member(network, A, tmp_path, mesh, blobs):
        if broken.endswith("corrupt"):
            name = digest_of(trunk if broken == "trunk corrupt" else spec)
            (tmp_path / A / "state" / "blobs" / name).write_bytes(b"rotten")
        waiting = asyncio.create_task(pull(state, network))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        assert load_mesh(state) is None
        with member(network, B, tmp_path, MESH, mesh_blobs()):
            mesh, source = await waiting
    assert mesh.mesh_id == MESH.mesh_id
    assert source == B or broken != "spec is none"  # who tells of the mesh need not be who has it


async def test_a_home_without_a_mesh_has_none(state: State) -> None:
    assert load_mesh(state) is None


def test_a_home_of_an_earlier_version_is_refused_by_name_and_so_is_a_damaged_one(state: State) -> None:
    old = json.loads(mesh_blobs()[0]) | {"schema": "modulemesh.spec/1", "expert": {"kind": "mlp", "hidden": 8}}
    state.set_setting(MESH_SETTING, state.blobs.put(json.dumps(old).encode()))
    with pytest.raises(MeshUnreadable, match=r"modulemesh\.spec/1.*this version reads") as caught:
        load_mesh(state)
    assert "another --home" in str(caught.value.hint)
    state.set_setting(MESH_SETTING, state.blobs.put(mesh_blobs()[0]))
    with pytest.raises(MeshUnreadable, match=digest_of(mesh_blobs()[1])):  # the trunk is not there
        load_mesh(state)
