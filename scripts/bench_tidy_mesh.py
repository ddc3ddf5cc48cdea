"""The experts of a mesh whose nodes have learned apart: what is redundant among them, and how the mesh answers.

Two nodes have half of the images each. One has spawned an expert for every pair of classes, as tasks bring them; the
other one for groups of four and of three; and for some pairs there is another expert of another form, as from a file.
All of them are behind one router, of the statistics of both. In the long tail the pairs come ever more rarely; or the
other node has few images, and its experts, which are asked as they answer for more, know less than those of the pairs.

Legend: N images, D feature, C class, E expert.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from experts.architectures.base import Architecture
from experts.architectures.linear import LinearArchitecture
from experts.continual.handing_on import hand_on, judge_among, shared_classes
from experts.continual.lesson import ridge_taught
from experts.continual.merging import Items
from experts.continual.redundancy import RedundancyConfig, judge_redundancy, judge_usage
from experts.continual.sizing import choose_architecture
from experts.data.held_out import image_digest, is_held_out
from experts.distillation.config import DistillationConfig
from experts.distillation.run import DistillationRun
from experts.evaluation.inputs import Inputs
from experts.evaluation.scenarios.base import Scenario
from experts.generators import torch_generator
from experts.local import LocalExpert
from experts.mixture.output import mixture_output
from experts.router.gating import gate
from experts.router.ridge import RidgeRouter, RouterConfig, solve_ridge
from experts.router.specialization import Specialization, measure_specialization
from experts.router.statistics import ClassStatistics

__all__ = ["FEW", "GROUPS", "MARGIN", "TAIL", "TWINS", "BenchMesh", "Known", "made"]

GROUPS = ((0, 1, 2, 3), (4, 5, 6), (7, 8, 9))
"""Of classes in the order in which they come: the other node's experts. The pair 6, 7 is in none of them."""

TWINS = (0, 3, 4)
"""Pairs for which there are two experts."""

TAIL = 0.5
"""In the long tail each pair has so many images of the one before."""

FEW = 0.02
"""Share of its images that the other node has where it has few."""

MARGIN = 0.005
"""As `tidy.margin`."""

LESSON = DistillationConfig(steps=1500, lr=0.1, decay=True)
HANDING = DistillationConfig(steps=600, lr=0.05, decay=True)
ROUTER = RouterConfig()
TEACHER = replace(ROUTER, ridge=1e-2)
"""As the continual learner's."""

