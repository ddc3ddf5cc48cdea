"""Peers in processes of their own that average the same experts, told when to begin."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench_children import Child, Children, together
from bench_node import BenchFailed

__all__ = ["Peers"]

AHEAD_S = 0.1
"""How long before a round begins the peers are told of it: all have heard of it by then."""

KNOWN_AFTER_S = 2.0
"""A round is one whose predecessor begins after everybody has advertised: two periods of a second ahead."""


class Peers:
    """Peers of which each is a child.

    Args:
        children: Where they are.
        names: Of the children.
        folder: Exists; their homes go there.
    """

    def __init__(self, children: Children, names: Sequence[str], folder: Path) -> None:
        self._children = children
        self._names = tuple(names)
        self.peers: tuple[Child, ...] = children.get(*names, role="averaging-peer")
        self._number = 0
        self._ids: list[str] = []
        addresses: list[str] = []
        for name, peer in zip(names, self.peers, strict=True):
            addresses.append(peer.call("open", folder=str(folder / name), join=addresses))

    def end(self) -> None:
        """End them."""
        self._children.end(*self._names)

    def adopt(self, experts: int, parameters: int) -> None:
        """Have each host so many experts of this size, and all know of one another.

        Raises:
            BenchFailed: One does not see all others.
        """
        self._ids = sorted(together((peer, "adopt", {"experts": experts, "parameters": parameters}) for peer in self))
        seen = together((peer, "look", {}) for peer in self)
        if set(seen) != {len(self.peers)}:
            raise BenchFailed(f"peers see {seen} of {len(self.peers)}")

    def learn(self, seed: int) -> None:
        """Have each come to other parameters than the others."""
        together(
            (peer, "learn", {"seed": seed, "peers": len(self.peers), "me": me}) for me, peer in enumerate(self.peers)
        )

    def round(self, *, watched: Sequence[Child] = ()) -> list[dict[str, Any]]:
        """Average once by our own code; outcomes as those of the child's ``round``.

        Args:
            watched: On whose loops a ticker runs meanwhile.

        Raises:
            BenchFailed: A replica does not hold the mean afterwards.
        """
        return self._at_once({peer: "watched_round" if peer in watched else "round" for peer in self}, {})

    def reduce(self) -> list[dict[str, Any]]:
        """The same by hivemind's AllReduceRunner."""
        return self._at_once(dict.fromkeys(self.peers, "reduce"), {"members": self._ids})

    def _at_once(self, commands: Mapping[Child, str], arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
        self._number = max(self._number + 1, int(time.time() + KNOWN_AFTER_S))
        order = {"number": self._number, "begin_at_s": time.perf_counter() + AHEAD_S, **arguments}
        outcomes: list[dict[str, Any]] = together((peer, command, order) for peer, command in commands.items())
        wrong = sum(together((peer, "wrong", {}) for peer in self))
        if wrong:
            raise BenchFailed(f"{wrong} replicas did not come to the mean")
        return outcomes

    def __iter__(self) -> Iterator[Child]:
        return iter(self.peers)
