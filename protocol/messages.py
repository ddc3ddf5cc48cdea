"""The messages of the mesh: frozen structs, told apart by a tag, as MessagePack.

A message is a request or its reply. Tensors are not in it: they follow it in the same frame
(`protocol.framing`), and each struct says which ones belong to it.

Shape legend: B batch, D feature, C class.
"""

from typing import Annotated, Literal

import msgspec

from protocol import limits
from protocol.errors import ModuleMeshError
from protocol.wiretypes import (
    AttemptField,
    ClassName,
    ClassNames,
    CounterField,
    DigestField,
    ErrorData,
    ErrorText,
    ExpertUidField,
    MeshIdField,
    MomentField,
    Name,
    PeerIdField,
    SpanField,
)

__all__ = [
    "Ack",
    "BlobGet",
    "BlobPart",
    "ErrorReply",
    "ExpertAnswer",
    "Forward",
    "ForwardReply",
    "Hello",
    "HelloReply",
    "Infer",
    "InferCall",
    "InferReply",
    "Message",
    "Outcome",
    "RoundAttestation",
    "RoundAnswer",
    "RoundId",
    "RoundOutcome",
    "RoundOutcomeQuery",
    "RoundParts",
    "RoundProposal",
    "RoundTalk",
    "RoundTalkReply",
    "RoundWord",
    "error_reply",
]

Outcome = Literal["aborted", "committed", "pending", "unknown"]
"""How a round ended at a member: "aborted" and "committed" are for ever, "unknown" means never heard of."""


class RoundId(msgspec.Struct, frozen=True, array_like=True):
    """One attempt of one averaging round of one expert."""

    expert: ExpertUidField
    number: CounterField
    """DHT time over the mesh's period, rounded down."""
    attempt: AttemptField
    """0, then one more each time a round is repeated without its silent members."""


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """The first call to a peer; ``mesh_id`` is None while the caller belongs to no mesh yet."""

    mesh_id: MeshIdField | None


class HelloReply(msgspec.Struct, frozen=True, tag="hello_reply"):
    """Who answered. ``now_s`` (Unix seconds by its clock) lets the caller measure its own skew."""

    mesh_id: MeshIdField | None
    mesh_name: Name | None
    peer_name: Name
    version: Name
    now_s: MomentField


class BlobGet(msgspec.Struct, frozen=True, tag="blob_get"):
    """Asks for a part of the bytes that have this digest."""

    digest: DigestField
    offset: Annotated[int, msgspec.Meta(ge=0, le=limits.MAX_BLOB_BYTES)]
    length: Annotated[int, msgspec.Meta(ge=1, le=limits.BLOB_CHUNK_BYTES)]


class BlobPart(msgspec.Struct, frozen=True, tag="blob_part"):
    """Brings the tensor ``data``, uint8 (length,): what is there of the part that was asked for, or its beginning.

    A beginning has at least MIN_BLOB_PART_BYTES.
    """

    digest: DigestField
    offset: Annotated[int, msgspec.Meta(ge=0, le=limits.MAX_BLOB_BYTES)]
    total_bytes: Annotated[int, msgspec.Meta(ge=0, le=limits.MAX_BLOB_BYTES)]


class Forward(msgspec.Struct, frozen=True, tag="forward"):
    """Asks experts of one peer about rows of the tensor ``features``, float32 (B, D).

    Each expert is asked about all of them; or, with the tensor ``rows``, int32 (R,), about those listed there: the
    first ``num_rows[0]`` entries for the first expert, the next ``num_rows[1]`` for the second, and so on.
    """

    experts: Annotated[tuple[ExpertUidField, ...], msgspec.Meta(min_length=1, max_length=limits.MAX_EXPERTS_PER_CALL)]
    num_rows: Annotated[tuple[CounterField, ...], msgspec.Meta(max_length=limits.MAX_EXPERTS_PER_CALL)] = ()
    """Empty without the tensor ``rows``."""

    def __post_init__(self) -> None:
        if len(set(self.experts)) != len(self.experts):
            raise ValueError("an expert is asked twice")
        if self.num_rows and len(self.num_rows) != len(self.experts):
            raise ValueError("num_rows must have a number for each expert, or none")


class ExpertAnswer(msgspec.Struct, frozen=True, tag="expert_answer"):
    """What an expert is that has answered: the columns of its tensor are in the order of ``classes``."""

    generation: CounterField
    weights: DigestField
    classes: ClassNames


class Infer(msgspec.Struct, frozen=True, tag="infer"):
    """Asks a node to send the tensor ``images``, uint8 (B, H, W[, channels]), through its mesh for the caller."""

    top_k: Annotated[int, msgspec.Meta(ge=1, le=limits.MAX_EXPERTS_PER_RECORD)] | None
    """Experts asked per row; None takes the mesh's own setting."""
    wait_s: Annotated[float, msgspec.Meta(gt=0, le=limits.MAX_WAIT_MS / 1000)]
    """How long the caller waits: the node divides it among the replicas that it may have to ask."""
    task: ClassName | None = None
    """Whose classes may be named, where the mesh tells tasks apart; None where it does not."""


class InferCall(msgspec.Struct, frozen=True, array_like=True):
    """One expert asked at one peer on the way; ``error`` says why there was no answer."""

    expert: ExpertUidField
    peer_id: PeerIdField
    peer_name: Name
    num_rows: CounterField
    elapsed_ms: SpanField
    error: ErrorText | None


