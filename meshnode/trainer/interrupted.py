"""Distillation runs on disk, so that a killed trainer or node goes on where it was.

A run is saved together with each of its checkpoints, under a name that the daemon commits with them: it tells whether
the weights that the daemon sends hold steps of this very run, or of another one, on an earlier task perhaps. The
weights it goes on with are not those saved here but those that the daemon committed last: they may hold deltas of
averaging rounds that came after the checkpoint. What is kept here is the rest: how far the run was, where its generator
stood, and the generation that it must not forget.
"""

from collections.abc import Collection
from pathlib import Path

import msgspec
from torch import nn

from experts.checkpoint import load_weights
from experts.distillation import DistillationRun
from experts.errors import CorruptState
from meshnode.home import write_atomically
from meshnode.logs import get_logger
from meshnode.trainer.messages import ExpertJob

__all__ = ["InterruptedRun", "InterruptedRuns", "resume"]

log = get_logger(__name__)

_SUFFIX = ".run"


class InterruptedRun(msgspec.Struct, frozen=True, kw_only=True):
    """One expert's run on one task, as of a checkpoint."""

    name: str
    """Of the run; no two have the same."""
    task: str
    """Digest of the task file."""
    before: bytes | None
    """The generation that the run began with, safetensors; None unless it is to be preserved."""
    steps: int
    finished: bool
    state: bytes
    """`DistillationRun.to_bytes`."""


class InterruptedRuns:
    """A folder with one file an expert.

    Args:
        folder: Made when something is first saved.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, uid: str, task: str) -> InterruptedRun | None:
        """The expert's run on the task with this digest; None if it was not interrupted in one."""
        try:
            run = msgspec.msgpack.decode(self._path(uid).read_bytes(), type=InterruptedRun)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as exc:
            log.warning("an interrupted run cannot be continued", expert=uid, reason=str(exc))
            return None
        return run if run.task == task else None

    def save(self, uid: str, run: InterruptedRun) -> None:
        """It is on disk when this returns."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        write_atomically(self._path(uid), msgspec.msgpack.encode(run))

    def of(self, uids: Collection[str], tasks: Collection[str]) -> tuple[str, ...]:
        """The experts that have a run here, of these or on a task of these digests; unreadable runs among them."""
        found = []
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
            uid = path.name.removesuffix(_SUFFIX)
            try:
                run = msgspec.msgpack.decode(path.read_bytes(), type=InterruptedRun)
            except msgspec.DecodeError:
                found.append(uid)
                continue
            if uid in uids or run.task in tasks:
                found.append(uid)
        return tuple(found)

    def drop(self, uids: Collection[str]) -> None:
        """Forget the runs of these experts."""
        for uid in uids:
            self._path(uid).unlink(missing_ok=True)

    def clear(self) -> None:
        """Forget all runs: the task they were on is learned."""
        for path in self._folder.glob(f"*{_SUFFIX}"):
            path.unlink(missing_ok=True)

    def _path(self, uid: str) -> Path:
        return self._folder / f"{uid}{_SUFFIX}"


def resume(found: InterruptedRun, run: DistillationRun, module: nn.Module, job: ExpertJob) -> bool:
    """Set a run that was begun anew to where the interrupted one was.

    Args:
        found: What was saved of it.
        run: On the same data, training `module`.
        job: The expert's newest weights, and the steps that they hold: fewer than were saved, if the daemon was killed
            before it had committed the last checkpoint; then those are taken again.

    Returns: Whether it goes on; if not, `run` is as it was.
    """
    if found.name != job.run or job.steps > found.steps:
        return False  # weights from before the run's first checkpoint, or a file from before these weights
    try:
        run.load_bytes(found.state)
    except CorruptState as exc:
        log.warning("an interrupted run cannot be continued and begins anew", reason=str(exc))
        return False
    load_weights(module, job.weights)
    run.steps_done = job.steps
    return True
