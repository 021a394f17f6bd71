"""A table in Markdown, HTML, LaTeX and plain text, each made from one :class:`Document`.

Nothing here knows of metrics or methods; equal documents give equal bytes.
"""

from __future__ import annotations

import math
import os
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from uad.core.files import write_text
from uad.report.html import environment, paragraphs, render_page

PathLike = str | os.PathLike[str]

#: In place of a number that there is none of.
NOTHING = "–"
PHANTOM_WARNING = (
    "These numbers come from phantom data, and phantom data cannot rank methods for real scans: "
    "they show that the workflow runs, nothing else."
)


@dataclass(frozen=True)
class Cell:
    """One number of a table as text."""

    text: str  # 59.45±0.37
    rank: int = 0  # 1 for the best of its column (bold), 2 for the second best (underlined)
    published: str = ""  # the paper's value, in tables that have such values
    remark: str = ""  # difference from it and verdict: −1.20, within 2 std
    mark: str = ""  # a sign behind the value, explained in a note


@dataclass(frozen=True)
class Row:
    """A row: its label and its cells; without cells it is the heading of the rows below it."""

    label: str
    cells: Sequence[Cell] = ()
    apart: bool = False  # a mean row, for example


@dataclass(frozen=True)
class Document:
    """A table with everything around it, as plain unescaped text."""

    name: str  # LaTeX label
    title: str  # without a full stop
    caption: str
    corner: str  # heading of the row labels
    heads: Sequence[tuple[str, str]]  # of each column: its group (or nothing) and its own heading
    rows: Sequence[Row]
    notes: Sequence[str] = field(default_factory=list)  # sentences below the table
    warning: str = ""  # before the caption, set apart where the format can
    panel: int = 4  # columns that LaTeX sets side by side before it starts a panel below

    @classmethod
    def of(
        cls,
        words: str,
        *,
        phantom: bool,
        table: dict[str, Any],
        notes: Iterable[str] = (),
        **facts: Any,
    ) -> Document:
        """A document whose texts are the blocks of ``texts/<words>.txt``, which reads the facts.

        ``table`` has the other fields (the name, if it is another); ``notes`` are further ones.
        """
        data = "synthetic phantom" if phantom else "the data sets named in the config"
        facts |= {"phantom": phantom, "phantom_warning": PHANTOM_WARNING, "data": data}
        blocks = paragraphs(f"texts/{words}.txt", **facts)
        title, caption, warning = (" ".join(blocks[key]) for key in ("title", "caption", "warning"))
        texts = {"title": titled(title, phantom), "caption": caption}
        texts |= {"warning": warning if phantom else "", "notes": [*blocks["notes"], *notes]}
        return cls(**{"name": words, **texts, **table})

    @property
    def text(self) -> str:
        """Warning and caption as running text."""
        return f"{self.warning} {self.caption}".strip()

    def groups(self, columns: slice = slice(None)) -> list[tuple[str, list[str]]]:
        """Neighbouring columns under one heading: ``[("BraTS21 (T2)", ["DICE [%]", ...])]``."""
        found = groupby(self.heads[columns], key=lambda head: head[0])
        return [(group, [head for _, head in heads]) for group, heads in found]

    def panels(self, most: int) -> list[slice]:
        """Columns that stand side by side: whole groups, at most so many columns, or one group."""
        found: list[slice] = []
        for _, group in groupby(range(len(self.heads)), key=lambda i: self.heads[i][0] or i):
            place, *others = group
            end = place + len(others) + 1
            start = found.pop().start if found and end - found[-1].start <= most else place
            found.append(slice(start, end))
        return found


def terminal(document: Document, width: int = 100) -> str:
    """Title and numbers as plain text, published values beside; groups of columns below each other.

    ``*`` marks the best value of a column, ``+`` the second best.
    """
    import pandas as pd

    labels = [textwrap.shorten(row.label, 36, placeholder="...") for row in document.rows]
    parts = []
    for panel in document.panels(2):
        shown = {}
        for place, (group, head) in list(enumerate(document.heads))[panel]:
            cells = [row.cells[place] for row in document.rows]
            shown[place, group, head] = [f"{c.text}{' *+'[c.rank]}{c.mark or ' '}" for c in cells]
            shown[place, group, "published"] = [c.published for c in cells]
        frame = pd.DataFrame(shown, index=labels).droplevel(0, axis=1)
        frame.columns.names = ["", document.corner]
        parts.append("\n".join(line.rstrip() for line in frame.to_string().splitlines()))
    return "\n".join([*textwrap.wrap(document.title, width), "=" * width, "\n\n".join(parts)])


