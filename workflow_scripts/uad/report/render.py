"""A table in Markdown, HTML, LaTeX and plain text, all from one :class:`Document`.

The renderers know nothing of metrics or methods; equal documents give equal bytes.
"""

from __future__ import annotations

import math
import os
import textwrap
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from uad.core.errors import ConfigError
from uad.core.files import write_text
from uad.report.html import render_page

PathLike = str | os.PathLike[str]

#: What stands beside a cell for which the paper has no value.
NOT_PUBLISHED = "not published"
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
    """One number of a table as text."""

    text: str  # 59.45±0.37
    rank: int = 0  # 1 for the best of its column, 2 for the second best
    published: str = ""  # the paper's value, if there is something to compare
    remark: str = ""  # difference from it and verdict: −1.20, within 2 std
    mark: str = ""  # a sign behind the value, explained in a footnote

    @property
    def beside(self) -> str:
        """``published 59.45±0.37``, ``not published``, or nothing."""
        if self.published in ("", NOT_PUBLISHED):
            return self.published
        return f"published {self.published}"


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
    """A table with everything around it, as plain unescaped text."""

    name: str  # LaTeX label
    title: str  # without a full stop
    caption: list[str]  # sentences
    corner: str  # heading of the row labels
    heads: list[tuple[str, str]]  # of each column: its group (or nothing) and its own heading
    rows: list[Row]
    footnotes: list[str] = field(default_factory=list)  # sentences
    warning: str = ""  # before the caption, set apart where the format can
    panel: int = 4  # columns that LaTeX sets side by side before it starts a panel below

    @property
    def compares(self) -> bool:
        """Whether any cell is compared with a published value."""
        return any(cell.remark for row in self.rows for cell in row.cells)

    @property
    def notes(self) -> list[str]:
        """The footnotes, with the legend of the remarks where there are any."""
        return [*self.footnotes, *([_REMARKS] if self.compares else [])]

    @property
    def groups(self) -> list[tuple[str, list[str]]]:
        """Neighbouring columns under one heading: ``[("BraTS21 (T2)", ["DICE [%]", ...])]``."""
        return [
            (group, [head for _, head in columns])
            for group, columns in groupby(self.heads, key=lambda head: head[0])
        ]

    def panels(self, fits: Callable[[slice], bool]) -> list[slice]:
        """Columns that stand side by side: whole groups, as many as fit (one at least)."""
        found: list[slice] = []
        place = 0
        for _, heads in self.groups:
            end = place + len(heads)
            if found and fits(slice(found[-1].start, end)):
                found[-1] = slice(found[-1].start, end)
            else:
                found.append(slice(place, end))
            place = end
        return found


def html_page(document: Document) -> str:
    """Render as one self-contained page, without scripts or outside resources."""
    return render_page("table.html", document=document)


def markdown(document: Document) -> str:
    """Render as GitHub Markdown."""

    def escape(text: str) -> str:
        return "".join(f"\\{c}" if c in "\\|*_<>`[]" else c for c in text)

    def cell(content: Cell) -> str:
        text = escape(content.text)
        text = {1: f"**{text}**", 2: f"<u>{text}</u>"}.get(content.rank, text) + content.mark
        beside = ", ".join(filter(None, [content.beside, escape(content.remark)]))
        return f"{text} ({beside})" if beside else text

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    heads = [escape(f"{group} {head}".strip()) for group, head in document.heads]
    caption = " ".join([document.warning, *document.caption]).strip()
    lines = [f"### {escape(document.title)}", "", escape(caption), ""]
    lines += [line([escape(document.corner), *heads]), f"|:---|{':---:|' * len(heads)}"]
    for row in document.rows:
        label = escape(row.label)
        cells = [cell(content) for content in row.cells] or [""] * len(heads)
        lines.append(line([f"**{label}**" if row.apart or not row.cells else label, *cells]))
    if document.notes:
        lines += ["", *(f"- {escape(note)}" for note in document.notes)]
    return "\n".join(lines) + "\n"


