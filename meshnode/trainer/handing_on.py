"""What an expert knows that the mesh can do without, handed on in the worker: on what this node has of its classes.

First the two are held against each other on held-out images. An expert of the same classes learns in any case, since
from then on it stands for both. One of other classes learns only where it is worse at the shared ones than the one that
goes: else there is nothing to keep, and no generation to be made and sent.

Legend: N images, D feature.
"""

from collections.abc import Callable

from experts.architectures.registry import architecture_from_config
from experts.checkpoint import load_weights, weights_to_bytes
from experts.continual.handing_on import hand_on, judge_among, shared_classes
from experts.continual.merging import Items
from experts.continual.redundancy import mean_total_variation
from experts.data.dataset import ImageDataset
from experts.distillation import DistillationConfig
from experts.generators import torch_generator
from experts.local import LocalExpert
from experts.trunk.base import Trunk
from meshnode.trainer.material import Labelled, Materials
from meshnode.trainer.memory import ReplayMemory
from meshnode.trainer.task_file import TaskFile
from meshnode.trainer.tidy_messages import HandedOn, HandOn, KnownExpert
from protocol.lineage import Accuracy

__all__ = ["LEAST_ITEMS", "HandingOn"]

LEAST_ITEMS = 32
"""Of fewer held-out images one is more than three points."""


class HandingOn:
    """Compares experts and distils the one into the other, on the CPU.

    Args:
        trunk: The mesh's, frozen.
        memory: Images of what was learned before.
        load: Opens a task file of the data folder; None if it is gone or has other content by now.
        config: How to distil: as long as a lesson.
        seed: What the drawing of batches follows from.
    """

    def __init__(
        self,
        trunk: Trunk,
        memory: ReplayMemory,
        load: Callable[[TaskFile], ImageDataset | None],
        config: DistillationConfig,
        *,
        seed: int,
    ) -> None:
        self._materials = Materials(trunk, memory, load)
        self._config = config
        self._seed = seed

    def hand_on(self, order: HandOn) -> HandedOn:
        """What came of it.

        Raises:
            ExpertsError: Weights are not those of their form, or the distillation diverges.
        """
        goes, stays = _built(order.goes), _built(order.stays)
        shared = shared_classes(goes.classes, stays.classes)
        material = self._materials.of(stays.classes, order.tasks)
        items = Items(
            features_ND=material.buffer.features_ND.cpu(),
            labels=_names(material.buffer, stays.classes),
            held_out_ND=material.held_out.features_ND.cpu(),
            held_out_labels=_names(material.held_out, stays.classes),
        )
        num_items = sum(label in shared for label in items.held_out_labels)
        if num_items < LEAST_ITEMS or not {*shared} <= {*items.held_out_labels}:
            return HandedOn(num_items=0)
        same = set(goes.classes) == set(stays.classes)
        difference = mean_total_variation(goes, stays, items.held_out_ND) if same else None
        old, new = (judge_among(shared, one, items.held_out_ND, items.held_out_labels) for one in (goes, stays))
        told = Accuracy(old=old, new=new, samples=num_items)
        too_far = order.max_difference is not None and difference is not None and difference > order.max_difference
        # Without an image of one of its classes an expert would forget that one.
        lacks_images = not {*stays.classes} <= {*items.labels}
        if not order.learns or too_far or lacks_images or (not same and old <= new):
            return HandedOn(num_items=num_items, difference=difference, told=told)
        done = hand_on(
            goes,
            stays,
            items,
            self._config,
            torch_generator(self._seed, f"hand on/{order.goes.uid}/{order.stays.uid}"),
        )
        return HandedOn(
            num_items=num_items,
            difference=difference,
            told=Accuracy(old=done.goes, new=done.stays_after, samples=num_items),
            kept=Accuracy(old=done.before, new=done.after, samples=len(items.held_out_labels)),
            weights=weights_to_bytes(done.expert.module),
            tasks=self._materials.tasks_of(stays.classes, order.tasks),
        )


def _built(expert: KnownExpert) -> LocalExpert:
    # Of any seed: all that it decides is overwritten at once.
    module = architecture_from_config(expert.architecture).build("")
    load_weights(module, expert.weights)
    return LocalExpert(expert.classes, module)


def _names(part: Labelled, classes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(classes[column] for column in part.labels_N.tolist())
