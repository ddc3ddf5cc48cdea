"""Arithmetic on parameters: beside the event loop, unless it is done at once."""

import asyncio
from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

__all__ = ["beside"]

INLINE_PARAMETERS: Final = 2**17
"""A few passes over so many take some 0.2 ms, and handing them to a thread and back takes as long."""

P = ParamSpec("P")
T = TypeVar("T")


async def beside(num_parameters: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function that goes through so many parameters a few times."""
    if num_parameters <= INLINE_PARAMETERS:
        return function(*args, **kwargs)
    return await asyncio.to_thread(function, *args, **kwargs)
