"""Who teaches this node's experts, and what they say of a task: logits by class name, computed once.

A teacher is the CNN that the node trains on the task's own data, or a network that its settings name, or both. None of
them ever leaves the node. The teachers' logits are kept on disk under the digests of data and teacher, so a task that
is learned again after a kill asks no teacher twice.

Legend: N images, B batch, K class (a teacher's own).
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch

from experts.data.dataset import ImageDataset, class_columns
from experts.data.partly import PartlyLabelled
from experts.distillation import CacheOutcome, LogitCache, TeacherLogits, data_digest
from experts.errors import CorruptWeights, ExpertsError
from experts.generators import torch_generator
from experts.teachers.base import Teacher
from experts.teachers.cnn import CnnTeacher, TeacherConfig, TeacherProgress, train_teacher
from experts.trunk.images import prepare_images
from meshnode.home import write_atomically
from meshnode.logs import get_logger
from meshnode.trainer.messages import TeacherChoice

__all__ = ["Faculty", "FacultyConfig", "Taught"]

log = get_logger(__name__)

_OWN = "own"


@dataclass(frozen=True, kw_only=True, slots=True)
class FacultyConfig:
    """Who teaches, and how."""

    own: TeacherConfig | None
    """How the node's own teacher is trained; None to have none."""
    named: tuple[TeacherChoice, ...]
    """The others."""
    channels: int
    """Of the images as the mesh takes them, which its own teacher takes as well."""
    pixels: int
    """Width and height of these."""
    device: torch.device
    """Where teachers compute."""
    cache_bytes: int
    """Size that kept logits may have together."""
    seed: int
    """What the own teacher's weights and batches follow from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Taught:
    """What the teachers say of all images of a task."""

    logits: tuple[TeacherLogits, ...]
    """One entry a teacher, on the CPU."""
    own_accuracy: float | None
    """The own teacher's, on the very images it was trained on; None if there is none."""

    @property
    def guesses(self) -> list[str]:
        """Which of its classes the first teacher takes each image for; the own one, where there is one."""
        first = self.logits[0]
        return [first.classes[column] for column in first.logits_NK.argmax(dim=1).tolist()]

    def of(self, rows: Sequence[int], device: torch.device) -> list[TeacherLogits]:
        """What they say of these rows."""
        return [
            TeacherLogits(logits_NK=said.logits_NK[rows].to(device), classes=said.classes, weight=said.weight)
            for said in self.logits
        ]


