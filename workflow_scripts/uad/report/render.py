"""One table, laid out as in the paper, in Markdown, LaTeX and HTML.

The renderers know nothing of metrics or methods: they get a finished
:class:`Document` of plain text and decide only how it looks. All of them are pure
functions of the document, so equal input gives equal bytes.
"""

from __future__ import annotations

import html
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from uad.core.errors import ConfigError
from uad.core.files import write_text

PathLike = str | os.PathLike[str]

#: What the published line says where the paper has no value for a cell.
NOT_PUBLISHED = "not published"
#: The legend of the remarks, in every format that shows them.
_REMARKS = (
    "Behind or below a published value: difference of the measured mean from it in percentage "
    "points, and the verdict by the published standard deviation where there is one."
)
PHANTOM_WARNING = (
    "These numbers come from phantom data, and phantom data cannot rank methods for real scans: "
    "they show that the workflow runs, nothing else."
)


@dataclass(frozen=True)
class Cell:
    """One number of a table as text.

    Attributes:
        text: the value, for example ``59.45±0.37``.
        rank: 1 for the best of its column, 2 for the second best, 0 otherwise.
        published: the paper's value as text; None where comparing makes no sense.
        remark: difference from the published value and verdict, for example
            ``−1.20, within 2 std``; empty where there is nothing to compare.
        mark: a sign set above the line behind the value, explained in a footnote.
    """

    text: str
    rank: int = 0
    published: str | None = None
    remark: str = ""
    mark: str = ""


@dataclass(frozen=True)
class Row:
    """A row: its label, its cells, and whether it is set apart (a mean row).

    A row without cells is the heading of the rows below it.
    """

    label: str
    cells: list[Cell]
    apart: bool = False


@dataclass(frozen=True)
class Document:
    """A table with everything around it, as plain unescaped text.

    Attributes:
        name: the key of the table, used as LaTeX label.
        title: a line without a full stop.
        caption: sentences.
        corner: the heading of the row labels.
        heads: for each column its group (empty for none) and its own heading.
        rows: the rows.
        footnotes: sentences below the table.
        warning: the first sentences of the caption, set apart where the format can.
        panel: how many columns LaTeX may set side by side before it starts a panel below.
    """

    name: str
    title: str
    caption: list[str]
    corner: str
    heads: list[tuple[str, str]]
    rows: list[Row]
    footnotes: list[str] = field(default_factory=list)
    warning: str = ""
    panel: int = 4

    @property
    def full_caption(self) -> str:
        """Warning and caption as one text."""
        return " ".join([self.warning, *self.caption]).strip()

    @property
    def notes(self) -> list[str]:
        """The footnotes, with the legend of the remarks where there are any."""
        return [*self.footnotes, *([_REMARKS] if self.compares else [])]

    @property
    def compares(self) -> bool:
        """Whether any cell is compared with a published value."""
        return any(cell.remark for row in self.rows for cell in row.cells)

    @property
    def groups(self) -> list[tuple[str, list[str]]]:
        """Neighbouring columns under one heading: ``[("BraTS21 (T2)", ["DICE [%]", ...])]``."""
        return [
            (group, [head for _, head in columns])
            for group, columns in groupby(self.heads, key=lambda head: head[0])
        ]


def markdown(document: Document) -> str:
    """Render as GitHub Markdown."""

    def escape(text: str) -> str:
        return "".join(f"\\{c}" if c in "\\|*_<>`[]" else c for c in text)

    def cell(content: Cell) -> str:
        text = escape(content.text)
        text = {1: f"**{text}**", 2: f"<u>{text}</u>"}.get(content.rank, text) + content.mark
        if content.published == NOT_PUBLISHED:
            return f"{text} ({NOT_PUBLISHED})"
        if not content.published:
            return text
        remark = f", {escape(content.remark)}" if content.remark else ""
        return f"{text} (published {content.published}{remark})"

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    heads = [escape(f"{group} {head}".strip()) for group, head in document.heads]
    lines = [f"### {escape(document.title)}", "", escape(document.full_caption), ""]
    lines.append(line([escape(document.corner), *heads]))
    lines.append("|:---|" + ":---:|" * len(heads))
    for row in document.rows:
        apart = row.apart or not row.cells
        label = f"**{escape(row.label)}**" if apart else escape(row.label)
        cells = [cell(content) for content in row.cells] or [""] * len(heads)
        lines.append(line([label, *cells]))
    if document.notes:
        lines += ["", *(f"- {escape(note)}" for note in document.notes)]
    return "\n".join(lines) + "\n"


