"""Result documents as benchmarks write them, read from a folder and checked for what a report relies on."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshnode.errors import ResourceAbsent, ResultUnreadable

__all__ = ["Document", "Found", "Target", "read_documents"]

SCHEMA = "modulemesh.bench/1"

LARGEST_BYTES = 64 * 2**20
"""Of one document; the largest that a benchmark of this project writes has less than one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """What a figure is held against."""

    name: str
    wanted: str
    is_met: bool
    measured: object
    """A number, text or a mapping of such; None where the document does not say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """One run of a benchmark."""

    name: str
    """Of its file, without the ending."""
    command: str
    seeds: Sequence[object]
    machine: Mapping[str, Any]
    versions: Mapping[str, Any]
    figures: Mapping[str, Any]
    targets: Sequence[Target]
    measured: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What a folder holds."""

    documents: Sequence[Document]
    """By name."""
    passed_over: Sequence[str]
    """Names of JSON files of another schema."""


def read_documents(folder: Path) -> Found:
    """All results in a folder, its own files alone.

    Raises:
        ResourceAbsent: If there is no such folder, or no result in it.
        ResultUnreadable: If a file is damaged. A report that silently left one out would tell less than was measured.
    """
    if not folder.is_dir():
        raise ResourceAbsent(
            f"there is no folder {folder}",
            hint="Give the folder of the results, *.json as benchmarks write them: `meshnode report FOLDER`.",
        )
    documents, passed_over = [], []
    for path in sorted(folder.glob("*.json")):
        content = _content(path)
        if content.get("schema") == SCHEMA:
            documents.append(_document(path, content))
        else:
            passed_over.append(path.name)
    if not documents:
        raise ResourceAbsent(
            f"{folder} has no result of the schema {SCHEMA}",
            hint="Give a folder of *.json as `python scripts/bench_router.py --json` prints them.",
        )
    return Found(documents=documents, passed_over=passed_over)


def _content(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise ResultUnreadable(path, f"it has more than {LARGEST_BYTES:,} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as exc:
        raise ResultUnreadable(path, f"it is no JSON ({exc})") from exc
    except OSError as exc:
        raise ResultUnreadable(path, exc.strerror or str(exc)) from exc
    if not isinstance(content, dict):
        raise ResultUnreadable(path, "it is no JSON object")
    return content


def _document(path: Path, content: Mapping[str, Any]) -> Document:
    def part(name: str, kind: type, default: Any) -> Any:
        value = content.get(name, default)
        if not isinstance(value, kind):
            raise ResultUnreadable(path, f"it has no `{name}`" if value is None else f"`{name}` is no {_WORDS[kind]}")
        return value

    figures = part("figures", dict, None)
    measured = part("measured", dict, {})
    return Document(
        name=path.stem,
        command=part("command", str, None),
        seeds=part("seeds", list, None),
        machine=part("machine", dict, None),
        versions=part("versions", dict, {}),
        figures=figures,
        targets=[_target(path, name, raw, figures) for name, raw in part("targets", dict, {}).items()],
        measured=measured,
    )


_WORDS: Mapping[type, str] = {dict: "object", list: "list", str: "text"}


def _target(path: Path, name: str, raw: object, figures: Mapping[str, Any]) -> Target:
    if not isinstance(raw, dict) or not isinstance(raw.get("met"), bool) or not isinstance(raw.get("target"), str):
        raise ResultUnreadable(path, f"the target {name} does not say what it is (`target`) and whether it is `met`")
    figure = figures.get(name)
    if isinstance(figure, dict):
        figure = figure.get("accuracy")
    if "value" in raw:
        measured = raw["value"]
    elif isinstance(raw.get("points"), int | float):
        measured = f"{raw['points']:+.3g} points"  # from what is wanted, which is an accuracy
    else:
        measured = raw.get("points", figure)
    return Target(name=name, wanted=raw["target"], is_met=raw["met"], measured=measured)
