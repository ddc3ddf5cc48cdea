"""What an architecture is: the form of an expert's module, known by the name of its kind.

    E_i(x) = softmax(module(h)) over the expert's own classes, zero for every other    (proposal, section 2.1)

Which classes its columns stand for, the expert's owner knows.

Legend: B batch, D feature, C class (the expert's own classes).

FLOPs: one multiply-accumulate of a matrix product or a convolution is 2; biases, activations, scaling, pooling and
sums are not counted. It is the convention of ``torch.utils.flop_counter``, so that an expert's figure can be added to
a trunk's or a teacher's that was counted there.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import nn

from experts.architectures.anatomy import Anatomy

__all__ = ["Architecture", "MAX_PARAMETERS", "probabilities"]

MAX_PARAMETERS = 16_000_000
"""64 MiB of float32, the largest message of the wire; an advertised config must not make us allocate more."""


class Architecture(ABC):
    """The form of an expert's module: enough to build it, and nothing about what it has learned."""

    __slots__ = ()

    kind: ClassVar[str]
    """The registry's name for this form."""

    @property
    def anatomy(self) -> Anatomy | None:
        """What its layers are for; None if that cannot be said, and its units be carried nowhere."""
        return None

    @property
    @abstractmethod
    def num_parameters(self) -> int:
        """Number of trainable values, computed from the form alone, without building it."""

    @property
    @abstractmethod
    def flops_per_sample(self) -> int:
        """FLOPs of one row's forward pass: 2 for each multiply-accumulate of products and convolutions."""

    @abstractmethod
    def to_config(self) -> dict[str, object]:
        """A JSON object, with ``kind``, from which the registry makes an equal architecture."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: Mapping[str, object]) -> Self:
        """The inverse of `to_config`; allocates nothing that the config could make large.

        Raises: UnknownArchitecture: If keys, types or ranges are not as `to_config` writes them.
        """

    @abstractmethod
    def build(self, seed: str) -> nn.Module:
        """A module on the CPU whose forward maps features ``(B, D)`` to logits ``(B, C)``.

        Its initial weights are the same bits on every machine for the same seed (the expert's uid), so two
        nodes that spawn the same expert hold replicas from the start. Its state is float32 throughout.
        """

    def digest(self) -> str:
        """sha256 of the canonical JSON of `to_config`, 64 lowercase hex characters."""
        canonical = json.dumps(self.to_config(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()


def probabilities(module: nn.Module, features_BD: torch.Tensor) -> torch.Tensor:
    """softmax of the module's logits: ``(B, C)`` rows that sum to 1, without a graph for gradients.

    Raises: ShapeMismatch: If the features do not have the module's dimension.
    """
    with torch.inference_mode():
        return torch.softmax(module(features_BD), dim=-1)
