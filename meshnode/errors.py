"""What can go wrong on this machine, and the exit code that each kind of failure ends the command with.

The errors of the mesh are `protocol.errors`; these here never cross the wire. Both have a ``code``, a
``message`` and a ``hint``, so that whoever shows them to people or programs need not tell them apart.
"""

from collections.abc import Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from protocol.errors import ErrorCode, ModuleMeshError
from protocol.identifiers import ExpertUid, MeshId

if TYPE_CHECKING:  # the command line need not know records and lineages
    from protocol.lineage import Accuracy

__all__ = [
    "AlreadyRunning",
    "ConfigInvalid",
    "DaemonNotRunning",
    "EXIT_CODES",
    "ExitCode",
    "ExpertFileRefused",
    "IdentityUnusable",
    "MeshUnreadable",
    "NoAncestorHere",
    "NoSuchPeerOrExpert",
    "NodeError",
    "PortInUse",
    "Refused",
    "ResourceAbsent",
    "ResultUnreadable",
    "ScenarioUnusable",
    "StateTooNew",
    "StateUnreadable",
    "SuccessorDeclined",
    "Timeout",
    "UnknownName",
    "error_document",
    "exit_code_for",
    "exit_code_of",
]


class ExitCode(IntEnum):
    """How ``meshnode`` ends; part of its interface, so a number keeps its meaning for ever."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    CONFIG_INVALID = 3
    DAEMON_NOT_RUNNING = 4
    ALREADY_RUNNING = 5
    PORT_IN_USE = 6
    REFUSED = 7
    NO_SUCH_PEER_OR_EXPERT = 8
    TIMEOUT = 9
    CHECK_FAILED = 10
    RESOURCE_ABSENT = 11
    IDENTITY_UNUSABLE = 12
    INTERRUPTED = 130


class NodeError(Exception):
    """Base of the failures of this node.

    Attributes:
        code: What went wrong, for programs; never one of `protocol.errors.ErrorCode`.
        exit_code: How a command that fails with it ends.
        message: One sentence for people, without a final stop.
        hint: What a person can do about it, or None where nothing general helps.
    """

    code: ClassVar[str] = "failure"
    exit_code: ClassVar[ExitCode] = ExitCode.FAILURE

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigInvalid(NodeError):
    """The configuration cannot be followed: unreadable, an unknown setting, a value outside its range."""

    code = "config_invalid"
    exit_code = ExitCode.CONFIG_INVALID


class DaemonNotRunning(NodeError):
    """No daemon serves the ``home`` folder."""

    code = "daemon_not_running"
    exit_code = ExitCode.DAEMON_NOT_RUNNING

    def __init__(self, home: Path, *, holder: str | None = None) -> None:
        """`holder` is the process that holds the folder all the same, and has not said where it answers."""
        if holder is None:
            super().__init__(f"no daemon is running for {home}", hint="`meshnode run` starts one.")
        else:
            hint = "It is starting or about to end: try again in some seconds. `meshnode why` looks closer."
            super().__init__(f"no daemon answers for {home}, and {holder} holds it", hint=hint)
        self.home = home


class AlreadyRunning(NodeError):
    """Another daemon holds the home folder.

    Attributes:
        pid: Its process, or None if it has not said so.
        url: Its API, or None while it is still starting.
    """

    code = "already_running"
    exit_code = ExitCode.ALREADY_RUNNING

    def __init__(self, pid: int | None, url: str | None) -> None:
        process = "process unknown" if pid is None else f"process {pid}"
        super().__init__(
            f"a daemon already runs on this home folder ({process}, {url or 'still starting'})",
            hint="Use the running one, stop it, or give another folder with --home.",
        )
        self.pid = pid
        self.url = url


class PortInUse(NodeError):
    """Something else listens on ``host`` and ``port``."""

    code = "port_in_use"
    exit_code = ExitCode.PORT_IN_USE

    def __init__(self, host: str, port: int) -> None:
        super().__init__(f"port {port} on {host} is in use", hint="Choose another port, or 0 to take any that is free.")
        self.host = host
        self.port = port


class Refused(NodeError):
    """The daemon, or a rule of this node, does not allow what was asked."""

    code = "refused"
    exit_code = ExitCode.REFUSED


class ExpertFileRefused(NodeError):
    """A file that is no expert of this node's mesh, or is damaged, for a ``reason``."""

    code = "expert_file_refused"
    exit_code = ExitCode.REFUSED

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"the file is no expert of this mesh: {reason}",
            hint="`meshnode experts export UID FILE` on a node of the same mesh writes such files.",
        )
        self.reason = reason


