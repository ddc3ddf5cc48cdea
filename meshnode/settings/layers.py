"""The layers that settings are written in, each as what it says and where: the file, the environment, the flags."""

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

__all__ = ["FLAGS", "Layer", "Origin", "environment_layer", "file_layer", "flag_layer", "merged"]

FLAGS = {
    "api.listen": "--api",
    "compute.device": "--device",
    "compute.require_gpu": "--require-gpu",
    "log.format": "--log-format",
    "log.level": "--verbose or --quiet",
    "net.join": "--join",
    "net.listen": "--listen",
    "net.port": "--port",
    "node.name": "--name",
    "serve.enabled": "--no-serve",
    "train.data": "--data",
    "train.enabled": "--no-train",
}
"""The option of the command line that overrides a setting, for those that have one."""

_VARIABLE = re.compile(r"MESHNODE_(\w+?)__(\w+)")


class Origin(StrEnum):
    """Which of the layers a value was taken from; later ones override earlier ones."""

    DEFAULT = "default"
    FILE = "file"
    ENV = "env"
    FLAG = "flag"


@dataclass(frozen=True, slots=True)
class Layer:
    """What one of the places says where settings are written."""

    origin: Origin
    place: str
    """Named where a setting's own place is not known."""
    sections: dict[str, Any]
    places: Mapping[str, str] = field(default_factory=dict)
    """The variable or option that a setting was taken from, by its name."""

    def says(self, section: str, key: str | None) -> bool:
        """Whether it has this setting; or, without a key, anything of this section."""
        settings = self.sections.get(section)
        return section in self.sections and (key is None or not isinstance(settings, dict) or key in settings)

    def where(self, section: str, key: str | None) -> str:
        """The place of this setting; or, without a key, those of all that it says of the section."""
        if key is not None:
            return self.places.get(f"{section}.{key}", self.place)
        names = [name for name in self.places if name.startswith(f"{section}.")]
        return ", ".join(self.places[name] for name in names) or self.place


def file_layer(path: Path, folder: Path, paths: Iterable[str]) -> Layer:
    """What a TOML file says; nothing if there is none.

    Args:
        path: Of the file.
        folder: What relative paths in it are taken from.
        paths: Names of the settings that are paths.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not TOML in UTF-8.
    """
    try:
        sections = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        sections = {}
    for name in paths:
        section, _, key = name.partition(".")
        settings = sections.get(section)
        value = settings.get(key) if isinstance(settings, dict) else None
        if isinstance(value, str) and value and not value.startswith("~"):
            sections[section][key] = str(folder / value)
    return Layer(Origin.FILE, str(path), sections)


def environment_layer(environment: Mapping[str, str]) -> Layer:
    """What the ``MESHNODE_SECTION__KEY`` variables say; an empty one counts as not set."""
    settings, places = {}, {}
    for variable, value in environment.items():
        match = _VARIABLE.fullmatch(variable)
        if match and value:
            name = f"{match[1]}.{match[2]}".lower()
            settings[name], places[name] = value, variable
    return Layer(Origin.ENV, "the environment", _by_section(settings), places)


def flag_layer(overrides: Mapping[str, object]) -> Layer:
    """What the command line says, by dotted name; None counts as not given."""
    given = {name: value for name, value in overrides.items() if value is not None}
    places = {name: FLAGS[name] for name in given if name in FLAGS}
    return Layer(Origin.FLAG, "the command line", _by_section(given), places)


def merged(layers: Sequence[Layer]) -> dict[str, Any]:
    """What all layers together say, by section; later ones override earlier ones."""
    result: dict[str, Any] = {}
    for layer in layers:
        for section, settings in layer.sections.items():
            below = result.get(section, {})
            if not isinstance(settings, dict):
                result[section] = settings
            elif isinstance(below, dict):  # else the file has a plain value here, which is for validation to refuse
                result[section] = {**below, **settings}
    return result


def _by_section(settings: Mapping[str, object]) -> dict[str, Any]:
    sections: dict[str, Any] = {}
    for name, value in settings.items():
        section, _, key = name.partition(".")
        sections.setdefault(section, {})[key] = value
    return sections
