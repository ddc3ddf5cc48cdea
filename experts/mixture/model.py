"""A mixture whose experts and router are one module, so that one gradient reaches them all.

    log E_i(x) = log_softmax(U_i relu(V_i (input_scale h) + a_i) + b_i)   over all C classes, for each i
    f_R(x)     = the small-net router's logits

The experts' layers are stacked and computed in one product each, as fast as a network N times as wide. They are
ordinary experts all the same: `Mixture.experts` hands them out as modules of the registered `mlp` architecture.

Legend: B batch, D feature, E expert, U hidden unit of an expert, C class.
"""

from collections.abc import Collection
from typing import cast

import torch
from torch import Tensor, nn

from experts.architectures.mlp import MlpArchitecture
from experts.architectures.sized import require_features
from experts.errors import NothingToLearnFrom
from experts.local import LocalExpert
from experts.mixture.config import MixtureConfig
from experts.router.gating import Gates
from experts.router.mlp_net import MlpRouter

__all__ = ["Mixture"]


class Mixture(nn.Module):
    """N experts that each score all classes, and the router over them."""

    def __init__(self, config: MixtureConfig, classes: Collection[str], feature_dim: int, *, seed: str) -> None:
        """Initial weights are the same bits on every machine for the same arguments.

        Args:
            config: Its form.
            classes: Names of what there is to tell apart, at least one.
            feature_dim: D.
            seed: Whose initial weights.

        Raises:
            NothingToLearnFrom: If there is no class.
            UnknownArchitecture: If the sizes ask for too much.
        """
        super().__init__()
        if not classes:
            raise NothingToLearnFrom("a mixture without classes")
        self.config = config
        self.classes = tuple(sorted(set(classes)))
        """C class names, sorted: the columns of every expert."""
        self.uids = tuple(f"expert-{number:03d}" for number in range(config.num_experts))
        """E names, sorted."""
        self.router = MlpRouter(
            self.uids,
            feature_dim=feature_dim,
            hidden=config.router_hidden,
            input_scale=config.input_scale,
            seed=f"{seed}/router",
        )
        self.architecture = MlpArchitecture(
            feature_dim=feature_dim,
            hidden=config.expert_hidden,
            num_classes=len(self.classes),
            input_scale=config.input_scale,
        )
        """The form of each expert."""
        parts = [self.architecture.build(f"{seed}/{uid}").state_dict() for uid in self.uids]
        self.hidden_weight = nn.Parameter(torch.stack([part["hidden.weight"] for part in parts]))  # (E, U, D)
        self.hidden_bias = nn.Parameter(torch.stack([part["hidden.bias"] for part in parts]))  # (E, U)
        self.output_weight = nn.Parameter(torch.stack([part["output.weight"] for part in parts]))  # (E, C, U)
        self.output_bias = nn.Parameter(torch.stack([part["output.bias"] for part in parts]))  # (E, C)

    def forward(self, h_BD: Tensor) -> tuple[Tensor, Tensor]:
        """What the router and every expert make of each row.

        Returns: f_R ``(B, E)``, and log E_i ``(B, E, C)`` in nats.

        Raises:
            ShapeMismatch: If the features are not ``(B, D)``.
        """
        require_features(h_BD, self.architecture.feature_dim)
        wide = torch.addmm(
            self.hidden_bias.flatten(), h_BD * self.architecture.input_scale, self.hidden_weight.flatten(0, 1).T
        )
        hidden_EBU = torch.relu(wide).view(len(h_BD), *self.hidden_bias.shape).transpose(0, 1)
        logits_EBC = torch.baddbmm(self.output_bias[:, None, :], hidden_EBU, self.output_weight.transpose(1, 2))
        log_p_BEC = torch.log_softmax(logits_EBC, dim=2).transpose(0, 1)
        return self.router(h_BD), log_p_BEC

    def gates(self, h_BD: Tensor, *, top_k: int | None = None) -> Gates:
        """Gate weights as used: at the config's temperature, masked to its top k or another number of experts.

        Raises:
            ShapeMismatch: If the features are not ``(B, D)``.
        """
        experts = dict.fromkeys(self.uids, self.classes)
        return self.router.gates(h_BD, experts, tau=self.config.tau, top_k=top_k or self.config.top_k)

    def experts(self) -> dict[str, LocalExpert]:
        """The experts by uid as modules of their own, with copies of the weights as they are now."""
        weights = {
            "hidden.weight": self.hidden_weight,
            "hidden.bias": self.hidden_bias,
            "output.weight": self.output_weight,
            "output.bias": self.output_bias,
        }
        experts = {}
        for column, uid in enumerate(self.uids):
            module = self.architecture.build(uid)
            module.load_state_dict({name: value[column].detach() for name, value in weights.items()})
            experts[uid] = LocalExpert(self.classes, module)
        return experts

    @property
    def num_parameters(self) -> int:
        """Trainable values of all experts and the router."""
        return len(self.uids) * self.architecture.num_parameters + self.router.num_parameters

    @property
    def flops_per_sample(self) -> int:
        """FLOPs of one row's answer: the router and the top k experts."""
        asked = min(self.config.top_k, len(self.uids))
        return self.router.flops_per_sample + asked * self.architecture.flops_per_sample

    def predict(self, outputs_BC: Tensor) -> tuple[str, ...]:
        """The likeliest class by name of each row of an output ``(B, C)`` in the order of `classes`."""
        return tuple(self.classes[column] for column in cast("list[int]", outputs_BC.argmax(dim=1).tolist()))
