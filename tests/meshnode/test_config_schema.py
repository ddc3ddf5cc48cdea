"""The schema of config.toml, held against what loads."""

import json
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from meshnode.home import Home
from meshnode.settings.config import SettingsRefused, load_config, settings_there_are
from meshnode.settings.documents import config_schema, description_of

PEER = "Qm" + "a" * 44
TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
}
# What the words of JSON Schema that ours uses ask of a value of the type they are about.
RULES: dict[str, Callable[[Any, Any], bool]] = {
    "type": lambda value, name: isinstance(value, TYPES[name]) and (name == "boolean" or not isinstance(value, bool)),
    "properties": lambda value, known: all(accepts(known[key], value[key]) for key in value.keys() & known.keys()),
    "items": lambda value, schema: all(accepts(schema, part) for part in value),
    "anyOf": lambda value, choices: any(accepts(choice, value) for choice in choices),
    "enum": lambda value, values: value in values,
    "pattern": lambda value, pattern: re.search(pattern, value) is not None,
    "minimum": lambda value, least: value >= least,
    "maximum": lambda value, most: value <= most,
    "exclusiveMinimum": lambda value, above: value > above,
    "exclusiveMaximum": lambda value, below: value < below,
}
ANNOTATIONS = {"$schema", "title", "description", "default", "format"}


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MESHNODE_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def write(home: Home, text: str) -> None:
    home.config_toml.write_text(text, encoding="utf-8")


def accepts(schema: Mapping[str, Any], value: Any) -> bool:
    """Whether the schema, as far as `RULES` goes, accepts a value."""
    rules = dict(schema)
    if "type" in rules and not RULES["type"](value, rules.pop("type")):
        return False
    if rules.pop("additionalProperties", True) is False and not value.keys() <= rules["properties"].keys():
        return False
    return all(RULES[word](value, rule) for word, rule in rules.items() if word not in ANNOTATIONS)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[net]",
        "[net]\nport = 0",
        "[net]\nport = 65535",
        "[net]\nport = 65536",
        "[net]\nport = -1",
        "[net]\nport = 1.5",
        "[net]\nprot = 1",
        "[nett]\nport = 1",
        "net = 1",
        '[net]\nrefresh = "5s"',
        '[net]\nrefresh = "1.5 S"',
        "[net]\nrefresh = 5",
        "[net]\nrefresh = 0.5",
        "[net]\nrefresh = 0",
        "[net]\nrefresh = 90000",
        "[net]\nrecord_ttl = 301",
        '[net]\nrefresh = "soon"',
        '[net]\nrefresh = "-5s"',
        '[net]\nrefresh = ["5s"]',
        "[net]\nrefresh_s = 5",
        '[net]\nup = "2MB/s"',
        '[net]\nup = "2 mib/s"',
        "[net]\nup = 100000",
        "[net]\nup = 10",
        '[net]\nup = "fast"',
        '[net]\nup = "2MB/h"',
        "[net]\njoin = []",
        f'[net]\njoin = ["/dns4/a.example/tcp/2/p2p/{PEER}"]',
        "[net]\njoin = [1]",
        '[compute]\ndevice = "cuda:1"',
        '[compute]\ndevice = "gpu"',
        "[compute]\nthreads = 4",
        "[compute]\nthreads = 0",
        "[train]\nlearning_rate = 0",
        "[train]\nlearning_rate = 10",
        "[train]\nenabled = false",
        '[train]\ndata = "tasks"',
        "[train]\ndata = 1",
        f"[train]\nseed = {2**63 - 1}",
        f"[train]\nseed = {2**63}",
        '[mqtt]\nversion = "5"',
        '[mqtt]\nversion = "4"',
        '[log]\nlevel = "debug"',
        '[log]\nlevel = "loud"',
    ],
)
def test_the_schema_accepts_what_loads_and_nothing_else(home: Home, text: str) -> None:
    write(home, text)
    try:
        load_config(home)
    except SettingsRefused:
        loads = False
    else:
        loads = True
    assert accepts(config_schema(), tomllib.loads(text)) is loads


def test_the_schema_describes_every_setting_with_a_default_that_it_accepts() -> None:
    schema = config_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    for setting in settings_there_are():
        described = schema["properties"][setting.section]["properties"][setting.key]
        assert described["description"] == description_of(setting)
        if "default" in described:
            assert accepts(described, described["default"]), setting.name
    assert schema["properties"]["net"]["properties"]["refresh"]["default"] == "5s"
    assert "null" not in json.dumps(schema)
