"""What an expert knows that is to go, handed on by distillation to one that stays and shares classes with it.

The one that stays learns its own items again: from their labels, from what it says of them itself, and, where an item
is of a class that both answer for, as much from what the other one says of these. (Usage, by which `merging` weighs its
teachers, says who is asked and not who is right; of one that is to be retired it is nothing.) Experts that are merged
share all classes; of one that is retired those learn that answer for two or more of its classes: of a single one it has
nothing to say.

Whether it came to anything is measured on items that were not learned from, in two ways: how good the one that stays is
at all of its classes, before and after; and how good each is at telling the shared ones apart.

Legend: N items, D feature, C class (of the one that stays), K class (of the one that goes).
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from experts.continual.merging import Items
from experts.continual.starting import accuracy_of
from experts.data.dataset import class_columns
from experts.distillation.config import DistillationConfig
from experts.distillation.data import DistillationData
from experts.distillation.loss import align_logits
from experts.distillation.run import DistillationRun
from experts.errors import NothingToLearnFrom
from experts.local import LocalExpert

__all__ = ["HandedOn", "hand_on", "judge_among", "shared_classes"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class HandedOn:
    """The expert that stays as it came out, with the evidence; accuracies are shares of held-out items."""

    expert: LocalExpert
    before: float
    """Of the one that stays, on all of its classes."""
    after: float
    goes: float
    """Of the one that goes, on items of the shared classes, among these."""
    stays_before: float
    """Of the one that stays, on the same."""
    stays_after: float


def shared_classes(goes: Sequence[str], stays: Sequence[str]) -> tuple[str, ...]:
    """Classes of which the one can learn from the other, sorted; empty if they share fewer than two."""
    shared = tuple(sorted({*goes} & {*stays}))
    return shared if len(shared) > 1 else ()


def hand_on(
    goes: LocalExpert,
    stays: LocalExpert,
    items: Items,
    config: DistillationConfig,
    generator: torch.Generator,
) -> HandedOn:
    """Have one expert learn what another one knows; neither is changed.

    Args:
        goes: Shares two or more classes with `stays`.
        stays: What the new one begins as.
        items: Of its classes, some of the shared ones among the held-out.
        config: Of the distillation.
        generator: Draws the batches.

    Raises:
        NothingToLearnFrom: If they share fewer than two classes, there are no items, or none of these is held out.
        UnknownClasses: If a label is none of the classes of `stays`.
        TrainingDiverged: If the distillation does.
    """
    shared = shared_classes(goes.classes, stays.classes)
    if not {*shared} & {*items.held_out_labels}:
        raise NothingToLearnFrom("handing on without classes that both answer for, or items of these to judge by")
    new = LocalExpert(stays.classes, copy.deepcopy(stays.module))
    run = DistillationRun(new.module, _data(goes, stays, items), config, generator)
    while not run.done:
        run.step()
    own_N = class_columns(items.held_out_labels, stays.classes)
    goes_now, stays_before, stays_after = (
        judge_among(shared, one, items.held_out_ND, items.held_out_labels) for one in (goes, stays, new)
    )
    return HandedOn(
        expert=new,
        before=accuracy_of(stays.module, items.held_out_ND, own_N),
        after=accuracy_of(new.module, items.held_out_ND, own_N),
        goes=goes_now,
        stays_before=stays_before,
        stays_after=stays_after,
    )


def judge_among(classes: Sequence[str], expert: LocalExpert, features_ND: Tensor, labels: Sequence[str]) -> float:
    """How good an expert is at telling some of its classes apart, as a share of the items of these.

    Args:
        classes: Some of its classes; no other one is taken for an answer.
        expert: Whose.
        features_ND: Trunk features.
        labels: N class names; items of other classes are left out. One of these at least is needed.
    """
    rows = [row for row, label in enumerate(labels) if label in classes]
    columns = [expert.classes.index(name) for name in classes]
    answers_N = _logits(expert.module, features_ND[rows])[:, columns].argmax(dim=1)
    return float((answers_N == class_columns([labels[row] for row in rows], classes)).double().mean())


def _data(goes: LocalExpert, stays: LocalExpert, items: Items) -> DistillationData:
    own_NC = _logits(stays.module, items.features_ND)
    others_NC = align_logits(_logits(goes.module, items.features_ND), goes.classes, stays.classes)
    is_strange_N = torch.tensor([label not in goes.classes for label in items.labels])
    others_NC = others_NC.masked_fill(is_strange_N[:, None], -torch.inf)
    return DistillationData(
        features_ND=items.features_ND,
        labels_N=class_columns(items.labels, stays.classes),
        teacher_logits_NC=torch.stack([others_NC, own_NC], dim=1),
    )


def _logits(module: nn.Module, features_ND: Tensor) -> Tensor:
    with torch.no_grad():
        logits_NC: Tensor = module(features_ND)
    return logits_NC