_TEX_CHARACTERS = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "−": r"$-$",
    "–": "--",
    "—": "---",
    "’": "'",
    "“": "``",
    "”": "''",
    "…": r"\dots{}",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≈": r"$\approx$",
    "→": r"$\rightarrow$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "†": r"$\dagger$",
    "‡": r"$\ddagger$",
    "²": r"$^2$",
    "³": r"$^3$",
    "¹": r"$^1$",
    "⁶": r"$^6$",
    "⁹": r"$^9$",
    "ℓ": r"$\ell$",
    "∞": r"$\infty$",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "γ": r"$\gamma$",
    "λ": r"$\lambda$",
    "σ": r"$\sigma$",
    "Δ": r"$\Delta$",
    "μ": r"$\mu$",
    "µ": r"$\mu$",
    "\u00a0": "~",
    "\u202f": r"\,",
    "«": r"$\ll$",
    "»": r"$\gg$",
    "\n": " ",
    "\t": " ",
} | {c: f"\\{c}" for c in "&%$#_{}"}

#: Latin letters below U+0180 that pdflatex cannot set in its default encoding.
_TEX_LACKS = frozenset("ÐÞðþĄąĐđĘęĦħĮįĸĿŀŉŊŋŦŧŲųſ")

#: How a table becomes a document of its own; a test compiles exactly these lines.
_TEX_PREAMBLE = r"""% Table floats for \input that need the packages booktabs and graphicx. Alone:
%   \documentclass{article}
%   \usepackage{booktabs,graphicx}
%   \begin{document}
%   \input{THIS FILE}
%   \end{document}"""


def tex_escape(text: str) -> str:
    """Escape plain text so that pdflatex can set it without further packages."""
    out = []
    for character in text:
        if character in _TEX_CHARACTERS:
            out.append(_TEX_CHARACTERS[character])
        elif " " <= character < "\u0180" and character not in _TEX_LACKS:
            out.append(character)
        else:
            # A visible code point is better than a document that does not compile.
            out.append(rf"\texttt{{U+{ord(character):04X}}}")
    return "".join(out)


def _panels(document: Document, panel: int) -> list[list[tuple[str, list[str]]]]:
    """Column groups, side by side as long as they have at most ``panel`` columns."""
    panels: list[list[tuple[str, list[str]]]] = []
    for group in document.groups:
        used = sum(len(heads) for _, heads in panels[-1]) if panels else panel
        if used + len(group[1]) > panel:
            panels.append([])
        panels[-1].append(group)
    return panels


def latex(document: Document) -> str:
    """Render as LaTeX table floats that need only the packages booktabs and graphicx.

    Groups of columns that do not fit side by side go below each other; a table that is
    still wider than the line is scaled down to it. Remarks are a second float: beside the
    numbers they would leave them too small to read.
    """

    def cell(content: Cell) -> str:
        text = tex_escape(content.text)
        if content.rank == 1:
            # \boldmath reaches the plus-minus sign, which \textbf alone leaves light.
            text = rf"\textbf{{\boldmath {text}}}"
        elif content.rank == 2:
            text = rf"\underline{{{text}}}"
        mark = rf"\textsuperscript{{{tex_escape(content.mark)}}}" if content.mark else ""
        return text + mark

    def compared(content: Cell) -> str:
        return tex_escape(content.remark or content.published or "")

    floats = [
        [
            rf"\caption{{\textbf{{{tex_escape(document.title)}.}} "
            rf"{tex_escape(document.full_caption)}}}",
            rf"\label{{tab:{document.name}}}",
            r"\smallskip\small",
            *_tabular(document, document.panel, cell, published=True),
            *_tex_notes(document.footnotes),
        ]
    ]
    if document.compares:
        title = f"{document.title}: comparison with the published values"
        text = (
            "Difference of the measured mean from the published one in percentage points, and "
            "the verdict by the published standard deviation where there is one."
        )
        floats.append(
            [
                rf"\caption{{\textbf{{{tex_escape(title)}.}} {text}}}",
                rf"\label{{tab:{document.name}-comparison}}",
                r"\smallskip\footnotesize",
                *_tabular(document, 2, compared, published=False),
            ]
        )
    lines = [_TEX_PREAMBLE]
    for content in floats:
        lines += [r"\begin{table}[tbp]", r"\centering", *content, r"\end{table}"]
    return "\n".join(lines) + "\n"


def _tex_notes(notes: list[str]) -> list[str]:
    """Footnotes below a tabular."""
    if not notes:
        return []
    return [
        r"\par\medskip",
        r"\begin{minipage}{\linewidth}",
        r"\footnotesize\raggedright",
        *(tex_escape(note) + r"\par" for note in notes),
        r"\end{minipage}",
    ]


