"""What the daemon and its trainer say to each other: typed MessagePack behind a length, over the worker's pipes.

Both ends are the same program on the same machine, so nothing here is defended against; the mesh's messages are in
`protocol`. Vectors are raw little-endian float32.
"""

import struct
from typing import Any, BinaryIO, Literal

import msgspec

from experts.continual.decision import StartEvidence
from meshnode.trainer.assess_messages import Assess, Assessed
from meshnode.trainer.stream_messages import ReadStreams, StreamsRead, StreamState
from meshnode.trainer.task_file import TaskFile
from protocol.lineage import Accuracy, LayerTransfer

__all__ = [
    "AddDelta",
    "Assess",
    "Assessed",
    "Begin",
    "Begun",
    "Checkpoint",
    "Compare",
    "Compared",
    "ExpertJob",
    "ExpertWeights",
    "Forget",
    "Forgotten",
    "FromTrainer",
    "Learn",
    "Learned",
    "LearningFailed",
    "Measure",
    "Measured",
    "Migrate",
    "Migrated",
    "MigrationFailed",
    "PrivacyTerms",
    "Progress",
    "ReadStreams",
    "Redistil",
    "Redistilled",
    "Scan",
    "Seek",
    "Settings",
    "Setup",
    "Sought",
    "Statistics",
    "StreamState",
    "StreamsRead",
    "TaskFile",
    "Tasks",
    "TeacherChoice",
    "ToTrainer",
    "TrainerReady",
    "pack",
    "read_message",
    "unpack_from_trainer",
]

LENGTH = struct.Struct("<I")


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    pass


class TeacherChoice(msgspec.Struct, frozen=True, kw_only=True):
    """A teacher that the settings name."""

    name: str
    """Such as ``file:/models/birds.safetensors``."""
    weight: float = 1.0
    """How much it counts against the others."""
    classes: str | None = None
    """File with a name a line, of its columns; None for those that it declares itself."""
    mapping: str | None = None
    """TOML file that maps some of its classes to the mesh's; None if these have the same names."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How to learn: the config's train section, under the same names."""

    teacher_epochs: int
    steps: int
    batch_size: int
    learning_rate: float
    alpha: float
    temperature: float
    gamma: float
    replay: Literal["balanced", "herding", "reservoir"]
    replay_samples: int
    replay_mib: int
    round_steps: int
    checkpoint_s: float
    logit_cache_mib: int
    own_teacher: bool
    teachers: tuple[TeacherChoice, ...]
    seed: int


class PrivacyTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What may be told of samples: the config's privacy section, and what the mesh's spec says of it."""

    min_samples: int = 10
    epsilon: float | None = None
    """None for no noise."""
    delta: float = 1e-6
    max_norm: float | None = None
    """To which features are clipped that are noised; None if the mesh names none."""


class Setup(_Message, frozen=True):
    """First message: what never changes while the worker lives."""

    trunk: bytes
    device: str
    data_dir: str | None
    state_dir: str
    settings: Settings
    log_level: str
    log_format: Literal["text", "json"]
    privacy: PrivacyTerms = PrivacyTerms()


class Scan(_Message, frozen=True):
    """Say which task files the data folder holds now, and load the teachers that are not loaded yet."""


class ExpertJob(msgspec.Struct, frozen=True, kw_only=True):
    """One expert to be distilled on a task."""

    uid: str
    classes: tuple[str, ...]
    architecture: dict[str, Any]
    weights: bytes
    """Where to start from, safetensors."""
    updating: bool
    """Whether it has learned before: its present generation then teaches it what not to forget."""
    run: str | None
    """The last training run that the weights hold; it goes on if it was interrupted in this task. None before any."""
    steps: int
    """Steps of that run that they hold."""


class Learn(_Message, frozen=True):
    """Learn one task: statistics, a teacher, then each expert. Without experts, statistics and replay memory alone."""

    run: int
    task: str
    experts: tuple[ExpertJob, ...]


class AddDelta(_Message, frozen=True):
    """Add a committed round's delta to an expert in training; belongs to one run only."""

    run: int
    uid: str
    delta: bytes


