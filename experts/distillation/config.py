"""The settings of a distillation run."""

from dataclasses import dataclass

from experts.errors import SettingOutOfRange

__all__ = ["DistillationConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillationConfig:
    """How a student is trained.

    Raises:
        SettingOutOfRange: If a field is outside its range.
    """

    steps: int = 1900
    """SGD steps, at least 1: about 15 passes over a task of two classes with 2,000 images each."""

    batch_size: int = 32
    """Items drawn per step, with replacement, at least 1; as many again from replay."""

    lr: float = 0.05
    """SGD learning rate, above 0: of the first step, where it decays."""

    decay: bool = False
    """Whether the rate falls to 0 along half a cosine over the steps. A run that is not averaged with others gains from
    a higher rate and this; replicas that meet on the way are to be at the same rate whenever they do."""

    alpha: float = 0.5
    """Weight of the labels against the teachers, in [0, 1]; 0.3 when peers' shards are skewed."""

    temperature: float = 2.0
    """T, above 0."""

    gamma: float = 1.0
    """Weight of the replay term, at least 0."""

    mixed_precision: bool = False
    """Whether the student computes in bfloat16 where torch holds that safe (autocast). Parameters, loss and
    update stay float32. For a GPU: experts on a CPU are too small to gain, so there it stays off."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise SettingOutOfRange(name, getattr(self, name), allowed="at least 1")
        for name in ("lr", "temperature"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise SettingOutOfRange(name, getattr(self, name), allowed="finite and above 0")
        if not 0.0 <= self.alpha <= 1.0:
            raise SettingOutOfRange("alpha", self.alpha, allowed="in [0, 1]")
        if not 0.0 <= self.gamma < float("inf"):
            raise SettingOutOfRange("gamma", self.gamma, allowed="finite and at least 0")