def terminal(document: Document, width: int = 100) -> str:
    """Render as plain text, at most so many characters wide, published values beside.

    Groups of columns that do not fit side by side go below each other.
    """
    import pandas as pd

    marks = {0: " ", 1: "*", 2: "+"}
    blank = " " if any(cell.mark for row in document.rows for cell in row.cells) else ""
    labels = [textwrap.shorten(row.label, 36, placeholder="...") for row in document.rows]

    def text(panel: slice) -> str:
        heads, shown = [], []
        for place, (group, head) in list(enumerate(document.heads))[panel]:
            cells = [row.cells[place] for row in document.rows]
            heads += [(group, head), (group, "published")]
            shown.append([f"{c.text}{marks[c.rank]}{c.mark or blank}" for c in cells])
            shown.append([c.published for c in cells])
        columns = pd.MultiIndex.from_tuples(heads, names=["", document.corner])
        frame = pd.DataFrame(list(zip(*shown, strict=True)), index=labels, columns=columns)
        return "\n".join(line.rstrip() for line in frame.to_string().splitlines())

    def fits(panel: slice) -> bool:
        return max(map(len, text(panel).splitlines())) <= width

    panels = [text(panel) for panel in document.panels(fits)]
    caption = " ".join([document.warning, *document.caption, *document.footnotes]).strip()
    return "\n".join(
        [
            *textwrap.wrap(document.title, width),
            "=" * width,
            f"\n{'-' * width}\n".join(panels),
            "=" * width,
            *textwrap.wrap(caption, width),
            "",
        ]
    )


#: How a table becomes a document of its own; a test compiles exactly these lines.
_TEX_PREAMBLE = r"""% Table floats for \input that need the packages booktabs and graphicx. Alone:
%   \documentclass{article}
%   \usepackage{booktabs,graphicx}
%   \begin{document}
%   \input{THIS FILE}
%   \end{document}"""
_SYMBOLS = r"""
    ± \pm × \times · \cdot − - ≤ \leq ≥ \geq ≈ \approx → \rightarrow ↑ \uparrow ↓ \downarrow
    ² ^2 ³ ^3 ⁶ ^6 ⁹ ^9 ℓ \ell ∞ \infty α \alpha β \beta γ \gamma λ \lambda σ \sigma Δ \Delta
    μ \mu µ \mu < < > > | |""".split()
#: What pandas' escape leaves, for pdflatex with its own fonts.
_TEX = {symbol: f"${tex}$" for symbol, tex in zip(_SYMBOLS[::2], _SYMBOLS[1::2], strict=True)}
_TEX |= {"†": r"\textsuperscript{$\dagger$}", '"': "''", "\u00a0": "~", "\u2003": r"\quad "}


#: How pandas sets the best and the second best value.
_LOOKS = {0: "", 1: "textbf:--rwrap", 2: "underline:--rwrap"}


def _tex_symbols(escaped: str) -> str:
    """Symbols as mathematics; what pdflatex cannot set, as a code point."""

    def tex(c: str) -> str:
        accent = unicodedata.normalize("NFD", c)[1:]  # pdflatex has all but the ogonek
        known = (
            c.isascii() or c in "–—’“”…ßøØæÆłŁ" or (ord(c) < 0x180 and accent not in ("", "\u0328"))
        )
        return _TEX.get(c) or (c if known else rf"\texttt{{U+{ord(c):04X}}}")

    return "".join(map(tex, escaped))


def tex_text(text: str) -> str:
    """Plain text as LaTeX that pdflatex sets without further packages."""
    import pandas as pd

    style = pd.DataFrame([" ".join(text.split())]).style.format(escape="latex")
    return _tex_symbols(style.hide(axis="index").hide(axis="columns").to_string().strip())


def latex(document: Document) -> str:
    """Render as LaTeX table floats that need only the packages booktabs and graphicx.

    A table that is wider than the line is scaled down to it. Remarks are a second float:
    beside the numbers they would leave them too small to read.
    """
    caption = " ".join([document.warning, *document.caption]).strip()
    body = _tabulars(document, document.panel)
    floats = [_float(document.name, document.title, caption, body, document.footnotes)]
    if document.compares:
        title = f"{document.title}: comparison with the published values"
        text = (
            "Difference of the measured mean from the published one in percentage points, and "
            "the verdict by the published standard deviation where there is one."
        )
        body = _tabulars(document, 2, remarks=True)
        floats.append(_float(f"{document.name}-comparison", title, text, body, []))
    return "\n".join([_TEX_PREAMBLE, *floats]) + "\n"


