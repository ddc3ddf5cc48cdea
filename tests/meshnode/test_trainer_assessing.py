"""The worker's look at a task: verdicts against what is held out, gains against what is not learned from."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from mesh_in_memory import MESH, digits, tiny_trunk
from replay_memories import replay_memory
from trainer_lessons import architecture

from experts.checkpoint import load_flat, weights_to_bytes
from experts.continual.lesson import ridge_taught
from experts.data.dataset import ImageDataset
from experts.data.held_out import image_digest, is_held_out
from experts.data.partly import PartlyLabelled
from experts.distillation import DistillationConfig, DistillationRun
from experts.errors import NothingToLearnFrom
from experts.generators import torch_generator
from experts.router.ridge import RouterConfig
from experts.router.statistics import ClassStatistics
from experts.trunk.base import features_of
from meshnode.trainer.assess_messages import Assess, Assessed, ExpertTrial
from meshnode.trainer.assessing import Assessor
from meshnode.trainer.held_back import HeldBack, uncounted
from meshnode.trainer.messages import PrivacyTerms
from meshnode.trainer.publishing import Publisher
from meshnode.trainer.task_file import TaskFile

KNOWN = digits("0", "1", "2", "3", "4")
LATER = digits("0", "1", "2", "3", "4", test=True)


class Looker:
    """An assessor that has learned one task, and published it."""

    def __init__(self, folder: Path, task: ImageDataset, *, steps: int = 1900, epsilon: float | None = None) -> None:
        self.task = TaskFile(name="known", digest="d", classes=task.class_counts)
        self.files: Mapping[str, ImageDataset] = {"d": task}
        self.opened = 0
        terms = PrivacyTerms(epsilon=epsilon, max_norm=None if epsilon is None else 10.0)
        self.publisher = Publisher(folder / "published", terms, MESH.fingerprint)
        features_ND = features_of(tiny_trunk(), task.images)
        self.statistics = self.publisher.publish("known", task, "d", features_ND)
        memory = replay_memory(folder / "replay", capacity=50, seed=0)
        memory.add(task, "d", "known")
        self.held = HeldBack(tiny_trunk(), memory, self._load)
        config = DistillationConfig(steps=steps)
        self.assessor = Assessor(tiny_trunk(), memory, self.held, self.publisher, config, 0)

    def _load(self, task: TaskFile) -> ImageDataset | None:
        self.opened += 1
        return self.files.get(task.digest)

    def assess(self, task: PartlyLabelled, *experts: ExpertTrial) -> Assessed:
        order = Assess(
            task="new", statistics=self.statistics, known=KNOWN.classes, learned=(self.task,), experts=experts
        )
        return self.assessor.assess(order, task)


def trial(*classes: str, steps: int) -> ExpertTrial:
    """An expert that has taken so many steps on what is known."""
    module = architecture(len(classes)).build("e")
    if steps:
        task = KNOWN.of_classes(classes)
        data = ridge_taught(features_of(tiny_trunk(), task.images), task.labels, classes, RouterConfig())
        run = DistillationRun(module, data, DistillationConfig(steps=steps), torch_generator(0, "t"))
        while not run.done:
            run.step()
    return ExpertTrial(
        uid="e", classes=classes, architecture=architecture(len(classes)).to_config(), weights=weights_to_bytes(module)
    )


def test_known_images_are_known_and_others_new_batch_by_batch(tmp_path: Path) -> None:
    looker = Looker(tmp_path, KNOWN)
    known = looker.assess(PartlyLabelled(LATER.images[:130], (None,) * 130))
    assert known.assessment.verdict == "known"
    assert [batch.verdict for batch in known.batches] == ["known", "known"], "the last two rows are no batch"
    assert (known.assessment.num_rows, known.assessment.num_labelled, known.gains) == (128, 0, {})
    assert known.assessment.num_held_out == sum(is_held_out(image_digest(image)) for image in KNOWN.images) >= 128
    others = digits("6", "7", "8").images[:70]
    new = looker.assess(PartlyLabelled(others, (None,) * 70))
    assert new.assessment.verdict == "new"
    assert new.assessment.distance is not None
    assert new.assessment.threshold is not None
    assert new.assessment.distance > new.assessment.threshold == known.assessment.threshold
    assert looker.opened == 1, "a learned task is looked at once"


def test_an_unseen_label_makes_it_new_and_too_little_held_out_leaves_it_undecided(tmp_path: Path) -> None:
    looker = Looker(tmp_path, KNOWN.select(range(200)))
    some = LATER.images[:64]
    assert looker.assess(PartlyLabelled(some, (None,) * 64)).assessment.verdict == "undecided"
    new = looker.assess(PartlyLabelled(some, ("9", *(None,) * 63)))
    assert (new.assessment.verdict, new.assessment.unseen_labels) == ("new", ("9",))
    assert [batch.verdict for batch in new.batches] == ["undecided"], "of a batch, distance speaks alone"
    with pytest.raises(NothingToLearnFrom):
        looker.assess(PartlyLabelled(some[:0], ()))


def test_what_is_held_out_is_taken_out_of_the_statistics_that_it_judges(tmp_path: Path) -> None:
    looker = Looker(tmp_path, KNOWN)
    held = looker.held.of([looker.task], KNOWN.classes)
    assert looker.statistics is not None
    whole = ClassStatistics.from_bytes(looker.statistics)
    rest = KNOWN.select([row for row, image in enumerate(KNOWN.images) if not is_held_out(image_digest(image))])
    expected = ClassStatistics.from_features(features_of(tiny_trunk(), rest.images), rest.labels)
    found = uncounted(whole, held, looker.publisher)
    assert found.counts == expected.counts
    scale = float(expected.scatter.diagonal().mean())
    assert torch.allclose(found.scatter, expected.scatter, atol=1e-4 * scale)
    # A mesh that has nothing of this node's yet: nothing can be taken out of it.
    peers = ClassStatistics.from_features(torch.randn(4, whole.feature_dim), ["0"] * 4, fingerprint=MESH.fingerprint)
    assert uncounted(peers, held, looker.publisher) is peers


def test_noised_statistics_keep_what_they_have(tmp_path: Path) -> None:
    looker = Looker(tmp_path, KNOWN, epsilon=100.0)
    held = looker.held.of([looker.task], KNOWN.classes)
    assert looker.statistics is not None
    whole = ClassStatistics.from_bytes(looker.statistics)
    assert uncounted(whole, held, looker.publisher) is whole


def test_a_beginner_gains_and_one_that_has_learned_it_does_not(tmp_path: Path) -> None:
    looker = Looker(tmp_path, KNOWN)
    later = PartlyLabelled.of(LATER.of_classes(("2", "3")))
    beginner = looker.assess(later, trial("2", "3", steps=0)).gains["e"]
    assert beginner.gain > 0.2
    expert = looker.assess(later, trial("2", "3", steps=1900)).gains["e"]
    assert expert.accuracy_now > 0.9
    assert expert.gain < 0.02
    held = looker.held.of([looker.task], ()).of_classes(("2", "3"))
    assert expert.num_items == len(held.labels) + -(-len(later) // 3)


def test_an_update_that_would_lose_what_is_known_is_no_gain(tmp_path: Path) -> None:
    """Mislabelled images, of which there is one third as many to judge by as of what is held out."""
    looker = Looker(tmp_path, KNOWN)
    some = KNOWN.of_classes(("2", "3")).select(range(60))
    wrong = PartlyLabelled(some.images, tuple("3" if label == "2" else "2" for label in some.labels))
    assert looker.assess(wrong, trial("2", "3", steps=1900)).gains["e"].gain < 0.2


def test_the_same_task_has_the_same_gain_and_the_expert_is_not_touched(tmp_path: Path) -> None:
    looker = Looker(tmp_path, KNOWN)
    later, expert = PartlyLabelled.of(LATER), trial("2", "3", steps=20)
    first = looker.assess(later, expert)
    assert looker.assess(later, expert) == first
    module = architecture(2).build("e")
    load_flat(module, torch.from_numpy(np.zeros(architecture(2).num_parameters, np.float32)))
    untouched = looker.assess(PartlyLabelled(LATER.images, (None,) * len(LATER)), expert).gains["e"]
    assert untouched.gain == 0, "there is nothing to learn from"
