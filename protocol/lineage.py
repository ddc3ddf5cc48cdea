"""Where an expert comes from: each change of architecture that its knowledge was carried through.

A new architecture is a new expert, which names those it succeeds as its ancestors. What was done at each step is a
document: canonical JSON (sorted keys, no spaces, UTF-8), so that people can read it, kept and pulled by its digest as a
blob. The uids in it are proved by the expert's own, which is a digest of its ancestors among others; what is said of
methods, accuracies and moments is the word of the peer that made the step.

An expert that was spawned, but began as an expert of other classes and not at random, is a successor too: of the expert
that its form and classes alone would have made, whose place it takes without any of it having learned. Its step names
whose knowledge it is under `source`.
"""

from typing import Annotated, Final, Literal

import msgspec

from protocol import limits
from protocol.errors import MalformedLineage
from protocol.identifiers import digest_of
from protocol.records import ExpertAdvert
from protocol.spec import ExpertForm
from protocol.wiretypes import (
    ClassNames,
    CounterField,
    DigestField,
    ExpertUid,
    ExpertUidField,
    MomentField,
    PeerIdField,
)

__all__ = [
    "Accuracy",
    "LINEAGE_SCHEMA",
    "LayerTransfer",
    "Lineage",
    "Source",
    "Succession",
    "TransferMethod",
    "decode_lineage",
    "encode_lineage",
    "lineage_of",
]

LINEAGE_SCHEMA: Final = "modulemesh.lineage/1"
"""The form of lineage that this version reads and writes."""

_Word = Annotated[str, msgspec.Meta(min_length=1, max_length=limits.MAX_CONFIG_TEXT_CHARS)]
_LayerName = Annotated[str, msgspec.Meta(min_length=1, max_length=limits.MAX_TENSOR_NAME_CHARS)]
_Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]


