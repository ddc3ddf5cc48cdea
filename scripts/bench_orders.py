"""How a child is told what to do: a line of JSON for each order on its input, a line for each outcome on its output.

A child ends when its input does.
"""

import asyncio
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, BinaryIO

import psutil
import torch
import uvloop

__all__ = ["obey", "obey_on_a_loop"]

CLOSE_S = 4.0


def obey(commands: Any) -> None:
    """Have each order carried out by the method of its name, and end the process when the input ends.

    Args:
        commands: Besides the commands has ``close``, for the end; what it leaves of forked processes is killed.
    """
    answers = _take_output()
    _tell(answers, {"result": "ready"})
    for line in sys.stdin.buffer:
        order = json.loads(line)
        try:
            outcome = {"result": getattr(commands, order["command"])(**order["arguments"])}
        except Exception as failure:  # noqa: BLE001 - whatever it is, it is for the parent to say
            traceback.print_exc()
            outcome = {"failure": f"{type(failure).__name__}: {failure}"}
        _tell(answers, outcome)
    closing = threading.Thread(target=commands.close, daemon=True)
    closing.start()
    closing.join(CLOSE_S)
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            process.kill()
    os._exit(0)


def obey_on_a_loop(make_commands: Callable[[], Any]) -> None:
    """The same for commands that are coroutines, on uvloop.

    Args:
        make_commands: Called on the loop.
    """
    answers = _take_output()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_obey_until_the_end(make_commands, answers))
    os._exit(0)  # an interpreter that has loaded torch and hivemind takes half a second to end


async def _obey_until_the_end(make_commands: Callable[[], Any], answers: BinaryIO) -> None:
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[bytes] = asyncio.Queue()
    ended = asyncio.Event()

    def read() -> None:
        for line in sys.stdin.buffer:
            loop.call_soon_threadsafe(lines.put_nowait, line)
        loop.call_soon_threadsafe(ended.set)

    commands = make_commands()
    threading.Thread(target=read, daemon=True).start()
    _tell(answers, {"result": "ready"})
    obeying = loop.create_task(_obey_each(commands, lines, answers))
    await ended.wait()
    obeying.cancel()
    await asyncio.wait({obeying})
    with suppress(TimeoutError):
        async with asyncio.timeout(CLOSE_S):
            await commands.close()


async def _obey_each(commands: Any, lines: "asyncio.Queue[bytes]", answers: BinaryIO) -> None:
    while True:
        order = json.loads(await lines.get())
        try:
            outcome = {"result": await getattr(commands, order["command"])(**order["arguments"])}
        except Exception as failure:  # noqa: BLE001
            traceback.print_exc()
            outcome = {"failure": f"{type(failure).__name__}: {failure}"}
        _tell(answers, outcome)


def _take_output() -> BinaryIO:
    """Where answers go; whatever a library prints goes to stderr from now on."""
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers


def _tell(answers: BinaryIO, outcome: Mapping[str, Any]) -> None:
    answers.write(json.dumps(outcome).encode() + b"\n")
    answers.flush()