class NoSuchPeerOrExpert(NodeError):
    """``wanted`` names no peer or expert, or more than one."""

    code = "no_such_peer_or_expert"
    exit_code = ExitCode.NO_SUCH_PEER_OR_EXPERT

    def __init__(self, wanted: str) -> None:
        super().__init__(
            f"{wanted!r} names no single peer or expert",
            hint="`meshnode peers ls` and `meshnode experts ls` list those there are.",
        )
        self.wanted = wanted


class Timeout(NodeError):
    """``what`` did not happen within ``waited_s`` seconds."""

    code = "timeout"
    exit_code = ExitCode.TIMEOUT

    def __init__(self, what: str, waited_s: float) -> None:
        super().__init__(f"{what} took longer than {waited_s:.3g} s")
        self.what = what
        self.waited_s = waited_s


class ResourceAbsent(NodeError):
    """Something this was to use (a GPU, a data set, an optional package) is not here."""

    code = "resource_absent"
    exit_code = ExitCode.RESOURCE_ABSENT


class IdentityUnusable(NodeError):
    """The key file at ``path`` is unreadable, is no key, or can be read by others."""

    code = "identity_unusable"
    exit_code = ExitCode.IDENTITY_UNUSABLE

    def __init__(self, path: Path, reason: str, *, hint: str | None = None) -> None:
        super().__init__(f"{path} cannot be used: {reason}", hint=hint)
        self.path = path
        self.reason = reason


class StateUnreadable(NodeError):
    """The ledger at ``path`` is damaged or is no ledger."""

    code = "state_unreadable"

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"{path} cannot be read: {reason}",
            hint="Restore it from a backup, or move its folder away; the identity is kept elsewhere.",
        )
        self.path = path
        self.reason = reason


class ResultUnreadable(NodeError):
    """The result document at ``path`` is damaged, or is not what its schema promises."""

    code = "result_unreadable"

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"{path} cannot be read as a result: {reason}",
            hint="Write it again with the command that makes it, or move it away.",
        )
        self.path = path
        self.reason = reason


class ScenarioUnusable(NodeError):
    """The ``scenario`` cannot be evaluated: its file or data is not as it has to be."""

    code = "scenario_unusable"

    def __init__(self, scenario: str, reason: str) -> None:
        super().__init__(
            f"{scenario} cannot be evaluated: {reason}",
            hint="docs/scenarios.md tells what a scenario's file may say, and how data has to lie.",
        )
        self.scenario = scenario
        self.reason = reason


class UnknownName(NodeError):
    """There is no ``kind`` (a scenario, a method) that is named ``name``."""

    code = "unknown_name"
    exit_code = ExitCode.USAGE

    def __init__(self, kind: str, name: str, *, near: str | None, known: Sequence[str]) -> None:
        hint = f"Did you mean {near!r}?" if near else f"Known: {', '.join(known)}."
        super().__init__(f"there is no {kind} named {name!r}", hint=hint)
        self.kind = kind
        self.name = name


class NoAncestorHere(NodeError):
    """The expert ``uid`` cannot be rolled back: none of those it succeeds is kept here."""

    code = "no_ancestor_here"
    exit_code = ExitCode.REFUSED

    def __init__(self, uid: ExpertUid) -> None:
        super().__init__(
            f"no expert that {uid} succeeds is kept here",
            hint="What was pulled from a peer has no ancestor here; `meshnode experts ls` tells each one's standing.",
        )
        self.uid = uid


class SuccessorDeclined(NodeError):
    """An expert's new form would lose too much of what the old one knows.

    Attributes:
        accuracy: Of both on the same held-out images; None if nobody has measured it.
    """

    code = "successor_declined"
    exit_code = ExitCode.REFUSED

    def __init__(self, reason: str, *, accuracy: "Accuracy | None") -> None:
        super().__init__(reason, hint="The old form goes on serving. Distillation steps or a larger form may help.")
        self.accuracy = accuracy


