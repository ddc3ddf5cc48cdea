"""The tables that pages copy from the code, each with the reason or meaning that stands beside its entry there.

Usage: python scripts/tables.py [--check | --write]. Without an option the tables are printed; --check fails if a page
has others, --write puts them there.
"""

import ast
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from meshnode.settings.config import NodeConfig, Setting, settings_there_are
from meshnode.settings.documents import config_schema, description_of, written
from meshnode.settings.units import format_duration_s, format_rate
from protocol import limits

ROOT = Path(__file__).resolve().parent.parent


class Undocumented(Exception):
    """Something is to be listed of which nothing is said where it is declared."""


class Copied(NamedTuple):
    """A part of a page, between two comments that name it."""

    page: str
    name: str
    make: Callable[[], str]

    def in_page(self, text: str) -> str:
        """The page's text with this part as it has to be. Raises ValueError if it has no place for it."""
        begin, end = f"<!-- {self.name}: begin -->\n", f"<!-- {self.name}: end -->\n"
        head, found_begin, rest = text.partition(begin)
        _, found_end, tail = rest.partition(end)
        if not (found_begin and found_end):
            raise ValueError(f"{self.page} has no place for {self.name}")
        return f"{head}{begin}{self.make()}{end}{tail}"


def main(arguments: list[str]) -> int:
    """Run the script; returns its exit code."""
    if arguments not in ([], ["--check"], ["--write"]):
        print(__doc__, file=sys.stderr)
        return 2
    differing = []
    for copied in COPIED:
        if not arguments:
            print(copied.make())
            continue
        page = ROOT / copied.page
        text = page.read_text(encoding="utf-8")
        wanted = copied.in_page(text)
        if arguments == ["--write"]:
            page.write_text(wanted, encoding="utf-8")
        elif text != wanted:
            differing.append(f"{copied.page}: its {copied.name} are not those of the code")
    if differing:
        print(*differing, "run python scripts/tables.py --write", sep="\n", file=sys.stderr)
    return 1 if differing else 0


def limits_table() -> str:
    """The protocol's limits with the reason for each number."""
    statements = ast.parse(Path(limits.__file__).read_text(encoding="utf-8")).body
    return table(("limit", "value", "why"), _limit_rows(statements))


def settings_tables() -> str:
    """A table for each section of the settings."""
    schema = config_schema()["properties"]
    parts = []
    for section in NodeConfig.model_fields:
        rows = [
            _setting_row(setting, schema[section]["properties"][setting.key])
            for setting in settings_there_are()
            if setting.section == section
        ]
        heading = f"### [{section}]\n\n{schema[section]['description']}\n\n"
        parts.append(heading + table(("setting", "default", "values", "meaning"), rows))
    return "\n" + "\n".join(parts) + "\n"


def metrics_table() -> str:
    """What ``/metrics`` tells."""
    from meshnode.gauges import documented_metrics  # noqa: PLC0415  # with torch

    rows = (
        (f"`{name}`", kind, ", ".join(f"`{label}`" for label in labels), meaning)
        for name, kind, labels, meaning in documented_metrics()
    )
    return table(("metric", "type", "labels", "meaning"), rows)


def measured_table() -> str:
    """What the benchmarks found, from their committed results."""
    from claims import claim_rows  # noqa: PLC0415  # beside this file, whoever runs it

    return table(("what", "measured", "at least, or beside", "from"), claim_rows())


def outcomes_words() -> str:
    """Whether what was expected of the project came about, from the committed results."""
    from meshnode.report.content import outcomes_table  # noqa: PLC0415
    from meshnode.report.documents import read_documents  # noqa: PLC0415
    from meshnode.report.markdown import markdown_table  # noqa: PLC0415
    from meshnode.report.outcomes import outcomes_of  # noqa: PLC0415

    return markdown_table(outcomes_table(outcomes_of(read_documents(ROOT / "docs" / "results").documents)))


def scale_words() -> str:
    """What the simulation found, from its committed result."""
    from simulate_words import scale_words as words  # noqa: PLC0415  # beside this file, whoever runs it

    return words()


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table. Raises Undocumented if the last cell of a row, what it is for, is empty."""
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for row in rows:
        if not row[-1]:
            raise Undocumented(row[0])
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |")
    return "\n".join(lines) + "\n"


COPIED = (
    Copied("README.md", "measured", measured_table),
    Copied("README.md", "outcomes", outcomes_words),
    Copied("docs/protocol.md", "limits", limits_table),
    Copied("docs/config.md", "settings", settings_tables),
    Copied("docs/metrics.md", "metrics", metrics_table),
    Copied("docs/scale.md", "scale", scale_words),
)


def _limit_rows(statements: Sequence[ast.stmt]) -> Iterator[Sequence[str]]:
    for number, statement in enumerate(statements):
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name)) if name in limits.__all__:
                pass
            case _:
                continue
        match statements[number + 1 : number + 2]:
            case [ast.Expr(value=ast.Constant(value=str(said)))]:
                reason = " ".join(said.split())
            case _:
                reason = ""
        yield f"`{name}`", _limit(name, getattr(limits, name)), reason


def _limit(name: str, value: float) -> str:
    if name.endswith("_S"):
        return f"{value:g} s"
    if name.endswith("_BYTES"):
        for unit, size in (("MiB", 2**20), ("KiB", 2**10)):
            if value >= size and value % size == 0:
                return f"{value / size:g} {unit}"
        return f"{value:g} B"
    return f"{value:,}"


def _setting_row(setting: Setting, schema: dict[str, Any]) -> Sequence[str]:
    return f"`{setting.key}`", _default(setting), _values(setting, schema), description_of(setting)


def _default(setting: Setting) -> str:
    if setting.field.default_factory is not None:
        return "this machine's"
    match written(setting, setting.field.default):
        case None | []:
            return "none"
        case bool(value):
            return f"`{str(value).lower()}`"
        case str(value):
            return f'`"{value}"`'
        case value:
            return f"`{value}`"


def _values(setting: Setting, schema: dict[str, Any]) -> str:
    """What a setting accepts, in words, of its schema."""
    if setting.is_span:
        seconds = schema["anyOf"][1]
        return f"{format_duration_s(seconds['minimum'])} to {format_duration_s(seconds['maximum'])}"
    if setting.is_rate:
        rate = schema["anyOf"][1]
        return f"{format_rate(rate['minimum'])} to {format_rate(rate['maximum'])}"
    if "enum" in schema:
        return ", ".join(f'`"{value}"`' for value in schema["enum"])
    words = {"array": "list of text", "boolean": "`true`, `false`", "string": "path" if setting.is_path else "text"}
    return words.get(schema["type"]) or _range(setting, schema)


def _range(setting: Setting, schema: dict[str, Any]) -> str:
    match schema:
        case {"exclusiveMinimum": above, "maximum": most}:
            return f"more than {above:g}, up to {most:,}"
        case {"minimum": least, "exclusiveMaximum": below}:
            return f"{least:,} to {below - 1:,}"
        case {"minimum": least, "maximum": most}:
            return f"{least:,} to {most:,}"
        case _:
            raise Undocumented(f"the values of {setting.name}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
