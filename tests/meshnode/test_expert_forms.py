"""A mesh hosts experts of every form that its members can build, and leaves the others out by name."""

import asyncio
import logging
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from mesh_in_memory import (
    MESH,
    PIXELS,
    announce_all,
    digits,
    form,
    memory_network,
    memory_node,
    memory_nodes,
    statistics_of,
)
from replay_memories import replay_memory

from experts.architectures.base import Architecture
from experts.architectures.linear import LinearArchitecture
from experts.architectures.registry import architecture_from_config
from experts.checkpoint import weights_to_bytes
from experts.data.partly import PartlyLabelled
from experts.distillation import DistillationConfig
from experts.errors import UnknownArchitecture
from experts.teachers.cnn import TeacherConfig
from meshnode.averaging.settings import AveragerConfig
from meshnode.forms import architecture_of, chosen_form, form_of
from meshnode.state.rows import Reached
from meshnode.trainer.interrupted import InterruptedRuns
from meshnode.trainer.learning import Learner, LearnerConfig
from meshnode.trainer.messages import Checkpoint, ExpertJob, FromTrainer, Learn, PrivacyTerms
from meshnode.trainer.publishing import Publisher
from meshnode.trainer.teaching import Faculty, FacultyConfig
from protocol.identifiers import ExpertUid, digest_of
from protocol.records import ExpertAdvert
from protocol.spec import ExpertForm

D = MESH.spec.feature_dim
KINDS = {"conv": ("0", "1"), "adapter": ("2", "3"), "linear": ("4", "5"), "mlp": ("6", "7"), "deep": ("8", "9")}


@pytest.mark.parametrize("kind", KINDS)
def test_a_form_and_its_number_of_classes_are_the_architecture(kind: str) -> None:
    architecture = MESH.architecture(form(kind), 3)
    assert form_of(architecture) == form(kind)
    assert architecture.kind == kind
    assert architecture_from_config(architecture.to_config()) == architecture
    assert architecture != MESH.architecture(form(kind), 2)


def test_what_a_founder_leaves_out_has_its_usual_value() -> None:
    assert form("mlp").config == {"feature_dim": D, "hidden": 8, "input_scale": 0.3}
    assert form("conv", filters=3).config == {"channels": 8, "filters": 3, "height": 2, "input_scale": 2.0, "width": 2}
    deep = {"activation": "tanh", "feature_dim": D, "hidden": 8, "input_scale": 0.3, "layers": 2, "norm": "layer"}
    assert form("deep", activation="tanh").config == deep
    assert form("linear", input_scale=1.0).config == {"feature_dim": D, "input_scale": 1.0}
    assert form("linear", input_scale=1) == form("linear", input_scale=1.0)
    assert type(form("linear", input_scale=1).config["input_scale"]) is float


@pytest.mark.parametrize(
    ("kind", "settings", "told"),
    [
        ("rnn", {}, "known kinds"),
        ("mlp", {"width": 3}, "it has no width; its settings are feature_dim, hidden, input_scale"),
        ("mlp", {"kind": "linear"}, "kind cannot be chosen"),
        ("mlp", {"num_classes": 2}, "num_classes cannot be chosen"),
        ("mlp", {"hidden": True}, "hidden"),
        ("mlp", {"hidden": 0}, "hidden"),
        ("mlp", {"hidden": 2.0}, "hidden"),
        ("mlp", {"feature_dim": D + 1}, f"reads {D + 1} features"),
        ("deep", {"activation": "step"}, "activation = 'step' is none of relu, gelu, tanh, silu"),
        ("deep", {"layers": 65}, "layers = 65 is more than 64"),
        ("conv", {"height": 3}, "reads 48 features"),
    ],
)
def test_a_form_that_does_not_fit_is_refused_with_its_reason(kind: str, settings: dict[str, object], told: str) -> None:
    with pytest.raises(UnknownArchitecture, match=told):
        form(kind, **settings)


def test_a_convolution_needs_a_map() -> None:
    with pytest.raises(UnknownArchitecture):
        chosen_form("conv", {}, feature_dim=D, feature_map=None)
    given = {"channels": 8, "height": 2, "width": 2}
    assert chosen_form("conv", given, feature_dim=D, feature_map=None) == form("conv")


class _Nested(LinearArchitecture):
    """As an installed kind may be."""

    config: dict[str, object] = {}  # noqa: RUF012 - a test sets it

    def to_config(self) -> dict[str, object]:
        return self.config


@pytest.mark.parametrize(
    "config",
    [
        {"kind": "linear"},
        {"num_classes": 1},
        {"kind": "linear", "num_classes": 1, "layers": [1, 2]},
        {"kind": "linear", "num_classes": 1, "text": "x" * 33},
        {"kind": "linear", "num_classes": 1, "scale": float("nan")},
    ],
)
def test_an_architecture_that_no_peer_could_be_told_of_is_refused(config: dict[str, object]) -> None:
    architecture: Architecture = _Nested(feature_dim=D, num_classes=1)
    _Nested.config = config
    with pytest.raises(UnknownArchitecture):
        form_of(architecture)


def advert(form: ExpertForm, *classes: str, uid: ExpertUid | None = None) -> ExpertAdvert:
    uid = uid or MESH.uid_of(classes, form)
    return ExpertAdvert(
        uid=uid, form=form, classes=classes, since=0.0, round=0, generation=1, weights=digest_of(b"weights")
    )


