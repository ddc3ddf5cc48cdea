"""What a learner knows between lessons: experts, the router's statistics, and what it remembers of the data.

    y = sum_i g_i(x) E_i(x)                                                     (proposal, section 2.1)

The router's columns are *targets*: classes, or domains where that is what is incremental. Each expert has targets that
speak for it. Statistics of domains are kept by domain and class, which says better what is known, and are read as those
of domains where the router is solved (`experts.router.regroup`).

Of the images that come, one in five of each target is held out until there are enough: neither statistics nor experts
learn from it, so that it can tell what is known from what is new, and a good expert from a better one.

Legend: B batch, D feature, A classes that may be named.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from experts.architectures.base import Architecture
from experts.architectures.registry import architecture_from_config
from experts.checkpoint import load_weights, weights_to_bytes
from experts.continual.batches import Batch, batches_from_tensors, batches_to_tensors, joined
from experts.continual.buffers import ReplayBuffer
from experts.continual.herding import Features
from experts.continual.packing import (
    as_bytes,
    as_tensor,
    statistics_from_tensors,
    statistics_to_tensors,
    words_from,
    words_to,
)
from experts.continual.replay_kinds import make_replay, replay_from_bytes
from experts.continual.settings import LearnerConfig
from experts.data.dataset import class_columns
from experts.data.held_out import image_digest, is_held_out
from experts.errors import CorruptState
from experts.local import LocalExpert
from experts.mixture.output import mixture_output
from experts.router.gating import Gates, gate
from experts.router.regroup import regrouped
from experts.router.ridge import RidgeRouter, solve_ridge
from experts.router.specialization import Specialization, measure_specialization
from experts.router.statistics import ClassStatistics, merge

__all__ = ["KnownExpert", "Knowledge"]

_NEAR = 0.5
"""Share of the nearest expert's gate mass from which on another one counts as near too."""


@dataclass(frozen=True, slots=True, eq=False)
class KnownExpert:
    """An expert that answers."""

    uid: str
    architecture: Architecture
    module: nn.Module
    """Never changed: a lesson replaces it."""
    classes: tuple[str, ...]
    """Sorted: the module's columns."""
    targets: tuple[str, ...]
    """Of the router, that speak for it; sorted."""
    context: str | None
    """Its task, where tasks are told."""
    generation: int
    """How many lessons it has had, from 1."""


