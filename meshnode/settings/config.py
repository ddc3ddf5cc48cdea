"""A node's settings and where they come from.

They are written in the home's ``config.toml``, by section; ``MESHNODE_SECTION__KEY`` in the environment
overrides the file, and the command line overrides both. Every problem is found before anything starts, all of
them at once, and named with where it was written.
"""

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from meshnode.errors import ConfigInvalid
from meshnode.home import Home
from meshnode.settings.layers import Layer, Origin, environment_layer, file_layer, flag_layer, merged
from meshnode.settings.sections import (
    ApiSection,
    AverageSection,
    ComputeSection,
    LogSection,
    MeshSection,
    MqttSection,
    NetSection,
    NodeSection,
    PlaceSection,
    PreserveSection,
    PrivacySection,
    ServeSection,
    TidySection,
    TrainSection,
)
from meshnode.settings.units import format_duration_s, format_rate

__all__ = [
    "NodeConfig",
    "Problem",
    "Setting",
    "Settings",
    "SettingsRefused",
    "Source",
    "load_config",
    "load_settings",
    "nearest_setting",
    "settings_there_are",
]


class NodeConfig(BaseModel):
    """All settings of a node, checked; made by `load_config`."""

    # Inputs are hidden: one that is refused may hold a password, and its error may be logged.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    node: NodeSection = Field(default_factory=NodeSection)
    net: NetSection = Field(default_factory=NetSection)
    mesh: MeshSection = Field(default_factory=MeshSection)
    compute: ComputeSection = Field(default_factory=ComputeSection)
    train: TrainSection = Field(default_factory=TrainSection)
    average: AverageSection = Field(default_factory=AverageSection)
    preserve: PreserveSection = Field(default_factory=PreserveSection)
    privacy: PrivacySection = Field(default_factory=PrivacySection)
    place: PlaceSection = Field(default_factory=PlaceSection)
    tidy: TidySection = Field(default_factory=TidySection)
    serve: ServeSection = Field(default_factory=ServeSection)
    api: ApiSection = Field(default_factory=ApiSection)
    mqtt: MqttSection = Field(default_factory=MqttSection)
    log: LogSection = Field(default_factory=LogSection)


class Setting(NamedTuple):
    """One setting as it is declared."""

    section: str
    key: str
    """As it is written under its section."""
    attribute: str
    """Of the section's model; its last part is the unit where the key has none."""
    field: FieldInfo

    @property
    def name(self) -> str:
        """As people and programs refer to it: ``net.port``."""
        return f"{self.section}.{self.key}"

    @property
    def is_span(self) -> bool:
        """Whether its value is seconds, written with a unit."""
        return self.attribute.endswith("_s")

    @property
    def is_rate(self) -> bool:
        """Whether its value is bytes a second, written with a unit."""
        return self.attribute.endswith("_bytes_per_second")

    @property
    def is_path(self) -> bool:
        """Whether its value is a file or folder of this machine."""
        return _mentions_path(self.field.annotation)


class Source(NamedTuple):
    """Where a setting's value was taken from."""

    origin: Origin
    where: str | None
    """The file's name, the variable or the option; None for a default."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings in force, and where each came from."""

    path: Path
    """The settings file, which need not exist."""
    config: NodeConfig
    sources: Mapping[str, Source]
    """Of every setting there is, by its name."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One reason why settings cannot be followed."""

    setting: str | None
    """Its name, or a section's; None if the file as a whole is meant."""
    reason: str
    where: str
    """The file, variables or options that it was written in."""
    nearest: str | None = None
    """The setting or section that was most likely meant."""

    def __str__(self) -> str:
        if self.setting is None:
            return f"{self.where} {self.reason}"
        return f"{self.setting}: {self.reason} (in {self.where})"


