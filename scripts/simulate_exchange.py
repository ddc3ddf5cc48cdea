"""The butterfly exchange of one simulated node, as `meshnode.averaging.exchange` does it: each part is sent once, and a
reducer answers only when every member's part is in. The arithmetic is that of `experts.averaging.Share`."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from simulate_network import Call

from experts.averaging import Averaged, Share, codec_named
from meshnode.averaging.exchange import ANSWERS_RATIO
from protocol.wiretypes import PeerId

if TYPE_CHECKING:
    from simulate_node import Node

__all__ = ["REFUSED", "Exchange"]

REFUSED: Final = "refused"
"""The answer to a part of a round that was given up."""

Ended = Callable[[Averaged | None, frozenset[PeerId]], None]


class Exchange:
    """One exchange at one member.

    Args:
        node: The member.
        key: Number and attempt of the round.
        peers: All members in their order.
        weights: What their parameters count for.
        until_s: When it is given up if parts are missing; if only answers are, a little later.
        ended: Told what was exchanged in full, or None and who is to blame.
    """

    def __init__(
        self,
        node: "Node",
        key: tuple[int, int],
        peers: tuple[PeerId, ...],
        weights: Sequence[float],
        until_s: float,
        ended: Ended,
    ) -> None:
        self._node = node
        self._key = key
        self._peers = peers
        self._weights = weights
        self._until_s = until_s
        self._ended: Ended | None = ended
        self._me = peers.index(node.peer_id)
        self._parts: dict[int, np.ndarray] = {}
        self._means: dict[int, np.ndarray] = {}
        self._calls: list[Call] = []
        self._waiting: list[Call] = []
        """Calls that the mean of the own slice is the answer to."""

    def begin(self, snapshot: np.ndarray, reference: np.ndarray | None) -> None:
        """Send the parts, and take those in that came before."""
        node, mesh = self._node, self._node.mesh
        codec = codec_named(mesh.averaging.compression)
        now_s = mesh.clock.now_s
        self._answers_until_s = now_s + ANSWERS_RATIO * (self._until_s - now_s)
        self._share = Share(snapshot, reference, codec, self._weights, self._me)
        node.exchanges[self._key] = self
        for index, peer in enumerate(self._peers):
            if index != self._me:
                self._send(index, mesh.node_of[peer], self._share.part_for(index))
        for call, sender, part in node.early_parts.pop(self._key, ()):
            self.take(call, sender, part)
        mesh.clock.at(self._until_s, self._run_out)

    def _send(self, index: int, other: "Node", part: np.ndarray) -> None:
        node, network = self._node, self._node.mesh.network
        num_bytes = node.mesh.sizes.part(index, len(self._peers))[0]
        call = Call(node, other, "parts", self._answers_until_s)
        self._calls.append(call)

        def answered(mean: Any) -> None:
            self._on_mean(index, mean)

        # A wait that runs out is `_run_out`'s; what comes back is a mean, or a refusal.
        network.ask(call, num_bytes, lambda call: other.hear_part(call, node.peer_id, self._key, part), answered)

    def take(self, call: Call, sender: PeerId, part: np.ndarray) -> None:
        """A member's part; a second one of the same member counts for nothing."""
        if sender not in self._peers:
            self._node.refuse(call)
            return
        self._parts.setdefault(self._peers.index(sender), part)
        self._waiting.append(call)
        if len(self._parts) == len(self._peers) - 1 and self._me not in self._means:
            self._means[self._me] = self._share.reduce(self._parts)
            self._answer_all()
            self._conclude_if_whole()

    def _answer_all(self) -> None:
        network, mean = self._node.mesh.network, self._means[self._me]
        num_bytes = self._node.mesh.sizes.part(self._me, len(self._peers))[1]
        for call in self._waiting:
            network.answer(call, num_bytes, mean)
        self._waiting.clear()

    def _on_mean(self, index: int, mean: Any) -> None:
        if self._ended is None or mean is None:
            return  # over; or the wait ran out, and `_run_out` is due at the same moment
        if mean is REFUSED:
            # Who refuses can be reached, so there is nobody to blame.
            self._end(None, frozenset())
            return
        self._means[index] = mean
        self._conclude_if_whole()

    def _conclude_if_whole(self) -> None:
        if len(self._means) == len(self._peers):
            self._end(self._share.conclude([self._means[index] for index in range(len(self._peers))]), frozenset())

    def _run_out(self) -> None:
        if self._ended is None:
            return
        here = {self._me, *self._parts}
        awaited = frozenset(peer for index, peer in enumerate(self._peers) if index not in here)
        clock = self._node.mesh.clock
        if not awaited and clock.now_s < self._answers_until_s:
            clock.at(self._answers_until_s, self._run_out)
            return
        late = frozenset(peer for index, peer in enumerate(self._peers) if index not in self._means) - {
            self._node.peer_id
        }
        self._end(None, awaited or late)

    def cancel(self) -> None:
        """Nobody wants its outcome any more."""
        if self._ended is not None:
            self._ended = None
            self._end(None, frozenset())

    def _end(self, averaged: Averaged | None, missing: frozenset[PeerId]) -> None:
        ended, self._ended = self._ended, None
        self._node.exchanges.pop(self._key, None)
        for call in self._waiting:
            self._node.refuse(call)
        self._waiting.clear()
        if averaged is None:
            self._node.mesh.network.cancel(self._node, self._calls, "parts")
        if ended is not None:
            ended(averaged, missing)