class Knowledge:
    """Experts, statistics, replay memory and held-out images of one learner."""

    def __init__(
        self, features: Features, config: LearnerConfig, generator: torch.Generator, *, fingerprint: str | None = None
    ) -> None:
        """
        Args:
            features: Of the frozen trunk; looked at again are replayed and held-out images.
            config: The learner's.
            generator: Of the replay memory.
            fingerprint: Of what makes the features.
        """
        self._features = features
        self._config = config
        self._fingerprint = fingerprint
        self.experts: dict[str, KnownExpert] = {}
        """By uid, in the order in which they were made."""
        self.statistics: ClassStatistics | None = None
        self.replay: ReplayBuffer = make_replay(config.replay, generator, features)
        self._held_out: list[Batch] = []  # labels are keys
        self._held_out_of: dict[str, int] = {}  # by target
        self._held_out_seen: tuple[int, Tensor] | None = None
        self._router: RidgeRouter | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """Classes that some expert answers for, sorted."""
        return tuple(sorted({name for expert in self.experts.values() for name in expert.classes}))

    @property
    def router(self) -> RidgeRouter | None:
        """Solved from the statistics; None before there are any."""
        if self._router is None and self.statistics is not None:
            group_of = {name: self._target_of_column(name) for name in self.statistics.classes}
            self._router = solve_ridge(regrouped(self.statistics, group_of), self._config.router)
        return self._router

    @property
    def targets(self) -> tuple[str, ...]:
        """The router's columns, sorted."""
        names = () if self.statistics is None else self.statistics.classes
        return tuple(sorted({self._target_of_column(name) for name in names}))

    @property
    def num_held_out(self) -> int:
        """Images that only judge."""
        return sum(self._held_out_of.values())

    @property
    def kept_bytes(self) -> int:
        """Of past data: statistics in their wire form, pixels of replayed and held-out images."""
        statistics_bytes = 0 if self.statistics is None else len(self.statistics.to_bytes())
        return statistics_bytes + self.replay.num_bytes + sum(batch.images.nbytes for batch in self._held_out)

    def target_of(self, label: str, context: str | None) -> str:
        """What the router is to say of an image of a class, and of a domain or task."""
        if self._config.setting != "domain-incremental":
            return label
        assert context is not None, "every image is of a domain"
        return context

    def rows_held_out(self, batch: Batch, context: str | None) -> list[int]:
        """Which of a batch's labelled images would be held out, were they learned now."""
        num_of = dict(self._held_out_of)
        rows = []
        for row, label in enumerate(batch.labels):
            if label is None or not is_held_out(image_digest(batch.images[row])):
                continue
            target = self.target_of(label, context)
            if num_of.get(target, 0) < self._config.held_out_per_target:
                num_of[target] = num_of.get(target, 0) + 1
                rows.append(row)
        return rows

    def take_in(self, batch: Batch, features_BD: Tensor, context: str | None) -> list[int]:
        """Hold out some labelled images, and add the others to the statistics.

        Args:
            batch: Of one domain or task.
            features_BD: Of its images.
            context: The domain or task; None where classes are what is told apart.

        Returns: The rows to be learned.
        """
        out = set(self.rows_held_out(batch, context))
        learned = [row for row, label in enumerate(batch.labels) if label is not None and row not in out]
        if out:
            kept = batch.select(sorted(out))
            for label in kept.labels:
                assert label is not None
                target = self.target_of(label, context)
                self._held_out_of[target] = self._held_out_of.get(target, 0) + 1
            self._held_out.append(Batch(kept.images, tuple(_key(label, context) for label in kept.labels)))
        if learned:
            columns = [self._column(str(batch.labels[row]), context) for row in learned]
            own = ClassStatistics.from_features(features_BD[learned], columns, fingerprint=self._fingerprint)
            self.statistics = own if self.statistics is None else merge(self.statistics, own)
            self._router = None
        return learned

    def remember(self, batch: Batch, context: str | None) -> None:
        """Show the replay memory what was learned; every image is labelled."""
        self.replay.add(batch.images, [_key(label, context) for label in batch.labels])

    def held_out_features(self) -> Tensor:
        """Of all held-out images, ``(N, D)``; ``(0, 0)`` if there are none."""
        if not self._held_out:
            return torch.zeros(0, 0)
        if self._held_out_seen is None or self._held_out_seen[0] != self.num_held_out:
            # All anew, never only those that came: a restart must come to the same bits.
            self._held_out_seen = (self.num_held_out, self._features(joined(self._held_out).images))
        return self._held_out_seen[1]

    def replayed(self, expert: KnownExpert) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
        """What is remembered of an expert's own images, and their class names."""
        keys = [key for key in set(self.replay.labels) if self._is_for(key, expert)]
        images, found = self.replay.labelled(keys)
        return images, tuple(_unkeyed(key)[0] for key in found)

    def judging(self, expert: KnownExpert) -> tuple[Tensor, tuple[str, ...]]:
        """Held-out features of an expert's own images, ``(N, D)``, and their class names."""
        keys = joined(self._held_out).labels if self._held_out else ()
        rows = [row for row, key in enumerate(keys) if self._is_for(str(key), expert)]
        return self.held_out_features()[rows], tuple(_unkeyed(str(keys[row]))[0] for row in rows)

    def gates(
        self,
        features_BD: Tensor,
        *,
        allowed: Collection[str] | None = None,
        context: str | None = None,
        top_k: int | None,
    ) -> Gates | None:
        """Gate weights over the experts that may answer; None if there is no such expert.

        Args:
            features_BD: Trunk features.
            allowed: Classes that may be named; None for all.
            context: The task whose experts may answer; None for all.
            top_k: Experts asked per row; None for the soft gates of all.
        """
        experts = {
            uid: expert
            for uid, expert in self.experts.items()
            if (context is None or expert.context == context)
            and (allowed is None or set(expert.classes) & set(allowed))
        }
        router = self.router
        if not experts or router is None:
            return None
        by_class = self._config.setting != "domain-incremental"
        columns = {
            uid: tuple(name for name in expert.targets if not by_class or allowed is None or name in allowed)
            for uid, expert in experts.items()
        }
        scores_BC = router.scores(features_BD)
        return gate(scores_BC, router.classes, columns, tau=self._config.router.tau, top_k=top_k or len(experts))

    def scores(self, features_BD: Tensor, allowed: Sequence[str], context: str | None = None) -> Tensor:
        """y in the columns of the classes that may be named, ``(B, A)``; -inf for a class that no expert answers for.

        Args:
            features_BD: Trunk features.
            allowed: Class names.
            context: The task, where it is told.
        """
        scores_BA = features_BD.new_full((len(features_BD), len(allowed)), -torch.inf)
        gates = self.gates(features_BD, allowed=allowed, context=context, top_k=self._config.router.top_k)
        if gates is None:
            return scores_BA
        experts = {uid: LocalExpert(self.experts[uid].classes, self.experts[uid].module) for uid in gates.uids}
        known = tuple(sorted({name for expert in experts.values() for name in expert.classes}))
        renormalise = self._config.router.renormalise
        outputs_BC = mixture_output(experts, gates, features_BD, known, renormalise=renormalise).outputs_BC
        answered = [name for name in allowed if name in known]
        scores_BA[:, class_columns(answered, allowed)] = outputs_BC[:, class_columns(answered, known)]
        return scores_BA

    def nearest(self, features_BD: Tensor, context: str | None = None) -> KnownExpert | None:
        """The expert with the greatest mean soft gate; None if there is none."""
        gates = self.gates(features_BD, context=context, top_k=None)
        return None if gates is None else self.experts[gates.uids[int(gates.weights_BE.mean(dim=0).argmax())]]

    def source(self, features_BD: Tensor) -> KnownExpert | None:
        """What an expert for these items may begin as, by `LearnerConfig.begins_as`; None for nothing."""
        rule = self._config.begins_as
        specialization = self.specialization() if rule == "informed" else None
        if specialization is None:
            return self.nearest(features_BD) if rule != "random" else None
        gates = self.gates(features_BD, top_k=None)
        if gates is None:
            return None
        mean_E = gates.weights_BE.mean(dim=0)
        near = [uid for uid, weight in zip(gates.uids, mean_E, strict=True) if weight >= _NEAR * mean_E.max()]
        shares = dict(zip(specialization.uids, specialization.information_shares.tolist(), strict=True))
        return self.experts[max(near, key=lambda uid: (shares.get(uid, 0.0), uid))]

    def specialization(self) -> Specialization | None:
        """Gate mass on what is remembered, as the router sends it; None without a memory or an expert."""
        if len(self.replay) == 0:
            return None
        gates = self.gates(self._features(self.replay.images), top_k=self._config.router.top_k)
        if gates is None:
            return None
        return measure_specialization(gates, [_unkeyed(key)[0] for key in self.replay.labels])

    def to_tensors(self) -> dict[str, Tensor]:
        """All of it, to be saved beside other tensors."""
        words = {
            "experts": [
                {
                    "uid": expert.uid,
                    "architecture": expert.architecture.to_config(),
                    "classes": expert.classes,
                    "targets": expert.targets,
                    "context": expert.context,
                    "generation": expert.generation,
                }
                for expert in self.experts.values()
            ],
            "held_out_of": self._held_out_of,
        }
        weights = {f"expert/{uid}": as_tensor(weights_to_bytes(expert.module)) for uid, expert in self.experts.items()}
        return {
            "knowledge": words_to(words),
            "replay": as_tensor(self.replay.to_bytes()),
            **weights,
            **batches_to_tensors(self._held_out, "held_out"),
            **statistics_to_tensors(self.statistics),
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `to_tensors`, on what a seal vouches for.

        Raises:
            CorruptState: If they are not those of a learner's knowledge.
            ExpertsError: If an expert cannot be built.
        """
        try:
            words = words_from(tensors["knowledge"])
            assert isinstance(words, dict)
            for form in words["experts"]:
                architecture = architecture_from_config(form["architecture"])
                module = architecture.build(form["uid"])
                load_weights(module, as_bytes(tensors[f"expert/{form['uid']}"]))
                self.experts[form["uid"]] = KnownExpert(
                    form["uid"],
                    architecture,
                    module,
                    tuple(form["classes"]),
                    tuple(form["targets"]),
                    form["context"],
                    form["generation"],
                )
            self._held_out_of = words["held_out_of"]
            self.statistics = statistics_from_tensors(tensors, self._fingerprint)
            self.replay = replay_from_bytes(as_bytes(tensors["replay"]), self._features)
        except (KeyError, ValueError, TypeError, AssertionError) as exc:
            raise CorruptState("knowledge", reason=str(exc)) from exc
        self._held_out = batches_from_tensors(tensors, "held_out")

    def _column(self, label: str, context: str | None) -> str:
        """Of the statistics."""
        return _key(label, context) if self._config.setting == "domain-incremental" else label

    def _target_of_column(self, column: str) -> str:
        return self.target_of(*_unkeyed(column)) if self._config.setting == "domain-incremental" else column

    def _is_for(self, key: str, expert: KnownExpert) -> bool:
        label, context = _unkeyed(key)
        is_its_own = expert.context is None or expert.context == context
        return is_its_own and label in expert.classes and self.target_of(label, context) in expert.targets


def _key(label: str | None, context: str | None) -> str:
    """A class and its context as one name, since the same class may be of several domains or tasks."""
    return json.dumps([label, context])


def _unkeyed(key: str) -> tuple[str, str | None]:
    label, context = json.loads(key)
    return label, context
