"""The same node on a GPU: its trainer, its answers and its averages. Run with ``pytest -m cuda`` where there is one."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from integration_nodes import Daemon, Daemons, complaints, digits_test, found, save_shard, shards
from integration_pulled import pull, transport_in
from replay_memories import replay_memory

from experts.architectures.mlp import MlpArchitecture
from experts.averaging import Averaged, mean_of
from experts.checkpoint import flat_parameters, load_flat, load_weights, weights_to_bytes
from experts.data.partly import PartlyLabelled
from experts.distillation import DistillationConfig
from experts.router.fingerprint import statistics_fingerprint
from experts.teachers.cnn import TeacherConfig
from experts.trunk.base import calibrate, features_of
from experts.trunk.images import prepare_images
from experts.trunk.whitened import WhitenedConfig, fit_whitened
from meshnode.compute import Compute
from meshnode.device import choose_device
from meshnode.home import Home
from meshnode.hosting import ExpertHost
from meshnode.state.state import State
from meshnode.trainer.interrupted import InterruptedRuns
from meshnode.trainer.learning import Learner, LearnerConfig
from meshnode.trainer.messages import Checkpoint, ExpertJob, Learn, Learned, PrivacyTerms
from meshnode.trainer.publishing import Publisher
from meshnode.trainer.teaching import Faculty, FacultyConfig
from protocol.identifiers import Digest, ExpertUid, PeerId, digest_of

DEVICE = "cuda:0"

NO_GPU = (
    "torch is built without CUDA"
    if torch.version.cuda is None
    else f"torch {torch.__version__} for CUDA {torch.version.cuda} finds no GPU"
)

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.integration,
    pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_GPU),
]

CLASSES = ("0", "1", "2")
ON_GPU = {"MESHNODE_COMPUTE__DEVICE": DEVICE, "MESHNODE_COMPUTE__REQUIRE_GPU": "true"}


def test_the_first_gpu_is_chosen_and_said_so() -> None:
    device = choose_device("auto", require_gpu=True)
    assert device.used == DEVICE
    assert "GPU" in device.reason


def test_the_learner_on_the_gpu_takes_deltas_and_learns_as_well_as_on_the_cpu(tmp_path: Path) -> None:
    task, test = shards(2)[0].of_classes(CLASSES), digits_test(CLASSES, 60)
    trunk = fit_whitened(prepare_images(task.images, 1, 8), WhitenedConfig(), seed=0)
    calibrate(trunk, prepare_images(task.images, 1, 8))
    architecture = MlpArchitecture(feature_dim=trunk.feature_dim, hidden=8, num_classes=len(CLASSES))
    start = architecture.build("an expert")
    job = ExpertJob(
        uid="an expert",
        classes=CLASSES,
        architecture=architecture.to_config(),
        weights=weights_to_bytes(start),
        updating=False,
        run=None,
        steps=0,
    )
    accuracy = {}
    for device in ("cpu", DEVICE):
        trunk.to(device)
        sent: list[Any] = []
        config = LearnerConfig(
            distillation=DistillationConfig(steps=200),
            checkpoint_steps=100,
            checkpoint_s=0,
            seed=0,
        )
        folder = tmp_path / device.replace(":", "")
        folder.mkdir()
        memory = replay_memory(folder / "replay", capacity=10, seed=0)
        teaching = FacultyConfig(
            own=TeacherConfig(epochs=2),
            named=(),
            channels=1,
            pixels=8,
            device=torch.device(device),
            cache_bytes=2**20,
            seed=0,
        )
        runs = InterruptedRuns(folder / "runs")
        fingerprint = statistics_fingerprint(digest_of(b"trunk"), b"")
        publisher = Publisher(folder / "published", PrivacyTerms(), fingerprint)
        learner = Learner(trunk, memory, Faculty(folder, teaching), runs, publisher, config, sent.append)
        deltas = iter([[np.zeros(architecture.num_parameters, np.float32)]])
        order = Learn(run=1, task="task", experts=(job,))
        learner.learn(order, PartlyLabelled.of(task), digest_of(b"task"), lambda _uid, deltas=deltas: next(deltas, []))
        checkpoints = [message for message in sent if isinstance(message, Checkpoint)]
        assert [checkpoint.steps for checkpoint in checkpoints] == [100, 200]
        assert checkpoints[-1].deltas_applied == 1
        assert isinstance(sent[-1], Learned)
        module = architecture.build("an expert")
        load_flat(module, torch.from_numpy(np.frombuffer(checkpoints[-1].vector, np.float32).copy()))
        predicted = module(features_of(trunk.to("cpu"), test.images)).argmax(dim=1)
        right = [CLASSES[column] == label for column, label in zip(predicted, test.labels, strict=True)]
        accuracy[device] = np.mean(right)
    assert accuracy["cpu"] > 0.9
    assert accuracy[DEVICE] > 0.9


async def test_a_host_on_the_gpu_serves_and_averages_what_a_host_on_the_cpu_does(tmp_path: Path) -> None:
    architecture = MlpArchitecture(feature_dim=64, hidden=8, num_classes=len(CLASSES))
    uid = ExpertUid(Digest(digest_of(b"an expert")))
    weights = weights_to_bytes(architecture.build(uid))
    random = np.random.default_rng(0)
    features_BD = random.normal(size=(32, 64)).astype(np.float32)
    delta = random.normal(size=architecture.num_parameters).astype(np.float32)
    outputs, vectors = {}, {}
    for device in ("cpu", DEVICE):
        home = Home(tmp_path / device.replace(":", ""))
        compute = Compute()
        with State(home) as state:
            host = ExpertHost(state, compute, device=device)
            await host.adopt(uid, CLASSES, architecture, weights)
            await host.apply_round(uid, Averaged(mean=delta, delta=delta), number=1)
            served = host.get(uid)
            assert {parameter.device.type for parameter in served.module.parameters()} == {device.partition(":")[0]}
            outputs[device] = (await host.answer(uid, features_BD)).probabilities
            vectors[device] = host.snapshot(uid)
            again = architecture.build(uid)
            load_weights(again, state.blobs.get(served.weights))
            assert np.array_equal(flat_parameters(again).numpy(), vectors[device])
        await asyncio.to_thread(compute.close)
    assert np.array_equal(vectors["cpu"], vectors[DEVICE])
    np.testing.assert_allclose(outputs[DEVICE], outputs["cpu"], rtol=0, atol=2e-3)


async def test_two_nodes_on_the_gpu_train_average_and_answer(daemons: Daemons, tmp_path: Path) -> None:
    for name, shard in zip(("ann", "ben"), shards(2), strict=True):
        save_shard(tmp_path / f"{name}-data", "task", shard, CLASSES)
    first = daemons.make("ann", data=tmp_path / "ann-data", env=ON_GPU)
    found(first.home, tmp_path / "ann-data" / "task.npz")
    first.launch().wait_ready()
    second = daemons.make("ben", data=tmp_path / "ben-data", join=[first.address], env=ON_GPU).launch().wait_ready()
    for node in (first, second):
        assert node.status()["device"]["used"] == DEVICE
        node.wait_for(_averaged, "two replicas, averaged", within_s=60)

    test = digits_test(CLASSES, 60)
    document = first.infer(test.images)
    assert np.mean([got == want for got, want in zip(document["predictions"], test.labels, strict=True)]) > 0.8
    async with transport_in(tmp_path / "stranger", client_only=True) as transport:
        pulled = await pull(transport, await transport.connect(first.address))
    (uid,) = {uid for uid, _ in pulled.replicas}
    replicas = [torch.from_numpy(vector) for vector in pulled.replica_vectors(uid)]
    for replica in replicas:
        torch.testing.assert_close(replica, mean_of(replicas), rtol=0, atol=1e-6)
    # On the CPU, where this test computes it, the same up to the GPU's rounding (TF32 in convolutions).
    local = pulled.answer(test.images, {uid: PeerId(first.peer_id)}, top_k=1)
    np.testing.assert_allclose(document["outputs"], local.outputs_BC.numpy(), rtol=0, atol=2e-2)
    for node in (first, second):
        assert node.terminate() == 0
        assert complaints(node.stderr) == []


def _averaged(node: Daemon) -> bool:
    averaging = node.get("averaging")
    return (
        [len(expert["replicas"]) for expert in node.experts()] == [2]
        and node.status()["router"]["contributions"] == 2
        and averaging["committed"] > 0
        and averaging["waiting"] == []
    )
