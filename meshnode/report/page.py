"""What a report is made of, whether it is shown as HTML or as Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Block", "Heading", "Paragraph", "Picture", "Table"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Heading:
    """Begins a section; ``level`` 1 is the page's own."""

    level: int
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Cells of plain text."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers_from: int = 1
    """Columns from this one on hold numbers, which stand to the right."""
    folded: str = ""
    """What a reader opens it by; empty: it lies open."""
    verdict_column: int | None = None
    """Holds ``met``, ``MISSED`` or a verdict, which is shown in colour too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A drawing."""

    name: str
    """Of its file, without the ending: letters, digits and hyphens."""
    png: bytes
    caption: str


Block = Heading | Paragraph | Table | Picture