def _float(name: str, title: str, caption: str, body: str, notes: list[str]) -> str:
    below = ""
    if notes:
        below = "\n\\par\\medskip\n\\begin{minipage}{\\linewidth}\\footnotesize\\raggedright"
        below += "".join(f"\n{tex_text(note)}\\par" for note in notes) + "\n\\end{minipage}"
    return (
        "\\begin{table}[tbp]\n\\centering\n"
        f"\\caption{{\\textbf{{{tex_text(title)}.}} {tex_text(caption)}}}\n"
        f"\\label{{tab:{name}}}\n\\smallskip\\small\n"
        "\\setlength{\\tabcolsep}{4pt}\n"
        "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%\n"
        f"{body}}}{below}\n\\end{{table}}"
    )


def _tabulars(document: Document, panel: int, *, remarks: bool = False) -> str:
    """A tabular per panel of at most so many columns, below each other."""
    panels = document.panels(lambda columns: columns.stop - columns.start <= panel)
    parts = [_tabular(document, columns, remarks) for columns in panels]
    body = "\\\\\n\\addlinespace\n".join(parts)
    return f"\\begin{{tabular}}{{@{{}}l@{{}}}}\n{body}\\end{{tabular}}" if parts[1:] else body


def _tabular(document: Document, columns: slice, remarks: bool) -> str:
    """Some columns as a tabular: values with a line of published ones, or the remarks."""
    import pandas as pd

    heads = document.heads[columns]
    lines, looks = [], []
    for row in document.rows:
        cells = row.cells[columns]
        if remarks:
            lines.append([row.label, *(c.remark or c.published for c in cells)])
            looks.append([""] * len(lines[-1]))
            continue
        lines.append([row.label, *(c.text + c.mark for c in cells)])
        looks.append(["", *(_LOOKS[c.rank] for c in cells)])
        if any(c.published for c in cells):
            lines.append(["\u2003published", *(c.published for c in cells)])
            looks.append(["scriptsize:--wrap"] * len(lines[-1]))
    names = pd.MultiIndex.from_tuples([("", document.corner), *heads])
    frame = pd.DataFrame(lines, columns=names)
    style = frame.style.format(escape="latex").format_index(escape="latex", axis="columns")
    style = style.apply(lambda _: pd.DataFrame(looks, columns=names), axis=None)
    text = style.hide(axis="index").to_latex(
        hrules=True, column_format=f"@{{}}l{'c' * len(heads)}@{{}}", multicol_align="c"
    )
    return _tex_symbols(text)


# Parts of texts --------------------------------------------------------------------------


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


def titled(title: str, phantom: bool) -> str:
    """A title that says where the data are a phantom."""
    return f"{title} (phantom data)" if phantom else title


def data_source(phantom: bool) -> str:
    """What was trained and tested on, in words."""
    return "synthetic phantom" if phantom else "the data sets named in the config"


def data_and_seed(facts: Mapping[str, Any]) -> tuple[str, str]:
    """The sentences of a caption that say what the data and the seed were."""
    return f"Data: {str(facts['data_source']).rstrip('.')}.", f"Seed {facts['seed']}."


# Files -----------------------------------------------------------------------------------


def csv_text(frame: Any, number: str = "%.4f") -> str:
    """A data frame as CSV: four decimals, and ``nan`` rather than an empty cell."""
    return frame.to_csv(index=False, float_format=number, na_rep="nan", lineterminator="\n")


def write_document(out_paths: Iterable[PathLike], document: Document, csv: str = "") -> None:
    """Write a table in the formats that the suffixes name: ``.csv .md .html .tex``.

    Raises:
        ConfigError: a suffix is another one; nothing is written.
    """
    renderers = {".csv": lambda _: csv, ".md": markdown, ".html": html_page, ".tex": latex}
    paths = [Path(path) for path in out_paths]
    for path in paths:
        if path.suffix not in renderers or (path.suffix == ".csv" and not csv):
            raise ConfigError(f"{path}: a table is written as {', '.join(renderers)} only.")
    for path in paths:
        write_text(path, renderers[path.suffix](document))