class Measure(_Message, frozen=True):
    """Measure which experts the router sends the classes of learned tasks to."""

    router_classes: tuple[str, ...]
    router_weights: bytes
    """float64 ``(D + 1, C)`` in C order."""
    kappa: float
    tau: float
    top_k: int
    experts: dict[str, tuple[str, ...]]
    """Classes by uid."""
    tasks: tuple[TaskFile, ...]


class ExpertWeights(msgspec.Struct, frozen=True, kw_only=True):
    """A module to be built: its form, and what it has learned, as safetensors."""

    architecture: dict[str, Any]
    weights: bytes


class Migrate(_Message, frozen=True):
    """Carry an expert over into another form, and see how well it does there."""

    successor: str
    """The new expert's uid, from which the weights are drawn that nothing is carried over to."""
    classes: tuple[str, ...]
    old: ExpertWeights
    new: dict[str, Any]
    """The new architecture's config."""
    transfer: dict[str, Any]
    """Fields of `experts.preservation.transfer.TransferConfig`."""
    steps: int
    """Distillation steps that the new one then takes with the old one as its teacher; 0 for none."""
    tasks: tuple[TaskFile, ...]
    """Learned ones, whose images of these classes are used beside the replay memory's."""


class Compare(_Message, frozen=True):
    """Ask two experts for the same classes about what this node holds out of its images."""

    classes: tuple[str, ...]
    old: ExpertWeights
    new: ExpertWeights
    tasks: tuple[TaskFile, ...]


class Forget(_Message, frozen=True):
    """Have all go that was learned from a task and is not an expert."""

    task: str
    digests: tuple[str, ...]
    """Of its files, as far as they are known."""
    classes: tuple[str, ...]
    """Its classes, as far as they are known."""
    experts: tuple[str, ...]
    """Those that learned from it, whose interrupted runs go too."""
    dry_run: bool
    """Only say what would go."""


class Redistil(_Message, frozen=True):
    """Distil an expert on tasks, one after another, without a checkpoint."""

    expert: ExpertJob
    """As it is before the first of them."""
    learned: tuple[str, ...]
    """Names of the tasks that it has learned by then, whose images may be replayed; none if it is as it was made."""
    tasks: tuple[TaskFile, ...]


class Seek(_Message, frozen=True):
    """Say which expert a task's images of some classes are most like."""

    task: TaskFile
    classes: tuple[str, ...]
    """Of the expert that is to be spawned."""
    statistics: bytes
    """The router's, of all that the mesh knows."""
    experts: dict[str, tuple[str, ...]]
    """Classes by uid."""


class Begin(_Message, frozen=True):
    """Try both beginnings of an expert on a task's images, without a lesson being taken."""

    task: TaskFile
    uid: str
    """Of the expert that begins at random, from which those weights follow."""
    classes: tuple[str, ...]
    architecture: dict[str, Any]
    nearest: str
    """Uid of the expert that it may begin as."""
    nearest_classes: tuple[str, ...]
    nearest_weights: ExpertWeights
    margin: float
    """By how much that has to be better."""


ToTrainer = (
    Setup
    | Scan
    | ReadStreams
    | Assess
    | Seek
    | Begin
    | Learn
    | AddDelta
    | Measure
    | Migrate
    | Compare
    | Forget
    | Redistil
)


class TrainerReady(_Message, frozen=True):
    """The worker has loaded the trunk and its replay buffer."""

    replay_samples: int
    waiting: dict[str, dict[str, int]] = {}
    """Images that no published statistics were made from yet, by task and class."""
    increments: int = 0
    """Noised ones that were published."""


class Tasks(_Message, frozen=True):
    """Readable task files in name order, how far streams are, and what cannot be used of files, streams and teachers,
    each with the reason."""

    tasks: tuple[TaskFile, ...]
    unreadable: dict[str, str]
    unusable_teachers: dict[str, str]
    streams: tuple[StreamState, ...] = ()