_SYMBOLS = r"""
    ± \pm × \times · \cdot − - ≤ \leq ≥ \geq ≈ \approx → \rightarrow ↑ \uparrow ↓ \downarrow
    ² ^2 ³ ^3 ⁶ ^6 ⁹ ^9 ℓ \ell ∞ \infty α \alpha β \beta γ \gamma λ \lambda σ \sigma Δ \Delta
    μ \mu µ \mu < < > > | | \ \backslash ~ \sim ^ \wedge""".split()
#: Characters that mean something to LaTeX, and symbols that pdflatex's own fonts lack.
_TEX = {symbol: f"${tex}$" for symbol, tex in zip(_SYMBOLS[::2], _SYMBOLS[1::2], strict=True)}
_TEX |= {c: f"\\{c}" for c in "&%$#_{}"}
_TEX |= {"†": r"\textsuperscript{$\dagger$}", '"': "''", "\u00a0": "~", "\u2003": r"\quad "}


def _tex_symbol(c: str) -> str:
    """A character for LaTeX; what pdflatex cannot set, as a code point."""
    accent = unicodedata.normalize("NFD", c)[1:]  # pdflatex has all but the ogonek
    known = c.isascii() or c in "–—’“”…ßøØæÆłŁ" or (ord(c) < 0x180 and accent not in ("", "\u0328"))
    return _TEX.get(c) or (c if known else rf"\texttt{{U+{ord(c):04X}}}")


def tex_text(text: str) -> str:
    """Plain text as LaTeX that pdflatex sets without further packages."""
    return "".join(map(_tex_symbol, " ".join(text.split())))


@cache
def _tex_environment() -> Any:
    marks = {"variable_start_string": "<<", "variable_end_string": ">>"}  # braces are TeX's own
    marks |= {"block_start_string": "<%", "block_end_string": "%>"}
    marks |= {"comment_start_string": "<#", "comment_end_string": "#>"}
    tex = environment().overlay(**marks)
    tex.filters = {**tex.filters, "tex": tex_text}
    return tex


def latex(document: Document) -> str:
    """Render as a LaTeX table float that needs only the packages booktabs and graphicx.

    A table that is wider than the line is scaled down to it.
    """
    return _tex_environment().get_template("table.tex").render(document=document)


def markdown(document: Document) -> str:
    """Render as GitHub Markdown."""

    def escape(text: str) -> str:
        return "".join(f"\\{c}" if c in "\\|*_<>`[]" else c for c in text)

    return render_page("table.md", document=document, md=escape)


def html(document: Document) -> str:
    """Render as a page of its own."""
    return render_page("table.html", document=document)


# Parts of texts --------------------------------------------------------------------------


def mean_std(mean: float, std: float) -> str:
    """``mean±std`` with the paper's two decimals; the mean alone where there is no std."""
    return "±".join(f"{number:.2f}" for number in (mean, std) if not math.isnan(number))


def signed(number: float) -> str:
    """Two decimals and always a sign, with a proper minus; what rounds to zero is ``+0.00``."""
    text = f"{abs(number):.2f}"
    return f"{'−' if number < 0 and float(text) else '+'}{text}"


def digits(number: float | None) -> str:
    """Three significant digits, all of a larger number before its point; a dash for nothing."""
    if number is None or math.isnan(number):
        return NOTHING
    return f"{number:.0f}" if number == 0 or abs(number) >= 100 else f"{number:#.3g}".rstrip(".")


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


def write_document(
    out_paths: Iterable[PathLike], document: Document, frame: Any, number: str = "%.4f"
) -> None:
    """Write a table in the formats that the suffixes name: ``.csv .md .html .tex``.

    The CSV is the frame, with ``nan`` rather than an empty cell and floats as ``number`` has them.
    """
    csv = {"index": False, "float_format": number, "na_rep": "nan", "lineterminator": "\n"}
    formats = {".md": markdown, ".html": html, ".tex": latex, ".csv": lambda _: frame.to_csv(**csv)}
    for path in out_paths:
        write_text(path, formats[Path(path).suffix](document))
