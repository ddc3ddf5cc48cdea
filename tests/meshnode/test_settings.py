"""Settings as they are shown: values that load again, what a changed file would change, and the pages."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from meshnode.home import Home
from meshnode.settings.config import SettingsRefused, load_config, load_settings, settings_there_are
from meshnode.settings.documents import description_of, pending_settings, settings_document

PEER = "Qm" + "a" * 44
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MESHNODE_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def write(home: Home, text: str) -> None:
    home.config_toml.write_text(text, encoding="utf-8")


def test_the_document_shows_values_as_people_write_them(home: Home, tmp_path: Path) -> None:
    (refresh,) = (setting for setting in settings_there_are() if setting.name == "net.refresh")
    assert description_of(refresh).startswith("How often the records of the mesh are read again")
    write(home, '[net]\nrefresh = 0.5\n[train]\ndata = "tasks"')
    document = settings_document(load_settings(home, {"net.join": f"/ip4/203.0.113.7/tcp/1/p2p/{PEER}"}))
    assert json.loads(json.dumps(document)) == document
    assert (document["schema"], document["path"]) == ("meshnode.config/1", str(home.config_toml))
    entries = {entry["name"]: entry for entry in document["settings"]}
    assert entries["net.refresh"] == {
        "name": "net.refresh",
        "value": "500ms",
        "origin": "file",
        "source": "config.toml",
        "default": "5s",
        "description": description_of(refresh),
    }
    assert (entries["train.data"]["value"], entries["train.data"]["default"]) == (str(tmp_path / "tasks"), None)
    assert entries["net.join"]["value"] == [f"/ip4/203.0.113.7/tcp/1/p2p/{PEER}"]
    assert (entries["net.join"]["origin"], entries["net.join"]["source"]) == ("flag", "--join")


def test_every_setting_says_what_it_is_for() -> None:
    assert [setting.name for setting in settings_there_are() if not description_of(setting)] == []


def as_toml(values: Mapping[str, Any]) -> str:
    """A config.toml of values of JSON's types by dotted name; null is left out, for TOML has none."""
    lines = (
        # A JSON string is a TOML basic string, but for DEL, which JSON leaves bare.
        f"{name} = {json.dumps(value, ensure_ascii=False)}\n".replace("\x7f", "\\u007f")
        for name, value in values.items()
        if value is not None
    )
    return "".join(lines)


SPANS_S = st.floats(0.001, 100.0)
VALUES = st.fixed_dictionaries(
    {},
    optional={
        "node.name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True),
        "net.port": st.integers(0, 65535),
        "net.join": st.lists(st.just(f"/dns4/a.example/tcp/2/p2p/{PEER}"), max_size=3),
        "net.call_timeout": SPANS_S,
        "serve.timeout": SPANS_S,
        "mqtt.every": SPANS_S,
        "mesh.id": st.just("ab" * 32),
        "compute.device": st.sampled_from(["auto", "cpu", "cuda:7"]),
        "compute.threads": st.integers(1, 1024),
        "train.enabled": st.booleans(),
        "train.learning_rate": st.floats(0, 10, exclude_min=True),
        "train.data": st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1),
        "train.seed": st.integers(0, 2**63 - 1),
        "api.listen": st.sampled_from(["[::1]:0", "127.0.0.1:8080"]),
        "mqtt.user": st.text(st.characters(codec="utf-8", exclude_categories=["Cs"])),
        "mqtt.version": st.sampled_from(["3.1.1", "5"]),
    },
)


@given(VALUES)
@hypothesis_settings(deadline=None)
def test_values_as_shown_load_as_the_same_values(values: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder))
        data = values.get("train.data", "")
        if data.startswith("~"):
            values["train.data"] = f"./{data}"
        write(home, as_toml(values))
        first = load_settings(home)
        shown = {entry["name"]: entry["value"] for entry in settings_document(first)["settings"]}
        write(home, as_toml(shown))
        assert load_settings(home).config == first.config


def test_a_changed_file_is_told_by_the_settings_it_would_change(home: Home) -> None:
    write(home, '[net]\nport = 1\nrefresh = "1s"')
    running = settings_document(
        load_settings(home, {"net.listen": "0.0.0.0"}, environment={"MESHNODE_LOG__LEVEL": "debug"})
    )
    assert pending_settings(running, home) == []
    write(home, "[net]\nport = 1\nrefresh = 1")
    assert pending_settings(running, home) == []
    write(home, '[net]\nport = 2\nlisten = "::1"\n[log]\nlevel = "error"\n[train]\nsteps = 5')
    assert pending_settings(running, home) == ["net.port", "net.refresh", "train.steps"]
    home.config_toml.unlink()
    assert pending_settings(running, home) == ["net.port", "net.refresh"]
    write(home, "[net")
    with pytest.raises(SettingsRefused):
        pending_settings(running, home)


def test_the_variables_of_whoever_asks_do_not_count_as_a_change(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    running = settings_document(load_settings(home))
    monkeypatch.setenv("MESHNODE_NET__PORT", "9")
    assert pending_settings(running, home) == []


def test_the_example_in_the_docs_loads(home: Home) -> None:
    page = (ROOT / "docs" / "config.md").read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    write(home, example)
    assert load_config(home).average.every_s == 30.0


def test_the_tables_of_the_docs_are_those_of_the_code_and_fail_on_a_setting_without_a_meaning() -> None:
    script = [sys.executable, str(ROOT / "scripts" / "tables.py"), "--check"]
    checked = subprocess.run(script, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
    code = (
        "import runpy; from meshnode.settings.config import settings_there_are\n"
        "next(settings_there_are()).field.description = None\n"
        f"runpy.run_path({script[1]!r})['settings_tables']()"
    )
    failed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert failed.returncode != 0
    assert "Undocumented: `name`" in failed.stderr
