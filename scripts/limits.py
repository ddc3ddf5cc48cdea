"""The protocol's limits as a table, taken from `protocol.limits` with the reason given there for each number.

Usage: python scripts/limits.py [--check | --write]. Without an option the table is printed; --check fails if the
table in docs/protocol.md is another, --write puts it there.
"""

import ast
import sys
from pathlib import Path

from protocol import limits

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "protocol" / "limits.py"
PAGE = ROOT / "docs" / "protocol.md"
BEGIN, END = "<!-- limits: begin -->\n", "<!-- limits: end -->\n"


def main(arguments: list[str]) -> int:
    """Run the script; returns its exit code."""
    table = _table()
    if not arguments:
        print(table, end="")
        return 0
    if arguments not in (["--check"], ["--write"]):
        print(__doc__, file=sys.stderr)
        return 2
    page = PAGE.read_text(encoding="utf-8")
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    wanted = f"{head}{BEGIN}{table}{END}{tail}"
    if arguments == ["--write"]:
        PAGE.write_text(wanted, encoding="utf-8")
    elif page != wanted:
        print(f"{PAGE.relative_to(ROOT)}: its limits are not those of {SOURCE.relative_to(ROOT)};", file=sys.stderr)
        print("run python scripts/limits.py --write", file=sys.stderr)
        return 1
    return 0


def _table() -> str:
    statements = ast.parse(SOURCE.read_text(encoding="utf-8")).body
    lines = ["| limit | value | why |", "|---|---|---|"]
    for number, statement in enumerate(statements):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        name = statement.target.id
        following = statements[number + 1] if number + 1 < len(statements) else None
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            reason = " ".join(str(following.value.value).split())
            lines.append(f"| `{name}` | {_shown(name, getattr(limits, name))} | {reason} |")
    return "\n".join(lines) + "\n"


def _shown(name: str, value: float) -> str:
    if name.endswith("_S"):
        return f"{value:g} s"
    if name.endswith("_BYTES"):
        for unit, size in (("MiB", 2**20), ("KiB", 2**10)):
            if value >= size and value % size == 0:
                return f"{value / size:g} {unit}"
        return f"{value:g} B"
    return f"{value:,}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
