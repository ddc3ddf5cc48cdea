"""Merging and pruning experts of a learner, one after the other, each on the evidence of what is left.

Two experts are compared on what is remembered of the images of both, and a merge is judged on their held-out images. A
merged expert keeps the uid of the one that was made first, and the targets of both speak for it.

Legend: D feature.
"""

from typing import NamedTuple

import torch

from experts.continual.herding import Features
from experts.continual.knowledge import Knowledge, KnownExpert
from experts.continual.merging import Items, MergedExpert, merge_experts
from experts.continual.redundancy import MergeVerdict, PruneVerdict, judge_redundancy, judge_usage
from experts.continual.settings import LearnerConfig
from experts.local import LocalExpert

__all__ = ["Tidied", "tidy"]


class Tidied(NamedTuple):
    """What was looked at, and what was done."""

    merges: tuple[MergeVerdict, ...]
    """Of all pairs that were compared."""
    merged: tuple[tuple[MergeVerdict, MergedExpert], ...]
    """Those that were distilled into one, whether the result was accepted or not."""
    prunings: tuple[PruneVerdict, ...]
    """Of every expert, and again of those left after each that was pruned."""


def tidy(knowledge: Knowledge, config: LearnerConfig, features: Features, generator: torch.Generator) -> Tidied:
    """Merge what is redundant, then prune what is unused.

    Args:
        knowledge: Whose experts; changed.
        config: Where to draw the lines, and how to distil.
        features: Of the frozen trunk.
        generator: Draws the batches of all merges.
    """
    compared: list[MergeVerdict] = []
    settled: set[tuple[str, str]] = set()
    merged = []
    while (verdict := _next_merge(knowledge, config, features, compared, settled)) is not None:
        result = _merged(knowledge, verdict, config, features, generator)
        if result is not None:
            merged.append((verdict, result))
            if result.accepted:
                # What took the place of both is another expert than the one that was compared.
                settled = {pair for pair in settled if not set(pair) & set(verdict.uids)}
    prunings: list[PruneVerdict] = []
    while (found := knowledge.specialization()) is not None:
        classes_of = {uid: expert.classes for uid, expert in knowledge.experts.items()}
        verdicts = judge_usage(found, classes_of, config.redundancy)
        prunings += verdicts
        goes = [each for each in verdicts if each.verdict == "prune"]
        if not goes:
            break
        del knowledge.experts[min(goes, key=lambda each: (each.usage, each.uid)).uid]
    return Tidied(tuple(compared), tuple(merged), tuple(prunings))


def _next_merge(
    knowledge: Knowledge,
    config: LearnerConfig,
    features: Features,
    compared: list[MergeVerdict],
    settled: set[tuple[str, str]],
) -> MergeVerdict | None:
    """The first pair that is redundant, of those that are not settled; adds those that it looks at to both."""
    for context in sorted({expert.context or "" for expert in knowledge.experts.values()}):
        group = {uid: expert for uid, expert in knowledge.experts.items() if (expert.context or "") == context}
        images_of = {uid: knowledge.replayed(expert)[0] for uid, expert in group.items()}
        seen = {uid: features(images) for uid, images in images_of.items() if len(images)}
        local = {uid: _local(group[uid]) for uid in seen}
        for verdict in judge_redundancy(local, seen, config.redundancy):
            if verdict.uids not in settled:
                settled.add(verdict.uids)
                compared.append(verdict)
                if verdict.verdict == "merge":
                    return verdict
    return None


def _merged(
    knowledge: Knowledge,
    verdict: MergeVerdict,
    config: LearnerConfig,
    features: Features,
    generator: torch.Generator,
) -> MergedExpert | None:
    """The merge, in the place of both if it is accepted; None without held-out images of both."""
    pair = (knowledge.experts[verdict.uids[0]], knowledge.experts[verdict.uids[1]])
    items = (_items(knowledge, pair[0], features), _items(knowledge, pair[1], features))
    if not all(each.held_out_labels for each in items):
        return None
    usage = (float(len(items[0].labels)), float(len(items[1].labels)))
    result = merge_experts((_local(pair[0]), _local(pair[1])), items, usage, config.distillation, generator)
    if result.accepted:
        more_used = pair[usage[1] > usage[0]]
        knowledge.experts[pair[0].uid] = KnownExpert(
            pair[0].uid,
            more_used.architecture,
            result.expert.module,
            result.expert.classes,
            tuple(sorted({*pair[0].targets, *pair[1].targets})),
            pair[0].context,
            max(each.generation for each in pair) + 1,
        )
        del knowledge.experts[pair[1].uid]
    return result


def _items(knowledge: Knowledge, expert: KnownExpert, features: Features) -> Items:
    images, labels = knowledge.replayed(expert)
    held_out_ND, held_out_labels = knowledge.judging(expert)
    return Items(features_ND=features(images), labels=labels, held_out_ND=held_out_ND, held_out_labels=held_out_labels)


def _local(expert: KnownExpert) -> LocalExpert:
    return LocalExpert(expert.classes, expert.module)
