"""Trunks as bytes: one blob holds form, weights, m and s; its digest names all that makes a feature.

A trunk rebuilt from its bytes gives bit-identical features (on the same machine and versions), and no peer
needs the package or the images that a trunk was made from.
"""

from collections.abc import Mapping

import torch

from experts.checkpoint import load_tensors, tensors_from_bytes, tensors_to_bytes
from experts.errors import CorruptWeights, UnknownTrunk
from experts.trunk.base import Trunk
from experts.trunk.efficientnet import EfficientNetTrunk
from experts.trunk.section import SectionTrunk
from experts.trunk.whitened import WhitenedTrunk

__all__ = ["trunk_from_bytes", "trunk_to_bytes"]

_KINDS: Mapping[str, type[Trunk]] = {kind.kind: kind for kind in (EfficientNetTrunk, SectionTrunk, WhitenedTrunk)}


def trunk_to_bytes(trunk: Trunk) -> bytes:
    """safetensors of weights, m and s, with kind and config in the header; equal bytes for equal trunks.

    Raises: CorruptWeights: If a weight is not finite. SectionNotPortable: If it is a section of a network that only
        another library can build.
    """
    config = {"kind": trunk.kind, "config": trunk.to_config()}
    return tensors_to_bytes(trunk.state_dict(), config)


def trunk_from_bytes(data: bytes) -> Trunk:
    """The inverse of `trunk_to_bytes`; safe on bytes from anyone.

    Raises: CorruptWeights: If the bytes are not safetensors of finite float32 that fit the form they name,
        or an s is not above 0. UnknownTrunk: If the kind or its form is not known here.
    """
    tensors, header = tensors_from_bytes(data)
    kind, config = header.get("kind"), header.get("config")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise UnknownTrunk(kind, reason=f"known kinds: {', '.join(sorted(_KINDS))}")
    if not isinstance(config, dict):
        raise UnknownTrunk(kind, reason="no config")
    with torch.device("meta"):
        trunk = _KINDS[kind].from_config(config)
    load_tensors(trunk, tensors)
    if not bool((trunk.deviation_D > 0).all()):
        raise CorruptWeights("a deviation is not above 0")
    return trunk
