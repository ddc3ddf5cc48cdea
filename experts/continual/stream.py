"""A stream without boundaries: where a task begins, found from the verdicts on its batches.

One batch in a hundred of what is known is judged new, so a task begins with a run of them: ``begin_after`` batches
judged new with none judged known between. Until then they wait, and so do batches that nobody can judge yet, within a
bound of bytes; what is beyond it is given up, oldest first, and counted. A run that a known batch ends was odd: it
goes on waiting, and is looked at again when more is known.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from experts.continual.batches import Batch, batches_from_tensors, batches_to_tensors
from experts.continual.novelty import Verdict
from experts.errors import CorruptState, SettingOutOfRange

__all__ = ["BoundaryFinder", "Found", "StreamConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamConfig:
    """When a task begins, and how much may wait.

    Raises:
        SettingOutOfRange: If a field is below 1.
    """

    begin_after: int = 3
    """Batches judged new in a run; 1 begins a task with any. At one false alarm in a hundred, three in a row of what is
    known come once in a million."""

    max_waiting_bytes: int = 4_000_000
    """Of pixels and names of all that waits."""

    def __post_init__(self) -> None:
        for name in ("begin_after", "max_waiting_bytes"):
            if getattr(self, name) < 1:
                raise SettingOutOfRange(name, getattr(self, name), allowed="at least 1")


@dataclass(frozen=True, slots=True)
class Found:
    """What a batch turned out to be."""

    kind: Literal["continues", "begins", "waits"]
    batches: tuple[Batch, ...]
    """What goes on, or what the task begins with, in the order it came; empty while it waits."""


class BoundaryFinder:
    """Verdicts in, beginnings out; draws nothing and knows no features."""

    def __init__(self, config: StreamConfig) -> None:
        self._config = config
        self._waiting: list[Batch] = []
        self._run: list[Batch] = []  # the last of those waiting that were judged new without a known one between
        self._run_length = 0
        self.num_dropped = 0
        """Batches given up because more waited than may."""

    @property
    def waiting(self) -> tuple[Batch, ...]:
        """All that waits, oldest first."""
        return tuple(self._waiting)

    @property
    def run_length(self) -> int:
        """Batches judged new since the last known one, those given up included."""
        return self._run_length

    @property
    def num_bytes(self) -> int:
        """Of all that waits."""
        return sum(batch.num_bytes for batch in self._waiting)

    def feed(self, batch: Batch, verdict: Verdict, *, may_begin: bool = True) -> Found:
        """The next batch.

        Args:
            batch: Of the stream.
            verdict: On it.
            may_begin: Whether a task could begin with what waits. If not, it is waited for, until bytes run out.
        """
        if verdict == "known":
            self._end_run()
            return Found("continues", (batch,))
        is_full = self.num_bytes + batch.num_bytes > self._config.max_waiting_bytes
        self._waiting.append(batch)
        if verdict == "new":
            self._run.append(batch)
            self._run_length += 1
            if (may_begin or is_full) and (begun := self.release()):
                return Found("begins", begun)
        self._keep_bound()
        return Found("waits", ())

    def release(self) -> tuple[Batch, ...]:
        """What a task would have begun with, had it been let: empty if no run is long enough."""
        if self._run_length < self._config.begin_after:
            return ()
        begun = tuple(self._run)
        self._forget(begun)
        self._end_run()
        return begun

    def reconsider(self, verdict_of: Callable[[Batch], Verdict]) -> tuple[Batch, ...]:
        """Looks again at what waits outside a run; what is known now no longer waits.

        Args:
            verdict_of: Judges a batch by what is known now.

        Returns: What is known now, oldest first.
        """
        in_run = {id(batch) for batch in self._run}
        known = tuple(batch for batch in self._waiting if id(batch) not in in_run and verdict_of(batch) == "known")
        self._forget(known)
        return known

    def to_tensors(self) -> dict[str, Tensor]:
        """All of its state, to be saved beside other tensors."""
        in_run = {id(batch) for batch in self._run}
        words = {
            "run": [number for number, batch in enumerate(self._waiting) if id(batch) in in_run],
            "run_length": self._run_length,
            "num_dropped": self.num_dropped,
        }
        state = torch.frombuffer(bytearray(json.dumps(words).encode()), dtype=torch.uint8)
        return {"stream": state, **batches_to_tensors(self._waiting, "waiting")}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], config: StreamConfig) -> "BoundaryFinder":
        """The inverse of `to_tensors`.

        Raises:
            CorruptState: If the tensors are not those of a finder.
        """
        finder = cls(config)
        finder._waiting = batches_from_tensors(tensors, "waiting")
        try:
            words = json.loads(tensors["stream"].numpy().tobytes())
            finder._run = [finder._waiting[number] for number in words["run"]]
            finder._run_length, finder.num_dropped = int(words["run_length"]), int(words["num_dropped"])
        except (KeyError, IndexError, ValueError, TypeError) as exc:
            raise CorruptState("stream", reason=str(exc)) from exc
        return finder

    def _end_run(self) -> None:
        self._run, self._run_length = [], 0

    def _forget(self, gone: tuple[Batch, ...]) -> None:
        ids = {id(batch) for batch in gone}
        self._waiting = [batch for batch in self._waiting if id(batch) not in ids]
        self._run = [batch for batch in self._run if id(batch) not in ids]

    def _keep_bound(self) -> None:
        while self.num_bytes > self._config.max_waiting_bytes:
            self._forget((self._waiting[0],))
            self.num_dropped += 1