class SettingsRefused(ConfigInvalid):
    """The settings have these ``problems``, one or more."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        hints = dict.fromkeys(f"Did you mean {problem.nearest}?" for problem in problems if problem.nearest)
        super().__init__("; ".join(map(str, problems)), hint=" ".join(hints) or None)
        self.problems = tuple(problems)


def load_config(home: Home, overrides: Mapping[str, object] | None = None) -> NodeConfig:
    """The settings in force, as `load_settings` finds them. Raises SettingsRefused as it does."""
    return load_settings(home, overrides).config


def load_settings(
    home: Home,
    overrides: Mapping[str, object] | None = None,
    *,
    file: Path | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Settings:
    """The settings in force: the file over the defaults, the environment over that, ``overrides`` over all.

    Args:
        home: Relative paths in the file are taken from its folder, those elsewhere from the current one.
        overrides: The command line's values by dotted name, as in ``{"net.port": 31337}``; a value of None
            means not given.
        file: Read instead of the home's ``config.toml``. Neither need exist.
        environment: Where variables are looked for; an empty one counts as not set.

    Raises:
        SettingsRefused: The file cannot be read, or settings do not exist (with the nearest that does), have
            values out of range or contradict each other.
    """
    path = (file or home.config_toml).absolute()
    paths = [setting.name for setting in settings_there_are() if setting.is_path]
    try:
        from_file = file_layer(path, home.path, paths)
    except (OSError, ValueError) as exc:
        raise SettingsRefused([Problem(None, f"cannot be read: {exc}", str(path))]) from exc
    layers = (from_file, environment_layer(environment), flag_layer(overrides or {}))
    try:
        config = NodeConfig.model_validate(merged(layers))
    except ValidationError as exc:
        raise SettingsRefused(list(_problems(exc, layers))) from exc
    sources = {setting.name: _source(setting, layers) for setting in settings_there_are()}
    return Settings(path, config, sources)


def settings_there_are() -> Iterator[Setting]:
    """Every setting, by section, in the order in which they are declared."""
    for section, section_field in NodeConfig.model_fields.items():
        assert section_field.annotation is not None
        for attribute, declared in section_field.annotation.model_fields.items():
            yield Setting(section, declared.alias or attribute, attribute, declared)


def nearest_setting(name: str) -> str | None:
    """The setting (or section, for a name without a dot) that was most likely meant; None without a guess."""
    known = [setting.name for setting in settings_there_are()]
    if "." in name:
        matches = difflib.get_close_matches(name.lower(), known, n=1)
        return matches[0] if matches else None
    by_key = {setting.key: setting.name for setting in reversed(list(settings_there_are()))}
    matches = difflib.get_close_matches(name.lower(), [*NodeConfig.model_fields, *by_key], n=1)
    return by_key.get(matches[0], matches[0]) if matches else None


def _source(setting: Setting, layers: Sequence[Layer]) -> Source:
    for layer in reversed(layers):
        if layer.says(setting.section, setting.key):
            where = layer.where(setting.section, setting.key)
            return Source(layer.origin, Path(where).name if layer.origin is Origin.FILE else where)
    return Source(Origin.DEFAULT, None)


def _problems(exc: ValidationError, layers: Sequence[Layer]) -> Iterator[Problem]:
    errors = exc.errors(include_url=False, include_input=False)
    for error in [*errors, *_hidden_errors(errors, layers)]:
        section, *keys = map(str, error["loc"][:2])
        key = keys[0] if keys else None
        name = ".".join((section, *keys))
        saying = [layer for layer in layers if layer.says(section, key)]
        plain = [layer for layer in saying if not isinstance(layer.sections[section], dict)]
        # A setting is what its topmost layer says; a contradiction may be between several.
        where = ", ".join(layer.where(section, key) for layer in (saying[-1:] if keys else plain or saying))
        if error["type"] == "extra_forbidden":
            reason = f"no such {'setting' if keys or plain else 'section'}"
            yield Problem(name, reason, where, nearest_setting(name))
        else:
            yield Problem(name, _reason(error, name), where)


def _hidden_errors(errors: Sequence[ErrorDetails], layers: Sequence[Layer]) -> Sequence[ErrorDetails]:
    """The contradictions within sections that are sound but for settings that do not exist.

    A section's settings are compared only once each is accepted, which would keep a problem for the next try.
    """
    sound = {section: dict(settings) for section, settings in merged(layers).items() if isinstance(settings, dict)}
    for error in errors:
        section, *keys = map(str, error["loc"][:2])
        if keys and error["type"] == "extra_forbidden":
            sound.get(section, {}).pop(keys[0], None)
        else:
            sound.pop(section, None)
    try:
        NodeConfig.model_validate(sound)
    except ValidationError as exc:
        return exc.errors(include_url=False, include_input=False)
    return ()


def _reason(error: ErrorDetails, name: str) -> str:
    """Why a value was refused, in the words and units that settings are written in; of a list, which entry's it is."""
    match error["loc"][2:]:
        case (int(index), *fields):
            return ": ".join((f"entry {index + 1}", *map(str, fields), _bare_reason(error, name)))
        case _:
            return _bare_reason(error, name)


def _bare_reason(error: ErrorDetails, name: str) -> str:
    bounds = {
        "greater_than": ("gt", "must be more than"),
        "greater_than_equal": ("ge", "must be at least"),
        "less_than": ("lt", "must be less than"),
        "less_than_equal": ("le", "must be at most"),
    }
    if error["type"] in bounds:
        bound, words = bounds[error["type"]]
        amount = error["ctx"][bound]
        for setting in settings_there_are():
            if setting.name == name and setting.is_span:
                return f"{words} {format_duration_s(amount)}"
            if setting.name == name and setting.is_rate:
                return f"{words} {format_rate(amount)}"
        return f"{words} {amount if isinstance(amount, int) else f'{amount:g}'}"
    if error["type"] == "model_type":
        in_list = len(error["loc"]) > 2
        return "must be text or a table" if in_list else f"must be a section: [{name}], with its settings below it"
    return error["msg"].removeprefix("Value error, ").replace("Input should be", "must be", 1)


def _mentions_path(annotation: object) -> bool:
    return annotation is Path or any(map(_mentions_path, get_args(annotation)))
