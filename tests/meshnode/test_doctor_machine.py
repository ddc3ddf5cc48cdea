"""What a node needs of its machine and settings: something to learn, a device, room."""

from pathlib import Path
from typing import Any

import pytest
import torch
from doctor_subject import about, outcomes

from meshnode.doctor.data import check_data
from meshnode.doctor.disk import MIN_FREE_BYTES, check_disk
from meshnode.doctor.gpu import Machine, check_gpu, judge, look_at_machine, torch_builds
from meshnode.doctor.settings import check_config
from meshnode.doctor.subject import Subject
from meshnode.home import Home

GPU_MACHINE = Machine(torch=True, built_for="CUDA 12.4", driver=True, num_gpus=1)
CPU_BUILD = Machine(torch=True, built_for=None, driver=True, num_gpus=1)
NO_DRIVER = Machine(torch=True, built_for="CUDA 12.4", driver=False, num_gpus=0)
PLAIN = Machine(torch=True, built_for=None, driver=False, num_gpus=0)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_settings_that_cannot_be_followed_are_one_problem(home: Home) -> None:
    home.config_toml.write_text("[net]\nport = -1\n[trian]\n")
    subject = Subject.take_in(home, dict)
    (finding,) = check_config(subject)
    assert finding.outcome == "problem"
    assert "net.port" in finding.message
    assert "trian" in finding.message
    assert "train" in (finding.hint or "")
    for check in (check_data, check_gpu):
        assert list(check(subject)) == []  # nothing is said of settings that nobody has


def test_settings_are_named_or_said_to_be_the_defaults(home: Home) -> None:
    ((outcome, message),) = outcomes(check_config, about(home))
    assert (outcome, "default" in message) == ("ok", True)
    home.config_toml.write_text("")
    assert outcomes(check_config, about(home)) == [("ok", str(home.config_toml))]


def test_settings_changed_after_the_start_are_worth_a_note(home: Home) -> None:
    ((outcome, _),) = outcomes(check_config, about(home, status={"config": {"changed": True}}))
    assert outcome == "note"


def test_a_node_without_data_is_worth_a_note_unless_it_is_not_to_learn(home: Home) -> None:
    assert [outcome for outcome, _ in outcomes(check_data, about(home))] == ["note"]
    assert [outcome for outcome, _ in outcomes(check_data, about(home, {"train.enabled": False}))] == ["ok"]


def test_the_data_folder_is_counted_and_never_opened(home: Home, tmp_path: Path) -> None:
    data = tmp_path / "data"
    settings: dict[str, object] = {"train.data": str(data)}
    assert [outcome for outcome, _ in outcomes(check_data, about(home, settings))] == ["problem"]
    data.mkdir()
    assert [outcome for outcome, _ in outcomes(check_data, about(home, settings))] == ["note"]
    (data / "readme.txt").touch()
    (data / "1.npz").symlink_to("nowhere")
    assert outcomes(check_data, about(home, settings)) == [("ok", f"task files in {data}: 1")]


def test_task_files_that_the_daemon_cannot_use_are_problems(home: Home, tmp_path: Path) -> None:
    training = {"state": "idle", "data": str(tmp_path), "unreadable": {"a": "no images"}, "failed": {"b": "bad"}}
    assert outcomes(check_data, about(home, status={"training": training})) == [
        ("problem", "task file a cannot be read: no images"),
        ("problem", "task file b could not be learned: bad"),
    ]


def test_teachers_that_the_daemon_cannot_use_are_problems(home: Home, tmp_path: Path) -> None:
    training = {"state": "waiting", "data": str(tmp_path), "unusable_teachers": {"file:/{x}": "there is no file"}}
    assert outcomes(check_data, about(home, status={"training": training})) == [
        ("problem", "nothing is learned without the teacher file:/{x}: there is no file"),
    ]


def test_a_running_daemons_folder_goes_before_the_settings(home: Home, tmp_path: Path) -> None:
    training = {"state": "idle", "data": str(tmp_path / "absent")}
    ((outcome, message),) = outcomes(check_data, about(home, {"train.enabled": False}, status={"training": training}))
    assert (outcome, str(tmp_path / "absent") in message) == ("problem", True)


