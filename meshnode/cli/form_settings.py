"""Settings of a form of expert as they are written on the command line."""

from collections.abc import Sequence
from contextlib import suppress

import typer

__all__ = ["form_settings"]


def form_settings(texts: Sequence[str], option: str) -> dict[str, object]:
    """Several of ``hidden=16`` as names and values: a whole number, a number, true, false or a word.

    Args:
        option: Which they were given with, for a complaint.

    Raises:
        typer.BadParameter: One has no name or no value.
    """
    return dict(_setting(text, option) for text in texts)


def _setting(text: str, option: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise typer.BadParameter(f"{text!r}: {option} takes NAME=VALUE, such as hidden=16")
    if value in ("true", "false"):
        return name, value == "true"
    for number in (int, float):
        with suppress(ValueError):
            return name, number(value)
    return name, value
