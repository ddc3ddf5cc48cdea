"""A prediction on the wire: what a node tells a thin client, which has neither trunk nor router.

Legend: B batch, C class, R rows over all calls.
"""

from typing import Final

import numpy as np

from meshnode.inference.prediction import Call, Prediction
from protocol.errors import MalformedMessage
from protocol.framing import Frame
from protocol.identifiers import PeerId
from protocol.limits import MAX_CALLS_PER_REPLY
from protocol.messages import InferCall, InferReply
from protocol.tensors import require_tensor

__all__ = ["infer_reply", "prediction_of"]

MAX_TOLD_CHARS: Final = 80
"""Of an error, which may be a peer's own words: as many as let the longest list of calls fit a header."""


def infer_reply(prediction: Prediction, *, me: PeerId, my_name: str) -> Frame:
    """The prediction as a reply.

    Args:
        me: The node that answers, whose own experts are "self" to itself only.
        my_name: Its name.
    """
    # Of very many it is failures that are left out.
    answered_first = sorted(range(len(prediction.calls)), key=lambda number: prediction.calls[number].error is not None)
    calls = [prediction.calls[number] for number in sorted(answered_first[:MAX_CALLS_PER_REPLY])]
    message = InferReply(
        classes=prediction.classes,
        calls=tuple(
            InferCall(
                expert=call.expert,
                peer_id=call.peer_id,
                peer_name=my_name if call.peer_id == me else call.peer_name,
                num_rows=len(call.rows),
                elapsed_ms=call.elapsed_ms,
                error=call.error if call.error is None else call.error[:MAX_TOLD_CHARS],
            )
            for call in calls
        ),
    )
    tensors = {
        "outputs": prediction.outputs_BC,
        "missing_mass": prediction.missing_mass_B,
        "rows": np.array([row for call in calls for row in call.rows], np.int32),
        "gates": np.array([gate for call in calls for gate in call.gates], np.float32),
    }
    return Frame(message, tensors)


def prediction_of(reply: Frame, *, num_rows: int, elapsed_ms: float) -> Prediction:
    """What a node has answered.

    Args:
        num_rows: B, of the question.
        elapsed_ms: What the whole call took.

    Raises:
        MalformedMessage, MalformedTensor: It is no answer to that question.
    """
    message = reply.message
    if not isinstance(message, InferReply):
        raise MalformedMessage("InferReply", reason="the node answered something else")
    num_called = sum(call.num_rows for call in message.calls)
    shape = (num_rows, len(message.classes))
    outputs_BC = require_tensor(reply.tensors, "outputs", dtype="float32", shape=shape, finite=True)
    missing_B = require_tensor(reply.tensors, "missing_mass", dtype="float32", shape=(num_rows,), finite=True)
    if (outputs_BC < 0).any() or (missing_B < 0).any():
        raise MalformedMessage("outputs", "missing_mass", reason="less than nothing")
    rows_R = require_tensor(reply.tensors, "rows", dtype="int32", shape=(num_called,)).tolist()
    if not all(0 <= row < num_rows for row in rows_R):
        raise MalformedMessage("rows", reason=f"a row is none of the {num_rows}")
    gates_R = require_tensor(reply.tensors, "gates", dtype="float32", shape=(num_called,), finite=True).tolist()
    calls, begin = [], 0
    for call in message.calls:
        end = begin + call.num_rows
        calls.append(
            Call(
                expert=call.expert,
                peer_id=call.peer_id,
                peer_name=call.peer_name,
                rows=tuple(rows_R[begin:end]),
                gates=tuple(gates_R[begin:end]),
                elapsed_ms=call.elapsed_ms,
                error=call.error,
            )
        )
        begin = end
    return Prediction(
        classes=message.classes,
        outputs_BC=outputs_BC,
        missing_mass_B=missing_B,
        calls=tuple(calls),
        elapsed_ms=elapsed_ms,
    )
