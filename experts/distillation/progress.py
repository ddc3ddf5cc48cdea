"""How far a run is, what its loss is, and how long it will take.

The step's usual time is a median: between two steps a caller may also send a checkpoint or add a delta, and one
slow step in ten should not double the time left.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np

from experts.errors import SettingOutOfRange

__all__ = ["DistillationProgress", "ProgressMeter"]

_WINDOW_STEPS = 101
"""Latest steps the median is taken over: enough to be steady, few enough to follow a machine that gets busy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillationProgress:
    """Where a run stands."""

    step: int
    """Steps done, those before a resumption included."""
    total: int
    """Steps to do in all."""
    mean_loss: float
    """Mean loss of the steps since the last report, in nats."""
    step_s: float
    """Median seconds from one step to the next, over the latest of them."""
    left_s: float
    """Estimated seconds until the last step: the steps left at `step_s` each."""


class ProgressMeter:
    """Turns losses and times of steps into a report every so many of them; it reads no clock itself."""

    def __init__(self, *, total: int, every_steps: int, now_s: float, done: int = 0) -> None:
        """
        Args:
            total: Steps of the run, at least 1.
            every_steps: Steps from one report to the next, at least 1; the last step has one in any case.
            now_s: The time before the first step, of a clock that never goes back.
            done: Steps already taken, by a run that is resumed.

        Raises:
            SettingOutOfRange: If a number is outside its range.
        """
        for name, value, least in (("total", total, 1), ("every_steps", every_steps, 1), ("done", done, 0)):
            if value < least:
                raise SettingOutOfRange(name, value, allowed=f"at least {least}")
        self._total = total
        self._every_steps = every_steps
        self._done = done
        self._last_s = now_s
        self._losses = 0.0
        self._num_losses = 0
        self._step_times_s: deque[float] = deque(maxlen=_WINDOW_STEPS)

    def after_step(self, loss: float, *, now_s: float) -> DistillationProgress | None:
        """Note a step.

        Args:
            loss: Of this step, in nats.
            now_s: The time after it.

        Returns: A report if one is due: at multiples of the interval and after the last step.
        """
        self._done += 1
        self._losses += loss
        self._num_losses += 1
        self._step_times_s.append(now_s - self._last_s)
        self._last_s = now_s
        if self._done % self._every_steps and self._done != self._total:
            return None
        mean_loss = self._losses / self._num_losses
        self._losses, self._num_losses = 0.0, 0
        step_s = float(np.median(self._step_times_s))
        return DistillationProgress(
            step=self._done,
            total=self._total,
            mean_loss=mean_loss,
            step_s=step_s,
            left_s=max(0, self._total - self._done) * step_s,
        )
