"""The errors of the mesh: one class a code, data as attributes, and a form in which they cross the wire.

Every class is a dataclass whose fields are its data; ``message`` is written from them, so an error rebuilt
from the wire says what the original said. Two families help those who catch: `RefusedInput` is the fault of
the bytes, `CallFailed` means that another replica may still answer.
"""

import typing
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Final, NamedTuple, Self

import msgspec

from protocol import limits
from protocol.wiretypes import (
    ClassName,
    CounterField,
    DigestField,
    ErrorText,
    ExpertUidField,
    MeshIdField,
    PeerId,
    PeerIdField,
    SpanField,
)

__all__ = [
    "BadSignature",
    "BlobCorrupt",
    "Busy",
    "CallFailed",
    "CallTimeout",
    "ClockSkewed",
    "Draining",
    "ErrorCode",
    "FrameTooLarge",
    "MalformedAddress",
    "MalformedIdentifier",
    "MalformedLineage",
    "MalformedMessage",
    "MalformedSpec",
    "MalformedTensor",
    "MeshMismatch",
    "ModuleMeshError",
    "NoRoute",
    "NotReady",
    "PeerUnreachable",
    "RecordRefusal",
    "RecordRefused",
    "RefusedInput",
    "RemoteFailure",
    "RowsUnanswered",
    "UnknownBlob",
    "UnknownExpert",
    "UnknownMethod",
    "WireError",
    "error_from_wire",
]

_Items = msgspec.Meta(max_length=limits.MAX_ERROR_ITEMS)


class ErrorCode(StrEnum):
    """What went wrong, for programs: the same in every version, on the wire, in JSON and in logs."""

    BAD_SIGNATURE = "bad_signature"
    BLOB_CORRUPT = "blob_corrupt"
    BUSY = "busy"
    CALL_TIMEOUT = "call_timeout"
    CLOCK_SKEWED = "clock_skewed"
    DRAINING = "draining"
    FRAME_TOO_LARGE = "frame_too_large"
    MALFORMED_ADDRESS = "malformed_address"
    MALFORMED_IDENTIFIER = "malformed_identifier"
    MALFORMED_LINEAGE = "malformed_lineage"
    MALFORMED_MESSAGE = "malformed_message"
    MALFORMED_SPEC = "malformed_spec"
    MALFORMED_TENSOR = "malformed_tensor"
    MESH_MISMATCH = "mesh_mismatch"
    NOT_READY = "not_ready"
    NO_ROUTE = "no_route"
    PEER_UNREACHABLE = "peer_unreachable"
    RECORD_REFUSED = "record_refused"
    REMOTE_FAILURE = "remote_failure"
    ROWS_UNANSWERED = "rows_unanswered"
    UNKNOWN_BLOB = "unknown_blob"
    UNKNOWN_EXPERT = "unknown_expert"
    UNKNOWN_METHOD = "unknown_method"


class RecordRefusal(StrEnum):
    """Why a signed record or contribution was not accepted."""

    DUPLICATE_EXPERTS = "duplicate_experts"
    EXPIRED = "expired"
    FORGED = "forged"
    FROM_FUTURE = "from_future"
    MALFORMED = "malformed"
    REPLAYED = "replayed"
    TOO_LARGE = "too_large"
    TOO_MANY_PEERS = "too_many_peers"
    TTL_TOO_LONG = "ttl_too_long"
    WRONG_MESH = "wrong_mesh"
    WRONG_OWNER = "wrong_owner"


class WireError(NamedTuple):
    """An error as the fields of an ``ErrorReply``: plain strings, numbers, lists."""

    code: str
    message: str
    data: dict[str, Any]


