"""Nothing in these tests reaches the network: whoever tries is told so by an error."""

import socket
from pathlib import Path

import pytest
import torch


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """The default run leaves these files unread: their libraries need not be installed."""
    return True if config.option.markexpr == "not teachers" else None


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """No host can be reached, and every cache is an empty folder; tells which hosts were asked for."""
    asked: list[object] = []

    def refuse(*address: object, **_: object) -> None:
        asked.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch-hub"))
    return asked


@pytest.fixture
def small_images() -> torch.Tensor:
    """Three colour images of 32 pixels in [0, 1]."""
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
