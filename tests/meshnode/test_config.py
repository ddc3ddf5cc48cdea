"""Settings: their sources, their order, and what is said about mistakes."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from meshnode.config import NodeConfig, load_config
from meshnode.errors import ConfigInvalid
from meshnode.home import Home

PEER = "Qm" + "a" * 44


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MESHNODE_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def write(home: Home, text: str) -> None:
    home.config_toml.write_text(text, encoding="utf-8")


def refusal(home: Home, overrides: dict[str, object] | None = None) -> ConfigInvalid:
    with pytest.raises(ConfigInvalid) as caught:
        load_config(home, overrides)
    return caught.value


def test_without_a_file_the_defaults_hold(home: Home) -> None:
    config = load_config(home)
    assert config.net.listen == "127.0.0.1"
    assert config.net.port == 0
    assert config.net.join == ()
    assert config.net.record_ttl_s == 60.0
    assert config.average.every_s == 10.0
    assert config.train.steps == 1900
    assert config.api.listen == "127.0.0.1:0"
    assert config.mesh.id is None


def test_the_default_name_is_the_machines_and_always_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    for host, name in [("my-pc.lan", "my-pc"), ("Bob's Mac", "Bob-s-Mac"), ("", "node"), ("日本", "node")]:
        monkeypatch.setattr(platform, "node", lambda host=host: host)
        config = NodeConfig()
        assert config.node.name == name
        NodeConfig.model_validate({"node": {"name": config.node.name}})


def test_flags_override_the_environment_which_overrides_the_file(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home, '[net]\nport = 1\nrefresh = "1s"\nlisten = "0.0.0.0"\n[log]\nlevel = "debug"')
    monkeypatch.setenv("MESHNODE_NET__PORT", "2")
    monkeypatch.setenv("MESHNODE_NET__REFRESH", "2s")
    config = load_config(home, {"net.port": 3})
    assert (config.net.port, config.net.refresh_s, config.net.listen) == (3, 2.0, "0.0.0.0")
    assert config.log.level == "debug"


def test_flags_not_given_and_empty_variables_change_nothing(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home, "[net]\nport = 7")
    monkeypatch.setenv("MESHNODE_NET__PORT", "")
    monkeypatch.setenv("MESHNODE_HOME", str(home.path))
    assert load_config(home, {"net.port": None}).net.port == 7


def test_the_environment_gives_lists_with_commas_and_booleans_as_words(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = f"/ip4/203.0.113.7/tcp/1/p2p/{PEER}", f"/dns4/a.example/tcp/2/p2p/{PEER}"
    monkeypatch.setenv("MESHNODE_NET__JOIN", f"{first}, {second}")
    monkeypatch.setenv("MESHNODE_TRAIN__ENABLED", "false")
    config = load_config(home)
    assert config.net.join == (first, second)
    assert config.train.enabled is False


def test_spans_are_seconds_whatever_their_unit(home: Home) -> None:
    write(home, '[average]\nevery = "2m"\ntimeout = "500ms"\n[net]\ncall_timeout = 3')
    config = load_config(home)
    assert (config.average.every_s, config.average.timeout_s, config.net.call_timeout_s) == (120.0, 0.5, 3.0)


@pytest.mark.parametrize(
    ("text", "wrong", "meant"),
    [
        ("[net]\nprot = 1", "net.prot", "net.port"),
        ("[net]\nrefresh_s = 1", "net.refresh_s", "net.refresh"),
        ("[nett]\nport = 1", "nett", "net"),
        ("port = 1", "port", "net.port"),
        ('[net]\nname = "a"', "net.name", "node.name"),
        ("[average]\nperiod = 1\nevry = 2", "average.evry", "average.every"),
    ],
)
def test_an_unknown_setting_is_refused_with_the_one_that_was_meant(
    home: Home, text: str, wrong: str, meant: str
) -> None:
    write(home, text)
    failure = refusal(home)
    assert f"{wrong}: no such setting (in {home.config_toml})" in failure.message
    assert failure.hint is not None
    assert f"Did you mean {meant}?" in failure.hint


def test_a_setting_like_no_other_is_refused_without_a_guess(home: Home) -> None:
    write(home, "[xyzzyplugh]\nq = 1")
    assert refusal(home).hint is None


def test_unknown_variables_and_flags_are_refused_and_named(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESHNODE_NETT__PORT", "1")
    failure = refusal(home, {"net.prot": 1})
    assert "nett: no such setting (in the environment)" in failure.message
    assert "net.prot: no such setting (in the command line)" in failure.message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("node.name", "two words"),
        ("node.name", "a" * 65),
        ("net.listen", "localhost"),
        ("net.port", 65536),
        ("net.port", "http"),
        ("net.join", ["/ip4/203.0.113.7/tcp/1"]),
        ("net.join", "not an address"),
        ("net.announce", ["203.0.113.7:1"]),
        ("net.refresh", "0s"),
        ("net.refresh", "soon"),
        ("net.record_ttl", "301s"),
        ("mesh.id", "A" * 64),
        ("compute.device", "gpu"),
        ("compute.device", "cuda"),
        ("compute.threads", 0),
        ("train.learning_rate", 0),
        ("train.learning_rate", float("nan")),
        ("train.alpha", 1.1),
        ("train.temperature", float("inf")),
        ("train.steps", 1.5),
        ("api.listen", "127.0.0.1"),
        ("api.listen", "127.0.0.1:99999"),
        ("api.listen", "::1:80:x"),
        ("log.level", "loud"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(home: Home, name: str, value: object) -> None:
    assert refusal(home, {name: value}).message.startswith(f"{name}: ")


@pytest.mark.parametrize(
    "contradiction",
    [
        {"average.every": "5s", "average.timeout": "5s"},
        {"net.refresh": "60s"},
        {"compute.device": "cpu", "compute.require_gpu": True},
    ],
)
def test_settings_that_contradict_each_other_are_refused(home: Home, contradiction: dict[str, object]) -> None:
    section = next(iter(contradiction)).partition(".")[0]
    assert refusal(home, contradiction).message.startswith(f"{section}: ")


def test_all_problems_are_told_at_once_with_where_each_was_written(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home, "[net]\nport = -1\n[train]\nalpha = 2")
    monkeypatch.setenv("MESHNODE_LOG__LEVEL", "loud")
    message = refusal(home).message
    for part in ("net.port: ", "train.alpha: ", str(home.config_toml), "log.level: ", "the environment"):
        assert part in message


@pytest.mark.parametrize("content", [b"[net", b"\xff\xfe", b"net = 3\n"])
def test_a_file_that_is_none_is_refused(home: Home, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    home.config_toml.write_bytes(content)
    monkeypatch.setenv("MESHNODE_NET__PORT", "1")
    assert str(home.config_toml) in refusal(home).message or "net: " in refusal(home).message


def test_a_relative_folder_is_the_homes_in_the_file_and_the_users_in_a_flag(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    write(home, '[train]\ndata = "tasks"')
    assert load_config(home).train.data == tmp_path / "tasks"
    assert load_config(home, {"train.data": "tasks"}).train.data == Path("/tasks")
    monkeypatch.setenv("HOME", "/home/ann")
    write(home, '[train]\ndata = "~/tasks"')
    assert load_config(home).train.data == Path("/home/ann/tasks")


def test_a_loaded_config_cannot_be_changed(home: Home) -> None:
    config = load_config(home)
    with pytest.raises(ValidationError):
        config.net.port = 1  # type: ignore[misc]
    with pytest.raises(ValidationError):
        config.net = config.net  # type: ignore[misc]


def test_the_config_can_be_handed_to_another_process_and_back(home: Home) -> None:
    config = load_config(home, {"net.refresh": "250ms", "train.data": "/tasks"})
    assert NodeConfig.model_validate_json(config.model_dump_json(by_alias=True)) == config


def test_importing_the_config_brings_in_nothing_heavy() -> None:
    modules = "meshnode.config, meshnode.lock, meshnode.identity, meshnode.state.state"
    code = f"import sys, {modules}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "hivemind", "fastapi", "sklearn", "scipy", "matplotlib", "pydantic_settings"} & set(loaded)
