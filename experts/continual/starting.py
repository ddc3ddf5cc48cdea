"""Where a spawned expert begins: at random, or where the nearest expert is, whichever a few steps show to be better.

The nearest expert's knowledge is carried over by `experts.preservation.transfer`. Where it answers for other classes,
each new class begins as the old one that it resembles: the assignment of old columns to new classes with the greatest
sum of mean log-probabilities on the new items (linear_sum_assignment). Both beginnings then take the same steps on the
same batches, and are held against each other on items that neither learned from. Of two that are alike the random one
is taken: it is what every node would begin from.

Legend: N items, D feature, C class (the new expert's), K class (the nearest expert's).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from experts.architectures.base import Architecture
from experts.continual.decision import StartEvidence
from experts.data.dataset import class_columns
from experts.distillation.config import DistillationConfig
from experts.distillation.data import DistillationData
from experts.distillation.run import DistillationRun
from experts.errors import NothingCorresponds, NothingToLearnFrom, SettingOutOfRange
from experts.preservation.report import TransferReport
from experts.preservation.transfer import Source, TransferConfig, Transferred, transfer

__all__ = ["Nearest", "Start", "accuracy_of", "choose_start"]

_TRANSFER_ITEMS = 500
"""Of the buffer that knowledge is carried over by: "some hundred are enough"."""

_ROUNDING = 1e-9
"""Shares of items that differ by the margin exactly differ by it to a rounding only."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Nearest:
    """The expert that the new items are most like."""

    uid: str
    architecture: Architecture
    module: nn.Module
    classes: tuple[str, ...]
    """Names of its K columns."""


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """A module that has taken no step yet."""

    module: nn.Module
    evidence: StartEvidence
    report: TransferReport | None = None
    """What was carried over; None where nothing was."""


def choose_start(  # noqa: PLR0913 - what is begun, from what, on which items, how
    architecture: Architecture,
    classes: Sequence[str],
    nearest: Nearest | None,
    learned: DistillationData,
    held_out: tuple[Tensor, Tensor],
    config: DistillationConfig,
    *,
    seed: str,
    generator: Callable[[str], torch.Generator],
    margin: float = 0.0,
) -> Start:
    """Try both beginnings and take the better one.

    Args:
        architecture: The new expert's.
        classes: Names of its C columns.
        nearest: What may be carried over; None for nothing.
        learned: Items with labels, which both trials learn from.
        held_out: Features ``(N, D)`` and columns ``(N,)`` of items that they don't.
        config: Of the trials; its steps are the few.
        seed: Of the random weights, the new expert's uid.
        generator: Makes one by its purpose, the same at each call: both trials draw the same batches.
        margin: By how much the transferred beginning has to be better, as a share, such as .01; it has to be better in
            any case.

    Raises:
        NothingToLearnFrom: If the items to learn from have no labels, or none is held out.
        TrainingDiverged: If a trial does.
    """
    if learned.labels_N is None or len(held_out[1]) == 0:
        raise NothingToLearnFrom("the trial of a new expert")

    def tried(module: nn.Module) -> float:
        for _ in DistillationRun(module, learned, config, generator("trial")):
            pass
        return accuracy_of(module, *held_out)

    accuracy_random = tried(architecture.build(seed))

    def evidence(accuracy_transferred: float | None, reason: str) -> StartEvidence:
        gain = 0.0 if accuracy_transferred is None else accuracy_transferred - accuracy_random
        is_better = gain > 0 and gain >= margin - _ROUNDING
        return StartEvidence(
            chosen="transferred" if is_better else "random",
            source=None if nearest is None else nearest.uid,
            accuracy_random=accuracy_random,
            accuracy_transferred=accuracy_transferred,
            steps=config.steps,
            num_items=len(held_out[1]),
            reason=reason,
        )

    if nearest is None:
        return Start(architecture.build(seed), evidence(None, "there is no expert to begin from"))

    def carried() -> Transferred:
        return _carried(nearest, architecture, classes, learned, seed, generator("transfer"))

    try:
        accuracy_transferred = tried(carried().module)
    except (NothingCorresponds, NothingToLearnFrom, SettingOutOfRange) as exc:
        return Start(architecture.build(seed), evidence(None, f"nothing is carried over from {nearest.uid}: {exc}"))
    reason = (
        f"begun as {nearest.uid} it is right on {100 * accuracy_transferred:.1f} % after {config.steps} steps, "
        f"begun at random on {100 * accuracy_random:.1f} %"
        + (f"; a margin of {100 * margin:g} points is asked for" * bool(margin))
    )
    told = evidence(accuracy_transferred, reason)
    if told.chosen == "random":
        return Start(architecture.build(seed), told)
    module, report = carried()
    return Start(module, told, report)


def accuracy_of(module: nn.Module, features_ND: Tensor, columns_N: Tensor) -> float:
    """Share of items whose column has the highest logit; at least one item."""
    with torch.no_grad():
        return float((module(features_ND).argmax(dim=1) == columns_N).double().mean())


def _carried(
    nearest: Nearest,
    architecture: Architecture,
    classes: Sequence[str],
    learned: DistillationData,
    seed: str,
    generator: torch.Generator,
) -> Transferred:
    assert learned.labels_N is not None
    features_ND, labels_N = learned.features_ND[:_TRANSFER_ITEMS], learned.labels_N[:_TRANSFER_ITEMS]
    labelled = labels_N >= 0
    features_ND, labels_N = features_ND[labelled], labels_N[labelled]
    renamed = _renamed(nearest, classes, features_ND, labels_N)
    source = Source.of(nearest.architecture, nearest.module, renamed)
    known = [row for row, label in enumerate(labels_N.tolist()) if classes[label] in renamed]
    columns_N = class_columns([classes[label] for label in labels_N[known].tolist()], renamed)
    return transfer(
        source,
        architecture,
        classes,
        features_ND[known],
        columns_N,
        TransferConfig(),
        seed=seed,
        generator=generator,
    )


def _renamed(nearest: Nearest, classes: Sequence[str], features_ND: Tensor, labels_N: Tensor) -> tuple[str, ...]:
    """The nearest expert's columns by the names of new classes, where none is shared; the others keep their own."""
    if set(classes) & set(nearest.classes):
        return nearest.classes
    with torch.no_grad():
        log_p_NK = torch.log_softmax(nearest.module(features_ND), dim=1)
    present = [column for column in range(len(classes)) if bool((labels_N == column).any())]
    if not present:
        raise NothingToLearnFrom("the transfer's buffer")
    resemblance = torch.stack([log_p_NK[labels_N == column].mean(dim=0) for column in present])
    rows, columns = linear_sum_assignment(resemblance.numpy(), maximize=True)
    names = list(nearest.classes)
    for row, column in zip(rows, columns, strict=True):
        names[column] = classes[present[row]]
    return tuple(names)