@pytest.mark.parametrize(
    ("setting", "required", "machine", "outcome", "words"),
    [
        ("auto", False, GPU_MACHINE, "ok", "CUDA 12.4"),
        ("auto", False, PLAIN, "ok", "without CUDA"),
        ("auto", False, NO_DRIVER, "ok", "driver is not loaded"),
        ("auto", False, CPU_BUILD, "note", "without CUDA"),
        ("cpu", False, CPU_BUILD, "ok", "compute.device"),
        ("auto", True, CPU_BUILD, "problem", "a GPU is asked for"),
        ("auto", True, NO_DRIVER, "problem", "driver is not loaded"),
        ("auto", True, GPU_MACHINE, "ok", "CUDA 12.4"),
        ("cuda:0", False, GPU_MACHINE, "ok", "CUDA 12.4"),
        ("cuda:1", False, GPU_MACHINE, "problem", "cuda:1 is asked for"),
        ("cuda:0", False, PLAIN, "problem", "without CUDA"),
        ("cuda:0", False, Machine(torch=True, built_for="ROCm 6.2", driver=False, num_gpus=0), "ok", "ROCm 6.2"),
        ("cpu", False, Machine(torch=False, built_for=None, driver=False, num_gpus=0), "problem", "not installed"),
    ],
)
def test_a_device_that_cannot_be_had_is_a_problem_and_one_left_unused_a_note(
    setting: str, required: bool, machine: Machine, outcome: str, words: str
) -> None:
    finding = judge(setting, machine, required=required)
    assert finding.outcome == outcome
    assert words in finding.message
    assert (finding.hint is None) == (outcome == "ok")


def test_a_running_daemons_device_is_told_with_its_reason(home: Home) -> None:
    status: dict[str, Any] = {"device": {"used": "cpu", "reason": "torch finds no GPU"}}
    assert outcomes(check_gpu, about(home, status=status)) == [
        ("ok", "the daemon computes on cpu (torch finds no GPU)"),
    ]


@pytest.mark.parametrize(
    ("text", "built_for"),
    [
        ("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\nhip: Optional[str] = None\n", None),
        ("cuda: Optional[str] = '12.4'\nhip: Optional[str] = None\n", "CUDA 12.4"),
        ('cuda = "11.8"\n', "CUDA 11.8"),
        ("cuda: Optional[str] = None\nhip: Optional[str] = '6.2.41133'\n", "ROCm 6.2.41133"),
        ("nothing of the kind\n", None),
    ],
)
def test_what_torch_is_built_for_is_read_from_its_version_file(
    tmp_path: Path, text: str, built_for: str | None
) -> None:
    path = tmp_path / "version.py"
    path.write_text(text)
    assert torch_builds(path) == built_for


def test_the_installed_torch_is_found_as_it_says_of_itself(tmp_path: Path) -> None:
    found = look_at_machine(tmp_path / "no-driver")
    expected = None if torch.version.cuda is None else f"CUDA {torch.version.cuda}"
    assert found == Machine(torch=True, built_for=expected, driver=False, num_gpus=0)


def test_the_driver_tells_of_its_gpus(tmp_path: Path) -> None:
    (tmp_path / "version").touch()
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / "gpus" / name).mkdir(parents=True)
    found = look_at_machine(tmp_path)
    assert (found.driver, found.num_gpus) == (True, 2)


def test_a_full_disk_is_a_problem_even_before_the_home_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Usage:
        free = MIN_FREE_BYTES

    def disk_usage(path: str) -> Usage:
        asked.append(path)
        return Usage()

    monkeypatch.setattr("psutil.disk_usage", disk_usage)
    subject = about(Home(tmp_path / "not" / "yet"))
    assert [outcome for outcome, _ in outcomes(check_disk, subject)] == ["ok"]
    Usage.free = MIN_FREE_BYTES - 1
    assert [outcome for outcome, _ in outcomes(check_disk, subject)] == ["problem"]
    assert asked == [str(tmp_path)] * 2
