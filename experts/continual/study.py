"""An increment of the data being learned: what is tried first, the lessons that come of it, and how far they are.

An increment is a task, or what a stream brought of one class group or domain. It is taken into the statistics at once;
updates and beginnings are tried for a few steps, which is the evidence of the decision; then the experts have their
lessons, one after the other. When the last one is over, the increment's images become past ones and may be replayed.

All draws come from generators named by purpose, increment and expert, so that a lesson draws the same whatever else was
drawn, and after a restart.

Legend: N items of the increment, D feature.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from experts.architectures.base import Architecture
from experts.architectures.registry import architecture_from_config
from experts.checkpoint import weights_to_bytes
from experts.continual.batches import Batch, batches_from_tensors, batches_to_tensors
from experts.continual.decision import Decision, ExpectedGain
from experts.continual.herding import Features
from experts.continual.knowledge import Knowledge, KnownExpert
from experts.continual.lesson import Lesson, ridge_taught
from experts.continual.packing import as_bytes, as_tensor, words_from, words_to
from experts.continual.settings import LearnerConfig
from experts.continual.sizing import choose_architecture
from experts.continual.starting import Nearest, accuracy_of, choose_start
from experts.data.dataset import class_columns
from experts.distillation.run import DistillationRun
from experts.errors import CorruptState, TrainingDiverged

__all__ = ["Study"]


class Study:
    """One increment at a time, lesson by lesson."""

    def __init__(
        self,
        knowledge: Knowledge,
        features: Features,
        config: LearnerConfig,
        generator: Callable[[str], torch.Generator],
        seed: int,
    ) -> None:
        """
        Args:
            knowledge: What there is, and what experts are added to.
            features: Of the frozen trunk.
            config: The learner's.
            generator: Makes a fresh one by its purpose.
            seed: Of random initial weights, with the uid.
        """
        self._knowledge = knowledge
        self._features = features
        self._config = config
        self._generator = generator
        self._seed = seed
        self.num_increments = 0
        """Taken in so far."""
        self.steps_taken = 0
        """Of lessons and trials so far."""
        self._num_spawned = 0
        self._batch: Batch | None = None
        self._context: str | None = None
        self._learned: list[int] = []  # rows of the batch
        self._seen: Tensor | None = None  # features of all its images
        self._lessons: list[Lesson] = []
        self._run: DistillationRun | None = None

    @property
    def busy(self) -> bool:
        """Whether there is a lesson to be taken."""
        return bool(self._lessons)

    @property
    def num_lessons(self) -> int:
        """To be taken, the one under way included."""
        return len(self._lessons)

    def take(self, decision: Decision, batch: Batch, features_ND: Tensor, context: str | None) -> Decision:
        """Takes an increment in and makes its lessons.

        Args:
            decision: What is to be done.
            batch: At least one image is labelled.
            features_ND: Of all its images.
            context: Its domain or task; None where classes are what is told apart.

        Returns: The decision with the evidence of what was tried.

        Raises:
            SettingOutOfRange: If no expert is within the budget, or not one image within that of the replay memory;
                nothing was taken in.
            TrainingDiverged: If something tried does. The increment is in the statistics then, and has no lesson.
        """
        assert not self._lessons, "an increment is under way"
        knowledge = self._knowledge
        # Refused before anything is changed.
        architecture = self._architecture(features_ND.shape[1], decision.spawn, context) if decision.spawn else None
        knowledge.replay.limit_of(batch.images)
        source = knowledge.source(features_ND)
        self.num_increments += 1
        self._batch, self._context, self._seen = batch, context, features_ND
        self._learned = knowledge.take_in(batch, features_ND, context)
        try:
            decision = self._planned(decision, architecture, source)
        except TrainingDiverged:
            self._lessons = []
            self._end()
            raise
        if not self._lessons:
            self._end()
        return decision

    def step(self) -> float:
        """One step of the lesson under way; there must be one.

        Returns: The batch's loss before it, in nats.

        Raises:
            TrainingDiverged: If the loss is not finite. The lesson is given up; an expert that there was stays.
        """
        assert self._lessons, "step without a lesson"
        run = self._run = self._run or self._begun(self._lessons[0])
        try:
            loss = run.step()
        except TrainingDiverged:
            self._lessons.pop(0)
            self._run = None
            if not self._lessons:
                self._end()
            raise
        self.steps_taken += 1
        if run.done:
            self._finish(self._lessons.pop(0), run)
        return loss

    def to_tensors(self) -> dict[str, Tensor]:
        """All of its state, to be saved beside other tensors."""
        lessons = []
        tensors = batches_to_tensors([] if self._batch is None else [self._batch], "increment")
        for number, lesson in enumerate(self._lessons):
            tensors[f"lesson/{number}"] = as_tensor(lesson.weights)
            fields = {field.name: getattr(lesson, field.name) for field in dataclasses.fields(lesson)}
            lessons.append({**fields, "architecture": lesson.architecture.to_config(), "weights": None})
        if self._run is not None:
            tensors["run"] = as_tensor(self._run.to_bytes())
        words = {
            "num_increments": self.num_increments,
            "num_spawned": self._num_spawned,
            "steps_taken": self.steps_taken,
            "context": self._context,
            "learned": self._learned,
            "lessons": lessons,
        }
        return {**tensors, "study": words_to(words)}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `to_tensors`, on what a seal vouches for; the knowledge is loaded before.

        Raises:
            CorruptState: If they are not those of a study.
        """
        batches = batches_from_tensors(tensors, "increment")
        self._batch = batches[0] if batches else None
        try:
            words = words_from(tensors["study"])
            assert isinstance(words, dict)
            self.num_increments, self._num_spawned = words["num_increments"], words["num_spawned"]
            self.steps_taken, self._context, self._learned = words["steps_taken"], words["context"], words["learned"]
            for number, form in enumerate(words["lessons"]):
                changed = {
                    "architecture": architecture_from_config(form["architecture"]),
                    "classes": tuple(form["classes"]),
                    "targets": tuple(form["targets"]),
                    "rows": tuple(form["rows"]),
                    "unlabelled": tuple(form.get("unlabelled", ())),
                    "weights": as_bytes(tensors[f"lesson/{number}"]),
                }
                self._lessons.append(Lesson(**{**form, **changed}))
        except (KeyError, TypeError, ValueError, AssertionError) as exc:
            raise CorruptState("study", reason=str(exc)) from exc
        if "run" in tensors:
            self._run = self._begun(self._lessons[0])
            self._run.load_bytes(as_bytes(tensors["run"]))

    # What is tried

    def _planned(self, decision: Decision, architecture: Architecture | None, source: KnownExpert | None) -> Decision:
        """Tries what there is to try, and makes the lessons."""
        updates = [
            lesson
            for uid, classes in sorted(decision.update.items())
            if (lesson := self._update(self._knowledge.experts[uid], classes)) is not None
        ]
        if updates:
            gain = self._gain(updates)
            decision = decision.weighed(gain, min_gain=self._config.min_gain)
            if gain.gain >= self._config.min_gain:
                self._lessons += updates
        elif decision.action == "update":
            decision = dataclasses.replace(decision, action="reuse", reason="all of its images are held out")
        if architecture is not None:
            decision = self._spawn(decision, architecture, source)
        if self._config.learns_unlabelled and self._lessons and len(decision.update) + bool(decision.spawn) == 1:
            # Of several experts nobody could say which of them an image without a label is for.
            self._lessons = [dataclasses.replace(self._lessons[0], unlabelled=self._unlabelled())]
        return decision

    def _unlabelled(self) -> tuple[int, ...]:
        assert self._batch is not None
        return tuple(row for row, label in enumerate(self._batch.labels) if label is None)

    def _update(self, expert: KnownExpert, classes: Sequence[str]) -> Lesson | None:
        """The lesson that an update would be; None if all of its images are held out."""
        rows = self._rows_of(classes)
        if not rows:
            return None
        return Lesson(
            uid=expert.uid,
            architecture=expert.architecture,
            classes=expert.classes,
            targets=expert.targets,
            context=expert.context,
            generation=expert.generation + 1,
            rows=tuple(rows),
            weights=weights_to_bytes(expert.module),
            number=self.num_increments,
        )

    def _gain(self, updates: Sequence[Lesson]) -> ExpectedGain:
        """What a few steps on two thirds of each one's images bring on the last third and on what is held out for it.

        The latter are of all that the expert knows: an update that would make it worse there is none.
        """
        right_now = right_updated = 0.0
        num_items = 0
        for lesson in updates:
            judged, learned = _thirds(lesson.rows)
            held_out_ND, held_out_labels = self._knowledge.judging(self._knowledge.experts[lesson.uid])
            columns = class_columns([*self._labels(judged), *held_out_labels], lesson.classes)
            features_ND = torch.cat([self._present()[judged], held_out_ND])
            now = accuracy_of(lesson.module(), features_ND, columns)
            updated = now
            if learned:
                run = self._run_of(lesson, learned, purpose="trial", steps=self._config.trial_steps)
                for _ in run:
                    self.steps_taken += 1
                updated = accuracy_of(run.module, features_ND, columns)
            right_now += now * len(columns)
            right_updated += updated * len(columns)
            num_items += len(columns)
        return ExpectedGain(
            accuracy_now=right_now / num_items, accuracy_updated=right_updated / num_items, num_items=num_items
        )

    def _spawn(self, decision: Decision, architecture: Architecture, source: KnownExpert | None) -> Decision:
        """Makes the lesson of a new expert, begun where a trial shows to be best."""
        classes, features_ND = decision.spawn, self._present()
        rows = self._rows_of(classes)
        if not rows:
            return dataclasses.replace(decision, action="undecided", reason="all of its images are held out")
        uid = f"expert {self._num_spawned:03}"
        self._num_spawned += 1
        judged, learned = _thirds(rows)
        learned = learned or judged
        trial = dataclasses.replace(self._config.distillation, steps=self._config.trial_steps)
        start = choose_start(
            architecture,
            classes,
            None if source is None else _copied(source),
            ridge_taught(features_ND[learned], self._labels(learned), classes, self._config.teacher),
            (features_ND[judged], class_columns(self._labels(judged), classes)),
            trial,
            seed=f"{self._seed}/{uid}",
            generator=lambda purpose: self._generator(f"{purpose}/{uid}"),
        )
        self.steps_taken += trial.steps * (1 if start.evidence.accuracy_transferred is None else 2)
        self._lessons.append(
            Lesson(
                uid=uid,
                architecture=architecture,
                classes=classes,
                targets=self._targets_of(classes, self._context),
                context=self._context if self._config.setting == "task-incremental" else None,
                generation=1,
                rows=tuple(rows),
                weights=weights_to_bytes(start.module),
                number=self.num_increments,
            )
        )
        return dataclasses.replace(decision, start=start.evidence)

    def _architecture(self, feature_dim: int, classes: Sequence[str], context: str | None) -> Architecture:
        new_columns = set(self._targets_of(classes, context)) - set(self._knowledge.targets)
        return choose_architecture(
            feature_dim,
            len(classes),
            max_parameters=self._config.max_parameters,
            router_columns=len(new_columns),
        )

    def _targets_of(self, classes: Sequence[str], context: str | None) -> tuple[str, ...]:
        """What of the router speaks for an expert of these classes, sorted."""
        return tuple(sorted({self._knowledge.target_of(name, context) for name in classes}))

    # Lessons

    def _begun(self, lesson: Lesson) -> DistillationRun:
        return self._run_of(lesson, (*lesson.rows, *lesson.unlabelled), purpose="distil", steps=None)

    def _run_of(self, lesson: Lesson, rows: Sequence[int], *, purpose: str, steps: int | None) -> DistillationRun:
        features_ND = self._present()[list(rows)]
        replayed_ND, replayed_labels = features_ND[:0], tuple[str, ...]()
        if lesson.is_update:
            images, replayed_labels = self._knowledge.replayed(self._knowledge.experts[lesson.uid])
            replayed_ND = self._features(images) if len(images) else replayed_ND
        generator = self._generator(f"{purpose}/{lesson.number}/{lesson.uid}")
        replayed = replayed_ND, replayed_labels
        return lesson.run(features_ND, self._labels_or_none(rows), replayed, self._config, generator, steps=steps)

    def _finish(self, lesson: Lesson, run: DistillationRun) -> None:
        self._run = None
        self._knowledge.experts[lesson.uid] = KnownExpert(
            lesson.uid,
            lesson.architecture,
            run.module,
            lesson.classes,
            lesson.targets,
            lesson.context,
            lesson.generation,
        )
        if not self._lessons:
            self._end()

    def _end(self) -> None:
        assert self._batch is not None
        if self._learned:
            self._knowledge.remember(self._batch.select(self._learned), self._context)
        self._batch, self._context, self._seen, self._learned = None, None, None, []

    def _present(self) -> Tensor:
        """Features of all images of the increment; after a restart made again, of the same images together."""
        assert self._batch is not None
        if self._seen is None:
            self._seen = self._features(self._batch.images)
        return self._seen

    def _labels(self, rows: Sequence[int]) -> list[str]:
        """Of labelled rows."""
        return [str(label) for label in self._labels_or_none(rows)]

    def _labels_or_none(self, rows: Sequence[int]) -> list[str | None]:
        assert self._batch is not None
        return [self._batch.labels[row] for row in rows]

    def _rows_of(self, classes: Sequence[str]) -> list[int]:
        assert self._batch is not None
        return [row for row in self._learned if self._batch.labels[row] in classes]


def _thirds(rows: Sequence[int]) -> tuple[list[int], list[int]]:
    """Every third row, to judge by, and the others."""
    return list(rows[::3]), [row for place, row in enumerate(rows) if place % 3]


def _copied(expert: KnownExpert) -> Nearest:
    return Nearest(
        uid=expert.uid,
        architecture=expert.architecture,
        module=copy.deepcopy(expert.module),
        classes=expert.classes,
    )
