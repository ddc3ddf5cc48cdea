"""The trainer's process as the daemon sees it: started, spoken to over its pipes, ended with the daemon.

It is started afresh, never forked: a fork of a process with threads or CUDA deadlocks.
"""

import asyncio
import os
import sys
from contextlib import suppress

from meshnode.trainer.messages import LENGTH, FromTrainer, ToTrainer, pack, unpack_from_trainer

__all__ = ["TrainerDied", "TrainerProcess"]

STOP_S = 3.0
"""How long a closed worker may take to end before it is killed; it has nothing to save by then."""

PIPE_LIMIT_BYTES = 2**22
"""Buffer of the worker's output; statistics of a task are about a megabyte."""


class TrainerDied(Exception):
    """The worker ended without being asked to."""

    def __init__(self, exit_status: int | None) -> None:
        super().__init__(f"the trainer process ended by itself (exit status {exit_status})")
        self.exit_status = exit_status


class TrainerProcess:
    """A running worker."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin = process.stdin
        self._stdout = process.stdout

    @classmethod
    async def start(cls, *, threads: int) -> "TrainerProcess":
        """Start a worker with `threads` torch threads."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "meshnode.trainer.worker",
            str(os.getpid()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=PIPE_LIMIT_BYTES,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
        return cls(process)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def send(self, message: ToTrainer) -> None:
        """Messages are queued in the order of the calls, before anything is awaited.

        Nothing happens if the worker has ended; `receive` and `wait_ended` report that.
        """
        if self._stdin.is_closing():
            return
        self._stdin.write(pack(message))
        with suppress(ConnectionError):
            await self._stdin.drain()

    async def wait_ended(self) -> TrainerDied:
        """How the worker ended, once it has."""
        return TrainerDied(await self._process.wait())

    async def receive(self) -> FromTrainer:
        """The worker's next message.

        Raises:
            TrainerDied: It will send no more.
        """
        try:
            length = await self._stdout.readexactly(LENGTH.size)
            return unpack_from_trainer(await self._stdout.readexactly(LENGTH.unpack(length)[0]))
        except asyncio.IncompleteReadError as exc:
            raise TrainerDied(await self._process.wait()) from exc

    async def aclose(self) -> None:
        """Close its input, which ends it; kill it if it does not."""
        self._stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), STOP_S)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
