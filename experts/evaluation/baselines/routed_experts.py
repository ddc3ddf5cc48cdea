"""Our method without the network: an expert for every task, distilled on trunk features, behind the ridge router.

    y = sum_i g_i(x) E_i(x)                                                     (proposal, section 2.1)

Each expert's teacher is a ridge solved from its own task's data alone, so nothing is learned from what is elsewhere.
With target "classes" the router scores classes, and an expert's gate comes from those it answers for; with
"tasks" the tasks are what the router tells apart, which is how domains share one label space. Variants take the gates
from elsewhere or show the router random features besides: what a part is worth is seen by leaving it out.

Legend: N items of a task, B batch, A classes that may be named, C the router's columns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from experts.architectures.base import probabilities
from experts.architectures.mlp import MlpArchitecture
from experts.checkpoint import tensors_to_bytes
from experts.combine import ExpertResponse, combine
from experts.data.dataset import ImageDataset, class_columns
from experts.distillation.config import DistillationConfig
from experts.distillation.data import DistillationData
from experts.distillation.run import DistillationRun
from experts.errors import SettingOutOfRange
from experts.evaluation.baselines.base import Baseline
from experts.evaluation.baselines.ridge_state import RidgeState, ridge_flops
from experts.evaluation.cost import Holdings, count_flops
from experts.evaluation.inputs import Inputs
from experts.generators import torch_generator
from experts.router.features import ReluFeaturesConfig
from experts.router.gating import Gates, gate
from experts.router.references import energy_gates, hash_gates, random_gates, uniform_gates
from experts.router.ridge import RouterConfig, solve_ridge
from experts.router.statistics import ClassStatistics

__all__ = ["RoutedConfig", "RoutedExperts"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RoutedConfig:
    """Router, experts and their distillation.

    Raises:
        SettingOutOfRange: If a field is outside its range.
    """

    router: RouterConfig
    """Its ridge also makes the teachers; top_k 1 for classes and 2 for tasks."""

    distillation: DistillationConfig
    """Of each expert."""

    hidden: int
    """Hidden units of an expert, at least 1: 8 serve two classes, 16 ten."""

    target: Literal["classes", "tasks"]
    """What the router tells apart."""

    projection: ReluFeaturesConfig | None = None
    """Random features that the router sees beside the trunk's; experts do not."""

    gates: Literal["router", "uniform", "random", "hash", "energy"] = "router"
    """Where they come from; all but the first are references (`experts.router.references`)."""

    def __post_init__(self) -> None:
        if self.hidden < 1:
            raise SettingOutOfRange("hidden", self.hidden, allowed="at least 1")
        if self.target not in ("classes", "tasks"):
            raise SettingOutOfRange("target", self.target, allowed="classes or tasks")
        if self.gates not in ("router", "uniform", "random", "hash", "energy"):
            raise SettingOutOfRange("gates", self.gates, allowed="router, uniform, random, hash or energy")


@dataclass(frozen=True, slots=True, eq=False)
class _Expert:
    """One task's."""

    module: nn.Module
    classes: tuple[str, ...]
    routed_by: tuple[str, ...]
    """Columns of the router that speak for it."""


