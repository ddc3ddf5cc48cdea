"""What the parts of a benchmark share: how much to measure, the mesh, the children, and daemons that last."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

from bench_children import Child, Children
from bench_document import say
from bench_node import Node
from bench_serving_mesh import Expert, Ground, settings_toml

__all__ = ["SERVED", "Stage", "address_of", "settings_of"]

E = TypeVar("E")
"""How much of each thing a benchmark measures."""


SERVED = {"train": {"enabled": False}, "average": {"enabled": False}, "compute": {"device": "cpu", "threads": 1}}
"""Settings of a daemon that only serves."""


class Stage(Generic[E]):
    """Everything that lives as long as the run.

    Args:
        folder: Exists, and is empty.
        effort: How much is measured.
        seed: Of everything drawn.
    """

    def __init__(self, folder: Path, effort: E, seed: int) -> None:
        self.folder = folder
        self.effort = effort
        self.seed = seed
        self._began_s = time.perf_counter()
        self._resources = ExitStack()
        self.children = self._resources.enter_context(Children(folder))

    def __enter__(self) -> "Stage[E]":
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    @property
    def elapsed_s(self) -> float:
        """Since this was made."""
        return time.perf_counter() - self._began_s

    def tell(self, text: str) -> None:
        """A line of progress with the time since the start."""
        say(f"[{self.elapsed_s:6.1f} s] {text}")

    @cached_property
    def ground(self) -> Ground:
        """The mesh."""
        return Ground(self.folder)

    @contextmanager
    def hands(self, number: int) -> Iterator[tuple[Child, ...]]:
        """So many child processes with nothing open, and emptied again afterwards; the same ones for every part."""
        names = [f"hand-{place}" for place in range(number)]
        is_done = False
        try:
            yield self.children.get(*names)
            is_done = True
        finally:
            # After a failure they may be in the middle of anything.
            (self.children.empty if is_done else self.children.kill)(*names)

    def daemons(self, homes: Sequence[tuple[str, Sequence[Expert]]], resources: ExitStack) -> list[Node]:
        """Daemons that serve these experts, ready, until `resources` are closed.

        Args:
            homes: Name and experts of each.
        """
        made = [self.ground.home(name, experts, config=settings_of()) for name, experts in homes]
        nodes = [resources.enter_context(Node(home)) for home in made]
        for node in nodes:
            node.wait_ready()
        return nodes


def settings_of(**sections: dict[str, object]) -> str:
    """The config.toml of a daemon that only serves, but for these settings."""
    return settings_toml(**{**SERVED, **sections})


def address_of(node: Node) -> str:
    """Where peers reach it."""
    return str(node.api().get("id")["addresses"][0])
