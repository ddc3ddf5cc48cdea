"""No integration test leaves a process behind, whether it passes or fails."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration_nodes import Daemons, end_process, marked_processes

ENDING_S = 5.0
"""p2pd and the trainer end by themselves when their daemon has; they are given this long."""


def _nothing_left_over() -> Iterator[None]:
    before = marked_processes()
    yield
    deadline_s = time.monotonic() + ENDING_S
    while (left := marked_processes().items() - before.items()) and time.monotonic() < deadline_s:
        time.sleep(0.1)
    for process, _ in left:
        end_process(process)
    assert not left, f"left behind: {sorted(line for _, line in left)}"


@pytest.fixture(autouse=True)
def _no_process_is_left_by_a_test() -> Iterator[None]:
    yield from _nothing_left_over()


@pytest.fixture(autouse=True, scope="module")
def _no_process_is_left_by_a_module() -> Iterator[None]:
    yield from _nothing_left_over()


@pytest.fixture
def daemons(_no_process_is_left_by_a_test: None, tmp_path: Path) -> Iterator[Daemons]:
    with Daemons.within(tmp_path) as made:
        yield made