MEASURED_IMAGES = 500
"""Of each task, as a node measures specialization."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Known:
    """Features of some images."""

    features_ND: torch.Tensor
    labels: tuple[str, ...]

    def of(self, classes: Sequence[str]) -> "Known":
        """Those of these classes."""
        rows = [row for row, label in enumerate(self.labels) if label in classes]
        return Known(features_ND=self.features_ND[rows], labels=tuple(self.labels[row] for row in rows))


@dataclass(kw_only=True, slots=True, eq=False)
class BenchMesh:
    """A mesh and what one of its nodes has to judge by."""

    seed: int
    experts: dict[str, LocalExpert]
    """By uid."""
    names: Mapping[str, str]
    """What each is, for people."""
    router: RidgeRouter
    learned: Known
    held_out: Known
    """Of the node's own images."""
    measured_on: Known
    tested: Known
    scores_NC: torch.Tensor
    """The router's, of the tested ones."""
    told: dict[frozenset[LocalExpert], Mapping[str, float]] = field(default_factory=dict)
    """What was worked out by these very experts, for all copies of a mesh."""

    def copy(self) -> "BenchMesh":
        """The same mesh, to be changed by itself."""
        return replace(self, experts=dict(self.experts))

    def by_class(self, without: Sequence[str] = ()) -> Mapping[str, float]:
        """Share of each class's test images that are answered rightly.

        Args:
            without: Uids of experts that are lost: what only they answer for is answered wrongly.
        """
        left = {uid: one for uid, one in self.experts.items() if uid not in without}
        experts = frozenset(left.values())
        if experts not in self.told:
            self.told[experts] = self._worked_out(left) if left else dict.fromkeys(self.tested.labels, 0.0)
        return self.told[experts]

    def _worked_out(self, left: Mapping[str, LocalExpert]) -> Mapping[str, float]:
        known = tuple(sorted({name for expert in left.values() for name in expert.classes}))
        classes = {uid: expert.classes for uid, expert in left.items()}
        gates = gate(self.scores_NC, self.router.classes, classes, tau=ROUTER.tau, top_k=ROUTER.top_k)
        outputs_NC = mixture_output(left, gates, self.tested.features_ND, known).outputs_BC
        right = Counter(
            want
            for answer, want in zip(outputs_NC.argmax(dim=1).tolist(), self.tested.labels, strict=True)
            if known[answer] == want
        )
        return {name: right[name] / count for name, count in Counter(self.tested.labels).items()}

    def accuracy(self) -> float:
        """Percent of test images, every class alike."""
        shares = self.by_class()
        return 100 * sum(shares.values()) / len(shares)

    def specialization(self) -> Specialization:
        """On the node's own images."""
        classes = {uid: expert.classes for uid, expert in self.experts.items()}
        gates = self.router.gates(self.measured_on.features_ND, classes, tau=ROUTER.tau, top_k=ROUTER.top_k)
        return measure_specialization(gates, self.measured_on.labels)

    @property
    def num_parameters(self) -> int:
        """Of all experts."""
        return sum(sum(value.numel() for value in one.module.parameters()) for one in self.experts.values())

    # --- merging ---

    def merge_redundant(self, *, use_specialization: bool, hands_on: bool = True) -> list[tuple[str, str]]:
        """Have one of each two that say the same stand for both.

        Args:
            use_specialization: Whether the one that adds more to I(E;C) stays; else the lower uid does.
            hands_on: Whether it learns what the other one knows.

        Returns: Names of what went, each with that of what stays.
        """
        gone = []
        held = {uid: self.held_out.of(expert.classes).features_ND for uid, expert in self.experts.items()}
        for verdict in judge_redundancy(self.experts, held, RedundancyConfig()):
            if verdict.verdict == "merge" and set(verdict.uids) <= self.experts.keys():
                shares = self._shares() if use_specialization else {}
                stays, goes = sorted(verdict.uids, key=lambda uid: (-shares.get(uid, 0.0), uid))
                if not hands_on or self._hand_on(goes, stays):
                    gone.append((self.names[goes], self.names[stays]))
                    del self.experts[goes]
        return gone

    # --- retiring ---

    def retire_unused(self, *, use_specialization: bool, hands_on: bool = True) -> list[str]:
        """Retire what is unused by the thresholds, the least used first; names of what went."""
        gone = []
        while True:
            classes_of = {uid: expert.classes for uid, expert in self.experts.items()}
            config = RedundancyConfig(use_specialization=use_specialization)
            verdicts = judge_usage(self.specialization(), classes_of, config)
            going = [verdict for verdict in verdicts if verdict.verdict == "prune"]
            if not going:
                return gone
            least = min(going, key=lambda verdict: (verdict.usage, verdict.uid)).uid
            gone.append(self.names[least])
            self.retire(least, hands_on=hands_on)

    def retire(self, uid: str, *, hands_on: bool = True) -> None:
        """Do without an expert; those that answer for its classes learn where they are worse at them."""
        for other in tuple(self.experts):
            if hands_on and other != uid and shared_classes(self.experts[uid].classes, self.experts[other].classes):
                self._hand_on(uid, other)
        del self.experts[uid]

    def may_go(self) -> list[str]:
        """Experts of which others answer for every class, in the order of uids."""
        found = []
        for uid, expert in sorted(self.experts.items()):
            others = {name for other, one in self.experts.items() if other != uid for name in one.classes}
            if {*expert.classes} <= others:
                found.append(uid)
        return found

    def _shares(self) -> dict[str, float]:
        found = self.specialization()
        return dict(zip(found.uids, found.information_shares.tolist(), strict=True))

    def _hand_on(self, goes: str, stays: str) -> bool:
        """Whether `stays` can stand for `goes`, having learned from it where that is worth it, as in a node."""
        one, other = self.experts[goes], self.experts[stays]
        shared, same = shared_classes(one.classes, other.classes), {*one.classes} == {*other.classes}
        learned, held = self.learned.of(other.classes), self.held_out.of(other.classes)
        before = [judge_among(shared, each, held.features_ND, held.labels) for each in (one, other)]
        if not same and before[0] <= before[1]:
            return True
        items = Items(
            features_ND=learned.features_ND,
            labels=learned.labels,
            held_out_ND=held.features_ND,
            held_out_labels=held.labels,
        )
        generator = torch_generator(self.seed, f"hand on/{goes}/{stays}")
        done = hand_on(one, other, items, HANDING, generator)
        accepted = done.before - done.after <= MARGIN and done.goes - done.stays_after <= MARGIN
        if accepted:
            self.experts[stays] = done.expert
        return accepted


