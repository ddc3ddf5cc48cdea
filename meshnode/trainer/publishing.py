"""Which of a task's images its router statistics are made from: never so few that they stand out.

Statistics are sums, and peers that have two versions of a task's can subtract one from the other. So of a class only
so many new images are shared together as the settings say; fewer wait until the task's file has more of them. Images
that were shared and are gone from the file are a difference too: while a class has lost fewer than that, the version
that is published stays.

With noise (`experts.continual.privacy`) each image is told of once, in whichever task it turns up first. What a task
adds is noised and merged with what the task has published before, which costs no privacy; nothing is ever noised twice.

All of it is on the disk before anything is said, so that a kill cannot have an increment charged and noised anew.

Legend: N images, D feature.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import torch

from experts.continual.privacy import PrivacyConfig, PrivatePublisher
from experts.data.dataset import ImageDataset
from experts.data.held_out import image_digest
from experts.errors import CorruptState
from experts.router.statistics import ClassStatistics, merge
from meshnode.home import write_atomically
from meshnode.trainer.messages import PrivacyTerms

__all__ = ["Publisher"]


class _Told(msgspec.Struct):
    """What is known of a task's published statistics."""

    file: str
    """Digest of the file that was last looked at."""
    images: dict[str, set[bytes]] = {}
    """Digests of the images that they were made from, by class."""
    waiting: dict[str, int] = {}
    """Images by class that are not in them yet."""
    noised: bytes | None = None
    """The statistics, if they have noise: they cannot be made again."""


class _Saved(msgspec.Struct):
    tasks: dict[str, _Told] = {}
    increments: int = 0
    """Noised ones, those included of which no class was shared; forgetting a task takes none back."""


class Publisher:
    """Makes the statistics of tasks, and remembers what of them was told.

    Args:
        path: Its file.
        terms: What the settings and the mesh's spec say.
        fingerprint: Of what makes the features.

    Raises:
        CorruptState: The file is damaged.
    """

    def __init__(self, path: Path, terms: PrivacyTerms, fingerprint: str) -> None:
        self._path = path
        self._terms = terms
        self._fingerprint = fingerprint
        try:
            self._saved = msgspec.msgpack.decode(path.read_bytes(), type=_Saved)
        except FileNotFoundError:
            self._saved = _Saved()
        except msgspec.DecodeError as exc:
            raise CorruptState("record of what was published", reason=str(exc)) from exc

    @property
    def waiting(self) -> dict[str, dict[str, int]]:
        """Images that are not shared yet, by task and class."""
        return {name: told.waiting for name, told in sorted(self._saved.tasks.items()) if told.waiting}

    @property
    def increments(self) -> int:
        """How many noised ones there were."""
        return self._saved.increments

    def publish(self, name: str, task: ImageDataset, digest: str, features_ND: torch.Tensor) -> bytes | None:
        """The statistics of a task that may be shared; None if there are none, or those published before stay.

        Args:
            name: The task's.
            task: Its images.
            digest: Of its file.
            features_ND: Of its images.

        Raises:
            UnsafeStatistics: A feature is not finite.
        """
        told = self._saved.tasks.get(name) or _Told(digest)
        images = list(map(image_digest, task.images))
        if self._terms.epsilon is None:
            rows = self._choose(told, images, task.labels)
            labels = [task.labels[row] for row in rows]
            part = (
                ClassStatistics.from_features(features_ND[rows], labels, fingerprint=self._fingerprint)
                if rows
                else None
            )
            data = None if part is None else part.to_bytes()
        else:
            if told.file != digest or name not in self._saved.tasks:
                self._add_noised(told, images, task.labels, features_ND, self._terms.epsilon)
            data = told.noised
        told.file = digest
        self._saved.tasks[name] = told
        self._save()
        return data

    def times_counted(self, label: str, image: bytes) -> int:
        """In how many tasks' published statistics an image is, as it is: without noise.

        Args:
            label: Its class.
            image: Its digest.
        """
        exact = (told for told in self._saved.tasks.values() if told.noised is None)
        return sum(image in told.images.get(label, ()) for told in exact)

    def forget(self, name: str) -> None:
        """Forget what was told of a task; what it cost stays counted."""
        if self._saved.tasks.pop(name, None) is not None:
            self._save()

    def _choose(self, told: _Told, images: Sequence[bytes], labels: Sequence[str]) -> list[int]:
        """Rows that may be shared; notes in `told` which those are and what waits."""
        present: dict[str, set[bytes]] = {}
        for image, label in zip(images, labels, strict=True):
            present.setdefault(label, set()).add(image)
        least, before = self._terms.min_samples, told.images
        new = {label: of - before.get(label, set()) for label, of in present.items()}
        lost = [len(of - present.get(label, set())) for label, of in before.items()]
        if any(0 < number < least for number in lost):
            told.waiting = {label: len(of) for label, of in sorted(new.items()) if of}
            return []
        told.waiting = {label: len(of) for label, of in sorted(new.items()) if 0 < len(of) < least}
        told.images = {
            label: (before.get(label, set()) & of) | (new[label] if label not in told.waiting else set())
            for label, of in present.items()
        }
        return [
            row for row, (image, label) in enumerate(zip(images, labels, strict=True)) if image in told.images[label]
        ]

    def _add_noised(
        self, told: _Told, images: Sequence[bytes], labels: Sequence[str], features_ND: torch.Tensor, epsilon: float
    ) -> None:
        known = {image for one in self._saved.tasks.values() for of in one.images.values() for image in of}
        # Once each: noise is for one sample more or less, and an image that stands there twice would be two.
        rows = list({image: row for row, image in enumerate(images) if image not in known}.values())
        fresh = [labels[row] for row in rows]
        told.waiting = dict(sorted(Counter(fresh).items()))
        norm, least = self._terms.max_norm, self._terms.min_samples
        if norm is None or not rows:
            return  # without a norm that all of the mesh clip to there is no noise that would be enough
        terms = PrivacyConfig(
            epsilon=epsilon, delta=self._terms.delta, num_increments=1, max_norm=norm, min_samples=least
        )
        secret = torch.Generator()
        secret.seed()
        publisher = PrivatePublisher(features_ND.shape[1], terms, secret, fingerprint=self._fingerprint)
        part = publisher.publish(features_ND[rows], fresh, set(labels))
        self._saved.increments += 1
        if part is None:
            return
        shared = {label: {images[row] for row in rows if labels[row] == label} for label in part.classes}
        told.images = {
            label: told.images.get(label, set()) | shared.get(label, set()) for label in {*told.images, *shared}
        }
        told.waiting = _without(told.waiting, shared)
        whole = part if told.noised is None else merge(ClassStatistics.from_bytes(told.noised), part)
        told.noised = whole.to_bytes()

    def _save(self) -> None:
        write_atomically(self._path, msgspec.msgpack.encode(self._saved))


def _without(counts: Mapping[str, int], gone: Mapping[str, object]) -> dict[str, int]:
    return {label: count for label, count in counts.items() if label not in gone}
