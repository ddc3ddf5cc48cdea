"""Images that this node holds out of what it has learned, and their features.

They are one in five of each learned task's, by a digest of the image, and of the replay memory's where a task's file is
gone. They judge what is new and what an update would bring. A lesson learns from them all the same, and statistics
count them, for a task's data is all there is of it; so `uncounted` takes them out of the statistics that they are held
against, exactly, as far as this node's own published ones have them.

Legend: N images, D feature.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch

from experts.data.dataset import ImageDataset
from experts.data.held_out import image_digest, is_held_out
from experts.errors import UnsafeStatistics
from experts.router.exact import ExactSum
from experts.router.statistics import ClassStatistics
from experts.trunk.base import Trunk, features_of
from meshnode.trainer.memory import ReplayMemory
from meshnode.trainer.publishing import Publisher
from meshnode.trainer.task_file import TaskFile

__all__ = ["HeldBack", "HeldImages", "uncounted"]

IMAGES_A_TASK = 256
"""At most; chosen by digest. The threshold on the mean of 64 is sure enough with four times 128."""

IMAGES_IN_ALL = 10_000
"""Of more tasks than 40 fewer each: features of so many are held, 86 MB of a trunk of 2,160."""


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class HeldImages:
    """Features of N images, possibly none, without the images."""

    features_ND: torch.Tensor
    """On the CPU."""
    labels: tuple[str, ...]
    digests: tuple[bytes, ...]

    def of_classes(self, classes: Collection[str]) -> "HeldImages":
        """Those of these classes."""
        return self.select([row for row, label in enumerate(self.labels) if label in classes])

    def select(self, rows: Sequence[int]) -> "HeldImages":
        """Those in these rows."""
        return HeldImages(
            features_ND=self.features_ND[list(rows)],
            labels=tuple(self.labels[row] for row in rows),
            digests=tuple(self.digests[row] for row in rows),
        )


class HeldBack:
    """Finds held-out images; a task's features are worked out once.

    Args:
        trunk: The mesh's.
        memory: Images of what was learned before.
        load: Opens a task file; None if it is gone or has other content by now.
    """

    def __init__(self, trunk: Trunk, memory: ReplayMemory, load: Callable[[TaskFile], ImageDataset | None]) -> None:
        self._trunk = trunk
        self._memory = memory
        self._load = load
        self._known: dict[str, HeldImages] = {}
        """By the digest of the task file."""

    def of(self, tasks: Sequence[TaskFile], classes: Collection[str]) -> HeldImages:
        """What is held out of learned tasks and of the memory's images of these classes, each image once.

        Args:
            tasks: Learned ones.
            classes: For the memory; what it has of others is left out.
        """
        limit = min(IMAGES_A_TASK, max(1, IMAGES_IN_ALL // max(1, len(tasks))))
        self._known = {task.digest: self._known[task.digest] for task in tasks if task.digest in self._known}
        parts = [self._of_task(task).select(range(min(limit, len(self._of_task(task).labels)))) for task in tasks]
        images, labels = self._memory.labelled(classes)
        parts.append(self._looked_at(ImageDataset(images, labels), IMAGES_A_TASK) if labels else self._none())
        whole = HeldImages(
            features_ND=torch.cat([part.features_ND for part in parts]),
            labels=tuple(label for part in parts for label in part.labels),
            digests=tuple(digest for part in parts for digest in part.digests),
        )
        first_rows: dict[bytes, int] = {}
        for row, digest in enumerate(whole.digests):
            first_rows.setdefault(digest, row)
        return whole.select(list(first_rows.values()))

    def _of_task(self, task: TaskFile) -> HeldImages:
        if task.digest not in self._known:
            images = self._load(task)
            self._known[task.digest] = self._none() if images is None else self._looked_at(images, IMAGES_A_TASK)
        return self._known[task.digest]

    def _looked_at(self, images: ImageDataset, limit: int) -> HeldImages:
        rows: dict[bytes, int] = {}
        for row, image in enumerate(images.images):
            digest = image_digest(image)
            if is_held_out(digest):
                rows.setdefault(digest, row)
        chosen = dict(sorted(rows.items())[:limit])
        return HeldImages(
            features_ND=features_of(self._trunk, images.images[list(chosen.values())]).cpu(),
            labels=tuple(images.labels[row] for row in chosen.values()),
            digests=tuple(chosen),
        )

    def _none(self) -> HeldImages:
        return HeldImages(features_ND=torch.empty(0, self._trunk.feature_dim), labels=(), digests=())


def uncounted(statistics: ClassStatistics, held: HeldImages, publisher: Publisher) -> ClassStatistics:
    """The statistics as they would be had these images never been in them.

    Args:
        statistics: Of the mesh.
        held: Images of this node.
        publisher: Knows in how many of the published ones each is. Noised ones keep what they have.

    Returns: The same statistics where they count fewer images than that: peers have not all of this node's yet.
    """
    rows = [
        row
        for row, (label, digest) in enumerate(zip(held.labels, held.digests, strict=True))
        for _ in range(publisher.times_counted(label, digest))
    ]
    if not rows:
        return statistics
    labels = [held.labels[row] for row in rows]
    part = ClassStatistics.from_features(held.features_ND[rows], labels, fingerprint=statistics.fingerprint)
    total = ExactSum(statistics.feature_dim, fingerprint=statistics.fingerprint)
    try:
        total.add(statistics)
        total.subtract(part)
        return total.statistics()
    except UnsafeStatistics:
        return statistics
