"""From a model in a file and another's part to an expert: names, mapping, cache and distillation together."""

from pathlib import Path

import pytest
import torch

from experts.architectures.mlp import MlpArchitecture
from experts.data.dataset import class_columns
from experts.data.named import load_named
from experts.distillation import (
    UNLABELLED,
    CacheOutcome,
    DistillationConfig,
    DistillationData,
    DistillationRun,
    LogitCache,
    TeacherLogits,
    data_digest,
)
from experts.generators import torch_generator
from experts.teachers.capability import Capability, TeacherWithDigest, read_mapping
from experts.teachers.cnn import TeacherConfig, train_teacher
from experts.teachers.named import load_teacher
from experts.trunk.images import prepare_images

CLASSES = ("3", "5", "8")


def trained(names: set[str], path: Path) -> str:
    """A CNN that knows two of the three digits, as the file that a node keeps of it."""
    train, _ = load_named("digits")
    shard = train.of_classes(names)
    images_NCHW = prepare_images(shard.images, 1, 8)
    teacher = train_teacher(images_NCHW, shard.labels, TeacherConfig(epochs=5), torch_generator(0, str(path.name)))
    path.write_bytes(teacher.to_bytes())
    return f"file:{path}"


def test_two_models_that_know_different_classes_by_different_names_make_one_expert(tmp_path: Path) -> None:
    (tmp_path / "words").write_text("five\neight\n")
    (tmp_path / "map.toml").write_text('[classes]\nfive = "5"\neight = "8"\n')
    named = load_teacher(trained({"3", "8"}, tmp_path / "first.safetensors"))
    worded = load_teacher(trained({"5", "8"}, tmp_path / "second.safetensors"), classes=tmp_path / "words")
    assert worded.classes == ("eight", "five")
    teachers: list[TeacherWithDigest] = [
        named,
        Capability(worded, read_mapping(tmp_path / "map.toml"), mesh_classes=CLASSES),
    ]
    train, test = (part.of_classes(set(CLASSES)) for part in load_named("digits"))
    images_NCHW = prepare_images(train.images, 1, 8)
    cache = LogitCache(tmp_path / "cache", max_bytes=1_000_000)
    digest = data_digest(images_NCHW)

    def scored(teacher: TeacherWithDigest) -> tuple[TeacherLogits, CacheOutcome]:
        found = cache.logits(teacher, images_NCHW, data_digest=digest, teacher_digest=teacher.digest)
        return TeacherLogits(logits_NK=found.logits_NK, classes=teacher.classes), found.outcome

    answers = [scored(teacher)[0] for teacher in teachers]
    assert [answer.classes for answer in answers] == [("3", "8"), ("5", "8")]
    assert [scored(teacher)[1] for teacher in teachers] == [CacheOutcome.HIT, CacheOutcome.HIT]
    features_ND, truth_N = images_NCHW.flatten(1), class_columns(train.labels, CLASSES)
    labels_N = truth_N.clone()
    labels_N[12:] = UNLABELLED
    test_ND, test_N = prepare_images(test.images, 1, 8).flatten(1), class_columns(test.labels, CLASSES)

    def accuracy(of: list[TeacherLogits]) -> float:
        data = (
            DistillationData.from_teachers(features_ND, labels_N, of, CLASSES)
            if of
            else DistillationData(features_ND=features_ND[:12], labels_N=labels_N[:12])
        )
        expert = MlpArchitecture(feature_dim=64, hidden=16, num_classes=3, input_scale=1.0).build("uid")
        for _ in DistillationRun(expert, data, DistillationConfig(steps=600), torch_generator(0, "batches")):
            pass
        with torch.no_grad():
            return float((expert(test_ND).argmax(dim=1) == test_N).float().mean())

    both, untaught = accuracy(answers), accuracy([])
    assert both > 0.9
    assert both > max(accuracy(answers[:1]), accuracy(answers[1:]), untaught) + 0.02
    with torch.no_grad():
        column = answers[1].classes.index("5")
        expected = worded.logits(images_NCHW[:4])[:, worded.classes.index("five")]
    assert answers[1].logits_NK[:4, column] == pytest.approx(expected)
