"""The one way out: results to stdout as tables or one JSON document, talk and failures to stderr.

Colours are rich's to decide: none when the stream is no terminal, when NO_COLOR is set, or after
``--no-color``, which sets it.
"""

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from meshnode.printable import printable

__all__ = ["Output", "facts", "listing"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """How this invocation answers."""

    as_json: bool
    """Results and failures as one JSON document on stdout, for programs."""
    verbosity: int = 0
    """-1 quiet, 0 as usual, 1 verbose; of the talk on stderr only."""

    def result(self, document: Mapping[str, object], shown: RenderableType) -> None:
        """Print what the command was run for: the document for programs, ``shown`` for people."""
        if self.as_json:
            self._print_json(document)
        else:
            console = _console(to_stderr=False)
            with console.capture() as captured:
                console.print(shown)
            # Tables are padded to their width; nothing that reads a pipe wants that.
            sys.stdout.writelines(f"{line.rstrip(' ')}\n" for line in captured.get().splitlines())
            sys.stdout.flush()

    def note(self, text: str) -> None:
        """Tell a person something beside the result; silent under ``--quiet``."""
        if self.verbosity >= 0:
            _console(to_stderr=True).print(Text(printable(text)))

    def failure(self, code: str, message: str, hint: str | None) -> None:
        """Say what went wrong and what to do about it."""
        if self.as_json:
            self._print_json({"error": {"code": code, "message": message, "hint": hint}})
            return
        console = _console(to_stderr=True)
        console.print(Text.assemble(("error: ", "bold red"), printable(message)))
        if hint:
            console.print(Text.assemble((" hint: ", "bold"), printable(hint)))

    @staticmethod
    def _print_json(document: Mapping[str, object]) -> None:
        # ASCII only, so that no name a peer chose reaches a terminal unescaped.
        sys.stdout.write(json.dumps(document) + "\n")
        sys.stdout.flush()


def listing(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """A table with a header line and nothing else drawn."""
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def facts(pairs: Sequence[tuple[str, object]]) -> Table:
    """Name and value on a line each; a pair without a name goes on with the one above."""
    table = Table.grid(padding=(0, 2))
    for name, value in pairs:
        table.add_row(Text(name, style="bold"), Text(printable(value), overflow="fold"))
    return table


def _console(*, to_stderr: bool) -> Console:
    console = Console(stderr=to_stderr, highlight=False, soft_wrap=False)
    if not console.is_terminal:
        # A file or a pipe has no width: folding an id at 80 columns would only break what reads it.
        console.width = 10_000
    return console
