"""Three daemons on one machine as a mesh: found in the DHT, asked over the network, checked against the maths.

One mesh serves all tests here; none of them changes what its nodes hold.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_process import meshnode
from integration_nodes import Daemon, Daemons, complaints, digits_test, save_shard, shards
from integration_pulled import pull, transport_in
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from experts.averaging import mean_of
from experts.data.dataset import ImageDataset
from experts.router.ridge import solve_ridge
from experts.router.statistics import ClassStatistics, sum_contributions
from experts.trunk.base import features_of
from experts.trunk.codec import trunk_from_bytes
from meshnode import MeshClient, ThinClient
from meshnode.gauges import documented_metrics
from meshnode.runtime import router_config
from meshnode.state.blobs import BlobStore
from protocol.identifiers import Digest, ExpertUid, PeerId, digest_of
from protocol.spec import decode_spec

pytestmark = pytest.mark.integration

TASKS = {"ann": ("0", "1"), "ben": ("2", "3"), "cho": ("4", "5")}
"""Each node's own task; each also learns that of the node before it, so that every expert has two replicas."""

CLASSES = tuple("012345")


@dataclass(frozen=True)
class RunningMesh:
    nodes: dict[str, Daemon]
    mesh_id: str
    learned: list[ImageDataset]
    """Every task file, of all nodes."""

    @property
    def addresses(self) -> list[str]:
        return [node.address for node in self.nodes.values()]


