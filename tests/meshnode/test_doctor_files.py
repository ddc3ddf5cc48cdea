"""The home's folders and keys: for their user alone, and what they should be."""

import os
from pathlib import Path

import pytest
from doctor_subject import about, outcomes

from meshnode.doctor.files import check_files
from meshnode.doctor.subject import Subject
from meshnode.home import Home
from meshnode.identity import api_key, load_or_create_identity


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.create()
    load_or_create_identity(home)
    api_key(home)
    return home


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_home_as_it_is_made_is_well(home: Home) -> None:
    (finding,) = check_files(about(home))
    assert finding.outcome == "ok"


@pytest.mark.parametrize(
    ("name", "mode", "mended"),
    [
        ("path", 0o755, 0o700),
        ("state", 0o750, 0o700),
        ("trainer", 0o711, 0o700),
        ("identity_key", 0o644, 0o600),
        ("identity_key", 0o200, 0o600),
        ("api_key", 0o620, 0o600),
    ],
)
def test_a_wrong_mode_is_a_problem_until_it_is_fixed(home: Home, name: str, mode: int, mended: int) -> None:
    path = getattr(home, name)
    path.chmod(mode)
    ((outcome, message),) = outcomes(check_files, about(home))
    assert outcome == "problem"
    assert str(path) in message
    assert f"{mode:04o}" in message
    assert mode_of(path) == mode  # looking changes nothing
    assert [outcome for outcome, _ in outcomes(check_files, about(home), fix=True)] == ["fixed", "ok"]
    assert mode_of(path) == mended


def test_a_folder_that_is_no_nodes_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir(mode=0o755)
    (tmp_path / "pictures" / "family.jpg").touch()
    foreign = Home(tmp_path / "pictures")
    ((outcome, message),) = outcomes(check_files, about(foreign), fix=True)
    assert outcome == "problem"
    assert "not a node's folder" in message
    assert mode_of(foreign.path) == 0o755


def test_an_empty_folder_may_become_a_home(tmp_path: Path) -> None:
    empty = Home(tmp_path / "empty")
    empty.path.mkdir(mode=0o755)
    assert "fixed" in [outcome for outcome, _ in outcomes(check_files, about(empty), fix=True)]
    assert mode_of(empty.path) == 0o700


def test_one_fix_mends_what_the_first_mending_brings_to_light(home: Home) -> None:
    home.identity_key.chmod(0o644)
    home.path.chmod(0o755)
    assert [outcome for outcome, _ in outcomes(check_files, about(home), fix=True)] == ["fixed", "fixed", "ok"]


def test_a_key_that_only_its_user_can_read_is_well(home: Home) -> None:
    home.identity_key.chmod(0o400)
    assert [outcome for outcome, _ in outcomes(check_files, about(home))] == ["ok"]


def test_what_belongs_to_another_user_is_told_and_left(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    me = os.geteuid()
    monkeypatch.setattr("meshnode.doctor.files.os.geteuid", lambda: me + 1)
    (finding,) = check_files(about(home))
    assert finding.outcome == "problem"
    assert f"uid {me}" in finding.message
    assert finding.remedy is None
    assert f"chown -R {me + 1}" in (finding.hint or "")


@pytest.mark.parametrize("content", [b"", b"no key at all"])
def test_a_broken_identity_is_never_touched(home: Home, content: bytes) -> None:
    home.identity_key.write_bytes(content)
    home.identity_key.chmod(0o644)
    found = outcomes(check_files, about(home), fix=True)
    # The mode can be mended, the key cannot: the check goes on after the one and finds the other.
    assert [outcome for outcome, _ in found] == ["fixed", "problem"]
    assert "is no key" in found[1][1]
    assert home.identity_key.read_bytes() == content


def test_a_folder_in_place_of_a_key_is_a_problem(home: Home) -> None:
    home.identity_key.unlink()
    home.identity_key.mkdir()
    ((outcome, message),) = outcomes(check_files, about(home), fix=True)
    assert outcome == "problem"
    assert "directory" in message


def test_an_api_key_that_no_header_can_carry_is_a_problem(home: Home) -> None:
    home.api_key.write_bytes(b"\n")
    (finding,) = check_files(about(home))
    assert finding.outcome == "problem"
    assert "Remove it" in (finding.hint or "")
    assert home.api_key.read_bytes() == b"\n"


def test_a_home_without_keys_is_worth_a_note_and_gets_none(home: Home) -> None:
    home.identity_key.unlink()
    home.api_key.unlink()
    assert [outcome for outcome, _ in outcomes(check_files, about(home), fix=True)] == ["note"]
    assert not home.identity_key.exists()
    assert not home.api_key.exists()


def test_a_home_that_is_not_there_yet_is_no_problem(tmp_path: Path) -> None:
    ((outcome, _),) = outcomes(check_files, about(Home(tmp_path / "none")), fix=True)
    assert outcome == "note"
    assert not (tmp_path / "none").exists()


def test_a_file_in_place_of_the_home_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    subject = Subject.take_in(Home(tmp_path / "file"), dict)
    ((outcome, _),) = outcomes(check_files, subject)
    assert outcome == "problem"
