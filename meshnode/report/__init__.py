"""What benchmarks have measured, as one page: for a browser, and as Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshnode.report.content import TITLE, blocks_of
from meshnode.report.documents import Found, read_documents
from meshnode.report.html import html_page
from meshnode.report.markdown import PICTURES, markdown_page
from meshnode.report.outcomes import Outcome, outcomes_of, to_dict
from meshnode.report.page import Picture

__all__ = ["Report", "write_report"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What was read, and where the pages are."""

    html: Path
    markdown: Path
    pictures: Sequence[Path]
    found: Found
    outcomes: Sequence[Outcome]

    def to_dict(self) -> dict[str, Any]:
        """``meshnode.report/1``."""
        targets = [(document.name, target) for document in self.found.documents for target in document.targets]
        return {
            "schema": "meshnode.report/1",
            "html": str(self.html),
            "markdown": str(self.markdown),
            "pictures": [str(path) for path in self.pictures],
            "results": [document.name for document in self.found.documents],
            "passed_over": list(self.found.passed_over),
            "targets": {
                "met": sum(target.is_met for _, target in targets),
                "missed": [f"{name}: {target.name}" for name, target in targets if not target.is_met],
            },
            "outcomes": [to_dict(outcome) for outcome in self.outcomes],
        }


def write_report(folder: Path, out: Path) -> Report:
    """Read a folder of results and write ``report.html``, ``report.md`` and the pictures of the latter.

    Raises:
        ResourceAbsent: If the folder is not there or holds no result.
        ResultUnreadable: If a document is damaged. Nothing is written then.
    """
    found = read_documents(folder)
    outcomes = outcomes_of(found.documents)
    blocks = blocks_of(found, outcomes)
    pictures = [block for block in blocks if isinstance(block, Picture)]
    (out / PICTURES).mkdir(parents=True, exist_ok=True)
    paths = []
    for picture in pictures:
        paths.append(out / PICTURES / f"{picture.name}.png")
        paths[-1].write_bytes(picture.png)
    html, markdown = out / "report.html", out / "report.md"
    html.write_text(html_page(TITLE, blocks), encoding="utf-8")
    markdown.write_text(markdown_page(blocks), encoding="utf-8")
    return Report(html=html, markdown=markdown, pictures=paths, found=found, outcomes=outcomes)
