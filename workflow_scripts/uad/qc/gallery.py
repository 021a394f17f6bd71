"""The page on which a person goes through all scans: one file, no server, no network."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uad.core.files import write_text
from uad.core.paths import SUFFIX
from uad.data.layouts import bids_label
from uad.qc.judge import MIN_SCANS
from uad.qc.measure import MEASURES, NAMES, medians
from uad.qc.sheets import COLUMNS, SCANS, tile_shape

if TYPE_CHECKING:
    import pandas as pd

#: What the page knows of a scan, in this order.
_FIELDS = ("dataset", "subject", "name", "site", "modality", *NAMES, "warnings", "flags", "why")


def gallery_data(
    tables: Mapping[str, pd.DataFrame],
    *,
    pictures: Mapping[str, Mapping[str, str]],
    shape: Sequence[int],
    decisions: Iterable[Mapping[str, str]],
    decisions_file: str,
    threshold: float,
    phantom: bool,
) -> dict[str, Any]:
    """What the page shows, as plain data.

    Args:
        tables: flagged tables of :mod:`uad.qc.measure`, by data set, in the order
            of the sheets of pictures.
        pictures: by data set, links from the page to the pictures of each stage (``skullstrip``,
            ``register``, ``packed``) with ``{subject}``, ``{suffix}``, ``{modality}``, ``{sheet}``.
        shape: voxels of a packed volume.
        decisions: those that the run honours, as plain data.
        decisions_file: name that a saved decision file gets.
        threshold: of the flags.
        phantom: the scans are synthetic.
    """
    width, height = tile_shape(shape)
    rows = [
        [_plain(value) for value in row]
        for name, table in tables.items()
        for row in table.assign(dataset=name)[list(_FIELDS)].itertuples(index=False)
    ]
    return {
        "phantom": phantom,
        "threshold": threshold,
        "least": MIN_SCANS,
        "measures": [
            {
                **{key: asdict(measure)[key] for key in ("name", "label", "unit", "help", "stage")},
                "flagged": measure.side is not None,
            }
            for measure in MEASURES
        ],
        "tile": {"width": width, "height": height, "columns": COLUMNS, "scans": SCANS},
        "suffixes": SUFFIX,
        "datasets": {
            name: {"pictures": pictures[name], "medians": medians(table)}
            for name, table in tables.items()
        },
        "columns": _FIELDS,
        "rows": rows,
        "decisions": [{**row, "subject": bids_label(row["subject"])} for row in decisions],
        "decisions_file": decisions_file,
    }


def _plain(value: Any) -> Any:
    """A cell of a table as JSON has it; a number that was not measured is null."""
    if isinstance(value, float) and math.isnan(value):
        return None
    return value.item() if hasattr(value, "item") else value


def write_gallery(path: str | Path, data: Mapping[str, Any], template: Mapping[str, str]) -> None:
    """Write the page.

    Args:
        path: the page.
        data: answer of :func:`gallery_data`.
        template: text of the page's ``html``, ``css`` and ``js``.
    """
    # "<" would let a name in the data end the script element
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    parts = {
        "/*STYLE*/": template["css"].strip(),
        "/*SCRIPT*/": template["js"].strip(),
        "/*DATA*/": text.replace("<", "\\u003c"),
    }
    page = template["html"]
    for mark, content in parts.items():
        before, after = page.split(mark)
        page = f"{before}{content}{after}"
    write_text(path, page)
