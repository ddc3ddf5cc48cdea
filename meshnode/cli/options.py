"""The global options, which may stand before or after the command's name.

Typer accepts a parent's options only before the command; people write ``meshnode status --json``. So the
arguments are put in order first, and then parsed as usual.
"""

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Arguments", "in_order"]

_FLAGS = frozenset({"--json", "--no-color", "-q", "--quiet", "-v", "--verbose"})
_VALUED = frozenset({"--api", "--home", "--log-format"})


class Arguments(NamedTuple):
    """A command line, split."""

    globals: list[str]
    """Global options with their values."""
    command: list[str]
    """The command, its arguments and its own options."""


def in_order(arguments: Sequence[str]) -> Arguments:
    """Take the global options out of a command line, wherever they stand before a ``--``.

    ``--api`` after ``run`` stays where it is: there it is the address to listen on, not the URL to ask.
    """
    globals_: list[str] = []
    command: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--":
            command += [word, *rest]
            break
        name, has_value, _ = word.partition("=")
        if name == "--api" and command[:1] == ["run"]:
            command.append(word)
        elif word in _FLAGS or (name in _VALUED and has_value):
            globals_.append(word)
        elif word in _VALUED:
            globals_ += [word, *rest[:1]]
            rest = rest[1:]
        else:
            command.append(word)
    return Arguments(globals_, command)