def _tabular(
    document: Document, panel_width: int, cell: Callable[[Cell], str], *, published: bool
) -> list[str]:
    """The lines of a tabular, scaled down to the width of the line.

    Args:
        document: the table.
        panel_width: how many columns may stand side by side.
        cell: what is written in a cell.
        published: whether published values are lines of their own.
    """

    def row(cells: list[str], width: int) -> str:
        return " & ".join(cells + [""] * (width - len(cells))) + r" \\"

    panels = _panels(document, panel_width)
    width = 1 + max(sum(len(heads) for _, heads in panel) for panel in panels)
    lines = [
        r"\setlength{\tabcolsep}{4pt}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{@{{}}l{'c' * (width - 1)}@{{}}}}",
        r"\toprule",
    ]
    first = 0
    for number, panel in enumerate(panels):
        if number:
            lines.append(r"\midrule")
        count = sum(len(heads) for _, heads in panel)
        if any(group for group, _ in panel):
            top, rules, column = [""], [], 2
            for group, heads in panel:
                top.append(rf"\multicolumn{{{len(heads)}}}{{c}}{{{tex_escape(group)}}}")
                if group:
                    rules.append(rf"\cmidrule(lr){{{column}-{column + len(heads) - 1}}}")
                column += len(heads)
            lines += [" & ".join(top) + r" \\", "".join(rules)]
        heads = [tex_escape(head) for _, group_heads in panel for head in group_heads]
        lines += [row([tex_escape(document.corner), *heads], width), r"\midrule"]
        for place, content in enumerate(document.rows):
            label = tex_escape(content.label)
            if not content.cells:
                space = [r"\addlinespace"] if place else []
                lines += [*space, rf"\multicolumn{{{width}}}{{@{{}}l}}{{\textbf{{{label}}}}} \\"]
                continue
            cells = content.cells[first : first + count]
            lines.append(row([label, *map(cell, cells)], width))
            if published and any(c.published for c in cells):
                known = [rf"{{\scriptsize {tex_escape(c.published or '')}}}" for c in cells]
                lines.append(row([r"\quad{\scriptsize published}", *known], width))
        first += count
    return [*lines, r"\bottomrule", r"\end{tabular}}"]


_STYLE = """\
:root { color-scheme: light; }
body { margin: 2rem auto; max-width: 68rem; padding: 0 1.25rem; background: #fff; color: #1c1e21;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.2rem; line-height: 1.3; margin: 0 0 .5rem; }
p.caption { margin: 0 0 1rem; color: #3a3f45; }
div.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums;
  border-top: 2px solid #1c1e21; border-bottom: 2px solid #1c1e21; }
th, td { padding: .4rem .7rem; text-align: center; vertical-align: top; }
thead th { font-weight: 600; vertical-align: bottom; border-bottom: 1px solid #1c1e21; }
thead th.span { border-bottom: 1px solid #b4bac2; }
th.corner, tbody th { text-align: left; }
tbody th { font-weight: 500; min-width: 8rem; }
tbody tr + tr th, tbody tr + tr td { border-top: 1px solid #eceef1; }
tbody tr.apart { background: #f5f6f8; }
tbody tr.apart th { font-weight: 600; }
tbody tr.heading th { font-weight: 600; padding-top: .9rem; border-top: 1px solid #1c1e21; }
tbody tr.heading:first-child th { border-top: 0; padding-top: .5rem; }
td { white-space: nowrap; }
td small { display: block; color: #5d646d; font-size: .78em; line-height: 1.4; }
td small.remark { white-space: normal; }
td u { text-underline-offset: 3px; }
td sup { line-height: 0; font-size: .75em; }
table.wide { font-size: .88em; }
table.wide th, table.wide td { padding: .35rem .45rem; }
table.plain { font-size: .85em; }
table.plain tbody th { white-space: nowrap; min-width: 0; }
table.plain th, table.plain td { padding: .35rem .4rem; }
table.plain td:last-child { white-space: normal; min-width: 7.5rem; }
p.warning { padding: .5rem .8rem; background: #fff4e0; border-left: 4px solid #c77700; }
ul.notes { margin: 1rem 0 0; padding-left: 1.1rem; color: #3a3f45; font-size: .87em; }
@media print { body { margin: 0; max-width: none; font-size: 10pt; } }
"""