class Statistics(_Message, frozen=True):
    """Router statistics of the task: sums over its features, no sample of it."""

    data: bytes | None
    """None if none may be shared, or those that were shared before stay."""
    waiting: dict[str, dict[str, int]] = {}
    increments: int = 0
    """Both as in `TrainerReady`."""


class Progress(_Message, frozen=True):
    stage: str
    """"teacher" or "distil"; of a migration "transfer", "distil" or "judge"."""
    done: int
    total: int
    loss: float | None
    """None in a stage that descends none."""
    left_s: float
    """Estimated seconds until the stage ends."""


class Checkpoint(_Message, frozen=True):
    """Where an expert's training stands."""

    uid: str
    vector: bytes
    deltas_applied: int
    run: str
    """Names the run for ever: no other has this name."""
    steps: int
    """Steps of the run so far."""
    tasks: tuple[str, ...] | None
    """Names of the tasks that it learns from, those of the replayed images among them; None where one is unknown."""
    new_steps: int
    """Those taken since the checkpoint before; a run that goes on does not count again what it did before."""


class Learned(_Message, frozen=True):
    """The task is learned and its replay samples are on disk."""

    teacher_accuracy: float | None
    """The own teacher's, on the task's own training data; its use is to notice one that learned nothing."""
    seconds: float
    replay_samples: int


class LearningFailed(_Message, frozen=True):
    """The task cannot be learned as it is; the worker lives on."""

    reason: str


class Measured(_Message, frozen=True):
    """Gate mass by class and expert: see `experts.router.specialization`."""

    classes: tuple[str, ...]
    experts: tuple[str, ...]
    mass: list[list[float]]
    """m, a row a class."""
    num_samples: list[int]
    """Images of each class that were looked at."""


class Compared(_Message, frozen=True):
    """Two experts on the images of their classes that this node holds out."""

    accuracy: Accuracy | None
    """None if it has none."""


class Migrated(_Message, frozen=True):
    """The expert in its new form; whether it takes the old one's place is the daemon's to decide."""

    weights: bytes
    layers: tuple[LayerTransfer, ...]
    accuracy: Accuracy
    tasks: tuple[str, ...] | None
    """Names of the tasks whose images were used; None where one is unknown."""


class MigrationFailed(_Message, frozen=True):
    """The expert cannot be carried over here as it was asked for; the worker lives on."""

    reason: str


class Forgotten(_Message, frozen=True):
    """What went with a task, or would."""

    images: int
    """Of the replay memory."""
    unsure_images: int
    """How many of these may be of another task: nobody knows."""
    teacher: bool
    """Whether there was one that was trained on it."""
    logits: int
    """Kept answers of teachers, on whatever task: they do not say of which they are."""
    runs: int
    """Interrupted ones."""
    replay_samples: int
    """Images left in the memory."""
    waiting: dict[str, dict[str, int]]
    """As in `TrainerReady`, after it."""
    found_file: bool
    """Whether the trainer had its file, as of a task that was found in a stream."""


class Redistilled(_Message, frozen=True):
    """The expert as it came out, and the tasks that it has seen."""

    weights: bytes
    tasks: tuple[str, ...]
    """Their names."""


class Sought(_Message, frozen=True):
    """The expert that the images are most like."""

    nearest: str | None
    """Its uid; None if nothing can be said, or a trial would have too little to judge by."""
    reason: str = ""
    """Why there is none."""


class Begun(_Message, frozen=True):
    """The better one of two beginnings."""

    weights: bytes
    """Before any step."""
    initial: str
    """Digest of the random ones."""
    evidence: StartEvidence
    layers: tuple[LayerTransfer, ...]
    """What was carried over; empty if nothing was."""


FromTrainer = (
    TrainerReady
    | Tasks
    | StreamsRead
    | Assessed
    | Statistics
    | Progress
    | Checkpoint
    | Learned
    | LearningFailed
    | Measured
    | Migrated
    | MigrationFailed
    | Compared
    | Forgotten
    | Redistilled
    | Sought
    | Begun
)

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