class InferReply(msgspec.Struct, frozen=True, tag="infer_reply"):
    """Brings the mesh's answer: the tensors ``outputs``, float32 (B, C), and ``missing_mass``, float32 (B,).

    The columns of ``outputs`` are in the order of ``classes``. The rows and gate weights of ``calls`` stand one call
    after another in the tensors ``rows``, int32 (R,), and ``gates``, float32 (R,).
    """

    classes: Annotated[tuple[ClassName, ...], msgspec.Meta(max_length=limits.MAX_CLASSES_PER_TASK)]
    calls: Annotated[tuple[InferCall, ...], msgspec.Meta(max_length=limits.MAX_CALLS_PER_REPLY)]


class RoundProposal(msgspec.Struct, frozen=True, tag="round_proposal"):
    """What a member sees at a round's start. It is also the answer to one, where the round has begun."""

    round: RoundId
    members: Annotated[tuple[PeerIdField, ...], msgspec.Meta(min_length=1, max_length=limits.MAX_ROUND_MEMBERS)]
    """Those it believes in, sorted, itself among them."""
    whole: bool
    """Whether these are all replicas that it knows of: then all of them can hold one mean after this round."""
    ready: bool
    """Whether it can take part."""
    dirty: bool
    """Whether its replica changed enough since it was last averaged."""
    base: CounterField
    """Number of the last round that its replica holds; 0 before any."""
    origin: DigestField
    """Of the weights that its replica descends from: only replicas of one initialisation can be averaged."""
    settings: Name
    """How it averages, such as the compression: members must agree."""
    reference: DigestField | None
    """Of the mean that its replica holds, which coded differences can be relative to; None if it is not known."""
    weight: Annotated[float, msgspec.Meta(gt=0, le=limits.MAX_COUNTER)]
    """What its parameters count for in the mean, beside the others' weights."""

    def __post_init__(self) -> None:
        if list(self.members) != sorted(set(self.members)):
            raise ValueError("members must be sorted and each named once")


class RoundAttestation(msgspec.Struct, frozen=True, tag="round_attestation"):
    """What a member vouches for after the exchange.

    ``full``: every part it reduced came from every member, and every part of its own came back as a mean.
    """

    round: RoundId
    full: bool
    missing: Annotated[tuple[PeerIdField, ...], msgspec.Meta(max_length=limits.MAX_ROUND_MEMBERS)] = ()
    """Who is to blame if it is not full, as far as this member can tell."""


class RoundOutcomeQuery(msgspec.Struct, frozen=True, tag="round_outcome_query"):
    """Asks a member how a round ended for it; asked only by one whose own wait has run out."""

    round: RoundId


class RoundOutcome(msgspec.Struct, frozen=True, tag="round_outcome"):
    """How the round ended, or stands, at the member that says so."""

    round: RoundId
    outcome: Outcome


RoundWord = RoundProposal | RoundAttestation | RoundOutcomeQuery
"""What a member says of one round."""


class RoundTalk(msgspec.Struct, frozen=True, tag="round_talk"):
    """Words about rounds of several experts, to one peer."""

    words: Annotated[tuple[RoundWord, ...], msgspec.Meta(min_length=1, max_length=limits.MAX_ROUNDS_PER_CALL)]


class RoundParts(msgspec.Struct, frozen=True, tag="round_parts"):
    """Brings the sender's parts of what this peer reduces, and asks for their means.

    The tensor ``part.N`` belongs to the round number N, counted from 0; the members' compression says how it is coded.
    The answer is an `Ack` with the tensors ``mean.N``, once every member's parts are in.
    """

    rounds: Annotated[tuple[RoundId, ...], msgspec.Meta(min_length=1, max_length=limits.MAX_ROUNDS_PER_CALL)]


class Ack(msgspec.Struct, frozen=True, tag="ack"):
    """The request was taken in, or done; it brings the tensors that the request asks for."""


RoundAnswer = RoundProposal | RoundOutcome | Ack
"""What a word about a round is answered with."""


class RoundTalkReply(msgspec.Struct, frozen=True, tag="round_talk_reply"):
    """An answer to each word, in their order."""

    answers: Annotated[tuple[RoundAnswer, ...], msgspec.Meta(min_length=1, max_length=limits.MAX_ROUNDS_PER_CALL)]


class ErrorReply(msgspec.Struct, frozen=True, tag="error"):
    """The request failed. `protocol.errors.error_from_wire` makes an exception of it."""

    code: ErrorText
    message: ErrorText
    data: ErrorData


class ForwardReply(msgspec.Struct, frozen=True, tag="forward_reply"):
    """Brings, in the order of the question, each expert's answer, or why it has none.

    The tensor ``probabilities.N``, float32 (B, C), belongs to the answer number N, counted from 0.
    """

    answers: Annotated[
        tuple[ExpertAnswer | ErrorReply, ...], msgspec.Meta(min_length=1, max_length=limits.MAX_EXPERTS_PER_CALL)
    ]


Message = (
    Hello
    | HelloReply
    | BlobGet
    | BlobPart
    | Forward
    | ForwardReply
    | Infer
    | InferReply
    | RoundTalk
    | RoundTalkReply
    | RoundParts
    | Ack
    | ErrorReply
)


def error_reply(error: ModuleMeshError) -> ErrorReply:
    """The reply that lets the caller raise the same error."""
    return ErrorReply(*error.to_wire())
