"""A report as Markdown, with its pictures in a folder beside it."""

import re
from collections.abc import Sequence

from meshnode.report.page import Block, Heading, Paragraph, Picture, Table

__all__ = ["PICTURES", "markdown_page", "markdown_table"]

PICTURES = "figures"
"""The folder beside the page."""

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~$])")


def markdown_page(blocks: Sequence[Block]) -> str:
    """The whole page."""
    return "\n".join(_block(block) for block in blocks)


def markdown_table(table: Table) -> str:
    """The table alone."""
    rule = "".join("---:|" if place >= table.numbers_from else "---|" for place in range(len(table.columns)))
    return "\n".join([_line(table.columns), f"|{rule}", *(_line(row) for row in table.rows)]) + "\n"


def _block(block: Block) -> str:
    match block:
        case Heading(level=level, text=text):
            return f"{'#' * level} {_escaped(text)}\n"
        case Paragraph(text=text):
            return f"{_escaped(text)}\n"
        case Picture(name=name, caption=caption):
            return f"![{_escaped(caption)}]({PICTURES}/{name}.png)\n\n{_escaped(caption)}\n"
        case Table(folded=""):
            return markdown_table(block)
        case Table(folded=folded):
            return f"<details><summary>{_escaped(folded)}</summary>\n\n{markdown_table(block)}\n</details>\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_escaped, cells))} |"


def _escaped(text: str) -> str:
    """Text that is shown as it is, on one line, whatever it holds."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
