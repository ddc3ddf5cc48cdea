"""Two experts made one, by distillation: the merged expert learns what both say of a buffer, with its labels.

Both are its teachers, the one that is asked more with the greater weight, on whose parameters it also begins. Whether
it holds up against both is measured on items that it did not learn from: it is accepted only if on the items of each it
is at most ``tolerance`` less accurate than that one was.

Legend: N items, D feature, C class.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from experts.continual.starting import accuracy_of
from experts.data.dataset import class_columns
from experts.distillation.config import DistillationConfig
from experts.distillation.data import DistillationData, TeacherLogits
from experts.distillation.run import DistillationRun
from experts.errors import NothingToLearnFrom, UnknownClasses
from experts.local import LocalExpert

__all__ = ["Items", "MergedExpert", "merge_experts"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Items:
    """What one of the two experts is for."""

    features_ND: Tensor
    labels: tuple[str, ...]
    """N class names, all of the expert's classes."""
    held_out_ND: Tensor
    """Features of other such items, to measure on; at least one."""
    held_out_labels: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MergedExpert:
    """What came of it, with the evidence."""

    expert: LocalExpert
    accepted: bool
    """Whether it may take the place of both."""
    accuracies_before: tuple[float, float]
    """Of each expert on its own held-out items, in [0, 1]."""
    accuracies_merged: tuple[float, float]
    """Of the merged one on the same."""

    def to_dict(self) -> dict[str, object]:
        """The evidence, ready for JSON."""
        return {
            "accepted": self.accepted,
            "accuracies_before": list(self.accuracies_before),
            "accuracies_merged": list(self.accuracies_merged),
        }


def merge_experts(
    experts: tuple[LocalExpert, LocalExpert],
    items: tuple[Items, Items],
    usage: tuple[float, float],
    config: DistillationConfig,
    generator: torch.Generator,
    *,
    tolerance: float = 0.005,
) -> MergedExpert:
    """Distil both into one of the first's architecture, or the second's if that is asked more.

    Args:
        experts: Of the same classes, in any order; unchanged.
        items: For each.
        usage: Gate mass of each, in any unit, not negative.
        config: Of the distillation.
        generator: Draws the batches.
        tolerance: Accuracy that each may lose, as a share.

    Raises:
        UnknownClasses: If the two differ in classes, or a label is none of them.
        NothingToLearnFrom: If there are no items, or none held out for one of them.
        TrainingDiverged: If the distillation does.
    """
    first, second = experts
    if set(first.classes) != set(second.classes):
        raise UnknownClasses(set(first.classes) ^ set(second.classes), known=set(first.classes) & set(second.classes))
    if not all(part.held_out_labels for part in items):
        raise NothingToLearnFrom("a merge without held-out items")
    more_used = experts[usage[1] > usage[0]]
    merged = LocalExpert(more_used.classes, copy.deepcopy(more_used.module))
    features_ND = torch.cat([part.features_ND for part in items])
    labels = [*items[0].labels, *items[1].labels]
    data = DistillationData.from_teachers(
        features_ND,
        class_columns(labels, merged.classes),
        [
            TeacherLogits(logits_NK=_logits(each.module, features_ND), classes=each.classes, weight=max(share, 1e-3))
            for each, share in zip(experts, _shares(usage), strict=True)
        ],
        merged.classes,
    )
    for _ in DistillationRun(merged.module, data, config, generator):
        pass
    before = (_accuracy(first, items[0]), _accuracy(second, items[1]))
    after = (_accuracy(merged, items[0]), _accuracy(merged, items[1]))
    accepted = all(new >= old - tolerance for old, new in zip(before, after, strict=True))
    return MergedExpert(expert=merged, accepted=accepted, accuracies_before=before, accuracies_merged=after)


def _logits(module: nn.Module, features_ND: Tensor) -> Tensor:
    with torch.no_grad():
        logits_NC: Tensor = module(features_ND)
    return logits_NC


def _shares(usage: Sequence[float]) -> list[float]:
    total = sum(usage)
    return [share / total if total > 0 else 1 / len(usage) for share in usage]


def _accuracy(expert: LocalExpert, items: Items) -> float:
    return accuracy_of(expert.module, items.held_out_ND, class_columns(items.held_out_labels, expert.classes))
