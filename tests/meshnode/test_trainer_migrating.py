"""Experts carried over by the trainer: from what it still has of their classes, judged by what it held out."""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from mesh_in_memory import MESH, digits, form, tiny_trunk
from migrated_experts import CLASSES, SEEN, WIDER, learned_weights, weights_of
from replay_memories import replay_memory
from torch import nn

from experts.architectures.deep import MAX_LAYERS
from experts.checkpoint import load_weights
from experts.data.dataset import ImageDataset
from experts.data.held_out import is_held_out
from experts.distillation import DistillationConfig
from experts.errors import CorruptWeights, NothingCorresponds
from experts.preservation.transfer import TransferConfig
from experts.trunk.base import features_of
from meshnode.trainer import migrating as module
from meshnode.trainer.messages import (
    Compare,
    ExpertWeights,
    FromTrainer,
    Migrate,
    Migrated,
    MigrationFailed,
    Progress,
    TaskFile,
)
from meshnode.trainer.migrating import LEAST_HELD_OUT, Migrator
from protocol import limits
from protocol.spec import ExpertForm

OWN = MESH.spec.expert
BUILT = module._built


def digest(image: np.ndarray) -> bytes:
    return hashlib.sha256(image.tobytes()).digest()


def held_out(images: np.ndarray) -> np.ndarray:
    """Those that only judge."""
    return images[[row for row, image in enumerate(images) if is_held_out(digest(image))]]


@dataclass
class Bench:
    """A migrator with these task files and this memory, and what it said."""

    folder: Path
    files: Mapping[str, ImageDataset] = field(default_factory=dict)
    remembered: ImageDataset | None = None
    said: list[FromTrainer] = field(default_factory=list)

    def migrator(self) -> Migrator:
        memory = replay_memory(self.folder / "replay.msgpack", capacity=100, seed=1)
        if self.remembered is not None:
            memory.add(self.remembered, "digest", "task")
        return Migrator(
            tiny_trunk(),
            memory,
            lambda task: self.files.get(task.name),
            DistillationConfig(),
            seed=1,
            send=self.said.append,
        )

    @property
    def tasks(self) -> tuple[TaskFile, ...]:
        return tuple(
            TaskFile(name=name, digest=name, classes=images.class_counts) for name, images in self.files.items()
        )

    def migrate(self, to: ExpertForm = WIDER, *, steps: int = 0, weights: bytes | None = None) -> FromTrainer:
        return self.migrator().migrate(
            Migrate(
                successor="successor",
                classes=CLASSES,
                old=weights_of(OWN, weights or learned_weights()),
                new=dict(MESH.architecture(to, len(CLASSES)).to_config()),
                transfer=dataclasses.asdict(TransferConfig()),
                steps=steps,
                tasks=self.tasks,
            )
        )

    def num_held_out(self) -> int:
        order = Compare(
            classes=CLASSES,
            old=weights_of(OWN, learned_weights()),
            new=weights_of(OWN, learned_weights()),
            tasks=self.tasks,
        )
        accuracy = self.migrator().compare(order).accuracy
        return 0 if accuracy is None else accuracy.samples


def test_an_image_is_held_out_by_what_it_shows_and_about_one_in_five_is() -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (2000, 4, 4), dtype=np.uint8)
    assert len(held_out(images)) / len(images) == pytest.approx(0.2, abs=0.03)


def test_what_turns_up_in_two_files_and_in_the_memory_counts_once(tmp_path: Path) -> None:
    expected = len({image.tobytes() for image in held_out(SEEN.images)})
    turned = SEEN.select(range(len(SEEN))[::-1])
    for bench in (
        Bench(tmp_path, {"a": SEEN}),
        Bench(tmp_path, {"a": turned, "b": SEEN}),
        Bench(tmp_path, {"a": SEEN}, remembered=SEEN),
    ):
        assert bench.num_held_out() == expected


def test_only_the_experts_own_classes_are_looked_at(tmp_path: Path) -> None:
    others = digits("2", "3").select(range(50))
    together = ImageDataset(np.concatenate([others.images, SEEN.images]), (*others.labels, *SEEN.labels))
    assert Bench(tmp_path, {"a": together, "b": others}).num_held_out() == Bench(tmp_path, {"a": SEEN}).num_held_out()


def test_the_new_form_never_sees_what_judges_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    carry = module.transfer

    def watched(source, architecture, classes, features_ND, labels_N, config, **kwargs):  # type: ignore[no-untyped-def]
        seen.append(features_ND)
        return carry(source, architecture, classes, features_ND, labels_N, config, **kwargs)

    class WatchedData(module.DistillationData):
        def __post_init__(self) -> None:
            seen.append(self.features_ND)

    monkeypatch.setattr(module, "transfer", watched)
    monkeypatch.setattr(module, "DistillationData", WatchedData)
    assert isinstance(Bench(tmp_path, {"a": SEEN}, remembered=SEEN).migrate(steps=3), Migrated)
    judging = features_of(tiny_trunk(), held_out(SEEN.images))
    assert len(seen) == 2
    for features_ND in seen:
        assert len(features_ND) > 100
        assert float(torch.cdist(features_ND, judging).min()) > 1e-3


