"""iCaRL: exemplars by herding, a network distilled by itself, and the nearest mean of exemplars as the answer.

    L = mean over items and columns of BCE(sigma(f(x)), q)
    q_c = sigma(f_old(x))_c for the classes learned before that do not come again, [y = c] for all others
    y* = argmin_c |phi(x) - mu_c|,  mu_c the mean of phi over the exemplars of c, at length 1

with phi the input of the last layer at length 1 (Rebuffi et al. 2017, arXiv:1611.07725, algorithms 1 to 5). Exemplars
are trained on beside the task's images, as many of each class as there is place for. The mean over all columns, those
of classes to come among them, is that of the authors' code. Of classes that come again, as in another
domain, the paper does not speak: here they have labels like new ones, and a set of exemplars for each time they came.

Legend: N items, B batch, D feature, C class.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from experts.continual.herding import herded
from experts.errors import SettingOutOfRange
from experts.evaluation.baselines.nearest_mean import nearest_mean_scores
from experts.evaluation.baselines.network import NetworkBaseline, NetworkSetup, outputs_of
from experts.evaluation.cost import count_flops
from experts.evaluation.networks import without_classifier
from experts.evaluation.training import Objective, TrainingConfig, train

__all__ = ["IcarlBaseline", "Sigmoids", "soft_targets"]


class IcarlBaseline(NetworkBaseline):
    """iCaRL with a stated number of exemplars."""

    def __init__(
        self, setup: NetworkSetup, config: TrainingConfig, *, capacity: int, mirrored: bool = False, seed: int
    ) -> None:
        """
        Args:
            setup: The network, a sequence of layers of which the last is the classifier.
            config: Of the training on each task.
            capacity: Exemplars kept, at least 1: the same number in each set, the rest of the places is left empty.
            mirrored: Whether mu is of the exemplars and their mirror images, as in the authors' code; of pixels only.
            seed: Of the initial weights and the order of images.

        Raises:
            SettingOutOfRange: If ``capacity`` is below 1, or features are to be mirrored.
        """
        super().__init__(f"iCaRL {capacity}", setup, config, seed=seed)
        if capacity < 1:
            raise SettingOutOfRange("capacity", capacity, allowed="at least 1")
        if mirrored and len(setup.inputs.shape) == 1:
            raise SettingOutOfRange("mirrored", mirrored, allowed="false, since the inputs are no images")
        self._capacity = capacity
        self._mirrored = mirrored
        self._num_tasks = 0
        self._exemplars: dict[tuple[int, int], Tensor] = {}
        """Inputs by column and task, in the order of their worth."""
        self._means: dict[int, Tensor] = {}
        """mu by column, ``(D,)`` of length 1."""

    def scores(self, images: NDArray[np.uint8], allowed: Sequence[str]) -> Tensor:
        """-|phi(x) - mu_c|^2; -inf for a class without an exemplar."""
        unit_BD = self._unit(self._setup.inputs(images))
        named = {self._setup.classes[column]: mean_D for column, mean_D in self._means.items()}
        return nearest_mean_scores(unit_BD, named, allowed)

    def _num_kept(self) -> int:
        return sum(len(inputs) for inputs in self._exemplars.values())

    def _train(self, inputs_N: Tensor, columns_N: Tensor) -> int:
        came = sorted(set(columns_N.tolist()))
        gone = {column for column, _ in self._exemplars} - set(came)
        new_N, new_columns_N = inputs_N, columns_N
        kept_columns = [torch.full((len(kept),), column) for (column, _), kept in self._exemplars.items()]
        inputs_N = torch.cat([inputs_N, *self._exemplars.values()])
        columns_N = torch.cat([columns_N, *kept_columns])
        said_NC, flops = count_flops(lambda: outputs_of(self._network, inputs_N))
        targets_NC = soft_targets(said_NC, columns_N, sorted(gone))
        data = (inputs_N, columns_N, targets_NC)
        flops += train(self._network, data, self._config, self._generator, Sigmoids())
        _, of_choice = count_flops(lambda: self._choose(new_N, new_columns_N, came))
        return flops + of_choice

    def _choose(self, inputs_N: Tensor, columns_N: Tensor, came: Sequence[int]) -> None:
        """Exemplars of the classes that came, and as many first ones of every older set as there is place for."""
        share = self._capacity // (len(self._exemplars) + len(came))
        self._exemplars = {one: kept[:share] for one, kept in self._exemplars.items()}
        for column in came:
            of_class_N = inputs_N[columns_N == column]
            unit_ND = self._unit(of_class_N)
            chosen = herded(unit_ND, unit_ND.mean(dim=0), share)
            self._exemplars[column, self._num_tasks] = of_class_N[chosen]
        self._num_tasks += 1
        of_class: dict[int, list[Tensor]] = {}
        for (column, _), kept in self._exemplars.items():
            of_class.setdefault(column, []).append(kept)
        self._means = {column: self._mean(torch.cat(kept)) for column, kept in of_class.items() if share}

    def _mean(self, kept: Tensor) -> Tensor:
        if self._mirrored:
            kept = torch.cat([kept, kept.flip(-1)])
        return functional.normalize(self._unit(kept).mean(dim=0), dim=0)

    def _unit(self, inputs_N: Tensor) -> Tensor:
        return functional.normalize(outputs_of(without_classifier(self._network), inputs_N))


class Sigmoids(Objective):
    """Each column a yes or no; its data has q as third part."""

    def loss(self, network: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """The mean, in nats."""
        return functional.binary_cross_entropy_with_logits(network(batch[0]), batch[2])


def soft_targets(said_NC: Tensor, columns_N: Tensor, old: Sequence[int]) -> Tensor:
    """q, ``(N, C)``.

    Args:
        said_NC: Logits of the network before the task.
        columns_N: int64, the labels.
        old: Columns of the classes learned before that do not come again.
    """
    targets_NC = functional.one_hot(columns_N, said_NC.shape[1]).to(said_NC)
    targets_NC[:, old] = torch.sigmoid(said_NC[:, old])
    return targets_NC
