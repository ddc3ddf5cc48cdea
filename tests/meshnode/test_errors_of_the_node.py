"""Exit codes: each named failure ends the command as the interface promises."""

from pathlib import Path

import pytest

from meshnode import errors
from meshnode.errors import ExitCode, NodeError, exit_code_for, exit_code_of
from protocol.errors import Busy, CallTimeout, ErrorCode, MeshMismatch, NoRoute, UnknownExpert
from protocol.identifiers import ExpertUid, MeshId, PeerId

PEER = PeerId("Qm" + "a" * 44)


@pytest.mark.parametrize(
    ("failure", "number"),
    [
        (errors.ConfigInvalid("net.port: too large"), 3),
        (errors.DaemonNotRunning(Path("/home")), 4),
        (errors.AlreadyRunning(12, "http://127.0.0.1:1"), 5),
        (errors.PortInUse("127.0.0.1", 4001), 6),
        (errors.Refused("no"), 7),
        (errors.NoSuchPeerOrExpert("bob"), 8),
        (errors.Timeout("the answer", 5.0), 9),
        (errors.ResourceAbsent("no GPU"), 11),
        (errors.IdentityUnusable(Path("identity.key"), "empty"), 12),
        (errors.StateUnreadable(Path("ledger"), "damaged"), 1),
        (errors.StateTooNew(Path("ledger"), found=9, supported=1), 1),
        (MeshMismatch(MeshId("a" * 64), MeshId("b" * 64)), 7),
        (NoRoute(classes=("cat",)), 8),
        (UnknownExpert(ExpertUid("a" * 64)), 8),
        (CallTimeout(PEER, "forward", 5.0), 9),
        (Busy(1.0), 1),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError(), 1),
    ],
)
def test_each_failure_has_the_exit_code_of_its_kind(failure: BaseException, number: int) -> None:
    assert exit_code_of(failure) == number


def test_an_error_known_only_by_its_code_ends_the_command_alike() -> None:
    assert exit_code_for("no_route") == exit_code_for("no_such_peer_or_expert") == ExitCode.NO_SUCH_PEER_OR_EXPERT
    assert exit_code_for("of a newer version") == ExitCode.FAILURE


def test_codes_of_node_and_mesh_never_coincide() -> None:
    # A class without a code of its own (what the API answered) takes whichever the daemon named.
    own = [error_type.code for error_type in NodeError.__subclasses__() if "code" in vars(error_type)]
    codes = [*own, NodeError.code, *ErrorCode]
    assert len(set(codes)) == len(codes)


def test_already_running_names_process_and_url() -> None:
    failure = errors.AlreadyRunning(4711, "http://127.0.0.1:40123")
    assert "4711" in failure.message
    assert "http://127.0.0.1:40123" in failure.message
    assert "still starting" in errors.AlreadyRunning(4711, None).message
