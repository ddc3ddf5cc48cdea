"""What the daemon and its trainer say to each other: typed MessagePack behind a length, over the worker's pipes.

Both ends are the same program on the same machine, so nothing here is defended against; the mesh's messages are in
`protocol`. Vectors are raw little-endian float32.
"""

import struct
from typing import Any, BinaryIO, Literal

import msgspec

__all__ = [
    "AddDelta",
    "Checkpoint",
    "ExpertJob",
    "FromTrainer",
    "Learn",
    "Learned",
    "LearningFailed",
    "Progress",
    "Scan",
    "Settings",
    "Setup",
    "Statistics",
    "TaskFile",
    "Tasks",
    "ToTrainer",
    "TrainerReady",
    "pack",
    "read_message",
    "unpack_from_trainer",
]

LENGTH = struct.Struct("<I")


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    pass


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How to learn: the config's train section, under the same names."""

    teacher_epochs: int
    steps: int
    batch_size: int
    learning_rate: float
    alpha: float
    temperature: float
    gamma: float
    replay_samples: int
    round_steps: int
    seed: int


class Setup(_Message, frozen=True):
    """First message: what never changes while the worker lives."""

    trunk: bytes
    device: str
    data_dir: str | None
    state_dir: str
    settings: Settings
    log_level: str
    log_format: Literal["text", "json"]


class Scan(_Message, frozen=True):
    """Say which task files the data folder holds now."""


class ExpertJob(msgspec.Struct, frozen=True, kw_only=True):
    """One expert to be distilled on a task."""

    uid: str
    classes: tuple[str, ...]
    architecture: dict[str, Any]
    weights: bytes
    """Where to start from, safetensors."""
    updating: bool
    """Whether it has learned before: its present generation then teaches it what not to forget."""


class Learn(_Message, frozen=True):
    """Learn one task: statistics, a teacher, then each expert."""

    run: int
    task: str
    experts: tuple[ExpertJob, ...]


class AddDelta(_Message, frozen=True):
    """Add a committed round's delta to an expert in training; belongs to one run only."""

    run: int
    uid: str
    delta: bytes


ToTrainer = Setup | Scan | Learn | AddDelta


class TrainerReady(_Message, frozen=True):
    """The worker has loaded the trunk and its replay buffer."""

    replay_samples: int


class TaskFile(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    digest: str
    classes: dict[str, int]
    """Samples per class name."""


class Tasks(_Message, frozen=True):
    """Readable task files in name order, and the unreadable ones with their reason."""

    tasks: tuple[TaskFile, ...]
    unreadable: dict[str, str]


class Statistics(_Message, frozen=True):
    """Router statistics of the task: sums over its features, no sample of it."""

    data: bytes


class Progress(_Message, frozen=True):
    stage: str
    """"teacher" or "distil"."""
    done: int
    total: int
    loss: float


class Checkpoint(_Message, frozen=True):
    """Where an expert's training stands."""

    uid: str
    vector: bytes
    deltas_applied: int
    steps: int


class Learned(_Message, frozen=True):
    """The task is learned and its replay samples are on disk."""

    teacher_accuracy: float
    """On the task's own training data; its use is to notice a teacher that learned nothing."""
    seconds: float
    replay_samples: int


class LearningFailed(_Message, frozen=True):
    """The task cannot be learned as it is; the worker lives on."""

    reason: str


FromTrainer = TrainerReady | Tasks | Statistics | Progress | Checkpoint | Learned | LearningFailed

_to_trainer: msgspec.msgpack.Decoder[ToTrainer] = msgspec.msgpack.Decoder(ToTrainer)
_from_trainer: msgspec.msgpack.Decoder[FromTrainer] = msgspec.msgpack.Decoder(FromTrainer)


def pack(message: ToTrainer | FromTrainer) -> bytes:
    """A message behind its length."""
    data = msgspec.msgpack.encode(message)
    return LENGTH.pack(len(data)) + data


def unpack_from_trainer(data: bytes) -> FromTrainer:
    return _from_trainer.decode(data)


def read_message(pipe: BinaryIO) -> ToTrainer | None:
    """The worker's next message; None when the daemon has closed the pipe."""
    length = pipe.read(LENGTH.size)
    if len(length) < LENGTH.size:
        return None
    return _to_trainer.decode(pipe.read(LENGTH.unpack(length)[0]))
