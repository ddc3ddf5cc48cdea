"""Monolithic distillation: one student for all classes, where we distil an expert for each task.

    L = alpha CE(f(x), y) + (1 - alpha) T^2 KL(p_teacher || p)

(Hinton et al. 2015, arXiv:1503.02531) with the KL over the classes that the image's teacher knows. The teachers are
those of `routed_experts`: a ridge on each task's own inputs. What differs is the student alone. It learns the tasks
one after the other and forgets as any network does, or all anew from images and teachers that are all kept: the
centralised distillation that a mesh is to do without.

Legend: N items, B batch, C class.
"""

import torch
from torch import Tensor, nn

from experts.distillation.loss import align_logits, distillation_loss
from experts.errors import SettingOutOfRange
from experts.evaluation.baselines.network import NetworkBaseline, NetworkSetup
from experts.evaluation.baselines.ridge_state import ridge_flops
from experts.evaluation.heads import Heads
from experts.evaluation.training import Objective, TrainingConfig, train
from experts.generators import torch_generator
from experts.router.ridge import RouterConfig, solve_ridge
from experts.router.statistics import ClassStatistics

__all__ = ["MonolithicBaseline", "Taught"]


class MonolithicBaseline(NetworkBaseline):
    """One student of all teachers."""

    def __init__(
        self,
        setup: NetworkSetup,
        config: TrainingConfig,
        *,
        alpha: float = 0.5,
        temperature: float = 2.0,
        keeps_all: bool = False,
        seed: int,
    ) -> None:
        """
        Args:
            setup: The student.
            config: Of the training on each task, or on all so far.
            alpha: Weight of the labels against the teachers, in [0, 1].
            temperature: T, above 0.
            keeps_all: Whether every task is learned together with all before it, from initial weights.
            seed: Of the initial weights and the order of images.

        Raises:
            SettingOutOfRange: If a number is outside its range.
        """
        super().__init__("central distillation" if keeps_all else "monolithic distillation", setup, config, seed=seed)
        if not 0.0 <= alpha <= 1.0:
            raise SettingOutOfRange("alpha", alpha, allowed="in [0, 1]")
        if not temperature > 0.0:
            raise SettingOutOfRange("temperature", temperature, allowed="above 0")
        self._seed = seed
        self._keeps_all = keeps_all
        self._objective = Taught(alpha, temperature, self._heads)
        self._tasks: list[tuple[Tensor, Tensor, Tensor]] = []
        """Inputs, columns and the teacher's logits, of all tasks that are kept."""

    def _num_kept(self) -> int:
        return sum(len(inputs) for inputs, _, _ in self._tasks)

    def _beside_bytes(self) -> int:
        return sum(said.nbytes for _, _, said in self._tasks)

    def _train(self, inputs_N: Tensor, columns_N: Tensor) -> int:
        said_NC, flops = self._taught(inputs_N, columns_N)
        if not self._keeps_all:
            data: tuple[Tensor, ...] = inputs_N, columns_N, said_NC
            return flops + train(self._network, data, self._config, self._generator, self._objective)
        self._tasks.append((inputs_N, columns_N, said_NC))
        generator = torch_generator(self._seed, self.name)
        self._network = self._setup.build(generator)
        data = tuple(torch.cat(parts) for parts in zip(*self._tasks, strict=True))
        return flops + train(self._network, data, self._config, generator, self._objective)

    def _taught(self, inputs_N: Tensor, columns_N: Tensor) -> tuple[Tensor, int]:
        """What the task's own teacher says, in the student's columns, and the FLOPs of making and asking it."""
        classes, flat_ND = self._setup.classes, inputs_N.flatten(1)
        labels = [classes[column] for column in columns_N.tolist()]
        teacher = solve_ridge(ClassStatistics.from_features(flat_ND, labels), RouterConfig())
        num_items, dim = flat_ND.shape
        flops = ridge_flops(num_items, dim, len(teacher.classes)) + 2 * num_items * dim * len(teacher.classes)
        return align_logits(teacher.scores(flat_ND), teacher.classes, classes), flops


class Taught(Objective):
    """The loss above; its data has the teacher's logits as third part, -inf for a class it does not know."""

    def __init__(self, alpha: float, temperature: float, heads: Heads | None = None) -> None:
        """
        Args:
            alpha: Weight of the labels.
            temperature: T.
            heads: Of the student.
        """
        super().__init__(heads)
        self._alpha = alpha
        self._temperature = temperature

    def loss(self, network: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """Both terms, in nats."""
        own_BC = self.of_own_head(network(batch[0]), batch[1])
        return distillation_loss(own_BC, batch[2], batch[1], self._alpha, self._temperature)
