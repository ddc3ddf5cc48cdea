"""What the daemon's side of learning works with, what it tells of itself, and what of its settings the worker needs."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from msgspec import UnsetType

from meshnode.contributions import Contributions
from meshnode.directory import Directory
from meshnode.hosting import ExpertHost
from meshnode.mesh import Mesh
from meshnode.replicas import Replicas
from meshnode.settings.sections import PrivacySection, TrainSection
from meshnode.state.state import State
from meshnode.telemetry import Telemetry
from meshnode.trainer.messages import PrivacyTerms, Settings, TeacherChoice
from meshnode.transport.interface import Transport
from protocol.signing import SigningKey
from protocol.spec import MeshSpec

__all__ = ["TrainerParts", "TrainerState", "privacy_terms", "worker_settings"]


@dataclass(slots=True)
class TrainerState:
    """What the trainer is doing, for people."""

    state: str = "starting"
    """starting, idle, learning, waiting (for a peer's weights), migrating, comparing, settling, forgetting or
    restarting."""
    reason: str | None = None
    """Why it is idle, waiting or restarting; None while it works."""
    task: str | None = None
    stage: str | None = None
    done: int = 0
    total: int = 0
    loss: float | None = None
    left_s: float | None = None
    """Estimated seconds until the stage ends; None where nothing is under way."""
    replay_samples: int = 0
    waiting: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Images that no published statistics were made from yet, by task and class."""
    increments: int = 0
    """Noised statistics that were published."""
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Task files that cannot be read, by name, each with the reason."""
    unusable_teachers: Mapping[str, str] = field(default_factory=dict)
    """Teachers named by the settings that cannot be loaded, each with the reason."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Task files that could not be learned as they are, by name, each with the reason if it was in this run."""
    unlabelled: tuple[str, ...] = ()
    """Task files that wait for labels, or until more is known."""
    restarts: int = 0
    pid: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerParts:
    """The parts of the node that learning touches."""

    mesh: Mesh
    state: State
    host: ExpertHost
    contributions: Contributions
    directory: Directory
    replicas: Replicas
    transport: Transport
    key: SigningKey
    telemetry: Telemetry = field(default_factory=Telemetry)


def privacy_terms(section: PrivacySection, spec: MeshSpec) -> PrivacyTerms:
    """What the settings and the spec say that may be told of samples."""
    norm = spec.statistics_norm
    return PrivacyTerms(
        min_samples=section.min_samples,
        epsilon=section.epsilon,
        delta=section.delta,
        max_norm=None if isinstance(norm, UnsetType) else norm,
    )


def worker_settings(section: TrainSection) -> Settings:
    """The settings' section under the same names; of its teachers what crosses the pipe."""
    same = {name: getattr(section, name) for name in Settings.__struct_fields__ if name != "teachers"}
    teachers = tuple(
        TeacherChoice(
            name=teacher.name,
            weight=teacher.weight,
            classes=None if teacher.classes is None else str(teacher.classes),
            mapping=None if teacher.mapping is None else str(teacher.mapping),
        )
        for teacher in section.teachers
    )
    return Settings(**same, teachers=teachers)
