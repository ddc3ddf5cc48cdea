"""What a kill leaves behind goes; what is in use, or somebody else's, stays."""

import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from doctor_subject import about, outcomes

from meshnode.doctor import leftovers
from meshnode.doctor.leftovers import check_leftovers, stale_sockets
from meshnode.home import Home
from meshnode.lock import DaemonLock


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """In place of /tmp, with a path short enough for a socket's."""
    path = Path(tempfile.mkdtemp(dir="/tmp"))
    monkeypatch.setattr(leftovers, "SOCKET_FOLDER", path)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.create()
    return home


def bound(path: Path, *, listening: bool) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    if listening:
        server.listen()
    return server


def test_only_a_socket_that_nobody_has_open_is_stale(folder: Path, home: Home) -> None:
    stale, live, starting = (folder / f"hivemind-p2pd-{name}.sock" for name in ("stale", "live", "starting"))
    client = folder / "hivemind-p2pclient-stale.sock"
    other = folder / "other-stale.sock"
    for path in (stale, client, other):
        bound(path, listening=True).close()
    (folder / "hivemind-p2pd-file.sock").touch()
    with bound(live, listening=True) as server, bound(starting, listening=False):
        assert stale_sockets(folder) == [client, stale]
        assert [outcome for outcome, _ in outcomes(check_leftovers, about(home), fix=True)] == ["fixed", "ok"]
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()  # it was not even tried
    assert sorted(path.name for path in folder.iterdir()) == [
        "hivemind-p2pd-file.sock",
        "hivemind-p2pd-live.sock",
        "hivemind-p2pd-starting.sock",
        "other-stale.sock",
    ]


def test_a_socket_that_answers_stays_though_it_is_not_listed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "_bound_sockets", set)  # as with one of another network namespace
    with bound(folder / "hivemind-p2pd-live.sock", listening=True):
        assert stale_sockets(folder) == []


def test_without_fix_everything_stays(folder: Path, home: Home) -> None:
    stale = folder / "hivemind-p2pd-stale.sock"
    bound(stale, listening=True).close()
    ((outcome, message),) = outcomes(check_leftovers, about(home))
    assert outcome == "note"
    assert message.endswith(": 1")
    assert stale.exists()


def test_another_users_sockets_are_not_looked_at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bound(folder / "hivemind-p2pd-stale.sock", listening=True).close()
    me = os.geteuid()
    monkeypatch.setattr(leftovers.os, "geteuid", lambda: me + 1)
    assert stale_sockets(folder) == []


def test_the_sockets_are_where_hivemind_puts_them() -> None:
    spec = find_spec("hivemind")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).with_name("p2p").joinpath("p2p_daemon.py").read_text()
    found = re.search(r'_UNIX_SOCKET_PREFIX = "/unix(.+)"', source)
    assert found is not None
    for name in ("p2pd", "p2pclient"):
        assert f'_UNIX_SOCKET_PREFIX + f"{name}-{{socket_uid}}.sock"' in source
        assert any(
            Path(f"{found[1]}{name}-x.sock").match(str(leftovers.SOCKET_FOLDER / one)) for one in leftovers.SOCKETS
        )


def half_written(folder: Path, name: str, *, age_s: float) -> Path:
    path = folder / name
    path.touch()
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def test_old_half_written_files_go_when_no_daemon_runs(folder: Path, home: Home) -> None:
    ours = f".config.toml.{'0a' * 8}.tmp"
    old = [half_written(place, ours, age_s=90) for place in (home.path, home.state, home.blobs, home.trainer)]
    fresh = half_written(home.path, f".daemon.json.{'0b' * 8}.tmp", age_s=30)
    foreign = half_written(home.path, "notes.tmp", age_s=90)
    found = outcomes(check_leftovers, about(home), fix=True)
    assert [outcome for outcome, _ in found] == ["fixed", "ok"]
    assert "to the end: 4" in found[0][1]
    assert not any(path.exists() for path in old)
    assert fresh.exists()
    assert foreign.exists()


def test_a_daemons_files_are_its_own(folder: Path, home: Home) -> None:
    old = half_written(home.state, f".x.{'0a' * 8}.tmp", age_s=90)
    assert [outcome for outcome, _ in outcomes(check_leftovers, about(home, status={}), fix=True)] == ["ok"]
    with DaemonLock(home):  # it has started since the home was taken in
        assert [outcome for outcome, _ in outcomes(check_leftovers, about(home), fix=True)] == ["note"]
    assert old.exists()
