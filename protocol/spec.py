"""The mesh spec: what all peers of a mesh share, fixed for ever by its digest.

It is canonical JSON (sorted keys, no spaces, UTF-8), so that people can read it. The mesh's id is the
digest of these bytes: a spec is made once and pulled by every other node, never written again. Kinds of
input and router are tags, so that another kind brings its own settings and no version of this file reads them
as something else. Forms of experts come from a registry that a peer may have extended; of them the spec
knows only how they are written.
"""

from typing import Annotated, ClassVar, Final, Literal

import msgspec

from protocol import limits
from protocol.errors import MalformedSpec
from protocol.identifiers import digest_of
from protocol.wiretypes import DigestField, ExpertConfig, Kind, MeshId, Name

__all__ = [
    "ExpertForm",
    "ImageInput",
    "MeshSpec",
    "RouterSettings",
    "SPEC_SCHEMA",
    "decode_spec",
    "encode_spec",
    "mesh_id_of",
]

SPEC_SCHEMA: Final = "modulemesh.spec/3"
"""The form of spec that this version reads and writes."""

_NOT_OF_A_FORM = {"kind", "num_classes"}

_Positive = Annotated[float, msgspec.Meta(gt=0.0, le=1e6)]


class ImageInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="image"):
    """Square images, float32 (B, channels, pixels, pixels) in [0, 1]."""

    kind: ClassVar[str] = "image"
    channels: Annotated[int, msgspec.Meta(ge=1, le=16)]
    pixels: Annotated[int, msgspec.Meta(ge=1, le=1024)]
    """Side length."""


class RouterSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="ridge"):
    """A ridge regression on merged class statistics, and how its scores become gate weights."""

    kind: ClassVar[str] = "ridge"
    kappa: _Positive = 10.0
    """Class scores are kappa times the regression's output."""
    tau: _Positive = 1.0
    """Temperature of the softmax over experts."""
    top_k: Annotated[int, msgspec.Meta(ge=1, le=limits.MAX_EXPERTS_PER_RECORD)] = 1
    """Experts asked per row: 1 for disjoint classes, 2 for domains."""
    ridge: _Positive = 1e-4
    """The regulariser, relative to the mean eigenvalue of the Gram matrix."""
    prior: Literal["uniform", "empirical"] = "uniform"
    """Class prior: 1/C, or the share of samples."""
    renormalise: bool = False
    """Whether gate weights are divided by their sum over the experts that answered."""


class ExpertForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An architecture for any number of classes."""

    kind: Kind
    """The registry's name for it."""
    config: ExpertConfig
    """Its whole config but for the kind and the number of classes, in the order of the names. Whole, so that no
    default of a program's version is part of what an expert is."""

    def __post_init__(self) -> None:
        if list(self.config) != sorted(self.config):
            raise ValueError("the config's settings must be in the order of their names")
        if own := sorted(_NOT_OF_A_FORM & self.config.keys()):
            raise ValueError(f"{', '.join(own)} cannot be a setting of a form")


class MeshSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything two peers must agree on for their experts and statistics to mean the same."""

    schema: Literal["modulemesh.spec/3"] = SPEC_SCHEMA
    name: Name
    input: ImageInput
    trunk: DigestField
    """Of the frozen trunk's bytes, which include its preprocessing, m and s."""
    feature_dim: Annotated[int, msgspec.Meta(ge=1, le=65_536)]
    """D, the width of the trunk's output."""
    router: RouterSettings = RouterSettings()
    expert: ExpertForm
    """Of newly spawned experts; those of any other form may be hosted and adopted all the same. With a budget, what
    the budget has for two classes: for others look there."""
    expert_budget: Annotated[int, msgspec.Meta(ge=1, le=limits.MAX_COUNTER)] | msgspec.UnsetType = msgspec.UNSET
    """Most parameters, weights and biases, of a newly spawned expert, whose form then follows from this number, D and
    the number of its classes alone: nodes that spawn for the same classes have to come to the same uid. Without it all
    are of the form `expert`, and the spec has the bytes it always had."""
    moe_width: Annotated[int, msgspec.Meta(ge=1, le=limits.MAX_CLASSES_PER_EXPERT)] = 32
    """Width of the outputs that hivemind's own clients see of every expert, as a grid of theirs has one schema of
    outputs. An expert with more classes is not shown to them."""
    calibration: Annotated[str, msgspec.Meta(max_length=limits.MAX_SPEC_TEXT_CHARS)]
    """What m and s were measured on, in words."""
    statistics_norm: _Positive | msgspec.UnsetType = msgspec.UNSET
    """To which L2 norm features are clipped before statistics of them are noised; the same for all, or their sums would
    mean different things. Without it nobody here can add noise, and the spec has the bytes it always had."""


class _Schema(msgspec.Struct, frozen=True):
    schema: Annotated[str, msgspec.Meta(max_length=limits.MAX_NAME_CHARS)]


def encode_spec(spec: MeshSpec) -> bytes:
    """The spec's canonical bytes.

    Raises:
        MalformedSpec: A setting is out of its range.
    """
    data = msgspec.json.encode(spec, order="sorted")
    decode_spec(data)
    return data


def decode_spec(data: bytes) -> MeshSpec:
    """The spec that ``data`` is.

    Raises:
        MalformedSpec: Too long, not JSON, of another schema; a setting unknown to this version, absent or out of its
            range.
    """
    if len(data) > limits.MAX_SPEC_BYTES:
        raise MalformedSpec(f"{len(data)} bytes, at most {limits.MAX_SPEC_BYTES}")
    try:
        # First, for whatever else differs in a spec of another version is only a consequence.
        schema = msgspec.json.decode(data, type=_Schema).schema
        if schema != SPEC_SCHEMA:
            raise MalformedSpec(f"it is {schema!r}, this version reads {SPEC_SCHEMA!r}")
        return msgspec.json.decode(data, type=MeshSpec, strict=True)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise MalformedSpec(str(exc)) from exc


def mesh_id_of(spec_bytes: bytes) -> MeshId:
    """The id of the mesh that has exactly this spec: the digest of its bytes."""
    return MeshId(digest_of(spec_bytes))
