"""The settings of a mixture that is trained end to end."""

from dataclasses import dataclass

from experts.errors import SettingOutOfRange
from experts.router.regularisers import WEIGHTED, RegulariserConfig

__all__ = ["MixtureConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class MixtureConfig:
    """Form of a mixture, and how it is trained.

    Raises:
        SettingOutOfRange: If a field is outside its range.
    """

    num_experts: int = 5
    """N, 1 to 1,000."""

    expert_hidden: int = 16
    """Hidden units of each expert, at least 1: every expert scores all classes, and 16 serve ten."""

    router_hidden: int = 32
    """Hidden units of the router, at least 1."""

    input_scale: float = 0.3
    """Factor on the features of experts and router, in (0, 10]."""

    steps: int = 1500
    """Steps, at least 1: at this batch size 19 passes over 20,000 images."""

    batch_size: int = 256
    """Items drawn per step, with replacement, at least 1. Specialization is measured on the batch, and of a
    few dozen items the entropies come out too low."""

    lr: float = 3e-3
    """Learning rate of Adam, above 0."""

    tau: float = 1.0
    """Temperature of the gates, above 0."""

    top_k: int = 1
    """Experts asked per row once trained, at least 1; training needs the soft gates of all."""

    regulariser: RegulariserConfig | None = WEIGHTED
    """lambda R_spec + lambda_b balance; None for the task loss alone."""

    warmup_steps: int = 750
    """Steps over which lambda rises to its value (see `MixtureRun`), at least 0: 0 has it from the first step on."""

    def __post_init__(self) -> None:
        for name in ("expert_hidden", "router_hidden", "steps", "batch_size", "top_k"):
            if getattr(self, name) < 1:
                raise SettingOutOfRange(name, getattr(self, name), allowed="at least 1")
        if self.warmup_steps < 0:
            raise SettingOutOfRange("warmup_steps", self.warmup_steps, allowed="at least 0")
        if not 1 <= self.num_experts <= 1000:
            raise SettingOutOfRange("num_experts", self.num_experts, allowed="1 to 1000")
        for name in ("lr", "tau"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise SettingOutOfRange(name, getattr(self, name), allowed="finite and above 0")
        if not 0.0 < self.input_scale <= 10.0:
            raise SettingOutOfRange("input_scale", self.input_scale, allowed="in (0, 10]")
