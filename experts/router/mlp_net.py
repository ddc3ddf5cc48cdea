"""The router as a small net with one hidden layer: features in, a logit for each expert out.

    f_R(x) = U relu(V (input_scale h) + a) + b                                       (proposal, section 2.3)

Unlike the ridge router it can learn whom to ask where classes overlap, from how well each expert answers; it forgets
unless old items are replayed, and two of them agree only if averaged like an expert. Rows of U belong to experts, by
uid: a router that gains an expert keeps every other expert's logit to the bit, and two nodes that add the same one
give it the same initial row.

Legend: B batch, D feature, E expert, K top-k.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import TypeGuard, cast

import torch
from torch import Tensor, nn

from experts.architectures.mlp import MlpArchitecture
from experts.checkpoint import load_tensors, tensors_from_bytes, tensors_to_bytes
from experts.errors import CorruptWeights, SettingOutOfRange, UnknownArchitecture
from experts.generators import portable_uniform
from experts.router.gating import Gates, gate_logits

__all__ = ["MlpRouter"]


class MlpRouter(nn.Module):
    """A net from features to logits of experts; its parameters are what is trained, averaged and sent."""

    def __init__(
        self, uids: Collection[str], *, feature_dim: int, hidden: int = 32, input_scale: float = 0.3, seed: str
    ) -> None:
        """Initial weights are the same bits on every machine for the same arguments.

        Args:
            uids: The experts it tells apart, at least one.
            feature_dim: D, the trunk's features.
            hidden: Hidden units.
            input_scale: Factor on the features, in (0, 10].
            seed: Whose initial weights, such as the mesh's id.

        Raises:
            SettingOutOfRange: If there is no uid, or one stands twice.
            UnknownArchitecture: If a size or the factor is out of range.
        """
        super().__init__()
        self.uids = tuple(sorted(uids))
        """E uids, sorted: the columns of the logits."""
        if not self.uids or len(set(self.uids)) != len(self.uids):
            raise SettingOutOfRange("uids", self.uids, allowed="at least one, distinct")
        self.seed = seed
        self.architecture = MlpArchitecture(
            feature_dim=feature_dim, hidden=hidden, num_classes=len(self.uids), input_scale=input_scale
        )
        """The form of the net; its classes are the experts."""
        self.net = self.architecture.build(seed)
        output = self._output
        with torch.no_grad():
            for column, uid in enumerate(self.uids):
                # As the architecture's own, but by uid and not by place, which another expert would shift.
                uniform = portable_uniform(seed, f"output/{uid}", (hidden + 1,)) * 2 - 1
                output.weight[column] = uniform[:-1] * hidden**-0.5
                output.bias[column] = uniform[-1] * hidden**-0.5

    @property
    def num_parameters(self) -> int:
        """Number of trainable values."""
        return self.architecture.num_parameters

    @property
    def flops_per_sample(self) -> int:
        """FLOPs of one row's logits, counted as an expert's are."""
        return self.architecture.flops_per_sample

    def forward(self, h_BD: Tensor) -> Tensor:
        """f_R, ``(B, E)`` in the order of `uids`.

        Raises:
            ShapeMismatch: If the features are not ``(B, D)``.
        """
        logits_BE: Tensor = self.net(h_BD)
        return logits_BE

    def gates(self, h_BD: Tensor, experts: Mapping[str, Sequence[str]], *, tau: float = 1.0, top_k: int = 1) -> Gates:
        """Gate weights over ``experts``, without a graph for gradients (see `Router`).

        Args:
            h_BD: Trunk features.
            experts: By uid those that may be asked; what their classes are, this router learned by itself. One that
                it does not know has gate 0; those left out take no part in the softmax.
            tau: As for `gate_logits`.
            top_k: As for `gate_logits`.

        Raises:
            ShapeMismatch: If the features are not ``(B, D)``.
            SettingOutOfRange: If ``tau`` or ``top_k`` is.
        """
        wanted = tuple(sorted(experts))
        with torch.no_grad():
            own_BE = self(h_BD)
        logits_BE = own_BE.new_full((len(h_BD), len(wanted)), -torch.inf)
        for column, uid in enumerate(wanted):
            if uid in self.uids:
                logits_BE[:, column] = own_BE[:, self.uids.index(uid)]
        return gate_logits(logits_BE, wanted, tau=tau, top_k=top_k)

    def with_experts(self, uids: Collection[str]) -> "MlpRouter":
        """A router for these experts, with this one's weights for those it knows and initial ones for the others.

        Raises:
            SettingOutOfRange: If there is no uid, or one stands twice.
        """
        form = self.architecture
        other = MlpRouter(
            uids, feature_dim=form.feature_dim, hidden=form.hidden, input_scale=form.input_scale, seed=self.seed
        )
        with torch.no_grad():
            for name, value in self.net.get_submodule("hidden").named_parameters():
                other.net.get_submodule("hidden").get_parameter(name).copy_(value)
            for column, uid in enumerate(other.uids):
                if uid in self.uids:
                    other._output.weight[column] = self._output.weight[self.uids.index(uid)]
                    other._output.bias[column] = self._output.bias[self.uids.index(uid)]
        return other

    def to_bytes(self) -> bytes:
        """Weights, uids and form, byte for byte the same for equal routers; see `from_bytes`.

        Raises:
            CorruptWeights: If a weight is not finite.
        """
        config = {"form": self.architecture.to_config(), "seed": self.seed, "uids": list(self.uids)}
        return tensors_to_bytes(self.state_dict(), config)

    @classmethod
    def from_bytes(cls, data: bytes) -> "MlpRouter":
        """The router that `to_bytes` wrote; safe on bytes from anyone.

        Raises:
            CorruptWeights: If the bytes are not those of such a router.
        """
        tensors, config = tensors_from_bytes(data)
        uids, seed, form = config.get("uids"), config.get("seed"), config.get("form")
        if not isinstance(seed, str) or not isinstance(form, dict) or not _are_sorted_names(uids):
            raise CorruptWeights("not a router's config")
        try:
            architecture = MlpArchitecture.from_config(form)
            if architecture.num_classes != len(uids):
                raise CorruptWeights(f"{architecture.num_classes} logits for {len(uids)} experts")
            # Before a net of the size that the form claims is made.
            if architecture.num_parameters != (num_sent := sum(tensor.numel() for tensor in tensors.values())):
                raise CorruptWeights(f"{num_sent} weights for a form of {architecture.num_parameters}")
            router = cls(
                uids,
                feature_dim=architecture.feature_dim,
                hidden=architecture.hidden,
                input_scale=architecture.input_scale,
                seed=seed,
            )
        except (UnknownArchitecture, SettingOutOfRange) as exc:
            raise CorruptWeights(str(exc)) from exc
        load_tensors(router, tensors)
        return router

    def digest(self) -> str:
        """sha256 of `to_bytes`, 64 lowercase hex characters."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @property
    def _output(self) -> nn.Linear:
        return cast("nn.Linear", self.net.get_submodule("output"))


def _are_sorted_names(value: object) -> TypeGuard[list[str]]:
    # In another order the columns would change hands: a router sorts its uids.
    return isinstance(value, list) and all(isinstance(name, str) for name in value) and value == sorted(value)