class Scrape:
    """The values of one scrape, by name without the prefix and by labels."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._values = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float:
        return self._values[f"modulemesh_{name}", frozenset(labels.items())]


def _settled(node: Daemon) -> bool:
    """Nothing left to learn, to average or to pull: what the node says stays true."""
    status = node.status()
    return (
        len(status["training"]["learned"]) == 2
        and status["training"]["state"] == "idle"
        and status["averaging"]["waiting"] == []
        and status["router"]["contributions"] == 6
        and all(len(expert["replicas"]) == 2 for expert in node.experts())
        and status["experts"]["mesh"] == 3
    )


@pytest.fixture(scope="module")
def mesh(_no_process_is_left_by_a_module: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    folder = tmp_path_factory.mktemp("mesh")
    names = list(TASKS)
    learned = []
    for number, (name, shard) in enumerate(zip(names, shards(3), strict=True)):
        before = names[number - 1]
        learned += [save_shard(folder / f"{name}-data", f"of-{who}", shard, TASKS[who]) for who in (name, before)]
    with ExitStack() as stack:
        made = stack.enter_context(Daemons.within(folder))
        founder = made.make("ann", data=folder / "ann-data")
        ended = meshnode(
            *("--json", "--home", founder.home.path, "init", "--name", "ann"),
            *("--mesh", "digits", "--data", folder / "ann-data" / "of-ann.npz", "--pixels", 8),
        )
        assert ended.code == 0, ended.err
        founder.launch().wait_ready()
        joiners = [made.make(name, data=folder / f"{name}-data", join=[founder.address]) for name in names[1:]]
        nodes = {node.name: node for node in (founder, *(node.launch() for node in joiners))}
        for node in nodes.values():
            node.wait_ready()
        for node in nodes.values():
            node.wait_for(_settled, "all learned, averaged and known", within_s=60)
        yield RunningMesh(nodes=nodes, mesh_id=ended.document["mesh"]["id"], learned=learned)
        for node in nodes.values():
            assert complaints(node.stderr) == []


def test_nodes_that_join_belong_to_the_founders_mesh_and_see_each_other(mesh: RunningMesh) -> None:
    peer_ids = {node.peer_id for node in mesh.nodes.values()}
    for node in mesh.nodes.values():
        status = node.status()
        assert status["mesh"] == {"id": mesh.mesh_id, "name": "digits", "setting": "class-incremental"}
        assert {peer["peer_id"] for peer in node.get("peers")["peers"]} == peer_ids
        assert [peer["name"] for peer in node.get("peers")["peers"] if peer["self"]] == [node.name]
        assert all(entry["state"] == "connected" for entry in status["bootstrap"])


def test_every_expert_is_advertised_by_both_nodes_that_learned_it(mesh: RunningMesh) -> None:
    names = list(TASKS)
    expected = {TASKS[name]: {name, names[(number + 1) % 3]} for number, name in enumerate(names)}
    for node in mesh.nodes.values():
        found = {
            tuple(expert["classes"]): {replica["name"] for replica in expert["replicas"]} for expert in node.experts()
        }
        assert found == expected
        assert {tuple(expert["classes"]) for expert in node.get("experts", scope="local")["experts"]} == {
            classes for classes, holders in expected.items() if node.name in holders
        }


def test_rounds_were_committed_and_left_the_replicas_alike(mesh: RunningMesh) -> None:
    for node in mesh.nodes.values():
        averaging = node.get("averaging")
        assert averaging["committed"] >= 2
        assert all(len(last["members"]) == 2 for last in averaging["last_committed"].values())


def test_what_a_scraper_reads_agrees_with_the_status(mesh: RunningMesh) -> None:
    peer_ids = {node.peer_id for node in mesh.nodes.values()}
    documented = {metric.name for metric in documented_metrics()}
    for node in mesh.nodes.values():
        node.infer(digits_test(CLASSES, 8).images)
        families = list(text_string_to_metric_families(node.metrics()))
        assert {
            f"{family.name}_total" if family.type == "counter" else family.name for family in families
        } == documented
        value = Scrape(families)
        status = node.status()
        assert [value("node_state", state=state) for state in ("waiting", "ready", "draining")] == [0, 1, 0]
        assert value("build_info", version=status["version"]) == 1
        assert value("peers") == len(mesh.nodes) - 1
        assert value("experts", scope="local") == status["experts"]["local"] == 2
        assert value("experts", scope="mesh") == status["experts"]["mesh"] == 3
        assert value("expert_replicas_min") == 2
        committed = value("averaging_rounds_total", result="committed", reason="")
        assert committed == status["averaging"]["committed"] >= 2
        assert value("averaging_group_peers") == 2
        assert value("averaging_duration_seconds_count") >= committed
        assert 0 < value("parameter_age_seconds") < 600
        # Two task files, sixty steps each, for one expert each.
        assert value("train_steps_total") == 120
        assert value("train_samples_total") == 120 * 32
        asked = value("inference_requests_total", role="client", result="ok")
        assert asked == value("inference_duration_seconds_count", role="client") >= 1
        assert value("dht_request_duration_seconds_count", operation="get") > 1
        assert value("dht_request_duration_seconds_count", operation="store") > 1
        assert value("network_bytes_total", direction="sent", kind="averaging") > 0
        assert value("mqtt_connected") == value("mqtt_messages_dropped_total") == 0
        labels = {value for family in families for sample in family.samples for value in sample.labels.values()}
        assert not labels & peer_ids


async def test_a_client_that_is_no_node_lists_experts_and_predicts_with_a_route_a_row(mesh: RunningMesh) -> None:
    test = digits_test(CLASSES, 60)
    async with await MeshClient.join(mesh.addresses[1:2]) as client:
        assert client.mesh.mesh_id == mesh.mesh_id
        listed = {expert.classes: {replica.peer_name for replica in expert.replicas} for expert in client.experts()}
        assert listed.keys() == set(TASKS.values())
        assert all(len(holders) == 2 for holders in listed.values())
        prediction = await client.predict(test.images)
    assert prediction.classes == CLASSES
    assert np.mean([got == want for got, want in zip(prediction.predictions, test.labels, strict=True)]) > 0.8
    assert not prediction.missing_mass_B.any()
    answered = sorted(row for call in prediction.calls for row in call.rows)
    assert answered == list(range(60)), "with top-k 1 each row has exactly one answer"
    peer_ids = {node.peer_id: node.name for node in mesh.nodes.values()}
    for call in prediction.calls:
        assert call.error is None
        assert peer_ids[call.peer_id] == call.peer_name
        assert all(0 < gate <= 1 for gate in call.gates)


@pytest.mark.parametrize("top_k", [1, 3])
async def test_routed_inference_equals_the_same_computation_done_locally(
    mesh: RunningMesh, tmp_path: Path, top_k: int
) -> None:
    images = digits_test(CLASSES, 60).images
    async with await MeshClient.join(mesh.addresses[:1]) as client:
        over_the_mesh = await client.predict(images, top_k=top_k)
    async with transport_in(tmp_path / "stranger", client_only=True) as transport:
        pulled = await pull(transport, await transport.connect(mesh.addresses[0]))
    asked = {ExpertUid(call.expert): PeerId(call.peer_id) for call in over_the_mesh.calls}
    local = pulled.answer(images, asked, top_k=top_k)
    np.testing.assert_allclose(over_the_mesh.outputs_BC, local.outputs_BC.numpy(), rtol=0, atol=1e-5)
    # A node that hosts some of the experts itself comes to the same.
    document = mesh.nodes["ben"].infer(images, top_k=top_k)
    np.testing.assert_allclose(np.array(document["outputs"]), local.outputs_BC.numpy(), rtol=0, atol=1e-5)
    assert len({hop["peer"] for hop in document["route"]}) >= 2
    assert all(hop["ok"] for hop in document["route"])


async def test_a_thin_client_sends_images_and_gets_what_the_node_itself_would_answer(mesh: RunningMesh) -> None:
    images = digits_test(CLASSES, 30).images
    asked = mesh.nodes["ben"]
    async with await ThinClient.join([asked.address]) as client:
        prediction = await client.predict(images, top_k=3)
        sent = dict(client.traffic.sent)
    document = asked.infer(images, top_k=3)
    np.testing.assert_allclose(prediction.outputs_BC, document["outputs"], rtol=0, atol=1e-5)
    assert list(prediction.classes) == document["classes"]
    # Its own experts go by its name, others by those of their nodes.
    assert {call.peer_name for call in prediction.calls} >= {"ben"}
    assert {call.peer_id for call in prediction.calls} <= {node.peer_id for node in mesh.nodes.values()}
    # Nothing but the images went out: no blob of a trunk or of statistics was asked for.
    assert images.nbytes < sent.pop("inference") < images.nbytes + 200
    assert not sent


def test_the_command_line_asks_a_node_of_a_mesh_without_one_of_its_own(mesh: RunningMesh, tmp_path: Path) -> None:
    test = digits_test(CLASSES, 10)
    np.save(tmp_path / "images.npy", test.images)
    via = ("--via", mesh.nodes["cho"].address)
    ended = meshnode("--home", tmp_path / "none", "--json", "infer", "--input", tmp_path / "images.npy", *via)
    assert (ended.code, ended.err) == (0, "")
    assert ended.document["predictions"] == mesh.nodes["cho"].infer(test.images)["predictions"]
    assert not (tmp_path / "none").exists()


async def test_replicas_are_their_mean_and_the_merged_router_is_the_central_one(
    mesh: RunningMesh, tmp_path: Path
) -> None:
    async with transport_in(tmp_path / "stranger", client_only=True) as transport:
        pulled = await pull(transport, await transport.connect(mesh.addresses[0]))
    for uid in {uid for uid, _ in pulled.replicas}:
        first, second = (torch.from_numpy(vector) for vector in pulled.replica_vectors(uid))
        mean = mean_of([first, second])
        torch.testing.assert_close(first, mean, rtol=0, atol=1e-6)
        torch.testing.assert_close(second, mean, rtol=0, atol=1e-6)

    config = router_config(pulled.spec.router)
    features = [features_of(pulled.trunk, task.images) for task in mesh.learned]
    labels = [label for task in mesh.learned for label in task.labels]
    central = solve_ridge(ClassStatistics.from_features(torch.cat(features), labels), config)
    merged = pulled.router()
    assert merged.classes == central.classes == CLASSES
    # The merging itself is exact: 2e-12 was measured. On the wire means and scatter are float32, and rounding them
    # costs 2e-5 here, where 576 samples determine 513 rows of B.
    parts = [
        ClassStatistics.from_features(part, task.labels) for part, task in zip(features, mesh.learned, strict=True)
    ]
    unrounded = solve_ridge(sum_contributions(dict(enumerate(parts))), config)
    assert _relative_error(unrounded.weights, central.weights) < 1e-6
    assert _relative_error(merged.weights, central.weights) < 1e-4
    assert sum(sum(statistics.counts.values()) for statistics in pulled.statistics.values()) == len(labels)
    test = digits_test(CLASSES, 100)
    async with await MeshClient.join(mesh.addresses[2:]) as client:
        assert client.router_argmax(test.images) == central.class_argmax(features_of(pulled.trunk, test.images))


def _relative_error(weights: torch.Tensor, reference: torch.Tensor) -> float:
    """In the Frobenius norm."""
    return float(torch.linalg.norm(weights - reference) / torch.linalg.norm(reference))


def test_every_node_solves_the_same_router(mesh: RunningMesh) -> None:
    samples = {name: sum(task.class_counts.get(name, 0) for task in mesh.learned) for name in CLASSES}
    for node in mesh.nodes.values():
        assert node.status()["router"] == {"contributions": 6, "samples": samples}


def test_a_late_node_pulls_spec_and_trunk_by_digest_and_sees_all_that_is_there(
    mesh: RunningMesh, daemons: Daemons
) -> None:
    images = digits_test(CLASSES, 30).images
    late = daemons.make("dee", join=mesh.addresses[1:2], options=["--no-train"]).launch().wait_ready()
    late.wait_for(
        lambda node: node.status()["router"]["contributions"] == 6 and len(node.experts()) == 3,
        "all experts and contributions known",
    )
    assert late.status()["mesh"]["id"] == mesh.mesh_id
    assert late.get("experts", scope="local")["experts"] == []
    blobs, founders = BlobStore(late.home.blobs), BlobStore(mesh.nodes["ann"].home.blobs)
    spec = blobs.get(Digest(mesh.mesh_id))
    trunk = blobs.get(decode_spec(spec).trunk)
    assert digest_of(spec) == mesh.mesh_id
    assert trunk == founders.get(decode_spec(spec).trunk)
    assert trunk_from_bytes(trunk).feature_dim == decode_spec(spec).feature_dim
    # It hosts nothing and answers all the same: from the merged router and the others' experts.
    theirs, its = mesh.nodes["ann"].infer(images), late.infer(images)
    assert its["predictions"] == theirs["predictions"]
    np.testing.assert_allclose(its["outputs"], theirs["outputs"], rtol=0, atol=1e-5)
    mesh.nodes["cho"].wait_for(
        lambda node: any(peer["name"] == "dee" for peer in node.get("peers")["peers"]), "the late node seen"
    )
    assert late.terminate() == 0
    assert complaints(late.stderr) == []
    mesh.nodes["cho"].wait_for(lambda node: len(node.get("peers")["peers"]) == 3, "the late node's farewell noticed")


def test_the_command_line_shows_the_mesh(mesh: RunningMesh) -> None:
    home = mesh.nodes["cho"].home
    ended = meshnode("--home", home.path, "--json", "peers", "ls")
    assert (ended.code, ended.err) == (0, "")
    assert {peer["name"] for peer in ended.document["peers"]} == set(TASKS)
