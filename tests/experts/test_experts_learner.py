"""The whole of continual learning on one machine: classes, domains and tasks one after the other, and restarts."""

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from continual_examples import accuracy, features, images_of, learner, settings

from experts.continual import knowledge
from experts.continual.decision import Decision
from experts.continual.learner import ContinualLearner
from experts.continual.redundancy import RedundancyConfig
from experts.continual.replay_kinds import ReplayConfig
from experts.data.held_out import image_digest, is_held_out
from experts.distillation.config import DistillationConfig
from experts.errors import (
    CorruptState,
    MalformedDataset,
    NothingToLearnFrom,
    SettingOutOfRange,
    TrainingDiverged,
)
from experts.router.statistics import ClassStatistics

CLASSES = ("east", "north", "south", "west")


def taught(subject: ContinualLearner, classes: tuple[str, ...], seed: int, **where: object) -> Decision:
    inverted = bool(where.pop("inverted", False))
    decision = subject.learn_task(*images_of(classes, 320, seed, inverted=inverted), **where)  # type: ignore[arg-type]
    subject.run()
    return decision


def test_classes_come_one_task_after_the_other_and_stay() -> None:
    subject = learner()
    first = taught(subject, ("east", "north"), 1)
    second = taught(subject, ("south", "west"), 2)
    assert [first.action, second.action] == ["spawn", "spawn"]
    assert second.assessment.unseen_labels == ("south", "west")
    assert [expert.classes for expert in subject.knowledge.experts.values()] == [("east", "north"), ("south", "west")]
    assert accuracy(subject, CLASSES, CLASSES) > 0.95
    assert Decision.from_dict(json.loads(json.dumps(second.to_dict()))) == second


def test_known_classes_update_their_experts_beside_a_new_one() -> None:
    subject = learner(min_gain=-1.0)
    taught(subject, ("east", "north"), 1)
    decision = taught(subject, ("east", "middle", "north"), 2)
    assert (decision.action, decision.spawn) == ("spawn", ("middle",))
    assert dict(decision.update) == {"expert 000": ("east", "north")}
    assert decision.gain is not None
    assert [expert.generation for expert in subject.knowledge.experts.values()] == [2, 1]
    assert accuracy(subject, ("east", "north"), ("east", "middle", "north")) > 0.9


def test_experts_with_nothing_to_gain_are_reused_and_the_router_learns_all_the_same() -> None:
    subject = learner(min_gain=0.5)
    taught(subject, ("east", "north"), 1)
    before = subject.knowledge.statistics
    decision = taught(subject, ("east", "north"), 2)
    assert (decision.action, subject.busy) == ("reuse", False)
    assert decision.gain is not None
    assert decision.gain.gain < 0.5
    assert before is not None
    assert subject.knowledge.statistics is not None
    assert subject.knowledge.statistics.num_samples > before.num_samples
    assert subject.knowledge.experts["expert 000"].generation == 1


def test_the_statistics_are_those_of_all_that_was_not_held_out() -> None:
    subject = learner()
    for seed in (1, 2):
        taught(subject, ("east", "north"), seed)
    images = np.concatenate([images_of(("east", "north"), 320, seed)[0] for seed in (1, 2)])
    labels = images_of(("east", "north"), 640)[1]
    out = [row for row, image in enumerate(images) if is_held_out(image_digest(image))]
    assert 90 < len(out) < 170
    rows = [row for row in range(640) if row not in out]
    expected = ClassStatistics.from_features(features(images[rows]), [labels[row] for row in rows])
    found = subject.knowledge.statistics
    assert found is not None
    assert found.counts == expected.counts
    assert torch.allclose(found.scatter, expected.scatter)
    assert subject.knowledge.num_held_out == len(out)


def test_domains_get_an_expert_each_and_a_known_one_is_recognised() -> None:
    subject = learner("domain-incremental", min_gain=-1.0)
    first = taught(subject, CLASSES, 1)
    second = taught(subject, CLASSES, 2, inverted=True)
    again = taught(subject, CLASSES, 3)
    assert [each.action for each in (first, second, again)] == ["spawn", "spawn", "update"]
    assert (second.assessment.verdict, again.assessment.verdict) == ("new", "known")
    assert dict(again.update) == {"expert 000": CLASSES}
    assert accuracy(subject, CLASSES, CLASSES) > 0.9
    assert accuracy(subject, CLASSES, CLASSES, inverted=True) > 0.9


def test_a_domain_that_is_told_by_a_known_name_is_that_one() -> None:
    subject = learner("domain-incremental", min_gain=-1.0)
    taught(subject, CLASSES, 1, task="plain")
    assert taught(subject, CLASSES, 2, task="plain").action == "update"
    assert taught(subject, CLASSES, 3, task="inverted", inverted=True).context == "inverted"
    assert taught(subject, CLASSES, 4, task="plain", inverted=True).action == "update"


