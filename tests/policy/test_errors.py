"""Every error has one code of its own, an exit code, a status in HTTP and, where it can be helped, a hint."""

import importlib
import pkgutil
from collections.abc import Iterator

import pytest
from wire_examples import ERRORS

import experts
import meshnode
import protocol
from meshnode.api.replies import failure_response
from meshnode.errors import EXIT_CODES, ExitCode, NodeError, exit_code_for
from protocol.errors import ErrorCode, ModuleMeshError


def every_class(root: type[Exception]) -> Iterator[type[Exception]]:
    """All classes below `root`, once every module of the project is imported."""
    for package in (meshnode, protocol, experts):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    pending = [root]
    while pending:
        for below in pending.pop().__subclasses__():
            if below.__module__.startswith(("meshnode", "protocol", "experts")):
                pending.append(below)
                yield below


def test_every_code_of_the_mesh_has_an_exit_code_that_was_chosen() -> None:
    assert set(ErrorCode) <= set(EXIT_CODES)


def test_every_error_of_the_mesh_has_the_code_of_a_class_of_its_own() -> None:
    codes = [below.code for below in every_class(ModuleMeshError) if "code" in vars(below)]  # type: ignore[attr-defined]
    assert sorted(codes) == sorted(ErrorCode)


def test_every_error_of_the_node_ends_the_command_alike_by_its_class_and_by_its_code() -> None:
    classes = [below for below in every_class(NodeError) if isinstance(getattr(below, "code", None), str)]
    assert len(classes) >= 11
    for below in classes:
        assert below.exit_code is exit_code_for(below.code), below  # type: ignore[attr-defined]


def test_no_two_errors_of_the_node_have_one_code() -> None:
    own = [vars(below)["code"] for below in every_class(NodeError) if "code" in vars(below)]
    assert len(set(own)) == len(own)
    assert not set(own) & set(ErrorCode)


def test_every_exit_code_but_those_of_no_error_is_some_errors() -> None:
    by_an_error = {below.exit_code for below in every_class(NodeError) if hasattr(below, "exit_code")}  # type: ignore[attr-defined]
    elsewhere = {ExitCode.OK, ExitCode.USAGE, ExitCode.CHECK_FAILED, ExitCode.INTERRUPTED}
    assert by_an_error | elsewhere == set(ExitCode)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_every_error_of_the_mesh_has_a_status_in_http(error: ModuleMeshError) -> None:
    answer = failure_response(error)
    assert answer.status_code in {400, 404, 409, 413, 502, 503, 504}
    assert error.code in bytes(answer.body).decode()
