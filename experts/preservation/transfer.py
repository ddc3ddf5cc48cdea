"""Selective transfer: a new expert that begins where the old one is (proposal, section 2.4, step 3).

    theta' = beta theta_map + (1 - beta) theta_random

The old expert is brought into the new one's form (`reshaping`), its units are scored (`scores`) and mapped (`mapping`),
and the weights follow the units. What the new form cannot say is then fitted on a buffer (`refit`): each layer to what
it came to in the old expert. No step of training is taken.

Legend: N items, D feature, U units of the old stage, I units before it, V units of the new stage, C class.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from experts.architectures.base import Architecture
from experts.errors import NothingCorresponds, NothingToLearnFrom, SettingOutOfRange, ShapeMismatch
from experts.preservation.chain import Chain, Stage, answers_by_item, bias_of, columns_by_unit
from experts.preservation.labels import FisherKind
from experts.preservation.mapping import (
    Similarity,
    UnitMap,
    assign,
    identity_map,
    map_units,
    similarity_of,
)
from experts.preservation.reading import chain_of, write_chain
from experts.preservation.refit import refit, refit_answers
from experts.preservation.report import LayerReport, TransferReport
from experts.preservation.reshaping import reshaped
from experts.preservation.scores import ScoreName, unit_scores

__all__ = ["Source", "TransferConfig", "Transferred", "transfer"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferConfig:
    """How an expert is carried over.

    Raises: SettingOutOfRange: If beta is not in [0, 1], or the ridge not above 0.
    """

    score: ScoreName = "gate"
    """What a unit's importance is."""
    fisher: FisherKind = "empirical"
    """Of the scores that are Fisher information: with the buffer's labels, or with the old expert's own."""
    similarity: Similarity = "role"
    """How alike old and new units are. A new architecture's are random, so that usually only their role counts."""
    beta: float = 1.0
    """Weight of what is mapped against the random initialisation, in [0, 1]."""
    layer_beta: Mapping[str, float] = field(default_factory=dict)
    """The same for single layers of the new architecture, by name."""
    refit: bool = True
    """Whether layers are fitted to what they came to in the old expert."""
    ridge: float = 1e-3
    """Regulariser of the fit, relative to the mean variance of its inputs; above 0."""

    def __post_init__(self) -> None:
        for name, beta in {"beta": self.beta, **{f"layer_beta.{k}": v for k, v in self.layer_beta.items()}}.items():
            if not 0 <= beta <= 1:
                raise SettingOutOfRange(name, beta, allowed="0 to 1")
        if not (self.ridge > 0 and math.isfinite(self.ridge)):
            raise SettingOutOfRange("ridge", self.ridge, allowed="above 0")


class Source(NamedTuple):
    """What is carried over."""

    chain: Chain
    classes: tuple[str, ...]
    """In the order of the chain's columns."""

    @classmethod
    def of(cls, architecture: Architecture, module: nn.Module, classes: Sequence[str]) -> "Source":
        """An expert's module.

        Raises:
            NothingCorresponds: The architecture does not say what its layers are for.
        """
        return cls(chain_of(architecture, module), tuple(classes))


class Transferred(NamedTuple):
    """What came of it."""

    module: nn.Module
    """Of the new architecture, on the CPU."""
    report: TransferReport


