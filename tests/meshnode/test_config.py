"""Settings: their sources, their order, and what is said about mistakes."""

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cli_process import meshnode
from pydantic import ValidationError

from meshnode.home import Home
from meshnode.settings.config import (
    NodeConfig,
    Settings,
    SettingsRefused,
    Source,
    load_config,
    load_settings,
    settings_there_are,
)
from meshnode.settings.documents import settings_document
from meshnode.settings.layers import FLAGS, Origin
from meshnode.settings.sections import TeacherSetting

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


def refusal(home: Home, overrides: dict[str, object] | None = None) -> SettingsRefused:
    with pytest.raises(SettingsRefused) as caught:
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
    kind = "section" if text.startswith(f"[{wrong}]") else "setting"
    assert f"{wrong}: no such {kind} (in {home.config_toml})" in failure.message
    assert failure.hint is not None
    assert f"Did you mean {meant}?" in failure.hint


@pytest.mark.parametrize(
    ("variable", "wrong", "meant"),
    [
        ("MESHNODE_NET__PROT", "net.prot", "net.port"),
        ("MESHNODE_NET__PORT_", "net.port_", "net.port"),
        ("MESHNODE_NETT__PORT", "nett", "net"),
        ("MESHNODE_MY_NET__PORT", "my_net", "net"),
        ("MESHNODE_TRAINING__STEPS", "training", "train"),
        ("MESHNODE_MQTT__PASSWORD", "mqtt.password", "mqtt.password_file"),
    ],
)
def test_an_unknown_variable_is_refused_with_the_setting_that_was_meant(
    home: Home, monkeypatch: pytest.MonkeyPatch, variable: str, wrong: str, meant: str
) -> None:
    monkeypatch.setenv(variable, "hunter2")
    failure = refusal(home)
    kind = "setting" if "." in wrong else "section"
    assert failure.message == f"{wrong}: no such {kind} (in {variable})"
    assert failure.hint == f"Did you mean {meant}?"


def test_a_variable_may_be_written_in_small_letters(home: Home) -> None:
    assert load_settings(home, environment={"MESHNODE_net__port": "7"}).config.net.port == 7


def test_a_setting_like_no_other_is_refused_without_a_guess(home: Home) -> None:
    write(home, "[xyzzyplugh]\nq = 1")
    assert refusal(home).hint is None


def test_unknown_variables_and_flags_are_refused_and_named(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESHNODE_NETT__PORT", "1")
    failure = refusal(home, {"net.prot": 1})
    assert "nett: no such section (in MESHNODE_NETT__PORT)" in failure.message
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
        ("net.refresh", "0.5ms"),
        ("net.refresh", "25h"),
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
        ("log.format", "xml"),
        ("mqtt.url", "http://127.0.0.1"),
        ("mqtt.url", "mqtt://"),
        ("mqtt.url", "mqtt://h:65536"),
        ("mqtt.url", "mqtt://h/topic"),
        ("mqtt.prefix", "a/+/b"),
        ("mqtt.version", "4"),
        ("train.data", ""),
        ("train.data", "~nobody-of-this-name/tasks"),
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
        {"mqtt.password_file": "/pass"},
    ],
)
def test_settings_that_contradict_each_other_are_refused(home: Home, contradiction: dict[str, object]) -> None:
    section = next(iter(contradiction)).partition(".")[0]
    assert refusal(home, contradiction).message.startswith(f"{section}: ")


def test_all_problems_are_told_at_once_with_where_each_was_written(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home, "[net]\nport = -1\n[train]\nalpha = 2")
    monkeypatch.setenv("MESHNODE_LOG__LEVEL", "loud")
    message = refusal(home).message
    for part in ("net.port: ", "train.alpha: ", str(home.config_toml), "log.level: ", "MESHNODE_LOG__LEVEL"):
        assert part in message


