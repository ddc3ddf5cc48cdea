"""What a task takes without sharing anything: a network of its own, trained to its best validation epoch.

The rival of task-incremental learning: told which task an image is from, one network a task forgets nothing either, and
costs a whole network a task. Each task gives up some of its training images, by which the best epoch is chosen.

Legend: B batch, A classes that may be named, N images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from experts.data.dataset import ImageDataset, class_columns
from experts.errors import SettingOutOfRange
from experts.evaluation.baselines.base import Baseline
from experts.evaluation.cost import Holdings
from experts.evaluation.inputs import Inputs
from experts.evaluation.networks import NetworkForm
from experts.evaluation.training import TrainingConfig, train
from experts.generators import torch_generator

__all__ = ["TaskNetworks"]

_BATCH = 1000
"""Images at a time when scoring; bounds memory."""


@dataclass(frozen=True, slots=True, eq=False)
class _Trained:
    network: nn.Module
    classes: tuple[str, ...]
    """Its columns, sorted."""


class TaskNetworks(Baseline):
    """One network a task; the task is told by the classes that may be named."""

    def __init__(
        self, inputs: Inputs, form: NetworkForm, config: TrainingConfig, *, seed: int, held_out_ratio: float = 0.1
    ) -> None:
        """
        Args:
            inputs: What each network is fed.
            form: What each network is.
            config: Of each training; epochs are the most, of which the best is kept.
            seed: Of which images are held out, of initial weights and batches.
            held_out_ratio: Share of each class that chooses the epoch and is not learned from, in (0, 1).

        Raises:
            SettingOutOfRange: If ``held_out_ratio`` is outside its range.
        """
        super().__init__()
        if not 0.0 < held_out_ratio < 1.0:
            raise SettingOutOfRange("held_out_ratio", held_out_ratio, allowed="in (0, 1)")
        self.name = "network for each task"
        self._inputs = inputs
        self._form = form
        self._config = config
        self._seed = seed
        self._held_out_ratio = held_out_ratio
        self._generator = torch_generator(seed, self.name)
        self._trained: list[_Trained] = []
        self.best_epochs: list[int] = []
        """Of each task, from 1."""
        self._flops = 0
        self._sent_bytes = 0

    def scores(self, images: NDArray[np.uint8], allowed: Sequence[str]) -> Tensor:
        """Log-probabilities of the networks that answer for an allowed class."""
        inputs_B = self._inputs(images)
        scores_BA = inputs_B.new_full((len(images), len(allowed)), -torch.inf)
        for trained in self._trained:
            known = [name for name in allowed if name in trained.classes]
            if known:
                log_p_BC = _logits(trained.network, inputs_B).log_softmax(dim=1)
                scores_BA[:, class_columns(known, allowed)] = log_p_BC[:, class_columns(known, trained.classes)]
        return scores_BA

    def holdings(self) -> Holdings:
        """A task adds a network; no other changes, and nothing is kept of its images."""
        sizes = [sum(value.numel() for value in trained.network.parameters()) for trained in self._trained]
        return Holdings(
            num_parameters=sum(sizes),
            num_updated=sum(sizes[-1:]),
            kept_bytes=0,
            sent_bytes=4 * sum(sizes),
            flops=self._flops,
        )

    def _learn(self, task: ImageDataset) -> None:
        learned, held_out = task.split(self._held_out_ratio, seed=self._seed)
        judged = held_out if len(held_out) else learned
        network = self._form(self._inputs.shape, task.classes, self._generator)
        judged_N, columns_N = self._inputs(judged.images), class_columns(judged.labels, task.classes)
        best: tuple[int, int, dict[str, Tensor]] | None = None

        def judge(epoch: int) -> None:
            nonlocal best
            right = int((_logits(network, judged_N).argmax(dim=1) == columns_N).sum())
            if best is None or right > best[0]:
                best = right, epoch, {name: value.clone() for name, value in network.state_dict().items()}

        data = self._inputs(learned.images), class_columns(learned.labels, task.classes)
        self._flops += train(network, data, self._config, self._generator, on_epoch=judge)
        assert best is not None, "an epoch ended"
        network.load_state_dict(best[2])
        self.best_epochs.append(best[1])
        self._trained.append(_Trained(network, task.classes))


def _logits(network: nn.Module, inputs_N: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([network(batch) for batch in torch.split(inputs_N, _BATCH)])