class TransferMethod(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How parameters were carried over."""

    similarity: _Word
    """By which units were matched."""
    score: _Word
    """By which their importance was told."""
    beta: _Share
    """Weight of what was mapped; the rest is the new expert's random initialisation."""
    refit: bool
    """Whether the outgoing layer was solved anew on the replay memory."""
    distillation_steps: CounterField
    """Steps of training with the old expert as teacher, before the first weights."""


class LayerTransfer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What became of one layer of the new expert."""

    name: _LayerName
    source: _LayerName | None
    """The old expert's layer; None for one that it had not."""
    old_units: CounterField
    new_units: CounterField
    mapped: CounterField
    """New units that one old unit each became."""
    duplicated: CounterField
    """New units that are another copy of an old one."""
    merged: CounterField
    """Old units that went into another's place."""
    dropped: CounterField
    """Old units that are gone."""
    importance_kept: _Share
    """Share of the layer's importance that the mapped units had."""


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An expert of other classes that a spawned one began as. It is no ancestor: nothing takes its place."""

    uid: ExpertUidField
    form: ExpertForm
    classes: ClassNames
    """Sorted; some of them may be the new expert's too."""
    weights: DigestField
    """Of the generation that was carried over."""

    def __post_init__(self) -> None:
        if list(self.classes) != sorted(set(self.classes)):
            raise ValueError("classes must be sorted and each named once")


class Accuracy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What old and new scored on the same samples of the peer that made the step: as they were, or, where there is a
    source, after the few steps that the beginning was chosen by."""

    old: _Share
    new: _Share
    samples: Annotated[int, msgspec.Meta(ge=1, le=limits.MAX_COUNTER)]


class Succession(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One step: an expert of another form takes an expert's place."""

    parent: ExpertUidField
    parent_form: ExpertForm
    parent_weights: DigestField
    """Of the generation that was carried over."""
    uid: ExpertUidField
    form: ExpertForm
    classes: ClassNames
    """Of both, sorted."""
    weights: DigestField
    """The new expert's first ones, which all its replicas of this succession descend from."""
    method: TransferMethod
    layers: Annotated[tuple[LayerTransfer, ...], msgspec.Meta(max_length=limits.MAX_LAYERS_PER_SUCCESSION)]
    accuracy: Accuracy | None
    """None where there was nothing to measure it on."""
    made_at: MomentField
    """Unix seconds."""
    peer_id: PeerIdField
    """Who made the step."""
    source: Source | msgspec.UnsetType = msgspec.UNSET
    """Whose knowledge was carried over, where it is not the parent's: then the parent is of the same form and as its
    uid determines, and this is the first step. Without it a lineage has the bytes that it always had."""

    def __post_init__(self) -> None:
        if list(self.classes) != sorted(set(self.classes)):
            raise ValueError("classes must be sorted and each named once")
        if isinstance(self.source, Source):
            if self.form != self.parent_form:
                raise ValueError("an expert that began as another one has its parent's form")
            if self.source.uid in (self.parent, self.uid):
                raise ValueError("the source is another expert")


class Lineage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The steps to an expert, the oldest first; each begins where the one before ended."""

    steps: Annotated[tuple[Succession, ...], msgspec.Meta(min_length=1, max_length=limits.MAX_LINEAGE)]
    schema: Literal["modulemesh.lineage/1"] = LINEAGE_SCHEMA

    def __post_init__(self) -> None:
        for before, after in zip(self.steps, self.steps[1:], strict=False):
            if (after.parent, after.parent_form, after.classes) != (before.uid, before.form, before.classes):
                raise ValueError("each step's parent must be what the step before made")
            if isinstance(after.source, Source):
                raise ValueError("only the first step may have a source")

    @property
    def last(self) -> Succession:
        """The step that made the expert itself."""
        return self.steps[-1]

    @property
    def ancestors(self) -> tuple[ExpertUid, ...]:
        """The experts that it succeeds, the oldest first, its direct parent last."""
        return tuple(step.parent for step in self.steps)

    def then(self, step: Succession) -> "Lineage":
        """The lineage of what `step` makes of this expert."""
        return Lineage((*self.steps, step))


class _Schema(msgspec.Struct, frozen=True):
    schema: Annotated[str, msgspec.Meta(max_length=limits.MAX_NAME_CHARS)]


def encode_lineage(lineage: Lineage) -> bytes:
    """The lineage's canonical bytes.

    Raises:
        MalformedLineage: Something in it is out of its range, or it is too long.
    """
    try:
        # A whole number where a fraction is meant is written as the fraction that a reader takes it for.
        data = _canonical(msgspec.convert(msgspec.to_builtins(lineage), Lineage))
    except msgspec.ValidationError as exc:
        raise MalformedLineage(str(exc)) from exc
    decode_lineage(data)
    return data


def decode_lineage(data: bytes) -> Lineage:
    """The lineage that ``data`` is; safe on bytes from anyone.

    Raises:
        MalformedLineage: Too long, not canonical JSON, of another schema; a field unknown to this version, absent or
            out of its range; steps that do not follow on one another.
    """
    if len(data) > limits.MAX_LINEAGE_BYTES:
        raise MalformedLineage(f"{len(data)} bytes, at most {limits.MAX_LINEAGE_BYTES}")
    try:
        # First, for whatever else differs in a lineage of another version is only a consequence.
        schema = msgspec.json.decode(data, type=_Schema).schema
        if schema != LINEAGE_SCHEMA:
            raise MalformedLineage(f"it is {schema!r}, this version reads {LINEAGE_SCHEMA!r}")
        lineage = msgspec.json.decode(data, type=Lineage, strict=True)
        canonical = _canonical(lineage)
    except (msgspec.DecodeError, msgspec.EncodeError, UnicodeError, RecursionError) as exc:
        raise MalformedLineage(str(exc)) from exc
    # What is carried on in another form, as in an expert's file, must come out with the same digest.
    if canonical != data:
        raise MalformedLineage("its JSON is not canonical")
    return lineage


def lineage_of(advert: ExpertAdvert, data: bytes) -> Lineage:
    """The lineage that an advert names by its digest.

    Args:
        advert: Of an expert with ancestors; that its uid is theirs too is for the caller to check.
        data: The document, from anyone.

    Raises:
        MalformedLineage: It is none, has another digest, or is another expert's.
    """
    if digest_of(data) != advert.lineage:
        raise MalformedLineage("it has another digest than the advert says")
    lineage = decode_lineage(data)
    last = lineage.last
    made = (last.uid, last.form, last.classes, lineage.ancestors)
    if made != (advert.uid, advert.form, advert.classes, advert.ancestors):
        raise MalformedLineage("it is another expert's")
    return lineage


def _canonical(lineage: Lineage) -> bytes:
    return msgspec.json.encode(lineage, order="sorted")