@dataclass(eq=False)
class ModuleMeshError(Exception):
    """Base of every error this project raises on purpose.

    Attributes:
        code: The class's `ErrorCode`; families such as `RefusedInput` have none and are never raised.
        hint: What a person can do about it, or None where nothing general helps.
    """

    code: ClassVar[ErrorCode]
    hint: ClassVar[str | None] = None
    _by_code: ClassVar[dict[str, type["ModuleMeshError"]]] = {}

    def __init_subclass__(cls, *, code: ErrorCode | None = None, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if code is not None:
            assert code not in cls._by_code, f"{code} is taken by {cls._by_code[code]}"
            cls.code = code
            cls._by_code[code] = cls

    @property
    def message(self) -> str:
        """One sentence for people, without a final stop, written from the data."""
        raise NotImplementedError

    def __str__(self) -> str:
        return self.message

    def to_wire(self) -> WireError:
        """Code, message and data as plain values, texts and lists cut to the wire's bounds."""
        data = {field.name: _cut(getattr(self, field.name)) for field in fields(self)}
        return WireError(str(self.code), self.message[: limits.MAX_ERROR_TEXT_CHARS], data)

    @classmethod
    def _from_data(cls, data: dict[str, Any]) -> Self:
        return cls(**data)


def error_from_wire(code: str, message: str, data: dict[str, Any], *, peer_id: PeerId | None = None) -> ModuleMeshError:
    """The error that a peer's ``ErrorReply`` stands for, to be raised by the caller.

    A code this version does not know, or data of another shape than the code's, becomes a `RemoteFailure` of
    ``peer_id``: all that a peer can choose is one of our classes and its bounded data.
    """
    if code in _SHAPES:
        error_type, shape = _SHAPES[code]
        try:
            return error_type._from_data(msgspec.structs.asdict(msgspec.convert(data, shape)))
        except msgspec.ValidationError:
            pass  # a newer peer's form of the same code: keep what it says
    limit = limits.MAX_ERROR_TEXT_CHARS
    return RemoteFailure(peer_id, code[:limit], message[:limit])


# --- input that is refused ---


class RefusedInput(ModuleMeshError):
    """Bytes or text from outside that are not what they must be; sending them again cannot help."""


@dataclass(eq=False, init=False)
class MalformedMessage(RefusedInput, code=ErrorCode.MALFORMED_MESSAGE):
    """Bytes that are no message, or a message whose ``fields`` contradict their bounds or one another."""

    fields: Annotated[tuple[ErrorText, ...], _Items]
    reason: ErrorText

    def __init__(self, *fields: str, reason: str) -> None:
        super().__init__()
        self.fields = fields
        self.reason = reason

    @property
    def message(self) -> str:
        where = f" ({', '.join(self.fields)})" if self.fields else ""
        return f"malformed message{where}: {self.reason}"

    @classmethod
    def _from_data(cls, data: dict[str, Any]) -> Self:
        return cls(*data["fields"], reason=data["reason"])


@dataclass(eq=False)
class MalformedIdentifier(RefusedInput, code=ErrorCode.MALFORMED_IDENTIFIER):
    """``text`` is no identifier of this ``kind`` ("peer id", "digest", "expert uid")."""

    kind: ErrorText
    text: ErrorText
    reason: ErrorText

    @property
    def message(self) -> str:
        return f"{_shown(self.text)} is no {self.kind}: {self.reason}"


@dataclass(eq=False)
class MalformedAddress(RefusedInput, code=ErrorCode.MALFORMED_ADDRESS):
    """``text`` is no multiaddress of a peer."""

    hint = "An address looks like /ip4/203.0.113.7/tcp/31337/p2p/Qm...; `meshnode id` prints a node's own."
    text: ErrorText
    reason: ErrorText

    @property
    def message(self) -> str:
        return f"{_shown(self.text)} is no peer's address: {self.reason}"


@dataclass(eq=False)
class MalformedTensor(RefusedInput, code=ErrorCode.MALFORMED_TENSOR):
    """The tensor ``name`` is absent or has the wrong type, shape or content."""

    name: ErrorText
    reason: ErrorText

    @property
    def message(self) -> str:
        return f"tensor {_shown(self.name)}: {self.reason}"


@dataclass(eq=False)
class MalformedSpec(RefusedInput, code=ErrorCode.MALFORMED_SPEC):
    """Bytes that are no mesh spec this version can follow."""

    reason: ErrorText

    @property
    def message(self) -> str:
        return f"not a mesh spec of this version: {self.reason}"


@dataclass(eq=False)
class MalformedLineage(RefusedInput, code=ErrorCode.MALFORMED_LINEAGE):
    """Bytes that are no lineage this version can follow, or that of another expert."""

    reason: ErrorText

    @property
    def message(self) -> str:
        return f"not the lineage of this expert, or of another version: {self.reason}"


@dataclass(eq=False)
class FrameTooLarge(RefusedInput, code=ErrorCode.FRAME_TOO_LARGE):
    """Something claims or has more bytes than its limit."""

    size_bytes: CounterField
    limit_bytes: CounterField

    @property
    def message(self) -> str:
        return f"{self.size_bytes} bytes exceed the limit of {self.limit_bytes}"


@dataclass(eq=False)
class BadSignature(RefusedInput, code=ErrorCode.BAD_SIGNATURE):
    """A key that is none, or a signature that the key did not make over this payload in this ``domain``."""

    domain: ErrorText
    reason: ErrorText = "the signature does not fit"

    @property
    def message(self) -> str:
        return f"bad signature ({self.domain}): {self.reason}"


@dataclass(eq=False)
class RecordRefused(RefusedInput, code=ErrorCode.RECORD_REFUSED):
    """A record or contribution that is not accepted, for a ``reason`` that programs can act on."""

    reason: RecordRefusal
    detail: ErrorText = ""

    @property
    def message(self) -> str:
        return f"record refused: {self.reason}" + (f" ({self.detail})" if self.detail else "")


# --- calls that got no usable answer ---


class CallFailed(ModuleMeshError):
    """A call that brought no usable answer from this peer; another replica may give one."""


@dataclass(eq=False)
class PeerUnreachable(CallFailed, code=ErrorCode.PEER_UNREACHABLE):
    """No connection to the peer, or it broke during the call."""

    hint = "`meshnode ping PEER` says whether the peer answers at all."
    peer_id: PeerIdField
    reason: ErrorText = ""
    """What the network said, where it said anything."""

    @property
    def message(self) -> str:
        return f"peer {self.peer_id} cannot be reached" + (f": {self.reason}" if self.reason else "")


@dataclass(eq=False)
class CallTimeout(CallFailed, code=ErrorCode.CALL_TIMEOUT):
    """The peer was silent for ``waited_s`` seconds."""

    peer_id: PeerIdField
    method: ErrorText
    waited_s: SpanField

    @property
    def message(self) -> str:
        return f"peer {self.peer_id} did not answer {self.method} within {self.waited_s:.3g} s"


@dataclass(eq=False)
class UnknownMethod(CallFailed, code=ErrorCode.UNKNOWN_METHOD):
    """The peer serves no such call."""

    hint = "The peer may run another version: compare `meshnode version` on both."
    method: ErrorText

    @property
    def message(self) -> str:
        return f"no such call: {_shown(self.method)}"


@dataclass(eq=False)
class UnknownExpert(CallFailed, code=ErrorCode.UNKNOWN_EXPERT):
    """The peer does not, or no longer does, host this expert."""

    uid: ExpertUidField

    @property
    def message(self) -> str:
        return f"expert {self.uid} is not hosted here"


@dataclass(eq=False)
class UnknownBlob(CallFailed, code=ErrorCode.UNKNOWN_BLOB):
    """The peer does not hold the bytes of this digest."""

    digest: DigestField

    @property
    def message(self) -> str:
        return f"no blob of digest {self.digest} here"


@dataclass(eq=False)
class BlobCorrupt(CallFailed, code=ErrorCode.BLOB_CORRUPT):
    """Bytes that were fetched or read under this digest have another."""

    digest: DigestField

    @property
    def message(self) -> str:
        return f"the bytes received do not have the digest {self.digest}"


@dataclass(eq=False)
class Busy(CallFailed, code=ErrorCode.BUSY):
    """The peer's queue is full; it asks not to be called again for ``retry_after_s`` seconds."""

    retry_after_s: SpanField

    @property
    def message(self) -> str:
        return f"busy, ask again in {self.retry_after_s:.3g} s"


@dataclass(eq=False)
class NotReady(CallFailed, code=ErrorCode.NOT_READY):
    """The node runs but cannot do this yet."""

    reason: ErrorText

    @property
    def message(self) -> str:
        return f"not ready: {self.reason}"


@dataclass(eq=False)
class Draining(CallFailed, code=ErrorCode.DRAINING):
    """The node is stopping and takes no new work."""

    @property
    def message(self) -> str:
        return "this node is stopping and takes no new work"


@dataclass(eq=False)
class MeshMismatch(CallFailed, code=ErrorCode.MESH_MISMATCH):
    """The other side belongs to another mesh; None stands for one that belongs to none yet."""

    hint = "Both nodes must have been made with the same mesh spec."
    expected: MeshIdField | None
    got: MeshIdField | None

    @property
    def message(self) -> str:
        return f"wrong mesh: expected {self.expected or 'none'}, got {self.got or 'none'}"


@dataclass(eq=False)
class RemoteFailure(CallFailed, code=ErrorCode.REMOTE_FAILURE):
    """The peer failed in a way that has no class here: its own bug, or a code of a newer version."""

    peer_id: PeerIdField | None
    remote_code: ErrorText
    remote_message: ErrorText

    @property
    def message(self) -> str:
        said = f"{_shown(self.remote_code)}, {_shown(self.remote_message)}"
        return f"peer {self.peer_id or 'unknown'} failed: {said}"


# --- what a client is told ---


@dataclass(eq=False)
class NoRoute(ModuleMeshError, code=ErrorCode.NO_ROUTE):
    """No live peer hosts these experts, or no expert answers for these classes."""

    hint = "`meshnode experts ls --mesh` lists what is hosted now."
    classes: Annotated[tuple[ClassName, ...], _Items] = ()
    experts: Annotated[tuple[ExpertUidField, ...], _Items] = ()

    @property
    def message(self) -> str:
        parts = [f"classes {', '.join(map(_shown, self.classes[:8]))}"] if self.classes else []
        parts += [f"experts {', '.join(uid[:12] for uid in self.experts[:8])}"] if self.experts else []
        return f"no route to {' and '.join(parts) or 'any expert'}"


@dataclass(eq=False)
class RowsUnanswered(ModuleMeshError, code=ErrorCode.ROWS_UNANSWERED):
    """``rows`` of a batch had no answer from any of the ``experts`` they were sent to."""

    hint = "Ask again: replicas that were silent are avoided for a while."
    rows: Annotated[tuple[CounterField, ...], _Items]
    experts: Annotated[tuple[ExpertUidField, ...], _Items]

    @property
    def message(self) -> str:
        experts = ", ".join(uid[:12] for uid in self.experts[:8])
        return f"{len(self.rows)} rows (first {list(self.rows[:8])}) had no answer from experts {experts}"


@dataclass(eq=False)
class ClockSkewed(ModuleMeshError, code=ErrorCode.CLOCK_SKEWED):
    """This machine's clock is ``skew_s`` seconds ahead (or, negative, behind) of its peers'."""

    hint = "Turn on time synchronisation (for instance `timedatectl set-ntp true`)."
    skew_s: SpanField

    @property
    def message(self) -> str:
        limit_s = limits.MAX_CLOCK_SKEW_S
        return f"the clock is off by {self.skew_s:.3g} s; more than {limit_s:.0f} s misleads peers"


def _shown(text: str) -> str:
    """Quoted and escaped, so that a peer's text cannot steer a terminal, and at most a line long."""
    return repr(text if len(text) <= 80 else text[:77] + "...")


def _cut(value: object) -> object:
    if isinstance(value, str):
        return str(value)[: limits.MAX_ERROR_TEXT_CHARS]
    if isinstance(value, tuple):
        return [_cut(item) for item in value[: limits.MAX_ERROR_ITEMS]]
    return value


def _data_shape(error_type: type[ModuleMeshError]) -> type[msgspec.Struct]:
    """The struct that a class's data must convert to: its dataclass fields, all of them required."""
    hints = typing.get_type_hints(error_type, include_extras=True)
    return msgspec.defstruct(error_type.__name__, [(field.name, hints[field.name]) for field in fields(error_type)])


_SHAPES: Final = {str(code): (cls, _data_shape(cls)) for code, cls in ModuleMeshError._by_code.items()}
