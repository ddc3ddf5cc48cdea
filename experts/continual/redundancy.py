"""Which experts a mesh could do without: two that say the same, and those that nobody asks.

Two experts of the same classes are *redundant* if their outputs on a buffer differ by at most ``max_difference`` in the
mean total variation

    delta(E_i, E_j) = 1/N sum_x 1/2 sum_c |E_i(x)_c - E_j(x)_c|

the greatest difference that asking one for the other could make to the probability of any answer (Levin and Peres 2017,
"Markov chains and mixing times", sec. 4.1). Redundant experts are merged into one (`experts.continual.merging`).

An expert is *unused* if it gets little of the gate mass and tells little about classes:

    pi_i <= max_usage    and    pi_i KL(p(c|E_i) || p(c)) <= max_information_nats

The second term is what expert i adds to I(E;C) = sum_i pi_i KL(p(c|E_i) || p(c)), and equals
pi_i (sum_c p(c|E_i) log 1/p(c) - S(E_i)): an expert that works for one rare class has little mass, but S(E_i) = 0, and
stays. ``use_specialization=False`` leaves S and I(E;C) out of it, for the ablation. The only expert of a class always
stays.

Verdicts are plain data with their evidence; what is done about them is the caller's to decide.

Legend: N items, C class, E expert.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from experts.architectures.base import probabilities
from experts.errors import NothingToLearnFrom, SettingOutOfRange, UnknownClasses
from experts.local import LocalExpert
from experts.router.specialization import Specialization

__all__ = [
    "MergeVerdict",
    "RedundancyConfig",
    "PruneVerdict",
    "judge_redundancy",
    "judge_usage",
    "mean_total_variation",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class RedundancyConfig:
    """Where to draw the lines.

    Raises:
        SettingOutOfRange: If a field is outside its range.
    """

    max_difference: float = 0.05
    """Mean total variation up to which two experts say the same, in [0, 1]."""

    min_items: int = 32
    """On fewer items two experts are never called redundant; at least 1."""

    max_usage: float = 0.01
    """Share of the gate mass up to which an expert may go, in [0, 1]."""

    max_information_nats: float = 0.005
    """Share in I(E;C) up to which it may, at least 0."""

    use_specialization: bool = True
    """Whether S and I(E;C) count."""

    def __post_init__(self) -> None:
        for name in ("max_difference", "max_usage"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise SettingOutOfRange(name, getattr(self, name), allowed="in [0, 1]")
        if self.min_items < 1:
            raise SettingOutOfRange("min_items", self.min_items, allowed="at least 1")
        if not 0.0 <= self.max_information_nats < math.inf:
            raise SettingOutOfRange("max_information_nats", self.max_information_nats, allowed="finite, at least 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class MergeVerdict:
    """Of two experts of the same classes."""

    verdict: Literal["merge", "keep"]
    uids: tuple[str, str]
    """Sorted."""
    classes: tuple[str, ...]
    """Sorted."""
    difference: float
    """Mean total variation, in [0, 1]."""
    max_difference: float
    num_items: int
    reason: str

    def to_dict(self) -> dict[str, object]:
        """Ready for JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class PruneVerdict:
    """Of one expert."""

    verdict: Literal["prune", "keep"]
    uid: str
    usage: float
    """pi_i, in [0, 1]."""
    entropy_nats: float | None
    """S(E_i); None without gate mass."""
    information_nats: float
    """Its share in I(E;C), at least 0."""
    only_one_for: tuple[str, ...]
    """Classes that no other expert answers for, sorted."""
    reason: str

    def to_dict(self) -> dict[str, object]:
        """Ready for JSON."""
        return dataclasses.asdict(self)


def mean_total_variation(first: LocalExpert, second: LocalExpert, features_ND: Tensor) -> float:
    """delta, in [0, 1]: 0 if both say the same of every item.

    Args:
        first: One.
        second: Of the same classes, in any order.
        features_ND: Trunk features, at least one item.

    Raises:
        UnknownClasses: If the two differ in classes.
        NothingToLearnFrom: If there is no item.
    """
    if set(first.classes) != set(second.classes):
        raise UnknownClasses(set(first.classes) ^ set(second.classes), known=set(first.classes) & set(second.classes))
    if len(features_ND) == 0:
        raise NothingToLearnFrom("comparison of experts")
    order = [second.classes.index(name) for name in first.classes]
    apart_NC = probabilities(first.module, features_ND) - probabilities(second.module, features_ND)[:, order]
    return float(apart_NC.double().abs().sum(dim=1).mean() / 2)