def test_a_wider_form_knows_what_the_old_one_knew_and_says_what_became_of_its_units(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {"a": SEEN})
    made = bench.migrate()
    assert isinstance(made, Migrated)
    assert made.accuracy.samples == bench.num_held_out()
    assert made.accuracy.old > 0.9
    assert made.accuracy.new >= made.accuracy.old - 0.01
    hidden = made.layers[0]
    assert (hidden.name, hidden.old_units, hidden.new_units, hidden.mapped, hidden.dropped) == ("hidden", 4, 6, 4, 0)
    load_weights(MESH.architecture(WIDER, 2).build("any"), made.weights)
    assert [said.stage for said in bench.said if isinstance(said, Progress)] == ["transfer", "judge"]
    again = Bench(tmp_path, {"a": SEEN}).migrate()
    assert again == made, "one order makes one expert"


def test_steps_of_distillation_change_what_is_made_and_are_told_of(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {"a": SEEN})
    without, made = bench.migrate(), bench.migrate(steps=150)
    assert isinstance(without, Migrated)
    assert isinstance(made, Migrated)
    assert made.weights != without.weights
    told = [(said.done, said.total) for said in bench.said if isinstance(said, Progress) and said.stage == "distil"]
    assert told == [(100, 150), (150, 150)]


@pytest.mark.parametrize("kind", ["linear", "deep"])
def test_another_kind_knows_it_too(tmp_path: Path, kind: str) -> None:
    made = Bench(tmp_path, {"a": SEEN}).migrate(form(kind))
    assert isinstance(made, Migrated)
    assert made.accuracy.new >= made.accuracy.old - 0.03


def test_a_lineage_has_room_for_the_layers_of_the_deepest_form(tmp_path: Path) -> None:
    made = Bench(tmp_path, {"a": SEEN}).migrate(form("deep", hidden=4, layers=MAX_LAYERS, norm="none"))
    assert isinstance(made, Migrated)
    assert len(made.layers) == MAX_LAYERS + 1 <= limits.MAX_LAYERS_PER_SUCCESSION


def test_a_kind_that_has_nothing_in_common_with_the_old_one_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(NothingCorresponds):
        Bench(tmp_path, {"a": SEEN}).migrate(form("adapter"))


def test_without_an_image_of_a_class_it_says_which_and_what_to_do(tmp_path: Path) -> None:
    nothing = Bench(tmp_path / "none", {}).migrate()
    assert isinstance(nothing, MigrationFailed)
    assert "no image left of 0, 1" in nothing.reason
    assert "data folder" in nothing.reason
    half = Bench(tmp_path, {"a": digits("0").select(range(60))}).migrate()
    assert isinstance(half, MigrationFailed)
    assert "no image left of 1" in half.reason


def test_too_few_images_to_judge_by_are_not_judged_by(tmp_path: Path) -> None:
    few = Bench(tmp_path, {"a": SEEN.select(range(20))}).migrate()
    assert isinstance(few, MigrationFailed)
    assert f"of {LEAST_HELD_OUT} needed" in few.reason


def test_a_file_that_is_gone_leaves_the_replay_memory(tmp_path: Path) -> None:
    gone = TaskFile(name="gone", digest="gone", classes=SEEN.class_counts)
    bench = Bench(tmp_path, {}, remembered=SEEN)
    order = Compare(
        classes=CLASSES,
        old=weights_of(OWN, learned_weights()),
        new=weights_of(OWN, learned_weights(seed="other", steps=1)),
        tasks=(gone,),
    )
    accuracy = bench.migrator().compare(order).accuracy
    assert accuracy is not None
    assert 0 < accuracy.samples < 40
    assert accuracy.old > accuracy.new


def test_forms_answer_a_few_rows_at_a_time_whatever_they_are_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = []

    def watched(expert: ExpertWeights) -> nn.Module:
        built = BUILT(expert)
        built.register_forward_pre_hook(lambda _module, inputs: rows.append(len(inputs[0])))
        return built

    expected = Bench(tmp_path, {"a": SEEN}).migrate(steps=1)
    monkeypatch.setattr(module, "_built", watched)
    monkeypatch.setattr(module, "_ROWS", 16)
    assert Bench(tmp_path, {"a": SEEN}).migrate(steps=1) == expected
    assert max(rows) == 16


def test_weights_that_are_not_the_old_forms_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CorruptWeights):
        Bench(tmp_path, {"a": SEEN}).migrate(weights=learned_weights(hidden=6))
