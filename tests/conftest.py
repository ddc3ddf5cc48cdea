"""Settings of the whole test run."""

import logging
import os
from collections.abc import Iterator

import pytest

# Tensors here are small: threads would only spin against each other, in this process and in those that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings  # after that, as torch reads the environment when it is first imported

# The machine may be shared and busy; how long one example takes says nothing about the code.
settings.register_profile("modulemesh", deadline=None)
settings.load_profile("modulemesh")


@pytest.fixture(autouse=True)
def _logs_as_they_were() -> Iterator[None]:
    """What a test does to logging in this process is undone: which tests come after it in a process is chance."""
    loggers = [logging.getLogger(name) for name in ("", "meshnode")]
    before = [(logger.level, logger.handlers[:]) for logger in loggers]
    yield
    for logger, (level, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.handlers[:] = handlers
