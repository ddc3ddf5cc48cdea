"""Settings shown: each by its name with its value as people write it, where it came from and what it is for."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from meshnode.home import Home
from meshnode.settings.config import NodeConfig, Setting, Settings, load_settings, settings_there_are
from meshnode.settings.layers import Origin
from meshnode.settings.sections import TeacherSetting
from meshnode.settings.units import DURATION_PATTERN, RATE_PATTERN, format_duration_s, format_rate

__all__ = ["config_schema", "description_of", "pending_settings", "settings_document", "written"]


def settings_document(settings: Settings) -> dict[str, Any]:
    """``meshnode.config/1``: every setting in force, where its value came from, its default and its meaning."""
    return {
        "schema": "meshnode.config/1",
        "path": str(settings.path),
        "settings": [_entry(settings, setting) for setting in settings_there_are()],
    }


def pending_settings(running: Mapping[str, Any], home: Home) -> list[str]:
    """Names of the settings to which the home's ``config.toml`` gives another value than a daemon runs with.

    What the daemon was told by its environment or its command line would override the file again, so does not count.

    Args:
        running: The daemon's own `settings_document`.
        home: Its home.

    Raises:
        SettingsRefused: If the file has become one that no daemon would start with.
    """
    from_file = settings_document(load_settings(home, environment={}))
    values = {entry["name"]: entry["value"] for entry in from_file["settings"]}
    return [
        entry["name"]
        for entry in running["settings"]
        if entry["origin"] in (Origin.DEFAULT, Origin.FILE) and entry["value"] != values.get(entry["name"])
    ]


def written(setting: Setting, value: object) -> object:
    """A setting's value as people write it, of JSON's types: spans and rates with their unit, paths and lists as text.

    What is not None loads as the same value again.
    """
    match value:
        case float() if setting.is_span:
            return format_duration_s(value)
        case int() if setting.is_rate:
            return format_rate(value)
        case tuple():
            return [_written_teacher(entry) if isinstance(entry, TeacherSetting) else entry for entry in value]
        case Path():
            return str(value)
        case _:
            return value


def _written_teacher(teacher: TeacherSetting) -> object:
    """Its name alone where nothing else is set, as most people write it."""
    said = teacher.model_dump(mode="json", exclude_defaults=True)
    return said["name"] if said.keys() == {"name"} else said


def description_of(setting: Setting) -> str:
    """What a setting is for, on one line, with code in backticks; empty if its docstring is missing."""
    return _one_line(setting.field.description or "")


def config_schema() -> dict[str, Any]:
    """A JSON Schema (draft 2020-12) of ``config.toml``, for editors.

    It knows names, types, ranges and units. What needs more, such as a peer's address or two settings that contradict
    each other, only `load_settings` finds.
    """
    generated = NodeConfig.model_json_schema()
    sections = {
        section: generated["$defs"][reference["$ref"].rpartition("/")[2]]
        for section, reference in generated["properties"].items()
    }
    settings = list(settings_there_are())
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "config.toml of a ModuleMesh node",
        "type": "object",
        "properties": {
            name: {
                "description": _one_line(section["description"]),
                "type": "object",
                "properties": {
                    setting.key: _property(setting, section["properties"][setting.key])
                    for setting in settings
                    if setting.section == name
                },
                "additionalProperties": False,
            }
            for name, section in sections.items()
        },
        "additionalProperties": False,
    }


def _entry(settings: Settings, setting: Setting) -> dict[str, Any]:
    section = getattr(settings.config, setting.section)
    source = settings.sources[setting.name]
    return {
        "name": setting.name,
        "value": written(setting, getattr(section, setting.attribute)),
        "origin": source.origin,
        "source": source.where,
        "default": written(setting, setting.field.get_default(call_default_factory=True)),
        "description": description_of(setting),
    }


def _property(setting: Setting, generated: Mapping[str, Any]) -> dict[str, Any]:
    """A setting's schema, of what pydantic makes of it: TOML has no null, and spans and rates have a unit."""
    # An optional setting is one that may be left out.
    accepted = dict(generated["anyOf"][0] if "anyOf" in generated else generated)
    for said in ("title", "description", "default"):
        accepted.pop(said, None)
    shared: dict[str, Any] = {"description": description_of(setting)}
    if setting.field.default is not None and setting.field.default_factory is None:
        shared["default"] = written(setting, setting.field.default)
    if setting.is_span:
        text, bare = _written_amount(accepted, DURATION_PATTERN, format_duration_s, "ms, s, m, h or d"), "Seconds."
    elif setting.is_rate:
        text, bare = _written_amount(accepted, RATE_PATTERN, format_rate, "kB/s, MB/s or GB/s"), "Bytes a second."
    else:
        return {**shared, **accepted}
    return {**shared, "anyOf": [text, {**accepted, "description": bare}]}


def _written_amount(
    accepted: Mapping[str, Any], pattern: str, written_as: Callable[[Any], str], units: str
) -> dict[str, Any]:
    """The schema of a number with its unit."""
    least, most = (written_as(accepted[bound]) for bound in ("minimum", "maximum"))
    return {"type": "string", "pattern": pattern, "description": f"A number and {units}; {least} to {most}."}


def _one_line(docstring: str) -> str:
    return " ".join(docstring.split()).replace("``", "`")