class RoutedExperts(Baseline):
    """One expert a task, gates from the ridge."""

    def __init__(self, inputs: Inputs, config: RoutedConfig, *, seed: int) -> None:
        """
        Args:
            inputs: Features of a trunk.
            config: How.
            seed: Of the experts' initial weights and batches.
        """
        super().__init__()
        self.name = "routed experts"
        self._inputs = inputs
        self._config = config
        self._seed = seed
        self._generator = torch_generator(seed, self.name)
        self._gate_generator = torch_generator(seed, f"{self.name}/gates")
        self._state = RidgeState(config.router, config.projection)
        self._experts: dict[str, _Expert] = {}
        self._flops = 0
        self._sent_bytes = 0

    def scores(self, images: NDArray[np.uint8], allowed: Sequence[str]) -> Tensor:
        """The mixture's output over the experts that answer for an allowed class."""
        h_BD = self._inputs(images)
        experts = {uid: expert for uid, expert in self._experts.items() if set(expert.classes) & set(allowed)}
        scores_BA = h_BD.new_full((len(images), len(allowed)), -torch.inf)
        if not experts:
            return scores_BA
        gates = self._gates(h_BD, experts, allowed)
        responses = {}
        for uid, expert in experts.items():
            rows = gates.rows_of(uid)
            responses[uid] = ExpertResponse(expert.classes, rows, probabilities(expert.module, h_BD[rows]))
        known = tuple(sorted({name for expert in experts.values() for name in expert.classes}))
        outputs_BC = combine(gates, responses, known, self._config.router.renormalise).outputs_BC
        answered = [name for name in allowed if name in known]
        scores_BA[:, class_columns(answered, allowed)] = outputs_BC[:, class_columns(answered, known)]
        return scores_BA

    def holdings(self) -> Holdings:
        """A task adds one expert and solves the router anew; no other expert changes."""
        of_expert = [sum(value.numel() for value in expert.module.parameters()) for expert in self._experts.values()]
        return Holdings(
            num_parameters=self._state.num_parameters + sum(of_expert),
            num_updated=self._state.num_parameters + sum(of_expert[-1:]),
            kept_bytes=self._state.kept_bytes,
            sent_bytes=self._state.sent_bytes + self._sent_bytes,
            flops=self._state.flops + self._flops,
        )

    def _learn(self, task: ImageDataset) -> None:
        h_ND = self._inputs(task.images)
        number, classes = len(self._experts), task.classes
        uid = f"task {number:03}"
        by_task = self._config.target == "tasks"
        self._state.add(h_ND, [uid] * len(task) if by_task else list(task.labels))
        architecture = MlpArchitecture(feature_dim=h_ND.shape[1], hidden=self._config.hidden, num_classes=len(classes))
        module = architecture.build(f"{self._seed}/{uid}")
        run = DistillationRun(module, self._taught(h_ND, task), self._config.distillation, self._generator)
        _, flops_per_step = count_flops(run.step)
        for _ in run:
            pass
        self._experts[uid] = _Expert(module, classes, (uid,) if by_task else classes)
        self._sent_bytes += len(tensors_to_bytes(module.state_dict(), {}))
        self._flops += len(task) * self._inputs.flops_per_image + flops_per_step * run.steps_done

    def _taught(self, h_ND: Tensor, task: ImageDataset) -> DistillationData:
        """The task's items, scored by a ridge of their own."""
        teacher = solve_ridge(ClassStatistics.from_features(h_ND, task.labels), self._config.router)
        num_items, dim = h_ND.shape
        of_scores = 2 * num_items * dim * len(teacher.classes)
        self._flops += ridge_flops(num_items, dim, len(teacher.classes)) + of_scores
        return DistillationData(
            features_ND=h_ND,
            labels_N=class_columns(task.labels, task.classes),
            teacher_logits_NC=teacher.scores(h_ND),
        )

    def _gates(self, h_BD: Tensor, experts: Mapping[str, _Expert], allowed: Sequence[str]) -> Gates:
        settings = self._config.router
        match self._config.gates:
            case "uniform":
                return uniform_gates(len(h_BD), experts)
            case "random":
                return random_gates(len(h_BD), experts, self._gate_generator)
            case "hash":
                return hash_gates(h_BD, experts)
            case "energy":
                with torch.no_grad():
                    logits = {uid: expert.module(h_BD) for uid, expert in experts.items()}
                return energy_gates(logits, tau=settings.tau, top_k=settings.top_k)
        columns = {uid: self._columns(expert, allowed) for uid, expert in experts.items()}
        scores_BC = self._state.scores(h_BD)
        return gate(scores_BC, self._state.router.classes, columns, tau=settings.tau, top_k=settings.top_k)

    def _columns(self, expert: _Expert, allowed: Sequence[str]) -> tuple[str, ...]:
        """What of the router speaks for an expert, where only some classes may be named."""
        if self._config.target == "tasks":
            return expert.routed_by
        return tuple(name for name in expert.routed_by if name in allowed)
