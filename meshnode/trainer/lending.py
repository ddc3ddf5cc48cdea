"""The worker lent out between two tasks, for what is no task: an expert carried over, two experts compared.

Nothing is in training while the worker is lent, so whatever its borrower does with an expert crosses no training run.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from meshnode.trainer.process import TrainerProcess

__all__ = ["Lending"]


@dataclass(kw_only=True, eq=False, slots=True)
class _Loan:
    purpose: str
    granted: asyncio.Future[TrainerProcess]
    returned: asyncio.Event = field(default_factory=asyncio.Event)


class Lending:
    """Whoever waits for the worker, first come, first served.

    Args:
        wanted: Called when somebody waits.
        lent: Called when the worker goes to somebody, with the purpose.
    """

    def __init__(self, wanted: Callable[[], None], lent: Callable[[str], None]) -> None:
        self._wanted = wanted
        self._lent = lent
        self._waiting: deque[_Loan] = deque()

    @asynccontextmanager
    async def borrow(self, purpose: str) -> AsyncIterator[TrainerProcess]:
        """The worker, to speak with alone until the block ends; by then all its answers must have been taken.

        It comes once the task that is being learned is done with. One that dies meanwhile says so to its borrower; who
        still waits gets the next one.

        Args:
            purpose: What it does meanwhile, in a word, for people.
        """
        loan = _Loan(purpose=purpose, granted=asyncio.get_running_loop().create_future())
        self._waiting.append(loan)
        self._wanted()
        try:
            yield await loan.granted
        finally:
            loan.returned.set()

    async def lend(self, process: TrainerProcess) -> bool:
        """Give the worker to each of those who wait; returns whether anybody did."""
        any_waited = bool(self._waiting)
        while self._waiting:
            loan = self._waiting.popleft()
            if not loan.granted.cancelled():
                self._lent(loan.purpose)
                loan.granted.set_result(process)
                await loan.returned.wait()
        return any_waited
