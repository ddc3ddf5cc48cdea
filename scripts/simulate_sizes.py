"""What messages weigh: each kind is encoded once as it is on the wire, with tensors of an expert's real size."""

from functools import cache

import numpy as np

from experts.averaging import codec_named
from protocol.errors import NotReady
from protocol.framing import Frame, encode_frame
from protocol.identifiers import ExpertUid, PeerId, digest_of, peer_id_of
from protocol.messages import (
    Ack,
    Message,
    RoundAttestation,
    RoundId,
    RoundOutcome,
    RoundOutcomeQuery,
    RoundParts,
    RoundProposal,
    RoundTalk,
    RoundTalkReply,
    error_reply,
)

__all__ = ["EXPERT", "ORIGIN", "WireSizes", "peer_named"]

EXPERT: ExpertUid = ExpertUid(digest_of(b"expert"))
ORIGIN = digest_of(b"initial weights")

_ROUND = RoundId(EXPERT, 170_000_000, 0)
"""As many digits as rounds of ten seconds have today."""


@cache
def peer_named(number: int) -> PeerId:
    """The peer id of the node of this number."""
    return peer_id_of(number.to_bytes(4, "big"))


class WireSizes:
    """Bytes of frames.

    Args:
        num_parameters: P of the expert that is averaged.
        compression: Name of the codec that parts travel in.
        settings: What members say of how they average.
    """

    def __init__(self, num_parameters: int, compression: str, settings: str) -> None:
        self._num_parameters = num_parameters
        self._codec = codec_named(compression)
        self._settings = settings
        talks = RoundTalk((RoundAttestation(round=_ROUND, full=True),))
        self.attestation = _size(talks)
        self.query = _size(RoundTalk((RoundOutcomeQuery(round=_ROUND),)))
        self.ack = _size(RoundTalkReply((Ack(),)))
        self.outcome = _size(RoundTalkReply((RoundOutcome(round=_ROUND, outcome="pending"),)))
        self.refusal = _size(error_reply(NotReady("the round was given up here")))
        self._proposals: dict[int, tuple[int, int]] = {}
        self._parts: dict[tuple[int, int], tuple[int, int]] = {}

    def proposal(self, num_members: int) -> tuple[int, int]:
        """Of a proposal, and of one as an answer."""
        if num_members not in self._proposals:
            proposal = RoundProposal(
                round=_ROUND,
                members=tuple(sorted(peer_named(number) for number in range(num_members))),
                whole=True,
                ready=True,
                dirty=True,
                base=_ROUND.number,
                origin=ORIGIN,
                settings=self._settings,
                reference=ORIGIN,
                weight=1.0,
            )
            self._proposals[num_members] = _size(RoundTalk((proposal,))), _size(RoundTalkReply((proposal,)))
        return self._proposals[num_members]

    def part(self, index: int, num_members: int) -> tuple[int, int]:
        """Of the part of the slice that a member reduces, and of the slice's mean in the answer."""
        key = index, num_members
        if key not in self._parts:
            bounds = np.linspace(0, self._num_parameters, num_members + 1).astype(int)
            payload = self._codec.encode(np.ones(bounds[index + 1] - bounds[index], np.float32))
            part = _size(RoundParts((_ROUND,)), {"part.0": payload})
            self._parts[key] = part, _size(Ack(), {"mean.0": payload})
        return self._parts[key]


def _size(message: Message, tensors: dict[str, np.ndarray] | None = None) -> int:
    return encode_frame(Frame(message, tensors or {})).num_bytes
