"""Continual learning on one machine: data in, decisions and experts out (proposal, section 2.5).

Data comes as whole tasks (`learn_task`) or as batches of a stream without boundaries (`observe`). Either is assessed,
decided upon with evidence, taken into the router's statistics at once, and learned in lessons of one expert each, step
by step (`experts.continual.study`): what can be stopped can be gone on with. An expert answers, or answers anew, when
its lesson is over; until then the one before it does.

Where classes are incremental labels decide, and distance only of what has none. Where domains are, distance decides.
Tasks are told, so for them there is no stream to find boundaries in. Images without labels are assessed and answered;
they are learned from, by the teacher's word, only among others and if asked for (`learns_unlabelled`).

Legend: B batch, N items of a task, A classes that may be named.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experts.continual.batches import Batch, batches_from_tensors, batches_to_tensors, joined
from experts.continual.decision import Decision, decide_by_class, decide_by_domain, decide_by_task
from experts.continual.herding import Features
from experts.continual.knowledge import Knowledge
from experts.continual.novelty import Assessment, NoveltyDetector, Verdict
from experts.continual.packing import words_from, words_to
from experts.continual.settings import LearnerConfig
from experts.continual.stream import BoundaryFinder, Found
from experts.continual.study import Study
from experts.continual.tidying import Tidied, tidy
from experts.errors import CorruptState, MalformedDataset, SettingOutOfRange
from experts.generators import torch_generator
from experts.sealed import seal, unseal

__all__ = ["ContinualLearner", "Observed"]


class Observed(NamedTuple):
    """What became of a batch of a stream."""

    assessment: Assessment
    found: Found
    decisions: tuple[Decision, ...]
    """On the increments of the stream that were complete with this batch, in order; empty if none was."""


class ContinualLearner:
    """Learns what comes, and answers from what it has learned."""

    def __init__(self, features: Features, config: LearnerConfig, *, seed: int, fingerprint: str | None = None) -> None:
        """
        Args:
            features: Of the frozen trunk; always the same numbers of the same array of images.
            config: What to do when.
            seed: Of every generator, with its purpose.
            fingerprint: Of what makes the features, which the statistics carry.
        """
        self._features = features
        self._config = config
        self._terms: dict[str, object] = {"config": repr(config), "seed": seed, "fingerprint": fingerprint}
        self._seed = seed
        self.knowledge = Knowledge(features, config, self._generator("replay"), fingerprint=fingerprint)
        self._study = Study(self.knowledge, features, config, self._generator, seed)
        self._finder = BoundaryFinder(config.stream)
        self._open: list[Batch] = []  # of the stream, going on, not yet enough to be learned
        self._open_domain: str | None = None
        self._look_again = False  # at what waits, as more is known than when it was judged
        self._image_shape: tuple[int, ...] | None = None
        self._detector: NoveltyDetector | None = None

    def learn_task(
        self, images: NDArray[np.uint8], labels: Sequence[str | None], *, task: str | None = None
    ) -> Decision:
        """A whole task: assessed, decided upon, and its lessons made, which `run` or `step` takes.

        What is under way is finished before.

        Args:
            images: uint8 ``(N, H, W)`` or ``(N, H, W, channels)``, N at least 1, all of one shape ever.
            labels: N class names, None where there is none.
            task: Its name, needed where tasks are told; of a domain, what to call it if it is new, unless one is called
                that already.

        Raises:
            MalformedDataset: If images and labels are not such.
            NothingToLearnFrom: If there is no image.
            SettingOutOfRange: If a task has to be told and is not, or no expert is within the budget.
        """
        if task is None and self._config.setting == "task-incremental":
            raise SettingOutOfRange("task", None, allowed="the task's name, where tasks are told")
        batch = self._batch(images, labels)
        self.run()
        features_ND = self._features(batch.images)
        assessment = self.detector.assess_all(features_ND, batch.labels)
        if self._config.setting == "task-incremental":
            assert task is not None
            decision = decide_by_task(assessment, batch.classes, self._classes_by_task(), task)
            return self._take(decision, batch, features_ND, task)
        return self._decide(batch, features_ND, assessment, name=task)

    def observe(self, images: NDArray[np.uint8], labels: Sequence[str | None] | None = None) -> Observed:
        """The next batch of a stream, of which nobody says where a task begins.

        What is under way is finished before. A batch that goes on with what is known is learned with others of its
        kind, once there are ``increment_items`` or something else begins: `flush` does not wait for that.

        Args:
            images: As for `learn_task`.
            labels: B class names, None where there is none; None if no image has one.

        Raises: As `learn_task`; and SettingOutOfRange: If tasks are told.
        """
        if self._config.setting == "task-incremental":
            raise SettingOutOfRange("setting", self._config.setting, allowed="classes or domains, for a stream")
        batch = self._batch(images, labels)
        self.run()
        decisions = self._take_up_what_waited()
        features_BD = self._features(batch.images)
        assessment = self.detector.assess(features_BD, batch.labels)
        found = self._finder.feed(
            batch, self._verdict(batch, assessment), may_begin=bool(batch.classes) and self._could_judge_after(batch)
        )
        if found.kind == "begins":
            decisions += (*self._flush_open(), self._begin(joined(found.batches)))
        elif found.kind == "continues" and batch.classes:
            decisions += self._go_on(batch, features_BD)
        return Observed(assessment, found, decisions)

    def flush(self) -> tuple[Decision, ...]:
        """Makes lessons of what is not yet enough by itself, such as at a stream's end: of what goes on, and of a first
        task that there are too few images to judge others by."""
        decisions = self._flush_open()
        if any(batch.classes for batch in self._finder.waiting) and (begun := self._finder.release()):
            decisions += (self._begin(joined(begun)),)
        return decisions

    @property
    def busy(self) -> bool:
        """Whether a lesson is to be taken."""
        return self._study.busy

    @property
    def num_lessons(self) -> int:
        """To be taken, the one under way included."""
        return self._study.num_lessons

    @property
    def steps_taken(self) -> int:
        """Of lessons and trials so far."""
        return self._study.steps_taken

    @property
    def num_dropped(self) -> int:
        """Batches of the stream given up because more waited than may."""
        return self._finder.num_dropped

    def step(self) -> float:
        """One step of the lesson under way; there must be one.

        Returns: The batch's loss before it, in nats.

        Raises:
            TrainingDiverged: If the loss is not finite. The lesson is given up; an expert that there was stays.
        """
        loss = self._study.step()
        if not self.busy:
            self._detector = None  # labels count as known once an expert answers for them
        return loss

    def run(self) -> None:
        """All steps of all lessons.

        Raises:
            TrainingDiverged: As `step`.
        """
        while self.busy:
            self.step()

    def tidy(self) -> Tidied:
        """Merges experts that say the same and prunes those that nobody asks; what is under way is finished before."""
        self.run()
        self._detector = None
        return tidy(self.knowledge, self._config, self._features, self._generator(f"tidy/{self._study.num_increments}"))

    @property
    def detector(self) -> NoveltyDetector:
        """Judges by what is known now."""
        if self._detector is None:
            known = self.knowledge
            generator = self._generator(f"novelty/{self._study.num_increments}")
            self._detector = NoveltyDetector(
                known.statistics, known.held_out_features(), known.labels, self._config.novelty, generator
            )
        return self._detector

    def scores(self, images: NDArray[np.uint8], allowed: Sequence[str], *, task: str | None = None) -> Tensor:
        """The mixture's output in the columns of the classes that may be named, ``(B, A)``.

        Args:
            images: As for `learn_task`.
            allowed: Class names.
            task: Whose experts are asked, where it is told.

        Returns: -inf in the column of a class that no expert answers for.
        """
        return self.knowledge.scores(self._features(images), allowed, task)

    def to_bytes(self) -> bytes:
        """All of it, also in the middle of a lesson: see `from_bytes`."""
        words = {
            "open_domain": self._open_domain,
            "look_again": self._look_again,
            "image_shape": self._image_shape,
        }
        tensors = {
            **self.knowledge.to_tensors(),
            **self._study.to_tensors(),
            **self._finder.to_tensors(),
            **batches_to_tensors(self._open, "open"),
            "learner": words_to(words),
        }
        return seal(tensors, self._terms)

    @classmethod
    def from_bytes(
        cls, data: bytes, features: Features, config: LearnerConfig, *, seed: int, fingerprint: str | None = None
    ) -> "ContinualLearner":
        """The learner that `to_bytes` saved: it goes on as that one would have, to the bit.

        Args:
            data: The bytes.
            features: As before.
            config: As before.
            seed: As before.
            fingerprint: As before.

        Raises:
            CorruptState: If the bytes are damaged, or of a learner with other settings.
        """
        tensors, terms = unseal(data, _NAME)
        learner = cls(features, config, seed=seed, fingerprint=fingerprint)
        if terms != learner._terms:
            raise CorruptState(_NAME, reason="it was saved under other settings, another seed or other features")
        learner.knowledge.load_tensors(tensors)
        learner._study.load_tensors(tensors)
        learner._finder = BoundaryFinder.from_tensors(tensors, config.stream)
        learner._open = batches_from_tensors(tensors, "open")
        try:
            words = words_from(tensors["learner"])
            assert isinstance(words, dict)
            learner._open_domain, learner._look_again = words["open_domain"], words["look_again"]
            learner._image_shape = None if words["image_shape"] is None else tuple(words["image_shape"])
        except (KeyError, TypeError, ValueError, AssertionError) as exc:
            raise CorruptState(_NAME, reason=str(exc)) from exc
        return learner

    @property
    def _is_by_domain(self) -> bool:
        return self._config.setting == "domain-incremental"

    def _generator(self, purpose: str) -> torch.Generator:
        return torch_generator(self._seed, f"continual/{purpose}")

    def _batch(self, images: NDArray[np.uint8], labels: Sequence[str | None] | None) -> Batch:
        batch = Batch.of(images, labels)
        shape = batch.images.shape[1:]
        if self._image_shape is not None and shape != self._image_shape:
            raise MalformedDataset("batch", reason=f"images of shape {shape} among {self._image_shape}")
        self._image_shape = shape
        return batch

    def _verdict(self, batch: Batch, assessment: Assessment) -> Verdict:
        """For the boundary finder."""
        if self._is_by_domain or not batch.classes:
            return assessment.verdict
        return "new" if assessment.unseen_labels else "known"

    def _could_judge_after(self, batch: Batch) -> bool:
        """Whether there would be enough held-out images to judge the next batches by."""
        if self.knowledge.experts:
            return True
        waiting = joined([*self._finder.waiting, batch])
        first = "the first" if self._is_by_domain else None
        return len(self.knowledge.rows_held_out(waiting, first)) >= self._config.novelty.min_held_out

    def _begin(self, batch: Batch) -> Decision:
        self.run()
        features_ND = self._features(batch.images)
        assessment = self.detector.assess_all(features_ND, batch.labels)
        # Each of its batches was judged new, if only by its labels.
        return self._decide(batch, features_ND, dataclasses.replace(assessment, verdict="new"))

    def _go_on(self, batch: Batch, features_BD: Tensor) -> tuple[Decision, ...]:
        domain = self._nearest_domain(features_BD) if self._is_by_domain else None
        decisions = self._flush_open() if domain != self._open_domain else ()
        self._open.append(batch)
        self._open_domain = domain
        if sum(map(len, self._open)) >= self._config.increment_items:
            decisions += self._flush_open()
        return decisions

    def _flush_open(self) -> tuple[Decision, ...]:
        if not self._open:
            return ()
        batch, domain = joined(self._open), self._open_domain
        self._open, self._open_domain = [], None
        self.run()
        features_ND = self._features(batch.images)
        assessment = self.detector.assess_all(features_ND, batch.labels)
        if domain is not None:
            # Each of its batches was judged known, when there was less to judge by.
            assessment = dataclasses.replace(assessment, verdict="known")
        return (self._decide(batch, features_ND, assessment, domain=domain),)

    def _take_up_what_waited(self) -> tuple[Decision, ...]:
        """What waited and is known now goes on."""
        if not self._look_again:
            return ()
        self._look_again = False

        def verdict_of(batch: Batch) -> Verdict:
            return self._verdict(batch, self.detector.assess(self._features(batch.images), batch.labels))

        decisions: tuple[Decision, ...] = ()
        for batch in self._finder.reconsider(verdict_of):
            if batch.classes:
                decisions += self._go_on(batch, self._features(batch.images))
        self.run()
        return decisions

    def _decide(
        self,
        batch: Batch,
        features_ND: Tensor,
        assessment: Assessment,
        *,
        name: str | None = None,
        domain: str | None = None,
    ) -> Decision:
        """Of classes or domains.

        Args:
            batch: An increment of the data.
            features_ND: Of its images.
            assessment: Of it.
            name: What to call a domain that is new.
            domain: The known one that it is of; None if that is not settled.
        """
        known = self.knowledge
        experts = {uid: expert.classes for uid, expert in known.experts.items()}
        if not self._is_by_domain:
            return self._take(decide_by_class(assessment, batch.classes, experts), batch, features_ND, None)
        if name in known.targets:
            # Told by the name of a known one.
            domain, assessment = name, dataclasses.replace(assessment, verdict="known")
        domain = domain or self._nearest_domain(features_ND)
        nearest = next((uid for uid, expert in known.experts.items() if domain in expert.targets), None)
        name = name or f"domain {self._study.num_increments:03}"
        decision = decide_by_domain(assessment, batch.classes, experts, nearest=nearest, name=name)
        return self._take(decision, batch, features_ND, decision.context or domain)

    def _take(self, decision: Decision, batch: Batch, features_ND: Tensor, context: str | None) -> Decision:
        if not batch.classes or decision.action == "undecided":
            return decision
        self.run()
        decision = self._study.take(decision, batch, features_ND, context)
        self._detector = None
        self._look_again = True
        return decision

    def _nearest_domain(self, features_ND: Tensor) -> str | None:
        nearest = self.knowledge.nearest(features_ND)
        if nearest is None:
            return None
        router = self.knowledge.router
        assert router is not None
        # A merged expert stands for several domains: the one of them that the router means.
        scores_C = router.scores(features_ND).mean(dim=0).tolist()
        return max(nearest.targets, key=lambda target: scores_C[router.classes.index(target)])

    def _classes_by_task(self) -> dict[str, dict[str, tuple[str, ...]]]:
        by_task: dict[str, dict[str, tuple[str, ...]]] = {}
        for expert in self.knowledge.experts.values():
            by_task.setdefault(str(expert.context), {})[expert.uid] = expert.classes
        return by_task


_NAME = "continual learner"
