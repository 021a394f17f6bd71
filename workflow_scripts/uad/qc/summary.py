"""Counts of the quality control, for the report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from uad.qc.judge import MIN_SCANS
from uad.qc.measure import MEASURES, NAMES, SEPARATOR, medians

if TYPE_CHECKING:
    import pandas as pd

    from uad.report.render import Document


def summarise(
    tables: Mapping[str, pd.DataFrame], verdicts: Mapping[tuple[str, str, str], str]
) -> list[dict[str, Any]]:
    """Counts for the report, a row per data set and modality.

    Args:
        tables: flagged tables by data set.
        verdicts: of the scans in them, by (data set, subject, modality).

    Returns:
        ``dataset``, ``modality``, ``scans``, ``flagged`` (scans), ``warned`` (scans),
        ``judged`` (whether there were enough scans to flag any), verdicts ``keep`` and
        ``unsure``, ``by_measure`` (flagged scans by measure) and ``medians``.
    """
    rows = []
    for dataset, table in tables.items():
        middles = medians(table)
        for modality, part in table.groupby("modality", sort=False):
            found = [
                verdicts.get((dataset, subject, str(modality)), "") for subject in part["subject"]
            ]
            names = _split(part["flags"])
            rows.append(
                {
                    "dataset": dataset,
                    "modality": str(modality),
                    "scans": len(part),
                    "judged": len(part) >= MIN_SCANS,
                    "flagged": int((part["flags"] != "").sum()),
                    "warned": int((part["warnings"] != "").sum()),
                    "keep": found.count("keep"),
                    "unsure": found.count("unsure"),
                    "by_measure": {n: names.count(n) for n in NAMES if n in names},
                    "medians": middles[str(modality)],
                }
            )
    return rows


def _split(texts: Iterable[str]) -> list[str]:
    return [part for text in texts for part in text.split(SEPARATOR) if part]


def verdicts_on(
    tables: Mapping[str, pd.DataFrame], decisions: Iterable[Mapping[str, str]]
) -> dict[tuple[str, str, str], str]:
    """Verdict on each scan that has one, by (data set, subject, modality).

    Args:
        tables: tables of scans by data set.
        decisions: rows of a decision file, as plain data; ``*``: all scans of the subject.
    """
    from uad.data.layouts import bids_label

    given = {
        (row["dataset"], bids_label(row["subject"]), row["modality"]): row["verdict"]
        for row in decisions
    }
    found = {}
    for dataset, table in tables.items():
        for subject, modality in zip(table["subject"], table["modality"], strict=True):
            for scope in (modality, "*"):
                if verdict := given.get((dataset, subject, scope)):
                    found[dataset, subject, modality] = verdict
                    break
    return found


def summary_document(
    rows: Sequence[Mapping[str, Any]],
    excluded: Sequence[Mapping[str, str]],
    *,
    threshold: float,
    phantom: bool,
) -> Document:
    """The counts as a page of the report.

    Args:
        rows: answer of :func:`summarise`.
        excluded: decisions by which the run left out subjects or scans.
        threshold: of the modified z-score.
        phantom: the scans are synthetic.
    """
    from uad.report.render import Cell, Document, Row

    labels = {measure.name: measure.label for measure in MEASURES}
    scans = sum(row["scans"] for row in rows)
    source = "a synthetic phantom" if phantom else "the data sets named in the config"
    shown = []
    for row in rows:
        most = sorted(row["by_measure"].items(), key=lambda item: (-item[1], item[0]))
        what = "; ".join(f"{labels[name]}: {count}" for name, count in most)
        flagged = str(row["flagged"]) if row["judged"] else "too few to judge"
        counts = (row["scans"], flagged, row["warned"], row["keep"], row["unsure"])
        cells = [Cell(str(value)) for value in counts] + [Cell(what)]
        shown.append(Row(f"{row['dataset']} {row['modality']}", cells))
    out = [
        f"Left out by a reviewer: {row['dataset']} {row['subject']} "
        f"({'all scans' if row['modality'] == '*' else row['modality']}): {row['reason']}"
        + (f" ({row['reviewer']})" if row["reviewer"] else "")
        for row in excluded
    ]
    return Document(
        name="quality-control",
        title=f"Quality control of the scans{' (phantom data)' if phantom else ''}",
        caption=[
            f"Data: {source}; n = {scans} scans.",
            "Flagged: at least one measure has a modified z-score beyond "
            f"{threshold:g} among the scans of its data set and modality; "
            f"fewer than {MIN_SCANS} scans are too few to judge.",
            "A flag is a reason to look at the scan, not a verdict. Pictures and measures of "
            "every scan: qc/gallery.html in the results folder.",
        ],
        corner="Scans",
        heads=[("", h) for h in ("n", "Flagged", "Warnings", "Keep", "Unsure", "Flags by measure")],
        rows=shown,
        footnotes=out or ["No reviewer has left out a scan."],
    )