class Faculty:
    """The teachers of this node.

    Args:
        folder: For the own teachers and the kept logits.
        config: Who they are.
    """

    def __init__(self, folder: Path, config: FacultyConfig) -> None:
        self._teachers = folder / "teachers"
        self._config = config
        self._cache = LogitCache(folder / "logits", max_bytes=config.cache_bytes)
        self._named: dict[TeacherChoice, tuple[_FromRaw, str]] = {}
        """Those that could be loaded, each with the digest of all that its answer depends on."""

    def load(self) -> dict[str, str]:
        """Load the named teachers that are not loaded yet; say of those that cannot be, by name, why not."""
        unusable: dict[str, str] = {}
        for choice in self._config.named:
            if choice in self._named:
                continue
            try:
                self._named[choice] = _load(choice, self._config.device)
            except (ExpertsError, OSError) as exc:
                unusable[choice.name] = str(exc)
        return unusable

    def teach(self, name: str, task: PartlyLabelled, digest: str, report: Callable[[TeacherProgress], None]) -> Taught:
        """Train the own teacher on the images with a label, unless it already is, and ask all of them about all images.

        Args:
            name: The task's, under which its own teacher is kept.
            task: Its images, at least one of them with a label.
            digest: Of its file.
            report: Told of each epoch of the own teacher's training.

        Raises:
            ExpertsError: A teacher cannot be trained on this task, or does not answer as it should.
        """
        images = torch.from_numpy(task.images)
        of_data = data_digest(images)
        said: list[TeacherLogits] = []
        accuracy = None
        if self._config.own is not None:
            labelled = task.labelled
            own = self._own_teacher(name, labelled, digest, self._config.own, report)
            teacher = _FromRaw(own, self._config.channels, self._config.pixels, self._config.device)
            own_said = self._ask(_OWN, teacher, hashlib.sha256(own.to_bytes()).hexdigest(), images, of_data, 1.0)
            said_of = own_said.logits_NK[task.labelled_rows]
            right = said_of.argmax(dim=1) == class_columns(labelled.labels, own.classes)
            accuracy = float(right.float().mean())
            said.append(own_said)
        for choice, (teacher, its_digest) in self._named.items():
            said.append(self._ask(choice.name, teacher, its_digest, images, of_data, choice.weight))
        return Taught(logits=tuple(said), own_accuracy=accuracy)

    @property
    def num_kept(self) -> int:
        """Answers of teachers that are kept."""
        return len(self._cache)

    def has_own(self, name: str) -> bool:
        """Whether a teacher is kept that was trained on the task of this name."""
        return any(path.exists() for path in self._own_files(name))

    def forget(self, name: str) -> None:
        """Delete the task's own teacher, and what any teacher has said: the names of answers do not tell of what."""
        for path in self._own_files(name):
            path.unlink(missing_ok=True)
        self._cache.clear()

    def _own_files(self, name: str) -> tuple[Path, Path]:
        return self._teachers / f"{name}.safetensors", self._teachers / f"{name}.made-from"

    def _ask(
        self, name: str, teacher: "_FromRaw", digest: str, images: torch.Tensor, of_data: str, weight: float
    ) -> TeacherLogits:
        # The form is part of what is asked: the own teacher's does not stand in its bytes alone.
        asked = hashlib.sha256(f"{digest}/{teacher.channels}/{teacher.pixels}".encode()).hexdigest()
        found = self._cache.logits(teacher, images, data_digest=of_data, teacher_digest=asked)
        if found.outcome in (CacheOutcome.CORRUPT, CacheOutcome.FOREIGN):
            log.warning("kept logits could not be used and were computed again", teacher=name, reason=found.reason)
        log.debug("teacher asked", teacher=name, images=len(images), cache=str(found.outcome))
        return TeacherLogits(logits_NK=found.logits_NK, classes=teacher.classes, weight=weight)

    def _own_teacher(
        self,
        name: str,
        task: ImageDataset,
        digest: str,
        config: TeacherConfig,
        report: Callable[[TeacherProgress], None],
    ) -> CnnTeacher:
        """A CNN trained on this task's images alone: the one from before a kill, if it is of the same making."""
        path, note = self._own_files(name)
        making = (digest, config, self._config.channels, self._config.pixels, self._config.seed)
        made_from = hashlib.sha256(msgspec.json.encode(making)).hexdigest()
        kept = _kept_teacher(path, note, made_from)
        if kept is not None:
            return kept.to(self._config.device)
        prepared = prepare_images(task.images, self._config.channels, self._config.pixels).to(self._config.device)
        teacher = train_teacher(
            prepared, task.labels, config, torch_generator(self._config.seed, f"teacher/{name}"), report
        )
        data = teacher.to_bytes()
        self._teachers.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(path, data)
        write_atomically(note, f"{made_from} {hashlib.sha256(data).hexdigest()}".encode())
        return teacher


class _FromRaw:
    """A teacher of raw images: prepared a batch at a time, as all of a task at 224 px would take gigabytes."""

    def __init__(self, teacher: Teacher, channels: int, pixels: int, device: torch.device) -> None:
        self._teacher = teacher
        self.channels = channels
        self.pixels = pixels
        self._device = device

    @property
    def classes(self) -> tuple[str, ...]:
        return self._teacher.classes

    def logits(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Scores ``(B, K)`` on the CPU, of images as task files have them: uint8 ``(B, H, W[, channels])``."""
        raw: np.ndarray = images_BCHW.numpy()
        return self._teacher.logits(prepare_images(raw, self.channels, self.pixels).to(self._device)).cpu()


def _load(choice: TeacherChoice, device: torch.device) -> tuple[_FromRaw, str]:
    """A named teacher and the digest of all that its answer depends on."""
    # Most nodes name none, and loaders take memory.
    from experts.teachers.capability import Capability, read_mapping  # noqa: PLC0415
    from experts.teachers.named import load_teacher  # noqa: PLC0415

    network = load_teacher(choice.name, classes=Path(choice.classes) if choice.classes else None)
    network.network.to(device)
    teacher = network if choice.mapping is None else Capability(network, read_mapping(Path(choice.mapping)))
    return _FromRaw(teacher, network.form.channels, network.form.pixels, device), teacher.digest


def _kept_teacher(path: Path, note: Path, made_from: str) -> CnnTeacher | None:
    """The teacher on disk if it is whole and was made from exactly this; else None."""
    try:
        data = path.read_bytes()
        if note.read_text(encoding="ascii") == f"{made_from} {hashlib.sha256(data).hexdigest()}":
            return CnnTeacher.from_bytes(data)
    except (FileNotFoundError, UnicodeDecodeError, CorruptWeights):
        pass
    return None
