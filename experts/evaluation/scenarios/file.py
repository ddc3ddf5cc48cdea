"""A scenario of a user's own, out of a TOML file: docs/scenarios.md has examples.

Relative paths are taken from the file's folder. What a file may not say is refused with the nearest name that it may.
"""

import dataclasses
import difflib
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from experts.data.csv_table import load_csv
from experts.data.dataset import ImageDataset
from experts.data.image_files import ReadingConfig, ReadingProgress, images_below, read_files
from experts.data.npz import load_task
from experts.errors import MalformedDataset, MalformedScenario
from experts.evaluation.scenarios.base import Kind, Scenario, shuffled
from experts.evaluation.scenarios.collected import collected
from experts.evaluation.scenarios.conformed import conformed
from experts.evaluation.scenarios.split import Parts, split_by_class

__all__ = ["scenario_from_file"]

_SPLIT_SEED = 0
"""Everybody must test on the same held-out images, so the split is not a setting."""

_Name = Annotated[str, Field(min_length=1)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Source(_Table):
    """Where images are: one of these."""

    folder: _Name | None = None
    """``<folder>/<class>/<image>``."""
    npz: _Name | None = None
    """A task file."""
    csv: _Name | None = None
    """A table: `load_csv`."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if len(self.model_fields_set) != 1:
            raise ValueError("one of folder, npz and csv is wanted")
        return self


class _Task(_Table):
    name: _Name
    train: _Source
    test: _Source | None = None
    """None holds a part of ``train`` out."""


class _Split(_Table):
    classes_per_task: int = Field(ge=1)
    train: _Source
    test: _Source | None = None


class _File(_Table):
    name: _Name
    kind: Kind
    pixels: int | None = Field(default=None, ge=1)
    """What all images become; None leaves arrays as they are, and makes 64 of image files."""
    images_per_class: int | None = Field(default=None, ge=1)
    """Of image files, the first so many in each part; None for all."""
    held_out: float = Field(default=0.2, gt=0, lt=1)
    """Share of each class that is tested on where no test part is given."""
    task: list[_Task] = []
    split: _Split | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if bool(self.task) == (self.split is not None):
            raise ValueError("either [[task]] tables or one [split] are wanted")
        names = [task.name for task in self.task]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two tasks are named {twice[0]!r}")
        return self


def scenario_from_file(
    path: Path,
    *,
    order: int = 0,
    images_per_class: int | None = None,
    cache: Path | None = None,
    on_progress: Callable[[ReadingProgress], None] | None = None,
) -> Scenario:
    """The scenario that a file describes.

    Args:
        path: The TOML file.
        order: Of the tasks, or with a split of the classes: 0 is that of the file or of the names, another number
            another one.
        images_per_class: In place of what the file says, if it is not None.
        cache: As in `ReadingConfig`.
        on_progress: Likewise.
    Raises:
        MalformedScenario: If the file cannot be read, or says something that no scenario file does, or images differ in
            size and no size is given.
        MalformedDataset: If images are missing or damaged, or a part is empty. TooLargeForMemory: As `read_files`.
    """
    said = _read(path)
    given = ReadingConfig() if said.pixels is None else ReadingConfig(pixels=said.pixels)
    reading = dataclasses.replace(
        given, images_per_class=images_per_class or said.images_per_class, cache=cache, on_progress=on_progress
    )

    def load(train: _Source, test: _Source | None) -> Parts:
        whole = _load(path.parent, train, reading)
        if test is None:
            return whole.split(said.held_out, seed=_SPLIT_SEED)
        return whole, _load(path.parent, test, reading)

    if said.split is not None:
        parts = {said.name: load(said.split.train, said.split.test)}
    else:
        parts = {task.name: load(task.train, task.test) for task in said.task}
    parts = conformed(parts, said.pixels)
    if len({part.images.shape[1:] for both in parts.values() for part in both}) > 1:
        raise MalformedScenario(str(path), reason="its images differ in size; say pixels = 64, or another size for all")
    if said.split is None:
        # What two tasks mean by one name is one class only where nobody is told which task is asked about.
        named = _named_by_task(parts) if said.kind == "task-incremental" else parts
        return collected(said.name, said.kind, named, order=order)
    train, test = parts[said.name]
    if untested := [name for name in train.classes if name not in test.classes]:
        reason = f"class {untested[0]!r} has no image to test on: it has too few to hold some out, or give a test part"
        raise MalformedScenario(str(path), reason=reason)
    return _split(said, said.split, (train, test), order)


def _split(said: _File, split: _Split, parts: Parts, order: int) -> Scenario:
    names = parts[0].classes
    classes = [names[position] for position in shuffled(names, order, f"{said.name}/classes")]
    scenario = split_by_class(said.name, parts, classes, classes_per_task=split.classes_per_task)
    return dataclasses.replace(scenario, kind=said.kind)


def _named_by_task(parts: Mapping[str, Parts]) -> dict[str, Parts]:
    def renamed(task: str, part: ImageDataset) -> ImageDataset:
        return ImageDataset(part.images, tuple(f"{task}/{label}" for label in part.labels))

    return {task: (renamed(task, train), renamed(task, test)) for task, (train, test) in parts.items()}


def _load(folder: Path, source: _Source, reading: ReadingConfig) -> ImageDataset:
    if source.npz is not None:
        return load_task(_path(folder, source.npz))
    if source.csv is not None:
        return load_csv(_path(folder, source.csv), reading)
    assert source.folder is not None
    return read_files(images_below(source.folder, _path(folder, source.folder)), reading)


def _path(folder: Path, given: str) -> Path:
    try:
        return folder / Path(given).expanduser()
    except RuntimeError as exc:
        raise MalformedDataset(given, reason=f"no such home: {exc}") from exc


def _read(path: Path) -> _File:
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
        raise MalformedScenario(str(path), reason=f"cannot be read: {exc}") from exc
    try:
        return _File.model_validate(said)
    except ValidationError as exc:
        errors = exc.errors(include_url=False, include_input=False)
        reasons = [_reason(error["loc"], error["type"], error["msg"]) for error in errors]
        raise MalformedScenario(str(path), reason="; ".join(reasons)) from exc


def _reason(loc: tuple[int | str, ...], kind: str, message: str) -> str:
    """In the words of the file: tasks are counted from 1."""
    words = [f"{part + 1}" if isinstance(part, int) else part for part in loc]
    where = ".".join(words)
    if kind != "extra_forbidden":
        said = message.removeprefix("Value error, ")
        return f"{where}: {said}" if where else said
    nearest = difflib.get_close_matches(words[-1].lower(), _known(loc[:-1]), n=1)
    return f"{where}: no such entry" + (f"; did you mean {nearest[0]}?" if nearest else "")


def _known(loc: tuple[int | str, ...]) -> list[str]:
    match loc:
        case ():
            return list(_File.model_fields)
        case ("task", int()):
            return list(_Task.model_fields)
        case ("split",):
            return list(_Split.model_fields)
        case _:
            return list(_Source.model_fields)