def transfer(  # noqa: PLR0913 - from what, to what, by which items, how
    source: Source,
    architecture: Architecture,
    classes: Sequence[str],
    features_ND: Tensor,
    labels_N: Tensor | None,
    config: TransferConfig,
    *,
    seed: str,
    generator: torch.Generator,
) -> Transferred:
    """A module of another architecture that knows what the source knows.

    Args:
        source: The old expert; unchanged.
        architecture: The new one's form.
        classes: The new one's, in the order of its columns; some of them are the old one's.
        features_ND: The buffer: items that the old expert is for, float32. Some hundred are enough.
        labels_N: int64, columns of the old expert; None if there are none, which scores then must not ask for.
        config: How.
        seed: Of the new module's random initialisation, its uid.
        generator: Draws how the weights of doubled units are split, and labels if `config.fisher` asks for it.

    Raises:
        NothingCorresponds: No class in common, other features, no units that do the same, or importances that are not
            finite.
        NothingToLearnFrom: The buffer has no items of the classes in common, or no labels where they are needed.
        ShapeMismatch: The features are not those that the experts read, or there are more or fewer labels.
        SettingOutOfRange: A layer that the settings name does not exist, or a label is no column of the old expert.
    """
    module = architecture.build(seed)
    new, original = chain_of(architecture, module), source.chain
    kept = [name for name in classes if name in source.classes]
    if not kept:
        raise NothingCorresponds(f"the old expert knows none of the classes {', '.join(classes)}")
    if not len(features_ND):
        raise NothingToLearnFrom("the transfer's buffer")
    if features_ND.ndim != 2 or features_ND.shape[1] != original.feature_dim:
        raise ShapeMismatch("features", expected=("N", original.feature_dim), got=features_ND.shape)
    if unknown := config.layer_beta.keys() - {stage.name for stage in new.stages}:
        names = ", ".join(stage.name for stage in new.stages)
        raise SettingOutOfRange("layer_beta", ", ".join(sorted(unknown)), allowed=f"layers are {names}")
    original, features_ND, labels_N = _concerned(source, kept, features_ND, labels_N)
    old = reshaped(original, new, features_ND)
    scores = unit_scores(old, features_ND, labels_N, score=config.score, kind=config.fisher, generator=generator)
    if not all(bool(torch.isfinite(stage_U).all()) for stage_U in scores):
        raise NothingCorresponds("the importance of the old expert's units is not finite: its weights are too large")
    rows_V = torch.tensor([kept.index(name) if name in kept else -1 for name in classes])
    maps = _maps(old, new, scores, features_ND, rows_V, config, generator)
    _carry(old, new, maps, config)
    if config.refit:
        _refit(original, old, new, maps, features_ND, config)
    write_chain(new, architecture, module)
    report = TransferReport(
        layers=tuple(_layer_report(*each) for each in zip(old.stages, new.stages, maps, strict=True)),
        classes_kept=tuple(kept),
        classes_new=tuple(name for name in classes if name not in source.classes),
        classes_dropped=tuple(name for name in source.classes if name not in classes),
    )
    return Transferred(module, report)


def _concerned(
    source: Source, kept: Sequence[str], features_ND: Tensor, labels_N: Tensor | None
) -> tuple[Chain, Tensor, Tensor | None]:
    """The old expert as one for these classes alone, and the items that are theirs: what counts is what tells them
    apart."""
    columns = [source.classes.index(name) for name in kept]
    chain = source.chain.with_outputs(columns)
    if labels_N is None:
        return chain, features_ND, None
    if labels_N.shape != (len(features_ND),):
        raise ShapeMismatch("labels", expected=(len(features_ND),), got=labels_N.shape)
    for label in (int(labels_N.min()), int(labels_N.max())):
        if not 0 <= label < len(source.classes):
            raise SettingOutOfRange("labels_N", label, allowed=f"a column, 0 to {len(source.classes) - 1}")
    columns_C = torch.full((len(source.classes),), -1)
    columns_C[columns] = torch.arange(len(columns))
    theirs = columns_C[labels_N] >= 0
    if not bool(theirs.any()):
        raise NothingToLearnFrom(f"the transfer's buffer, without an item of {', '.join(kept)}")
    return chain, features_ND[theirs], columns_C[labels_N[theirs]]


def _maps(  # noqa: PLR0913, PLR0917 - what the maps depend on
    old: Chain,
    new: Chain,
    scores: list[Tensor],
    features_ND: Tensor,
    rows_V: Tensor,
    config: TransferConfig,
    generator: torch.Generator,
) -> list[UnitMap]:
    """For each stage, how its units go on from the old one's."""
    with torch.no_grad():
        before, after = old.trace(features_ND), new.trace(features_ND)
    maps = []
    for index, stage in enumerate(old.hidden):
        if stage.skip:  # its units are the features
            maps.append(identity_map(stage.units))
            continue
        answers_NU = answers_by_item(before[index])
        similarity_UV = similarity_of(config.similarity, answers_NU, answers_by_item(after[index]))
        pairs = assign(similarity_UV, scores[index])
        if config.similarity == "role":
            # Any order of the new units is as good; that of the old ones keeps a layer of the same width as it was.
            pairs = list(zip(sorted(old_unit for old_unit, _ in pairs), range(len(pairs)), strict=True))
        maps.append(map_units(pairs, scores[index], answers_NU, generator, num_new=new.stages[index].units))
    maps.append(_class_map(rows_V, scores[-1]))
    return maps


