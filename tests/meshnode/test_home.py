"""The home folder and its atomic writes."""

import os
import stat
import threading
from pathlib import Path

import pytest

from meshnode.home import DaemonNote, Home, create_atomically, default_home, write_atomically


def test_folders_are_made_for_their_user_only(tmp_path: Path) -> None:
    home = Home(tmp_path / "deep" / "home")
    home.create()
    home.create()
    for folder in (home.path, home.state, home.blobs, home.trainer):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_environment_chooses_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MESHNODE_HOME", str(tmp_path))
    assert default_home() == Home(tmp_path)
    monkeypatch.setenv("MESHNODE_HOME", "")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert default_home() == Home(tmp_path / "data" / "modulemesh")


def test_a_write_has_the_mode_asked_for_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_atomically(tmp_path / "open", b"1", 0o644)
    finally:
        os.umask(before)
    write_atomically(tmp_path / "closed", b"1")
    assert stat.S_IMODE((tmp_path / "open").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "closed").stat().st_mode) == 0o600


def test_contents_are_synced_before_the_name_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def watch(name: str) -> None:
        real = getattr(os, name)

        def watched(*args: object) -> object:
            kind = ""
            if name == "fsync":
                descriptor = args[0]
                assert isinstance(descriptor, int)
                kind = " folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else " file"
            calls.append(name + kind)
            return real(*args)

        monkeypatch.setattr(os, name, watched)

    for name in ("fsync", "replace", "link"):
        watch(name)
    write_atomically(tmp_path / "a", b"new")
    assert calls == ["fsync file", "replace", "fsync folder"]
    calls.clear()
    assert create_atomically(tmp_path / "b", b"new")
    assert calls == ["fsync file", "link", "fsync folder"]


@pytest.mark.parametrize("failing", ["posix_fallocate", "fsync", "replace"])
def test_a_failing_disk_leaves_the_old_content_and_no_litter(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_empty_content_can_be_written(tmp_path: Path) -> None:
    write_atomically(tmp_path / "empty", b"")
    assert (tmp_path / "empty").read_bytes() == b""


def test_creating_never_replaces(tmp_path: Path) -> None:
    assert create_atomically(tmp_path / "file", b"first")
    assert not create_atomically(tmp_path / "file", b"second")
    assert (tmp_path / "file").read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["file"]


def test_of_many_creators_one_wins_and_all_see_its_content(tmp_path: Path) -> None:
    path, outcomes = tmp_path / "file", []
    barrier = threading.Barrier(8)

    def create(number: int) -> None:
        barrier.wait()
        outcomes.append((create_atomically(path, b"%d" % number), number))

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [number for won, number in outcomes if won]
    assert path.read_bytes() == b"%d" % winner


def test_a_daemon_note_comes_back_as_written(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert home.read_daemon_note() is None
    home.write_daemon_note(DaemonNote(4711, "http://127.0.0.1:40123"))
    assert home.read_daemon_note() == DaemonNote(4711, "http://127.0.0.1:40123")
    home.remove_daemon_note()
    home.remove_daemon_note()
    assert home.read_daemon_note() is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"pid": "1", "url": "u"}', b'{"pid": 1}'])
def test_a_garbled_daemon_note_counts_as_none(content: bytes, tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.daemon_json.write_bytes(content)
    assert home.read_daemon_note() is None