def html_page(document: Document) -> str:
    """Render as one self-contained page, without scripts or outside resources."""
    escape = html.escape

    def cell(content: Cell) -> str:
        text = escape(content.text)
        text = {1: f"<b>{text}</b>", 2: f"<u>{text}</u>"}.get(content.rank, text)
        if content.mark:
            text += f"<sup>{escape(content.mark)}</sup>"
        if content.published == NOT_PUBLISHED:
            text += f"<small>{NOT_PUBLISHED}</small>"
        elif content.published:
            text += f"<small>published {escape(content.published)}</small>"
        if content.remark:
            text += f'<small class="remark">{escape(content.remark)}</small>'
        return f"<td>{text}</td>"

    lines = [f"<h1>{escape(document.title)}</h1>"]
    if document.warning:
        lines.append(f'<p class="caption warning">{escape(document.warning)}</p>')
    lines.append(f'<p class="caption">{escape(" ".join(document.caption))}</p>')
    corner = escape(document.corner)
    grouped = any(group for group, _ in document.heads)
    kind = ("wide" if len(document.heads) > 5 else "grouped") if grouped else "plain"
    lines += ['<div class="scroll">', f'<table class="{kind}">', "<thead>"]
    if grouped:
        lines += ["<tr>", f'<th class="corner" rowspan="2" scope="col">{corner}</th>']
        for group, heads in document.groups:
            lines.append(
                f'<th class="span" colspan="{len(heads)}" scope="colgroup">{escape(group)}</th>'
            )
        lines += ["</tr>", "<tr>"]
    else:
        lines += ["<tr>", f'<th class="corner" scope="col">{corner}</th>']
    lines += [f'<th scope="col">{escape(head)}</th>' for _, head in document.heads]
    lines += ["</tr>", "</thead>", "<tbody>"]
    for row in document.rows:
        if not row.cells:
            lines.append(
                f'<tr class="heading"><th colspan="{len(document.heads) + 1}" scope="rowgroup">'
                f"{escape(row.label)}</th></tr>"
            )
            continue
        start = '<tr class="apart">' if row.apart else "<tr>"
        cells = "".join(cell(content) for content in row.cells)
        lines.append(f'{start}<th scope="row">{escape(row.label)}</th>{cells}</tr>')
    lines += ["</tbody>", "</table>", "</div>"]
    if document.notes:
        notes = "".join(f"<li>{escape(note)}</li>\n" for note in document.notes)
        lines.append(f'<ul class="notes">\n{notes}</ul>')
    return html_frame(document.title, "\n".join(lines))


def html_frame(title: str, body: str, style: str = "") -> str:
    """A self-contained page around a body, in the style of the tables.

    Args:
        title: plain text, for the head of the page only.
        body: HTML.
        style: further rules.
    """
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title>",
        f"<style>\n{_STYLE}{style}</style>",
        "</head>",
        "<body>",
        body,
        "</body>",
        "</html>",
    ]
    return "\n".join(lines) + "\n"


def mean_std(mean: float, std: float) -> str:
    """``mean±std`` with the paper's two decimals; the mean alone where there is no std."""
    return f"{mean:.2f}" if math.isnan(std) else f"{mean:.2f}±{std:.2f}"


def signed(number: float) -> str:
    """Two decimals and always a sign, with a proper minus; what rounds to zero is ``+0.00``."""
    text = f"{abs(number):.2f}"
    return f"{'−' if number < 0 and float(text) else '+'}{text}"


def counted(number: int, noun: str) -> str:
    """``1 fold``, ``5 folds``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def span(numbers: Iterable[int], noun: str) -> str:
    """``5 folds``, or ``3 to 5 folds`` where they differ."""
    low, high = min(numbers), max(numbers)
    return counted(high, noun) if low == high else f"{low} to {counted(high, noun)}"


def csv_text(frame: Any, number: str = "%.4f") -> str:
    """A data frame as CSV: four decimals, and ``nan`` rather than an empty cell."""
    return frame.to_csv(index=False, float_format=number, na_rep="nan", lineterminator="\n")


def write_all(
    out_paths: Iterable[PathLike] | Mapping[str, PathLike],
    renderers: Mapping[str, Callable[[], str]],
) -> None:
    """Write each path with the renderer of its suffix."""
    listed = out_paths.values() if isinstance(out_paths, Mapping) else out_paths
    paths = [Path(path) for path in listed]
    for path in paths:
        if path.suffix not in renderers:
            raise ConfigError(
                f"{path}: cannot write this format, only {', '.join(sorted(renderers))}."
            )
    for path in paths:
        write_text(path, renderers[path.suffix]())


def checked_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse facts that would be dropped, and captions that would lack one."""
    known = {"data_source", "seed", "notes"}
    missing = sorted({"data_source", "seed"} - set(facts))
    unknown = sorted(set(facts) - known)
    if missing or unknown:
        raise ConfigError(
            f"caption_facts: missing {missing}, not known {unknown}; known are {sorted(known)} "
            "(volumes and folds are counted from the metrics)."
        )
    notes = facts.get("notes") or []
    return {**facts, "notes": [notes] if isinstance(notes, str) else list(notes)}