def test_tasks_that_are_told_keep_to_their_own_experts() -> None:
    subject = learner("task-incremental", min_gain=-1.0)
    both = ("north", "south")
    taught(subject, both, 1, task="one")
    swapped, labels = images_of(both, 160, 2)
    subject.learn_task(swapped, ["south" if label == "north" else "north" for label in labels], task="other")
    subject.run()
    assert accuracy(subject, both, both, task="one") > 0.95
    assert accuracy(subject, both, both, task="other") < 0.05
    assert taught(subject, both, 3, task="one").action == "update"


def test_images_without_labels_are_assessed_and_nothing_is_learned_from_them() -> None:
    subject = learner()
    taught(subject, ("east", "north"), 1)
    before = subject.to_bytes()
    known = subject.learn_task(images_of(("east", "north"), 64, 5)[0], [None] * 64)
    new = subject.learn_task(images_of(("east", "north"), 64, 5, inverted=True)[0], [None] * 64)
    assert (known.action, new.action, new.spawn) == ("reuse", "spawn", ())
    assert subject.to_bytes() == before


def partly_labelled(classes: tuple[str, ...], count: int, every: int) -> tuple[np.ndarray, list[str | None]]:
    images, labels = images_of(classes, count, 1)
    return images, [label if row // len(classes) % every == 0 else None for row, label in enumerate(labels)]


def test_images_without_labels_among_others_are_in_no_statistics_and_no_memory() -> None:
    subject = learner()
    images, labels = partly_labelled(("east", "north"), 160, 2)
    decision = subject.learn_task(images, labels)
    assert decision.assessment.num_labelled == 80
    subject.run()
    known = subject.knowledge
    assert known.statistics is not None
    assert known.statistics.num_samples + known.num_held_out == 80
    remembered = {image_digest(image) for image in known.replay.images}
    assert not remembered & {image_digest(image) for image, label in zip(images, labels, strict=True) if label is None}


def test_images_without_labels_are_learned_from_by_the_one_expert_that_they_can_be_for() -> None:
    both = learner(learns_unlabelled=True), learner()
    images, labels = partly_labelled(("east", "north"), 320, 8)
    alone = [row for row, label in enumerate(labels) if label is not None]
    both[0].learn_task(images, labels)
    both[1].learn_task(images[alone], [labels[row] for row in alone])
    for subject in both:
        subject.run()
    weights = [subject.knowledge.experts["expert 000"].module.state_dict()["hidden.weight"] for subject in both]
    assert not torch.equal(*weights)
    assert accuracy(both[0], ("east", "north"), ("east", "north")) > 0.95


@pytest.mark.parametrize("min_gain", [-1.0, 1.0])
def test_images_without_labels_are_left_out_where_they_may_be_for_several_experts(min_gain: float) -> None:
    both = learner(min_gain=min_gain, learns_unlabelled=True), learner(min_gain=min_gain)
    for subject in both:
        taught(subject, ("east", "north"), 1)
    images, labels = partly_labelled(("east", "middle", "north"), 360, 3)
    alone = [row for row, label in enumerate(labels) if label is not None]
    first = both[0].learn_task(images, labels)
    second = both[1].learn_task(images[alone], [labels[row] for row in alone])
    assert (first.action, dict(first.update)) == (second.action, dict(second.update))
    for subject in both:
        subject.run()
    for uid in ("expert 000", "expert 001"):
        mine, other = (subject.knowledge.experts[uid].module.state_dict() for subject in both)
        assert all(torch.equal(mine[name], other[name]) for name in mine)


def test_what_is_remembered_is_learned_again_with_its_label() -> None:
    # One class comes back alone: an update from it and the old expert's word must not lose the other.
    subject = learner(min_gain=-1.0)
    taught(subject, ("east", "north"), 1)
    taught(subject, ("east",), 2)
    assert subject.knowledge.experts["expert 000"].generation == 2
    assert accuracy(subject, ("east", "north"), ("east", "north")) > 0.95


def stream(subject: ContinualLearner, plan: list[tuple[tuple[str, ...], bool, int]], seed: int = 50) -> list[Decision]:
    """Batches of 16; each leg of the plan has classes, whether inverted, and how many batches."""
    decisions: list[Decision] = []
    for leg, (classes, inverted, num_batches) in enumerate(plan):
        images, labels = images_of(classes, 16 * num_batches, seed + leg, inverted=inverted)
        for start in range(0, len(images), 16):
            observed = subject.observe(images[start : start + 16], labels[start : start + 16])
            decisions += observed.decisions
    decisions += subject.flush()
    subject.run()
    return decisions


def test_a_stream_of_classes_without_boundaries_is_cut_where_they_are() -> None:
    subject = learner()
    decisions = stream(subject, [(("east", "north"), False, 20), (("south", "west"), False, 12)])
    assert [each.spawn for each in decisions if each.action == "spawn"] == [("east", "north"), ("south", "west")]
    assert accuracy(subject, CLASSES, CLASSES) > 0.9
    total = 0 if subject.knowledge.statistics is None else subject.knowledge.statistics.num_samples
    assert total + subject.knowledge.num_held_out == 32 * 16
    assert subject.num_dropped == 0


def test_a_stream_of_domains_is_cut_by_distance_and_a_return_is_no_new_domain() -> None:
    subject = learner("domain-incremental")
    decisions = stream(subject, [(CLASSES, False, 20), (CLASSES, True, 12), (CLASSES, False, 12)])
    assert sum(each.action == "spawn" for each in decisions) == 2
    assert accuracy(subject, CLASSES, CLASSES) > 0.85
    assert accuracy(subject, CLASSES, CLASSES, inverted=True) > 0.75


def test_a_stream_too_short_to_judge_by_is_learned_at_its_end() -> None:
    subject = learner()
    images, labels = images_of(("east", "north"), 64, 1)
    for start in range(0, 64, 16):
        assert subject.observe(images[start : start + 16], labels[start : start + 16]).found.kind == "waits"
    (decision,) = subject.flush()
    assert decision.spawn == ("east", "north")
    subject.run()
    assert len(subject.knowledge.experts) == 1


def test_one_odd_batch_begins_no_domain() -> None:
    subject = learner("domain-incremental")
    decisions = stream(subject, [(CLASSES, False, 20), (CLASSES, True, 1), (CLASSES, False, 10)])
    assert sum(each.action == "spawn" for each in decisions) == 1
    assert len(subject.knowledge.experts) == 1


def test_a_stream_of_told_tasks_is_refused() -> None:
    with pytest.raises(SettingOutOfRange):
        learner("task-incremental").observe(*images_of(("east",), 16))
    with pytest.raises(SettingOutOfRange):
        learner("task-incremental").learn_task(*images_of(("east",), 16))


def restarted(subject: ContinualLearner, setting: str = "class-incremental", **changes: object) -> ContinualLearner:
    return ContinualLearner.from_bytes(subject.to_bytes(), features, settings(setting, **changes), seed=0)


@pytest.mark.parametrize(
    ("kind", "after_steps"),
    [("balanced", 0), ("balanced", 1), ("balanced", 17), ("herding", 17), ("reservoir", 17)],
)
def test_a_restart_in_the_middle_of_a_task_changes_nothing(kind: str, after_steps: int) -> None:
    changes: dict[str, object] = {"min_gain": -1.0, "replay": ReplayConfig(kind=kind, max_bytes=64 * 60)}  # type: ignore[arg-type]
    subject, other = learner(**changes), learner(**changes)
    for each in (subject, other):
        taught(each, ("east", "north"), 1)
        each.learn_task(*images_of(("east", "north", "south"), 160, 2))
        for _ in range(after_steps):
            each.step()
    other = restarted(other, **changes)
    assert other.to_bytes() == subject.to_bytes()
    for each in (subject, other):
        each.run()
        taught(each, ("south", "west"), 3)
    assert other.to_bytes() == subject.to_bytes()


@pytest.mark.parametrize("setting", ["class-incremental", "domain-incremental"])
@pytest.mark.parametrize("cut", [9, 23])
def test_a_restart_anywhere_in_a_stream_changes_nothing(setting: str, cut: int) -> None:
    if setting == "class-incremental":
        legs = [images_of(("east", "north"), 16 * 18, 1), images_of(("south", "west"), 16 * 18, 2)]
    else:
        legs = [images_of(CLASSES, 16 * 18, 1), images_of(CLASSES, 16 * 18, 2, inverted=True)]
    images = np.concatenate([leg[0] for leg in legs])
    labels = [label for leg in legs for label in leg[1]]
    subject, other = learner(setting), learner(setting)
    for number in range(36):
        if number == cut:
            other = restarted(other, setting)
        rows = slice(16 * number, 16 * number + 16)
        seen = [each.observe(images[rows], labels[rows]) for each in (subject, other)]
        assert seen[0].assessment == seen[1].assessment
        assert seen[0].decisions == seen[1].decisions
    assert other.to_bytes() == subject.to_bytes()


def test_damaged_bytes_other_settings_and_other_seeds_are_refused() -> None:
    subject = learner()
    taught(subject, ("east", "north"), 1)
    data = subject.to_bytes()
    makers: list[Callable[[], ContinualLearner]] = [
        lambda: ContinualLearner.from_bytes(data[:-1], features, settings(), seed=0),
        lambda: ContinualLearner.from_bytes(data, features, settings(passes=3.0), seed=0),
        lambda: ContinualLearner.from_bytes(data, features, settings(), seed=1),
        lambda: ContinualLearner.from_bytes(data, features, settings(), seed=0, fingerprint="f" * 64),
    ]
    for make in makers:
        with pytest.raises(CorruptState):
            make()


def test_bad_input_is_refused_and_changes_nothing() -> None:
    subject = learner()
    taught(subject, ("east", "north"), 1)
    before = subject.to_bytes()
    images, labels = images_of(("east",), 4)
    with pytest.raises(MalformedDataset):
        subject.learn_task(images[:, :7], labels)
    with pytest.raises(MalformedDataset):
        subject.observe(images, labels[:3])
    with pytest.raises(NothingToLearnFrom):
        subject.learn_task(images[:0], [])
    assert subject.to_bytes() == before


def test_a_budget_for_nothing_is_refused_before_anything_is_taken_in() -> None:
    subject = learner(max_parameters=10)
    with pytest.raises(SettingOutOfRange):
        subject.learn_task(*images_of(("east", "north"), 40))
    assert subject.knowledge.statistics is None


def test_a_lesson_that_diverges_is_given_up_and_the_rest_goes_on() -> None:
    subject = learner(distillation=DistillationConfig(steps=60, lr=1e30), trial_steps=1)
    subject.learn_task(*images_of(("east", "north"), 160, 1))
    with pytest.raises(TrainingDiverged):
        subject.run()
    assert not subject.busy
    assert len(subject.knowledge.replay) > 0


def test_other_draws_do_not_change_a_lesson() -> None:
    torch.manual_seed(1)
    first = learner()
    taught(first, ("east", "north"), 1)
    torch.manual_seed(2)
    second = learner()
    _ = second.detector
    taught(second, ("east", "north"), 1)
    assert first.to_bytes() == second.to_bytes()


def test_domains_that_turn_out_alike_become_one_expert() -> None:
    changes: dict[str, object] = {"redundancy": RedundancyConfig(max_difference=0.2)}
    subject = learner("domain-incremental", **changes)
    taught(subject, CLASSES, 1, task="monday")
    images, labels = images_of(CLASSES, 320, 2)
    decision = subject.learn_task(np.minimum(images, 195) + np.uint8(60), labels, task="tuesday")
    subject.run()
    assert decision.action == "spawn"
    tidied = subject.tidy()
    assert [verdict.verdict for verdict in tidied.merges] == ["merge"]
    (expert,) = subject.knowledge.experts.values()
    assert expert.targets == ("monday", "tuesday")
    assert accuracy(subject, CLASSES, CLASSES) > 0.9
    assert restarted(subject, "domain-incremental", **changes).to_bytes() == subject.to_bytes()


def test_domains_that_differ_stay_apart_and_needed_experts_stay() -> None:
    subject = learner("domain-incremental")
    taught(subject, CLASSES, 1)
    taught(subject, CLASSES, 2, inverted=True)
    before = subject.to_bytes()
    tidied = subject.tidy()
    assert [verdict.verdict for verdict in tidied.merges] == ["keep"]
    assert all(verdict.verdict == "keep" for verdict in tidied.prunings)
    assert subject.to_bytes() == before


def test_what_a_new_expert_may_begin_as_is_the_nearest_the_most_informed_of_the_near_or_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def begun(rule: str) -> str | None:
        """What an expert for a class again may begin as, whose own expert is not the one that adds most to I(E;C)."""
        subject = learner(begins_as=rule)
        for classes in (("east", "north"), ("south", "west")):
            subject.learn_task(*images_of(classes, 160, 1))
            subject.run()
        found, statistics = subject.knowledge.specialization(), subject.knowledge.statistics
        assert found is not None
        assert statistics is not None
        most = found.uids[int(found.information_shares.argmax())]
        row = next(
            row for row, name in enumerate(statistics.classes) if name not in subject.knowledge.experts[most].classes
        )
        source = subject.knowledge.source(statistics.stacked_means().float()[[row]])
        return None if source is None else "most informed" if source.uid == most else "nearest"

    assert begun("nearest") == "nearest"
    assert begun("informed") == "nearest"  # the other one is not near
    monkeypatch.setattr(knowledge, "_NEAR", 0.0)
    assert begun("informed") == "most informed"
    assert begun("nearest") == "nearest"
    assert begun("random") is None
