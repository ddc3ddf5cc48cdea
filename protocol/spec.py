"""The mesh spec: what all peers of a mesh share, fixed for ever by its digest.

It is canonical JSON (sorted keys, no spaces, UTF-8), so that people can read it. The mesh's id is the
digest of these bytes: a spec is made once and pulled by every other node, never written again. Kinds (of
input, router, expert) are tags, so that another kind brings its own settings and no version of this file
reads them as something else.
"""

from typing import Annotated, ClassVar, Literal

import msgspec

from protocol import limits
from protocol.errors import MalformedSpec
from protocol.identifiers import digest_of
from protocol.wiretypes import DigestField, MeshId, Name

__all__ = [
    "ExpertSettings",
    "ImageInput",
    "MeshSpec",
    "RouterSettings",
    "decode_spec",
    "encode_spec",
    "mesh_id_of",
]

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


class ExpertSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="mlp"):
    """The architecture of newly spawned experts: one hidden layer."""

    kind: ClassVar[str] = "mlp"
    hidden: Annotated[int, msgspec.Meta(ge=1, le=limits.MAX_HIDDEN_UNITS)] = 8
    """Hidden units: 8 for two classes, 16 for ten."""


class MeshSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything two peers must agree on for their experts and statistics to mean the same."""

    schema: Literal["modulemesh.spec/1"] = "modulemesh.spec/1"
    name: Name
    input: ImageInput
    trunk: DigestField
    """Of the frozen trunk's bytes, which include its preprocessing, m and s."""
    feature_dim: Annotated[int, msgspec.Meta(ge=1, le=65_536)]
    """D, the width of the trunk's output."""
    router: RouterSettings = RouterSettings()
    expert: ExpertSettings = ExpertSettings()
    calibration: Annotated[str, msgspec.Meta(max_length=limits.MAX_SPEC_TEXT_CHARS)]
    """What m and s were measured on, in words."""


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
        MalformedSpec: Too long, not JSON, a setting unknown to this version, absent or out of its range.
    """
    if len(data) > limits.MAX_SPEC_BYTES:
        raise MalformedSpec(f"{len(data)} bytes, at most {limits.MAX_SPEC_BYTES}")
    try:
        return msgspec.json.decode(data, type=MeshSpec, strict=True)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise MalformedSpec(str(exc)) from exc


def mesh_id_of(spec_bytes: bytes) -> MeshId:
    """The id of the mesh that has exactly this spec: the digest of its bytes."""
    return MeshId(digest_of(spec_bytes))