def judge_redundancy(
    experts: Mapping[str, LocalExpert], features_of: Mapping[str, Tensor], config: RedundancyConfig
) -> tuple[MergeVerdict, ...]:
    """Every pair of experts of the same classes.

    Args:
        experts: By uid.
        features_of: By uid, items that the expert is for, ``(N, D)``: a pair is compared on those of both.
        config: Where to draw the line.

    Returns: In the order of uids; empty if no two have the same classes.
    """
    verdicts = []
    for first in sorted(experts):
        for second in sorted(uid for uid in experts if uid > first):
            if set(experts[first].classes) != set(experts[second].classes):
                continue
            items = torch.cat([features_of[first], features_of[second]])
            verdicts.append(_merge_verdict(experts, (first, second), items, config))
    return tuple(verdicts)


def judge_usage(
    specialization: Specialization, classes_of: Mapping[str, tuple[str, ...]], config: RedundancyConfig
) -> tuple[PruneVerdict, ...]:
    """Every expert by what the router sends it.

    Args:
        specialization: Gate mass on items of all that is known, enough that the rarest expert would get some.
        classes_of: The classes of each expert, by uid.
        config: Where to draw the lines.

    Returns: In the order of uids. Verdicts are of one at a time: of two experts that stand for each other both may
        be let go by theirs, so whoever prunes one judges again.

    Raises:
        UnknownClasses: If an expert has no column in the mass.
    """
    if missing := classes_of.keys() - set(specialization.uids):
        raise UnknownClasses(missing, known=specialization.uids)
    usage_E, entropy_E = specialization.usage, specialization.entropies
    information_E = specialization.information_shares
    verdicts = []
    for uid in sorted(classes_of):
        column = specialization.uids.index(uid)
        others = {name for other, names in classes_of.items() if other != uid for name in names}
        only_one_for = tuple(sorted(set(classes_of[uid]) - others))
        usage, information = float(usage_E[column]), float(information_E[column])
        entropy = float(entropy_E[column])
        may_go, reason = _may_go(usage, information, only_one_for, config)
        verdicts.append(
            PruneVerdict(
                verdict="prune" if may_go else "keep",
                uid=uid,
                usage=usage,
                entropy_nats=None if math.isnan(entropy) else entropy,
                information_nats=information,
                only_one_for=only_one_for,
                reason=reason,
            )
        )
    return tuple(verdicts)


def _merge_verdict(
    experts: Mapping[str, LocalExpert], pair: tuple[str, str], items_ND: Tensor, config: RedundancyConfig
) -> MergeVerdict:
    difference = mean_total_variation(experts[pair[0]], experts[pair[1]], items_ND)
    if len(items_ND) < config.min_items:
        verdict, reason = "keep", f"{len(items_ND)} items are too few to tell"
    elif difference <= config.max_difference:
        verdict, reason = "merge", "they say the same"
    else:
        verdict, reason = "keep", "they differ"
    return MergeVerdict(
        verdict=verdict,  # type: ignore[arg-type]
        uids=pair,
        classes=tuple(sorted(experts[pair[0]].classes)),
        difference=difference,
        max_difference=config.max_difference,
        num_items=len(items_ND),
        reason=reason,
    )


def _may_go(
    usage: float, information: float, only_one_for: tuple[str, ...], config: RedundancyConfig
) -> tuple[bool, str]:
    if only_one_for:
        return False, f"nobody else answers for {', '.join(only_one_for)}"
    if usage > config.max_usage:
        return False, f"it gets {usage:.1%} of the gate mass"
    if config.use_specialization and information > config.max_information_nats:
        return False, f"it gets little, but tells {information:.4f} nats about classes"
    return True, f"it gets {usage:.1%} of the gate mass, and others answer for its classes"
