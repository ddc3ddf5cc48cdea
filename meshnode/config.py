"""A node's settings and where they come from.

They are written in the home's ``config.toml``, by section; ``MESHNODE_SECTION__KEY`` in the environment
overrides the file, and the command line overrides both. Every problem is found before anything starts, all of
them at once, and named with where it was written.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from meshnode.errors import ConfigInvalid
from meshnode.home import Home
from meshnode.sections import (
    ApiSection,
    AverageSection,
    ComputeSection,
    LogSection,
    MeshSection,
    NetSection,
    NodeSection,
    ServeSection,
    TrainSection,
)

__all__ = ["NodeConfig", "load_config"]

_VARIABLE = re.compile(r"MESHNODE_([A-Z]+)__(\w+)")


class NodeConfig(BaseModel):
    """All settings of a node, checked; made by `load_config`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    node: NodeSection = Field(default_factory=NodeSection)
    net: NetSection = Field(default_factory=NetSection)
    mesh: MeshSection = Field(default_factory=MeshSection)
    compute: ComputeSection = Field(default_factory=ComputeSection)
    train: TrainSection = Field(default_factory=TrainSection)
    average: AverageSection = Field(default_factory=AverageSection)
    serve: ServeSection = Field(default_factory=ServeSection)
    api: ApiSection = Field(default_factory=ApiSection)
    log: LogSection = Field(default_factory=LogSection)


def load_config(home: Home, overrides: Mapping[str, object] | None = None) -> NodeConfig:
    """The settings in force: the file over the defaults, the environment over that, ``overrides`` over all.

    Args:
        home: Its file need not exist; relative paths in it are taken from the home's folder.
        overrides: The command line's values by dotted name, as in ``{"net.port": 31337}``; a value of None
            means not given.

    Raises:
        ConfigInvalid: Settings that do not exist (with the nearest that does), or values out of range.
    """
    given = {name: value for name, value in (overrides or {}).items() if value is not None}
    layers = {
        str(home.config_toml): _read_file(home),
        "the environment": _read_environment(),
        "the command line": _by_section(given),
    }
    merged: dict[str, Any] = {}
    for layer in layers.values():
        for section, settings in layer.items():
            below = merged.get(section, {})
            if not isinstance(settings, dict):
                merged[section] = settings
            elif isinstance(below, dict):  # else the file has a plain value here, which validation will refuse
                merged[section] = {**below, **settings}
    try:
        return NodeConfig.model_validate(merged)
    except ValidationError as exc:
        raise _invalid(exc, layers) from exc


def _read_file(home: Home) -> dict[str, Any]:
    try:
        settings = tomllib.loads(home.config_toml.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as exc:
        raise ConfigInvalid(f"{home.config_toml} cannot be read: {exc}") from exc
    train = settings.get("train")
    if isinstance(train, dict) and isinstance(train.get("data"), str):
        train["data"] = home.path / Path(train["data"]).expanduser()
    return settings


def _read_environment() -> dict[str, Any]:
    """What ``MESHNODE_SECTION__KEY`` variables say; an empty one counts as not set."""
    matches = ((_VARIABLE.fullmatch(name), value) for name, value in os.environ.items())
    return _by_section({f"{match[1]}.{match[2]}".lower(): value for match, value in matches if match and value})


def _by_section(settings: Mapping[str, object]) -> dict[str, Any]:
    sections: dict[str, Any] = {}
    for name, value in settings.items():
        section, _, key = name.partition(".")
        sections.setdefault(section, {})[key] = value
    return sections


def _invalid(exc: ValidationError, layers: Mapping[str, Mapping[str, Any]]) -> ConfigInvalid:
    problems, hints = [], []
    for error in exc.errors(include_url=False):
        setting = ".".join(str(part) for part in error["loc"][:2])
        if error["type"] == "extra_forbidden":
            problem = "no such setting"
            nearest = _nearest(setting)
            hints += [f"Did you mean {nearest}?"] if nearest else []
        else:
            problem = error["msg"].removeprefix("Value error, ")
        problems.append(f"{setting}: {problem} (in {_origin(error['loc'], layers)})")
    return ConfigInvalid("; ".join(problems), hint=" ".join(dict.fromkeys(hints)) or None)


def _origin(where: tuple[int | str, ...], layers: Mapping[str, Mapping[str, Any]]) -> str:
    """The layer that a setting's value, or the last of a section's values, was taken from."""
    section, *keys = map(str, where)
    named = [
        layer
        for layer, settings in layers.items()
        if section in settings and (not keys or not isinstance(settings[section], dict) or keys[0] in settings[section])
    ]
    return named[-1]


def _nearest(setting: str) -> str | None:
    """The known setting (or section, for a name without a dot) that was most likely meant."""
    known = list(_settings())
    if "." not in setting:
        sections = list(NodeConfig.model_fields)
        by_key = {name.partition(".")[2]: name for name in reversed(known)}
        matches = difflib.get_close_matches(setting, [*sections, *by_key], n=1)
        return by_key.get(matches[0], matches[0]) if matches else None
    matches = difflib.get_close_matches(setting, known, n=1)
    return matches[0] if matches else None


def _settings() -> Iterator[str]:
    for section, field in NodeConfig.model_fields.items():
        assert field.annotation is not None
        for key, setting in field.annotation.model_fields.items():
            yield f"{section}.{setting.alias or key}"
