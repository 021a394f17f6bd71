"""The verdict for people: one page, and a few lines for the terminal."""

from __future__ import annotations

import html
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from uad.audit.verdict import Verdict
from uad.core.files import write_json, write_text
from uad.report.render import counted, html_frame

#: Beyond the style of the tables.
_STYLE = """\
h2 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
p.verdict { padding: .6rem .8rem; font-weight: 600; border-left: 4px solid; }
p.passed { background: #e9f5ec; border-color: #2e7d43; }
p.failed { background: #fdecea; border-color: #b3261e; }
table { font-size: .87em; }
th, td { padding: .3rem .6rem; text-align: right; white-space: normal; }
th:first-child, td:first-child, table.texts th, table.texts td { text-align: left; }
tfoot td { font-weight: 600; border-top: 1px solid #1c1e21; }
div.columns { display: flex; gap: 2.5rem; align-items: flex-start; }
div.columns > div { flex: 3; }
div.columns > div:last-child { flex: 2; }
div.columns th, div.columns td { padding: .12rem .4rem; }
@media (max-width: 50rem) { div.columns { display: block; } }
code { font: .92em ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
table.texts td:first-child { width: 32%; }
"""
_PHANTOM = (
    "The data of this tree are synthetic (phantom): the audit says that the numbers follow from "
    "their files, and nothing about methods on real scans."
)


def page(verdict: Verdict) -> str:
    """The verdict as one self-contained HTML page."""
    title = f"Audit of a results tree{' (phantom data)' if verdict.phantom else ''}"
    state = "passed" if verdict.passed else "failed"
    lines = [
        f"<h1>{title}</h1>",
        f'<p class="verdict {state}">{html.escape(verdict.sentence)}</p>',
        *([f'<p class="warning">{_PHANTOM}</p>'] if verdict.phantom else []),
        f"<p>{html.escape(_counts(verdict))}</p>",
    ]
    if verdict.findings:
        lines += ["<h2>What fails</h2>", *_findings(verdict)]
    lines += [
        '<div class="columns">',
        *("<div><h2>Coverage by stage</h2>", *_stages(verdict), "</div>"),
        *("<div><h2>What was compared</h2>", *_comparisons(verdict), "</div>"),
        "</div>",
    ]
    notes = [*verdict.notes, *_commits(verdict)]
    for head, texts in (("Not checked", verdict.skipped), ("Notes", notes)):
        if texts:
            lines += [f"<h2>{head}</h2>", "<ul>"]
            lines += [f"<li>{html.escape(text)}</li>" for text in texts]
            lines.append("</ul>")
    return html_frame(title, "\n".join(lines), _STYLE)


def _counts(verdict: Verdict) -> str:
    parts = [
        f"{verdict.checked} of {verdict.total} artifacts ({_percent(verdict.coverage)})",
        counted(verdict.records, "record"),
        f"{verdict.bytes / 1e6:.1f} MB hashed",
    ]
    if verdict.temporary:
        parts.append(f"{verdict.temporary} temporary files known by their records only")
    if verdict.omitted:
        parts.append(f"{verdict.omitted} files not here, left out on purpose")
    return "; ".join(parts) + "."


def _percent(share: float) -> str:
    """Rounded down: only all is 100 %."""
    return f"{math.floor(10 * share) / 10:g} %"


def _commits(verdict: Verdict) -> list[str]:
    told = ", ".join(f"{commit[:12]} ({counted(n, 'job')})" for commit, n in verdict.code.items())
    return [f"Commit of the code: {told}."]


def _findings(verdict: Verdict) -> list[str]:
    rows = [
        (f"<code>{html.escape(f.artifact)}</code>", *map(html.escape, (f.check, f.why, f.advice)))
        for f in verdict.findings
    ]
    return _table(("Artifact", "Check", "Why", "What to do"), rows, texts=True)


def _stages(verdict: Verdict) -> list[str]:
    heads = ("Stage", "Jobs", "Artifacts", "Checked", "Temporary", "Not here", "Failing")
    rows = [
        (s.name, s.jobs, s.total, s.checked, s.temporary, s.omitted, s.failed)
        for s in verdict.stages
    ]
    sums = [sum(column) for column in list(zip(*rows, strict=True))[1:]]
    blank = [[html.escape(str(row[0])), *(str(v or "") for v in row[1:])] for row in rows]
    return _table(heads, blank, foot=["All", *map(str, sums)])


def _comparisons(verdict: Verdict) -> list[str]:
    rows = [(html.escape(name), str(number)) for name, number in verdict.checks.items()]
    return _table(("Check", "Comparisons"), rows)


def _table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    foot: Sequence[str] = (),
    texts: bool = False,
) -> list[str]:
    lines = ['<table class="texts">' if texts else "<table>", "<thead><tr>"]
    lines += [f"<th>{head}</th>" for head in heads] + ["</tr></thead>", "<tbody>"]
    lines += ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows]
    lines.append("</tbody>")
    if foot:
        cells = "".join(f"<td>{cell}</td>" for cell in foot)
        lines.append(f"<tfoot><tr>{cells}</tr></tfoot>")
    return [*lines, "</table>"]


def write_verdict(verdict: Verdict, folder: str | os.PathLike[str]) -> Path:
    """Write ``audit.json`` and ``audit.html``; equal verdicts give equal bytes.

    Returns:
        The page.
    """
    write_json(Path(folder) / "audit.json", verdict.plain())
    write_text(Path(folder) / "audit.html", page(verdict))
    return Path(folder) / "audit.html"


def terminal(verdict: Verdict) -> str:
    """The verdict as lines of plain text: what was checked, what fails, how it ends."""
    lines = [_counts(verdict)]
    lines += [f"  {f.artifact}: {f.check}. {f.why}" for f in verdict.findings]
    if verdict.skipped:
        lines.append(f"{counted(len(verdict.skipped), 'check')} could not be made (see the page).")
    return "\n".join([*lines, verdict.sentence])