def made(scenario: Scenario, inputs: Inputs, seed: int, *, tail: bool = False, few: bool = False) -> BenchMesh:
    """A mesh before anything is tidied.

    Args:
        scenario: Pairs of classes.
        inputs: Gives the features of images.
        seed: Of everything that is drawn.
        tail: Whether the pairs come ever more rarely.
        few: Whether the other node has few images.
    """
    pairs = [task.train.classes for task in scenario.tasks]
    order = [name for pair in pairs for name in pair]
    own, held, theirs, measured = [], [], [], []
    for number, task in enumerate(scenario.tasks):
        features_ND, labels = inputs(task.train.images), task.train.labels
        drawn = torch.randperm(len(labels), generator=torch_generator(seed, f"half/{number}")).tolist()
        drawn = drawn[: max(80, int(len(drawn) * TAIL**number))] if tail else drawn
        mine, others = drawn[::2], drawn[1::2]
        others = others[: max(20, int(len(others) * FEW))] if few else others
        out = {row for row in mine if is_held_out(image_digest(task.train.images[row]))}
        # What is measured comes as often as it is learned.
        count = max(20, int(MEASURED_IMAGES * TAIL**number)) if tail else MEASURED_IMAGES
        parts = ((own, [row for row in mine if row not in out]), (held, sorted(out)), (theirs, others))
        for known, rows in (*parts, (measured, mine[:count])):
            known.append(Known(features_ND=features_ND[rows], labels=tuple(labels[row] for row in rows)))
    learned, others = _joined(own), _joined(theirs)
    both = _joined([learned, others])
    statistics = ClassStatistics.from_features(both.features_ND, both.labels)
    wanted: dict[str, tuple[tuple[str, ...], Known, bool]] = {}
    for number, pair in enumerate(pairs):
        wanted[f"pair {number}"] = (pair, learned, False)
    for number, group in enumerate(GROUPS):
        wanted[f"group {number}"] = (tuple(sorted(order[at] for at in group)), others, False)
    for number in TWINS:
        wanted[f"twin {number}"] = (pairs[number], others, True)
    experts, names = {}, {}
    for name, (classes, known, is_linear) in wanted.items():
        uid = hashlib.sha256(f"{seed} {name}".encode()).hexdigest()
        experts[uid], names[uid] = _learned(classes, known.of(classes), uid, is_linear=is_linear), name
    router = solve_ridge(statistics, ROUTER)
    tests = [Known(features_ND=inputs(task.test.images), labels=task.test.labels) for task in scenario.tasks]
    tested = _joined(tests)
    return BenchMesh(
        seed=seed,
        experts=experts,
        names=names,
        router=router,
        learned=learned,
        held_out=_joined(held),
        measured_on=_joined(measured),
        tested=tested,
        scores_NC=router.scores(tested.features_ND),
    )


def _learned(classes: tuple[str, ...], known: Known, uid: str, *, is_linear: bool) -> LocalExpert:
    dim = known.features_ND.shape[1]
    form: Architecture = LinearArchitecture(feature_dim=dim, num_classes=len(classes))
    if not is_linear:
        form = choose_architecture(dim, len(classes), max_parameters=40_000)
    module = form.build(uid)
    data = ridge_taught(known.features_ND, known.labels, classes, TEACHER)
    run = DistillationRun(module, data, LESSON, torch_generator(0, uid))
    while not run.done:
        run.step()
    return LocalExpert(classes, module)


def _joined(parts: Sequence[Known]) -> Known:
    return Known(
        features_ND=torch.cat([part.features_ND for part in parts]),
        labels=tuple(label for part in parts for label in part.labels),
    )
