"""A report as one HTML page that asks nobody for anything: styles and pictures are inside it."""

import base64
import html
from collections.abc import Sequence

from meshnode.report.page import Block, Heading, Paragraph, Picture, Table

__all__ = ["html_page"]

_STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --soft: #57606a; --line: #d0d7de; --ground: #ffffff;
        --card: #f6f8fa; --good: #1a7f37; --bad: #b42318; --half: #8a5a00; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6edf3; --soft: #9aa4af; --line: #30363d; --ground: #0d1117; --card: #161b22;
          --good: #4ac26b; --bad: #ff8077; --half: #e3b341; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 76rem; color: var(--text); background: var(--ground);
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .6rem; }
h2 { font-size: 1.35rem; margin: 2.6rem 0 .7rem; padding-bottom: .25rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1.08rem; margin: 1.8rem 0 .5rem; }
p { margin: .5rem 0 1rem; max-width: 52rem; }
nav { columns: 16rem; margin: 1rem 0 0; padding: .8rem 1rem; background: var(--card); border: 1px solid var(--line);
      border-radius: 8px; font-size: .92rem; }
nav a { display: block; color: inherit; }
.wide { overflow-x: auto; margin: .6rem 0 1.2rem; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { white-space: nowrap; background: var(--card); font-weight: 600; }
.figures td:first-child { min-width: 13rem; position: sticky; left: 0; background: var(--ground); }
th.number, td.number { text-align: right; white-space: nowrap; }
.good { color: var(--good); font-weight: 600; white-space: nowrap; }
.bad { color: var(--bad); font-weight: 700; white-space: nowrap; }
.half { color: var(--half); font-weight: 600; white-space: nowrap; }
figure { margin: 1rem 0 1.6rem; }
figure img { display: block; max-width: 100%; height: auto; background: #ffffff; border: 1px solid var(--line);
             border-radius: 8px; padding: .4rem; }
figcaption, summary { color: var(--soft); font-size: .9rem; }
figcaption { margin-top: .35rem; }
summary { cursor: pointer; margin: .6rem 0; }
@media print {
  :root { --text: #000; --soft: #333; --line: #999; --ground: #fff; --card: #fff; --good: #000; --bad: #000;
          --half: #000; color-scheme: light; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  h2, h3 { break-after: avoid; }
  figure, tr { break-inside: avoid; }
  table { font-size: 7.5pt; }
  .wide { overflow: visible; }
  details::details-content { content-visibility: visible; display: block; height: auto; }
  figure img { border: 0; padding: 0; }
}
"""

_COLOURS = {"met": "good", "MISSED": "bad", "missed": "bad", "met in part": "half", "not measured": "half"}


def html_page(title: str, blocks: Sequence[Block]) -> str:
    """The whole page. Its policy forbids a browser to load anything, whatever a document's text may hold."""
    sections = [block for block in blocks if isinstance(block, Heading) and block.level == 2]
    places = {id(block): f"part-{number}" for number, block in enumerate(sections, 1)}
    links = "".join(f'<a href="#{places[id(block)]}">{html.escape(block.text)}</a>' for block in sections)
    body = []
    has_links = False
    for block in blocks:
        if isinstance(block, Heading) and block.level == 2 and not has_links:
            body.append(f"<nav>{links}</nav>")
            has_links = True
        body.append(_block(block, places))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _block(block: Block, places: dict[int, str]) -> str:
    match block:
        case Heading(level=level, text=text):
            place = places.get(id(block))
            mark = f' id="{place}"' if place else ""
            return f"<h{level}{mark}>{html.escape(text)}</h{level}>"
        case Paragraph(text=text):
            return f"<p>{html.escape(text)}</p>"
        case Picture(png=png, caption=caption):
            data = base64.b64encode(png).decode("ascii")
            words = html.escape(caption)
            image = f'<img src="data:image/png;base64,{data}" alt="{words}">'
            return f"<figure>{image}<figcaption>{words}</figcaption></figure>"
        case Table():
            table = _table(block)
            if not block.folded:
                return table
            return f"<details><summary>{html.escape(block.folded)}</summary>{table}</details>"


def _table(table: Table) -> str:
    def of_column(place: int) -> str:
        return ' class="number"' if place >= table.numbers_from else ""

    head = "".join(f"<th{of_column(place)}>{html.escape(text)}</th>" for place, text in enumerate(table.columns))
    rows = []
    for row in table.rows:
        cells = []
        for place, text in enumerate(row):
            colour = _COLOURS.get(text) if place == table.verdict_column else None
            kind = f' class="{colour}"' if colour else of_column(place)
            cells.append(f"<td{kind}>{html.escape(text)}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    lines = "\n".join(rows)
    # Of rows with many figures the name stays in sight while they are scrolled past.
    kind = ' class="figures"' if table.numbers_from == 1 else ""
    return f'<div class="wide"><table{kind}><thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody></table></div>'
