"""What a run says on stderr while it lasts: one line that is written over, and only where a person can see it."""

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from meshnode.bench.load import Load
from meshnode.bench.runner import LoadRunner

__all__ = ["Show", "showing"]

EVERY_S = 0.25
RECENT = 200
"""Answers whose median is shown: what the mesh does now, not since the beginning."""


class Show:
    """Follows a run; draws nothing where there is no terminal or nothing is to be said."""

    def __init__(self, progress: Progress, load: Load) -> None:
        self._progress = progress
        self._load = load
        self._bar = progress.add_task("joining", total=load.span_s, words="")

    async def follow(self, runner: LoadRunner) -> None:
        """Say how far the run is, until cancelled."""
        seen, answered, failed = 0, 0, 0
        recent: deque[float] = deque(maxlen=RECENT)
        while True:
            await asyncio.sleep(EVERY_S)
            # Those before have ended, in whatever way, and were counted.
            while seen < len(runner.requests):
                request = runner.requests[seen]
                if request.sent_s is not None and request.ended_s is None:
                    break
                seen += 1
                failed += request.error is not None
                if (latency_ms := request.latency_ms) is not None:
                    answered += 1
                    recent.append(latency_ms)
            words = f"{answered} answered, {failed} failed, {runner.outstanding} outstanding"
            words += f", p50 {median(recent):.1f} ms" if recent else ""
            self._progress.update(
                self._bar, description=self._stage(runner.elapsed_s), completed=runner.elapsed_s, words=words
            )
            self._progress.refresh()

    def _stage(self, elapsed_s: float) -> str:
        if elapsed_s < self._load.warm_up_s:
            return "warm-up"
        return "measuring" if elapsed_s < self._load.span_s else "last answers"


@contextmanager
def showing(load: Load, *, is_quiet: bool) -> Iterator[Show]:
    """A line of progress while the block lasts, gone at its end."""
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description:<12}"), BarColumn(bar_width=24), TextColumn("{task.fields[words]}"))
    # Drawn by whoever follows: a thread of its own would take turns with the load.
    with Progress(
        *columns, console=console, transient=True, auto_refresh=False, disable=is_quiet or not console.is_terminal
    ) as progress:
        show = Show(progress, load)
        progress.refresh()
        yield show