def test_an_advert_counts_under_the_uid_of_its_form_and_classes_only() -> None:
    for kind, classes in KINDS.items():
        assert MESH.objection_to(advert(form(kind), *classes)) is None
    linear = advert(form("linear"), "0", "1")
    for changed in (
        msgspec.structs.replace(linear, form=form("adapter")),
        msgspec.structs.replace(linear, form=form("linear", input_scale=1.0)),
        msgspec.structs.replace(linear, classes=("0", "2")),
    ):
        assert "uid" in str(MESH.objection_to(changed))


def test_an_advert_that_nobody_here_can_build_says_why() -> None:
    uid = ExpertUid(digest_of(b"any"))
    unknown = ExpertForm("transformer", {"depth": 3})
    assert "known kinds" in str(MESH.objection_to(advert(unknown, "0", uid=uid)))
    other_trunk = ExpertForm("linear", {"feature_dim": D + 1, "input_scale": 0.3})
    assert f"{D + 1} features" in str(MESH.objection_to(advert(other_trunk, "0", uid=uid)))
    huge = ExpertForm("mlp", {"feature_dim": D, "hidden": 2**40, "input_scale": 0.3})
    assert MESH.objection_to(advert(huge, "0", uid=uid)) is not None
    with pytest.raises(UnknownArchitecture):
        architecture_of(unknown, num_classes=2, feature_dim=D)


def own_teacher_in(folder: Path, seed: int) -> Faculty:
    config = FacultyConfig(
        own=TeacherConfig(epochs=3),
        named=(),
        channels=1,
        pixels=PIXELS,
        device=torch.device("cpu"),
        cache_bytes=2**20,
        seed=seed,
    )
    return Faculty(folder, config)


def learned(architecture: Architecture, uid: str, classes: tuple[str, ...], folder: Path, seed: int) -> np.ndarray:
    """What a trainer makes of the expert from half of the digits of its classes."""
    task = digits(*classes)
    half = task.select(range(seed, len(task), 2))
    said: list[FromTrainer] = []
    config = LearnerConfig(
        distillation=DistillationConfig(steps=300),
        checkpoint_steps=300,
        checkpoint_s=0,
        seed=seed,
    )
    folder.mkdir()
    memory = replay_memory(folder / "replay.msgpack", capacity=10, seed=seed)
    job = ExpertJob(
        uid=uid,
        classes=classes,
        architecture=architecture.to_config(),
        weights=weights_to_bytes(architecture.build(uid)),
        updating=False,
        run=None,
        steps=0,
    )
    runs = InterruptedRuns(folder / "runs")
    publisher = Publisher(folder / "published.msgpack", PrivacyTerms(), MESH.fingerprint)
    Learner(MESH.trunk, memory, own_teacher_in(folder, seed), runs, publisher, config, said.append).learn(
        Learn(run=1, task="t", experts=(job,)), PartlyLabelled(half.images, half.labels), "digest", lambda uid: []
    )
    (last,) = [message for message in said if isinstance(message, Checkpoint)]
    return np.frombuffer(last.vector, np.float32)


async def test_a_mesh_of_several_forms_trains_averages_and_answers(tmp_path: Path) -> None:
    network = memory_network()
    averaging = AveragerConfig(period_s=10.0, timeout_s=10.0)
    async with memory_nodes(network, "abc", tmp_path, averager=averaging) as (a, b, reader):
        for kind, classes in KINDS.items():
            vectors = []
            for seed, node in enumerate((a, b)):
                expert = await node.spawn(*classes, form=form(kind))
                assert expert.architecture.kind == kind
                vector = learned(expert.architecture, expert.uid, classes, tmp_path / f"{kind}-{seed}", seed)
                await node.host.checkpoint(expert.uid, vector, deltas_applied=0, reached=Reached(run="run", steps=300))
                vectors.append(vector)
            assert not np.array_equal(*vectors)
        for kind, classes in KINDS.items():
            await a.contribute(kind, statistics_of(*classes))
        await announce_all((a, b, reader))
        before = {uid: [node.host.snapshot(uid) for node in (a, b)] for uid in a.host.experts}
        async with asyncio.timeout(20):
            number = int(network.now_s // averaging.period_s) + 2
            await asyncio.gather(*(node.averager.run_round(number) for node in (a, b)))
        for uid, vectors in before.items():
            assert np.allclose(a.host.snapshot(uid), np.mean(vectors, axis=0), atol=1e-6)
            assert np.allclose(a.host.snapshot(uid), b.host.snapshot(uid), atol=1e-6)
        await announce_all((a, b, reader))
        await reader.contributions.pull(reader.puller, reader.directory)
        await reader.contributions.solve()
        listings = reader.directory.experts()
        assert {listing.replicas[0].advert.form.kind for listing in listings.values()} == KINDS.keys()
        assert reader.directory.left_out() == ()
        test = digits(*(name for classes in KINDS.values() for name in classes), test=True)
        prediction = await reader.inference.predict(test.images, timeout_s=10.0)
        right = [told == label for told, label in zip(prediction.predictions, test.labels, strict=True)]
        assert np.mean(right) > 0.85
        assert len({call.expert for call in prediction.calls}) == len(KINDS)


async def test_a_kept_expert_of_a_kind_that_is_gone_is_left_out_and_the_others_serve(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network = memory_network()
    async with memory_node(network, "a", tmp_path) as a:
        kept = await a.spawn("0", "1")
        uid = ExpertUid(digest_of(b"of a package that is no longer installed"))
        a.state.add_expert(uid, architecture={"kind": "gone", "num_classes": 2}, classes=("2", "3"))
        a.state.commit_generation(uid, b"weights", cause="initial")
    with caplog.at_level(logging.WARNING):
        async with memory_node(network, "a", tmp_path) as a:
            assert list(a.host.experts) == [kept.uid]
            assert "gone" in a.host.unusable[uid]
    assert "cannot be served" in caplog.text
