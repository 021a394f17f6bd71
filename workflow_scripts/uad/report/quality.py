"""Pages of the quality control: the gallery of all scans, and its counts for the report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from uad.qc.gallery import gallery_data, script_json
from uad.qc.judge import MIN_SCANS
from uad.qc.measure import MEASURES
from uad.report.html import render_page

if TYPE_CHECKING:
    import pandas as pd


def gallery_page(
    tables: Mapping[str, pd.DataFrame],
    *,
    pictures: Mapping[str, Mapping[str, str]],
    shape: Sequence[int],
    decisions: Iterable[Mapping[str, str]],
    decisions_file: str,
    threshold: float,
    phantom: bool,
) -> str:
    """The page on which a person goes through all scans: one file, no server, no network.

    Args:
        tables: with ``pictures``, ``shape`` and ``decisions`` as for
            :func:`uad.qc.gallery.gallery_data`.
        pictures: as there.
        shape: as there.
        decisions: as there.
        decisions_file: name that a saved decision file gets.
        threshold: of the flags.
        phantom: the scans are synthetic.
    """
    data = gallery_data(tables, pictures, shape, decisions)
    return render_page(
        "gallery.html",
        title="Quality control of the scans",
        data=script_json(data),
        datasets=list(tables),
        scans=sum(map(len, tables.values())),
        subjects=sum(table["subject"].nunique() for table in tables.values()),
        modalities=list(dict.fromkeys(m for table in tables.values() for m in table["modality"])),
        measures=MEASURES,
        decisions_file=decisions_file,
        threshold=threshold,
        least=MIN_SCANS,
        phantom=phantom,
    )


def summary_page(
    counts: Sequence[Mapping[str, Any]],
    excluded: Sequence[Mapping[str, str]],
    threshold: float,
    phantom: bool,
) -> str:
    """The counts of :func:`uad.qc.judge.summarise`, and whom a reviewer left out."""
    return render_page(
        "quality_summary.html",
        title=f"Quality control of the scans{' (phantom data)' if phantom else ''}",
        rows=counts,
        excluded=excluded,
        labels={measure.name: measure.label for measure in MEASURES},
        threshold=threshold,
        least=MIN_SCANS,
        phantom=phantom,
    )
