"""What this node still has of some classes, to carry their experts over, hand on what one knows, and compare them.

Images of learned task files and of the replay memory, each once, parted by a digest of each one: about a fifth is held
out, the same on every run and in whichever file an image turns up. From the rest, the buffer, things are learned; the
held-out part only judges.

Legend: N images, D feature, C class.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from experts.data.dataset import ImageDataset, class_columns
from experts.data.held_out import image_digest, is_held_out
from experts.trunk.base import Trunk, features_of
from meshnode.trainer.memory import ReplayMemory
from meshnode.trainer.task_file import TaskFile

__all__ = ["Labelled", "Material", "Materials", "logits_of"]

IMAGES_IN_ALL = 20_000
"""Of more tasks than one, each gives its share: features of so many are held, 170 MB of a trunk of 2,160."""

_ROWS = 256
"""Of one forward pass: of the largest form that a peer may send, what its units answer is then 64 MiB."""


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Labelled:
    """Features and columns of some images."""

    features_ND: torch.Tensor
    labels_N: torch.Tensor

    def accuracy(self, module: nn.Module) -> float:
        """The share of them whose class has the largest logit."""
        right_N = logits_of(module, self.features_ND).argmax(dim=1) == self.labels_N
        return float(right_N.double().mean())


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Material:
    """What this node has of an expert's classes, in two parts that have no image in common."""

    buffer: Labelled
    held_out: Labelled


class Materials:
    """Finds it, with one trunk and one replay memory.

    Args:
        trunk: The mesh's, frozen; features are on its device.
        memory: Images of what was learned before.
        load: Opens a task file of the data folder; None if it is gone or has other content by now.
    """

    def __init__(self, trunk: Trunk, memory: ReplayMemory, load: Callable[[TaskFile], ImageDataset | None]) -> None:
        self._trunk = trunk
        self._device = trunk.mean_D.device
        self._memory = memory
        self._load = load

    def of(self, classes: Sequence[str], tasks: Sequence[TaskFile]) -> Material:
        """What there is of some classes, whose order is that of the columns.

        Args:
            classes: Their names.
            tasks: Learned ones, whose images of these classes are used beside the replay memory's.
        """
        features, labels, held_out = [], [], []
        seen: set[bytes] = set()
        concerned = [task for task in tasks if task.classes.keys() & set(classes)]
        limit = max(1, IMAGES_IN_ALL // (len(concerned) + 1))
        for some in self._sources(classes, concerned):
            chosen = _not_seen(some, seen, limit)
            seen |= chosen.keys()
            rows = list(chosen.values())
            features.append(features_of(self._trunk, some.images[rows]))
            labels += [some.labels[row] for row in rows]
            held_out += [is_held_out(digest) for digest in chosen]
        features_ND = torch.cat(features) if features else torch.empty(0, self._trunk.feature_dim, device=self._device)
        labels_N = class_columns(labels, classes).to(self._device)
        held_out_N = torch.tensor(held_out, dtype=torch.bool, device=self._device)
        return Material(
            buffer=Labelled(features_ND=features_ND[~held_out_N], labels_N=labels_N[~held_out_N]),
            held_out=Labelled(features_ND=features_ND[held_out_N], labels_N=labels_N[held_out_N]),
        )

    def tasks_of(self, classes: Collection[str], tasks: Sequence[TaskFile]) -> tuple[str, ...] | None:
        """Names of the tasks of which an image may have been used, sorted; None where one is of unknown origin."""
        remembered = self._memory.tasks_of(classes)
        files = {task.name for task in tasks if task.classes.keys() & set(classes)}
        return None if remembered is None else tuple(sorted(files.union(remembered)))

    def _sources(self, classes: Collection[str], tasks: Sequence[TaskFile]) -> Iterator[ImageDataset]:
        """Images of these classes, one task file in memory at a time; files may have them in different sizes."""
        for task in tasks:
            images = self._load(task)
            if images is not None:
                yield images.of_classes(task.classes.keys() & set(classes))
        remembered, labels = self._memory.labelled(classes)
        if labels:
            yield ImageDataset(remembered, labels)


def logits_of(module: nn.Module, features_ND: torch.Tensor) -> torch.Tensor:
    """What a module says of each row, ``(N, C)``, some rows at a time."""
    with torch.no_grad():
        return torch.cat([module(rows_BD) for rows_BD in torch.split(features_ND, _ROWS)])


def _not_seen(some: ImageDataset, seen: Collection[bytes], limit: int) -> dict[bytes, int]:
    """Rows of images that did not turn up before, by their digest: at most `limit`, chosen by the digest alone."""
    rows: dict[bytes, int] = {}
    for row, image in enumerate(some.images):
        digest = image_digest(image)
        if digest not in seen:
            rows.setdefault(digest, row)
    return dict(sorted(rows.items())[:limit])
