"""What the tests of ``meshnode bench`` share: answers, runs, and a loop whose time passes at once."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import numpy as np

from meshnode.bench.load import Load
from meshnode.bench.runner import Ask, LoadRunner
from meshnode.inference import Call, Prediction
from protocol.identifiers import ExpertUid, PeerId

__all__ = ["EXPERT", "Loop", "answer", "in_virtual_time", "run_load"]

T = TypeVar("T")

EXPERT = ExpertUid("ab" * 32)


class Loop(asyncio.SelectorEventLoop):
    """Instead of waiting for the next timer, it lets its clock jump there: seconds cost nothing and are exact."""

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 0.0
        select = self._selector.select

        def jump(timeout: float | None = None) -> list[Any]:
            assert timeout is not None, "everybody waits and no timer is set"
            self._now_s += timeout
            return select(0)

        self._selector.select = jump

    def time(self) -> float:
        return self._now_s


def in_virtual_time(coroutine: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=Loop) as runner:
        return runner.run(coroutine)


def answer(*calls: tuple[str, int, float, str | None], missing: float = 0.0, expert: str = EXPERT) -> Prediction:
    """A prediction for one row; a call is the peer's name, its rows, its time in ms and its error."""
    return Prediction(
        classes=("bag", "shirt"),
        outputs_BC=np.array([[0.75, 0.25]], np.float32),
        missing_mass_B=np.array([missing], np.float32),
        calls=tuple(
            Call(
                expert=ExpertUid(expert),
                peer_id=PeerId(f"Qm-{name}"),
                peer_name=name,
                rows=tuple(range(rows)),
                gates=(1.0,) * rows,
                elapsed_ms=elapsed_ms,
                error=error,
            )
            for name, rows, elapsed_ms, error in calls
        ),
        elapsed_ms=1.0,
    )


async def run_load(ask: Ask, load: Load, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> LoadRunner:
    """The runner after its run, by this loop's clock."""
    runner = LoadRunner(ask, load, clock=asyncio.get_running_loop().time, sleep=sleep)
    await runner.run()
    return runner