def test_bounds_are_told_in_the_units_that_settings_are_written_in(home: Home) -> None:
    given_ = {"net.refresh": "25h", "net.port": 65536, "train.alpha": -0.5, "train.seed": 2**63, "net.record_ttl": 0}
    reasons = {problem.setting: problem.reason for problem in refusal(home, given_).problems}
    assert reasons == {
        "net.refresh": "must be at most 1d",
        "net.port": "must be at most 65535",
        "train.alpha": "must be at least 0",
        "train.seed": "must be less than 9223372036854775808",
        "net.record_ttl": "must be at least 1ms",
    }


def test_the_wrong_one_of_a_list_is_told(home: Home) -> None:
    write(home, '[net]\nannounce = ["/ip4/203.0.113.7/tcp/1", "203.0.113.7:1"]')
    assert refusal(home).problems[0].reason.startswith("entry 2: a multiaddress is expected")


def test_a_contradiction_is_told_beside_settings_that_do_not_exist_and_with_all_its_places(home: Home) -> None:
    write(home, '[average]\nevery = "5s"\nevry = 1\n[nett]\nport = 1')
    with pytest.raises(SettingsRefused) as caught:
        load_settings(home, {"net.port": -1}, environment={"MESHNODE_AVERAGE__TIMEOUT": "5s"})
    problems = {problem.setting: problem for problem in caught.value.problems}
    assert set(problems) == {"average.evry", "average", "nett", "net.port"}
    assert problems["average"].reason == "timeout must be shorter than every"
    assert problems["average"].where == f"{home.config_toml}, MESHNODE_AVERAGE__TIMEOUT"
    assert problems["net.port"].where == "--port"


def test_a_value_that_stands_where_a_section_should_is_told_as_that(home: Home) -> None:
    write(home, "net = 3")
    with pytest.raises(SettingsRefused) as caught:
        load_settings(home, environment={"MESHNODE_NET__PORT": "1"})
    assert [str(problem) for problem in caught.value.problems] == [
        f"net: must be a section: [net], with its settings below it (in {home.config_toml})"
    ]


@pytest.mark.parametrize(
    "url",
    ["mqtt://ann:hunter2@h", "mqtts://hunter2@h", "mqtt://ann:hunter2", "ann:hunter2@h", "mqtt://ann:hunter2@\u2100"],
)
def test_a_password_in_a_url_is_refused_and_never_repeated(home: Home, url: str) -> None:
    write(home, f"[mqtt]\nurl = {json.dumps(url)}")
    failure = refusal(home)
    assert [problem.setting for problem in failure.problems] == ["mqtt.url"]
    for said in (failure.message, str(failure.hint), str(failure.__cause__), repr(failure.__cause__)):
        assert "hunter2" not in said


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