def _class_map(rows_V: Tensor, scores_U: Tensor) -> UnitMap:
    kept = rows_V[rows_V >= 0]
    total = float(scores_U.sum())
    return UnitMap(
        source_V=rows_V,
        reconstruction_UV=torch.zeros(len(scores_U), len(rows_V)),
        offset_U=torch.zeros(len(scores_U)),
        merged=0,
        importance_kept=float(scores_U[kept].sum()) / total if total > 0 else len(kept) / len(scores_U),
    )


def _carry(old: Chain, new: Chain, maps: list[UnitMap], config: TransferConfig) -> None:
    """Set the new chain's weights, in place."""
    before: UnitMap | None = None
    for stage, target, units in zip(old.stages, new.stages, maps, strict=True):
        beta = config.layer_beta.get(target.name, config.beta)
        with torch.no_grad():
            inputs = old.inputs if before is None else len(before.offset_U)
            weight_UIP, bias_U = columns_by_unit(stage.weights, inputs), bias_of(stage)
            if before is not None:
                bias_U = bias_U + weight_UIP.sum(dim=2) @ before.offset_U
                weight_UIP = torch.einsum("uip,iv->uvp", weight_UIP, before.reconstruction_UV)
            wanted = columns_by_unit(target.weights, weight_UIP.shape[1])
            if wanted.shape[2] != weight_UIP.shape[2]:
                raise NothingCorresponds(f"{target.name} looks at {wanted.shape[2]} places, {stage.name} at others")
            _blend(
                target.weights.weight, weight_UIP.reshape(len(bias_U), *target.weights.weight.shape[1:]), units, beta
            )
            assert target.weights.bias is not None
            _blend(target.weights.bias, bias_U, units, beta)
            if target.norm is not None and stage.norm is not None:
                _blend(target.norm.weight, stage.norm.weight, units, beta)
                _blend(target.norm.bias, stage.norm.bias, units, beta)
        before = units


def _blend(random: Tensor, old: Tensor, units: UnitMap, beta: float) -> None:
    """beta theta_map + (1 - beta) theta_random, for units that go on from an old one."""
    mapped = units.source_V >= 0
    random[mapped] = beta * old[units.source_V[mapped]] + (1 - beta) * random[mapped]


def _refit(
    original: Chain, old: Chain, new: Chain, maps: list[UnitMap], features_ND: Tensor, config: TransferConfig
) -> None:
    """Fit each dense layer to what it added up to in the old expert; where there was none, to what it has to pass on.

    Sums are linear in what is before them, so that a layer behind exact ones is met exactly, whatever normalisation and
    activation follow; what these change the layer behind has to make up for, and the last one has the old logits.
    """
    places = {stage.name: place for place, stage in enumerate(original.stages)}
    for index, (stage, target, units) in enumerate(zip(old.stages, new.stages, maps, strict=True)):
        if not isinstance(target.weights, nn.Linear) or stage.skip:
            continue
        place = places.get(stage.name)
        if place is not None and _adds_up_alike(original.stages[place], stage):
            of = original
        else:
            of, place = old, index
        if index == place == 0:  # the same function of the same features
            continue
        rows_V = (units.source_V >= 0).nonzero().flatten()
        with torch.no_grad():
            targets_NU = of.sums_of(place, features_ND)[:, units.source_V[rows_V]]
        refit(new, index, features_ND, targets_NU, rows_U=rows_V, ridge=config.ridge)
        if index == len(new.hidden):
            refit_answers(new, features_ND, targets_NU, rows_C=rows_V, ridge=config.ridge)


def _adds_up_alike(before: Stage, stage: Stage) -> bool:
    """Whether a stage's sums still mean what they did: not if a normalisation was taken into its weights."""
    return before.units == stage.units and (before.norm is None or stage.norm is not None)


def _layer_report(stage: Stage, target: Stage, units: UnitMap) -> LayerReport:
    return LayerReport(
        layer=target.name,
        source=stage.name,
        old_units=stage.units,
        new_units=target.units,
        mapped=units.mapped,
        duplicated=units.duplicated,
        merged=units.merged,
        dropped=units.dropped,
        new=int((units.source_V < 0).sum()),
        importance_kept=units.importance_kept,
    )
