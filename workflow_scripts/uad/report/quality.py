"""Pages of the quality control: the gallery of all scans, and its counts for the report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from uad.qc.gallery import gallery_data
from uad.qc.measure import MEASURES, MIN_SCANS
from uad.report.html import render_page
from uad.report.render import titled

if TYPE_CHECKING:
    import pandas as pd


def gallery_page(
    tables: Mapping[str, pd.DataFrame],
    *,
    pictures: Mapping[str, Mapping[str, str]],
    shape: Sequence[int],
    decisions: Iterable[Mapping[str, str]],
    **shown: Any,
) -> str:
    """The page on which a person goes through all scans: one file, no server, no network.

    The named arguments are those of :func:`uad.qc.gallery.gallery_data`; the others are
    ``decisions_file`` (name of a saved decision file), ``threshold`` of the flags and ``phantom``.
    """
    return render_page(
        "gallery.html",
        title="Quality control of the scans",
        data=gallery_data(tables, pictures, shape, decisions),
        datasets=list(tables),
        scans=sum(map(len, tables.values())),
        subjects=sum(table["subject"].nunique() for table in tables.values()),
        modalities=list(dict.fromkeys(m for table in tables.values() for m in table["modality"])),
        measures=MEASURES,
        least=MIN_SCANS,
        **shown,
    )


def summary_page(
    counts: Sequence[Mapping[str, Any]],
    excluded: Sequence[Mapping[str, str]],
    threshold: float,
    phantom: bool,
) -> str:
    """The counts of :func:`uad.qc.measure.summarise`, and whom a reviewer left out."""
    return render_page(
        "quality_summary.html",
        title=titled("Quality control of the scans", phantom),
        rows=counts,
        excluded=excluded,
        labels={measure.name: measure.label for measure in MEASURES},
        threshold=threshold,
        least=MIN_SCANS,
        phantom=phantom,
    )
