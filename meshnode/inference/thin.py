"""Routed inference for a client that has neither trunk nor router: any node of the mesh does it for the client."""

import asyncio
import time
from collections.abc import Sequence
from typing import Final

import numpy as np

from meshnode.inference.prediction import Prediction
from meshnode.inference.standings import Standings
from meshnode.inference.wire import prediction_of
from meshnode.transport.interface import Transport
from protocol.errors import Busy, CallFailed, ModuleMeshError, NotReady, RefusedInput
from protocol.framing import Frame
from protocol.identifiers import PeerId
from protocol.limits import MAX_ERROR_TEXT_CHARS
from protocol.messages import Infer

__all__ = ["ThinInference"]

NODE_SHARE: Final = 0.5
"""Share of what is left of the deadline that one node may take while there is another one."""


class ThinInference:
    """Sends whole images to nodes, and takes what the mesh has answered from them.

    Args:
        transport: Reaches the nodes.
        nodes: Those that may be asked, at least one.
    """

    def __init__(self, transport: Transport, nodes: Sequence[PeerId]) -> None:
        self._transport = transport
        self._nodes = tuple(nodes)
        self._standings = Standings()

    async def predict(
        self, images: np.ndarray, *, timeout_s: float, top_k: int | None = None, task: str | None = None
    ) -> Prediction:
        """Have a batch of images answered; a node that fails is followed by the next one until the deadline.

        Args:
            images: uint8 ``(B, H, W)`` or ``(B, H, W, channels)``.
            timeout_s: Deadline for the whole answer, in seconds.
            top_k: Experts asked per row; None takes the mesh's own setting.
            task: As for `RoutedInference.predict`.

        Raises:
            MalformedTensor: The images are none, to the first node that was asked.
            NoRoute, RowsUnanswered: So said the node.
            CallFailed: As the last node failed.
        """
        began_s = time.monotonic()
        nodes = self._standings.order(self._nodes)
        failure: CallFailed = NotReady("no node has answered in time")
        for number, peer_id in enumerate(nodes, start=1):
            left_s = timeout_s - (time.monotonic() - began_s)
            if left_s <= 0:
                break
            self._standings.asking(peer_id)
            asked_s = time.monotonic()
            try:
                attempt_s = left_s if number == len(nodes) else NODE_SHARE * left_s
                request = Frame(Infer(top_k=top_k, wait_s=attempt_s, task=task), {"images": images})
                reply = await self._transport.call(peer_id, request, timeout_s=attempt_s)
                prediction = _read(reply, num_rows=len(images), began_s=began_s)
            except Busy as busy:
                self._standings.busy(peer_id, busy.retry_after_s)
                failure = busy
            except CallFailed as failed:
                self._standings.failed(peer_id)
                failure = failed
            except (ModuleMeshError, asyncio.CancelledError):  # the question's fault, or nobody's
                self._standings.left(peer_id)
                raise
            else:
                self._standings.answered(peer_id, time.monotonic() - asked_s)
                return prediction
        raise failure


def _read(reply: Frame, *, num_rows: int, began_s: float) -> Prediction:
    """What the node has answered; a reply that is no answer is the node's failure, and not the question's."""
    try:
        return prediction_of(reply, num_rows=num_rows, elapsed_ms=1e3 * (time.monotonic() - began_s))
    except RefusedInput as exc:
        raise NotReady(f"the node's answer cannot be read: {exc.message}"[:MAX_ERROR_TEXT_CHARS]) from exc
