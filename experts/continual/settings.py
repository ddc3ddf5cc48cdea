"""The settings of continual learning on one machine."""

import dataclasses
from dataclasses import dataclass, field
from typing import Literal, get_args

from experts.continual.decision import Setting
from experts.continual.novelty import NoveltyConfig
from experts.continual.redundancy import RedundancyConfig
from experts.continual.replay_kinds import ReplayConfig
from experts.continual.sizing import DEFAULT_MAX_PARAMETERS
from experts.continual.stream import StreamConfig
from experts.distillation.config import DistillationConfig
from experts.errors import SettingOutOfRange
from experts.router.ridge import RouterConfig

__all__ = ["BeginsAs", "LearnerConfig"]

BeginsAs = Literal["nearest", "informed", "random"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerConfig:
    """What a `ContinualLearner` does when.

    Raises:
        SettingOutOfRange: If a field is outside its range.
    """

    setting: Setting
    """What later data brings: other classes, other domains with the same classes, or tasks that are told."""

    router: RouterConfig = field(default_factory=RouterConfig)
    """top_k 2 suits domains."""

    teacher_ridge: float = 1e-2
    """Of the ridge that teaches a lesson, above 0: more than the router's, since a lesson may have fewer items than
    there are features."""

    distillation: DistillationConfig = field(default_factory=lambda: DistillationConfig(steps=3000, lr=0.1, decay=True))
    """Of each lesson; ``steps`` is the most one takes. Twice the rate is as good in most lessons, and fails in some of
    few images."""

    passes: float = 24.0
    """Over the items of a lesson, above 0, within those steps."""

    least_steps: int = 400
    """Of a lesson of so few items that these passes would be fewer, at least 1."""

    learns_unlabelled: bool = False
    """Whether a lesson also learns from images without a label, by the teacher's word alone. With few labels it gains
    on some data sets and loses on others."""

    trial_steps: int = 200
    """Of updates and beginnings that are only tried, at least 1."""

    min_gain: float = 0.0
    """Accuracy as a share that a tried update must bring, in [-1, 1]; -1 updates always."""

    max_parameters: int = DEFAULT_MAX_PARAMETERS
    """Of a spawned expert."""

    begins_as: BeginsAs = "nearest"
    """What a spawned expert may begin as beside random weights: ``nearest``, whom the router would send its items to;
    ``informed``, of those that would get at least half as much the one that adds most to I(E;C), S(E_i) included; or
    ``random``, nothing. The second is there to be measured: it is worth no more (`bench_ablations.py`)."""

    increment_items: int = 1024
    """Images of a stream that are learned together, at least 1."""

    held_out_per_target: int = 128
    """Images that only judge, of each class or domain that the router tells apart, at least 1: one in five that come,
    until there are so many."""

    novelty: NoveltyConfig = field(default_factory=NoveltyConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    redundancy: RedundancyConfig = field(default_factory=RedundancyConfig)

    def __post_init__(self) -> None:
        if self.setting not in get_args(Setting):
            raise SettingOutOfRange("setting", self.setting, allowed=", ".join(get_args(Setting)))
        if self.begins_as not in get_args(BeginsAs):
            raise SettingOutOfRange("begins_as", self.begins_as, allowed=", ".join(get_args(BeginsAs)))
        for name in ("passes", "teacher_ridge"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise SettingOutOfRange(name, getattr(self, name), allowed="finite and above 0")
        for name in ("least_steps", "trial_steps", "increment_items", "held_out_per_target", "max_parameters"):
            if getattr(self, name) < 1:
                raise SettingOutOfRange(name, getattr(self, name), allowed="at least 1")
        if not -1.0 <= self.min_gain <= 1.0:
            raise SettingOutOfRange("min_gain", self.min_gain, allowed="in [-1, 1]")

    @property
    def teacher(self) -> RouterConfig:
        """Of the ridge that teaches a lesson."""
        return dataclasses.replace(self.router, ridge=self.teacher_ridge)