class MeshUnreadable(NodeError):
    """The home belongs to the mesh ``mesh_id``, and what it keeps of it is damaged or of another version."""

    code = "mesh_unreadable"

    def __init__(self, mesh_id: MeshId, reason: str) -> None:
        super().__init__(
            f"the mesh {mesh_id} of this home cannot be read: {reason}",
            hint="Found or join a mesh of this version with another --home; its identity.key may be taken along.",
        )
        self.mesh_id = mesh_id
        self.reason = reason


class StateTooNew(NodeError):
    """The ledger at ``path`` was written by a later version of this program.

    Attributes:
        found: Schema version of the ledger.
        supported: The newest this program can read.
    """

    code = "state_too_new"

    def __init__(self, path: Path, *, found: int, supported: int) -> None:
        super().__init__(
            f"{path} has schema {found}, this program knows {supported} at most",
            hint="Install the version that wrote it, or a later one.",
        )
        self.path = path
        self.found = found
        self.supported = supported


EXIT_CODES: Mapping[str, ExitCode] = {
    ErrorCode.BAD_SIGNATURE: ExitCode.FAILURE,
    ErrorCode.BLOB_CORRUPT: ExitCode.FAILURE,
    ErrorCode.BUSY: ExitCode.FAILURE,
    ErrorCode.CALL_TIMEOUT: ExitCode.TIMEOUT,
    ErrorCode.CLOCK_SKEWED: ExitCode.FAILURE,
    ErrorCode.DRAINING: ExitCode.REFUSED,
    ErrorCode.FRAME_TOO_LARGE: ExitCode.FAILURE,
    ErrorCode.MALFORMED_ADDRESS: ExitCode.USAGE,
    ErrorCode.MALFORMED_IDENTIFIER: ExitCode.USAGE,
    ErrorCode.MALFORMED_LINEAGE: ExitCode.FAILURE,
    ErrorCode.MALFORMED_MESSAGE: ExitCode.FAILURE,
    ErrorCode.MALFORMED_SPEC: ExitCode.FAILURE,
    ErrorCode.MALFORMED_TENSOR: ExitCode.FAILURE,
    ErrorCode.MESH_MISMATCH: ExitCode.REFUSED,
    ErrorCode.NOT_READY: ExitCode.FAILURE,
    ErrorCode.NO_ROUTE: ExitCode.NO_SUCH_PEER_OR_EXPERT,
    ErrorCode.PEER_UNREACHABLE: ExitCode.NO_SUCH_PEER_OR_EXPERT,
    ErrorCode.RECORD_REFUSED: ExitCode.FAILURE,
    ErrorCode.REMOTE_FAILURE: ExitCode.FAILURE,
    ErrorCode.ROWS_UNANSWERED: ExitCode.TIMEOUT,
    ErrorCode.UNKNOWN_BLOB: ExitCode.FAILURE,
    ErrorCode.UNKNOWN_EXPERT: ExitCode.NO_SUCH_PEER_OR_EXPERT,
    ErrorCode.UNKNOWN_METHOD: ExitCode.FAILURE,
} | {error_type.code: error_type.exit_code for error_type in NodeError.__subclasses__()}
"""How a command ends that an error of this code ended: every code of the mesh, and those of this node."""


def exit_code_for(code: str) -> ExitCode:
    """The exit code for an error of which only the ``code`` is known, as in the API's answers; else 1."""
    return EXIT_CODES.get(code, ExitCode.FAILURE)


def exit_code_of(exc: BaseException) -> ExitCode:
    """How a command ends that ``exc`` ended.

    Named errors go by their code, KeyboardInterrupt is 130, and everything else (a bug, an OSError) is 1.
    """
    match exc:
        case NodeError():
            return exc.exit_code
        case ModuleMeshError():
            return exit_code_for(exc.code)
        case KeyboardInterrupt():
            return ExitCode.INTERRUPTED
        case _:
            return ExitCode.FAILURE


def error_document(failure: Exception) -> Mapping[str, str | None]:
    """Code, message and hint of what an order ended with, for whoever asks how it stands."""
    if isinstance(failure, ModuleMeshError | NodeError):
        return {"code": str(failure.code), "message": failure.message, "hint": failure.hint}
    return {"code": NodeError.code, "message": str(failure), "hint": None}
