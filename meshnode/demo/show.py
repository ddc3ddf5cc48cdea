"""What the demo says while it runs: one line an event with seconds since the start, and bars for what takes long."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

__all__ = ["Bars", "Show"]


class Bars:
    """One bar a node while it learns; nothing where there is no terminal to draw on."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[str, TaskID] = {}

    def update(self, name: str, stage: str, done: int, total: int) -> None:
        """Show how far `name` is with `stage`."""
        if name not in self._bars:
            self._bars[name] = self._progress.add_task(name, stage=stage, total=None)
        if stage in ("teacher", "distil"):
            self._progress.update(self._bars[name], completed=done, total=total, stage=stage)
        else:
            self._progress.update(self._bars[name], completed=0, total=1, stage=stage)


class Show:
    """The demo's voice, on stderr: stdout is for the result."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._began = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._began

    def say(self, text: str) -> None:
        self._console.print(f"[dim]{self.elapsed_s:5.1f} s[/dim]  {text}", soft_wrap=True)

    def heading(self, text: str) -> None:
        self._console.print(f"\n[bold]{text}[/bold]")

    @contextmanager
    def bars(self) -> Iterator[Bars]:
        columns = (TextColumn("         {task.description:<4}"), BarColumn(), TextColumn("{task.fields[stage]}"))
        live = self._console.is_terminal
        with Progress(*columns, console=self._console, transient=True, disable=not live) as progress:
            yield Bars(progress)