@pytest.mark.parametrize("name", [setting.name for setting in settings_there_are() if setting.is_path])
def test_every_path_in_the_file_is_taken_from_the_home(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir("/")
    section, _, key = name.partition(".")

    def found(settings: Settings) -> object:
        return getattr(getattr(settings.config, section), key)

    user = {"mqtt.user": "ann"}  # a password needs somebody
    write(home, f'[{section}]\n{key} = "a/b"')
    assert found(load_settings(home, user)) == tmp_path / "a/b"
    write(home, f'[{section}]\n{key} = "/a/b"')
    assert found(load_settings(home, user)) == Path("/a/b")
    assert found(load_settings(home, user, environment={f"MESHNODE_{section}__{key}".upper(): "c"})) == Path("/c")


def test_the_paths_are_the_data_and_the_password_file() -> None:
    assert [setting.name for setting in settings_there_are() if setting.is_path] == ["train.data", "mqtt.password_file"]


def test_each_value_is_told_with_where_it_was_written(home: Home) -> None:
    write(home, '[net]\nport = 1\nrefresh = "1s"\nlisten = "0.0.0.0"')
    environment = {"MESHNODE_NET__PORT": "2", "MESHNODE_NET__REFRESH": "2s", "MESHNODE_NET__RECORD_TTL": ""}
    sources = load_settings(home, {"net.port": 3, "net.join": None}, environment=environment).sources
    assert sources["net.listen"] == Source(Origin.FILE, "config.toml")
    assert sources["net.refresh"] == Source(Origin.ENV, "MESHNODE_NET__REFRESH")
    assert sources["net.port"] == Source(Origin.FLAG, "--port")
    for untouched in ("net.record_ttl", "net.join", "node.name"):
        assert sources[untouched] == Source(Origin.DEFAULT, None)
    assert sources.keys() == {setting.name for setting in settings_there_are()}


def test_a_value_that_equals_the_default_still_comes_from_where_it_was_written(home: Home) -> None:
    write(home, "[net]\nport = 0")
    assert load_settings(home).sources["net.port"].origin is Origin.FILE


def test_another_file_is_read_in_place_of_the_homes_with_the_homes_folder(home: Home, tmp_path: Path) -> None:
    write(home, "[net]\nport = 1")
    other = tmp_path / "elsewhere" / "other.toml"
    other.parent.mkdir()
    other.write_text('[train]\ndata = "tasks"')
    settings = load_settings(home, file=other)
    assert (settings.path, settings.config.net.port) == (other, 0)
    assert settings.config.train.data == tmp_path / "tasks"
    assert settings.sources["train.data"] == Source(Origin.FILE, "other.toml")


def test_the_options_named_as_sources_are_those_that_run_has() -> None:
    shown = meshnode("run", "--help").out + meshnode("--help").out
    assert FLAGS.keys() <= {setting.name for setting in settings_there_are()}
    for option in set(" or ".join(FLAGS.values()).split(" or ")):
        assert re.search(rf"{option}\b", shown), option


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
    modules = "meshnode.settings.config, meshnode.lock, meshnode.identity, meshnode.state.state"
    code = f"import sys, {modules}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "hivemind", "fastapi", "sklearn", "scipy", "matplotlib", "pydantic_settings"} & set(loaded)


def test_teachers_are_names_or_tables(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.config_toml.write_text(
        '[train]\nteachers = ["package:efficientnet-lite0",'
        ' { name = "file:/models/a.safetensors", weight = 2, mapping = "/models/a.toml" }]\nown_teacher = false\n'
    )
    train = load_config(home).train
    assert [teacher.name for teacher in train.teachers] == ["package:efficientnet-lite0", "file:/models/a.safetensors"]
    assert [teacher.weight for teacher in train.teachers] == [1.0, 2.0]
    assert train.teachers[1].mapping == Path("/models/a.toml")
    (entry,) = (
        entry for entry in settings_document(load_settings(home))["settings"] if entry["name"] == "train.teachers"
    )
    assert entry["value"] == [
        "package:efficientnet-lite0",
        {"name": "file:/models/a.safetensors", "weight": 2.0, "mapping": "/models/a.toml"},
    ]
    assert load_config(home, {"train.teachers": entry["value"]}).train.teachers == train.teachers
    assert load_settings(home, environment={"MESHNODE_TRAIN__TEACHERS": "timm:a, hf:b"}).config.train.teachers == (
        TeacherSetting(name="timm:a"),
        TeacherSetting(name="hf:b"),
    )


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("own_teacher = false", "needs a teacher"),
        ('teachers = ["timm:a", "timm:a"]', "twice"),
        ('teachers = ["timm:b", { name = "timm:a", weight = 0 }]', "entry 2: weight: must be more than 0"),
        ('teachers = ["timm:b", 3]', "entry 2: must be text or a table"),
        ("teachers = [[3]]", "entry 1: must be text or a table"),
        ('teachers = [{ name = "timm:a", mapping = "a.toml" }]', "absolute"),
        ("teachers = [{ weight = 2.0 }]", "name"),
        ("logit_cache_mib = 0", "at least 1"),
    ],
)
def test_teachers_that_contradict_themselves_are_refused(tmp_path: Path, line: str, told: str) -> None:
    home = Home(tmp_path)
    home.config_toml.write_text(f"[train]\n{line}\n")
    with pytest.raises(SettingsRefused) as caught:
        load_config(home)
    assert told in str(caught.value)
