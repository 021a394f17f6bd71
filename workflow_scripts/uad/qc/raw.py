"""Measures of raw scans: every file is opened once and described by numbers and short texts.

:mod:`uad.qc.raw_checks` judges the measures of a data set without opening a file again.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from uad.core.masks import dice
from uad.core.patterns import Layout, layout_of
from uad.qc.raw_image import Image, read_raw, reason
from uad.qc.raw_mask import Lesion, brain_mask_measures, lesion_measures


@dataclass(frozen=True)
class Rules:
    """What a layout promises.

    Attributes:
        layout: its patterns.
        labels: values of a lesion mask other than 0.
        stripped: the images have no skull; None: to be found out.
        coregistered: all images of a subject share one grid.
        one_grid: all subjects share one grid.
        preprocessed: registered and corrected by somebody else; masks were warped.
    """

    layout: Layout
    labels: frozenset[int]
    stripped: bool | None
    coregistered: bool
    one_grid: bool
    preprocessed: bool = False


def rules_of(layout: str, rows: pd.DataFrame) -> Rules:
    """What the scans of a participants table promise; only preprocessed ones have brain masks."""
    patterns = layout_of(layout)
    rules = Rules(
        layout=patterns,
        labels=frozenset(patterns.labels or ()),
        stripped={"whole": False, "stripped": True, "auto": None}[patterns.head],
        coregistered=patterns.grid != "scan",
        one_grid=patterns.grid == "data set",
    )
    if "mask" in rows:  # cropped one by one, and fractions at the edges of a mask are expected
        labels = frozenset(range(1, max(rules.labels, default=0) + 1))
        return replace(rules, labels=labels, stripped=True, one_grid=False, preprocessed=True)
    return rules


TEXTS = (
    "error", "shape", "spacing", "orientation", "extent", "digest", "stripped",
    "mask_error", "mask_axes",
    "lesion_error", "lesion_axes", "lesion_values", "lesion_digest", "lesion_where",
    "lesion_fits",
)  # fmt: skip
NUMBERS = (
    "voxel_ml", "shear", "header_mm", "nonfinite", "minimum", "maximum", "negative", "nonzero",
    "foreground_ml", "outline",
    "mask_off", "mask_ml", "mask_maximum", "mask_fractional", "mask_dice",
    "lesion_off", "lesion_ml", "lesion_fractional", "lesion_faint",
    "lesion_inside", "lesion_contrast", "lesion_best",
)  # fmt: skip


def measure_scans(
    layout: str, rows: pd.DataFrame, *, content: bool = True, threads: int = 1
) -> pd.DataFrame:
    """Measure the scans of some subjects.

    Args:
        layout: ``ixi``, ``brats21`` or ``mslub``.
        rows: rows of a participants table (``subject``, ``name``, ``site``, ``modality``,
            ``image``, ``lesion``; ``mask``, a brain mask, for preprocessed data). All rows of
            a subject must be in one call.
        content: open the files; False: say only whether they are there.
        threads: subjects at the same time.

    Returns:
        The rows with :data:`TEXTS` and :data:`NUMBERS`. Volumes are in millilitres, distances in
        millimetres, ``lesion_off`` and ``mask_off`` in voxels of the image, contrasts in standard
        deviations of the foreground. What concerns a file that cannot be used stands in
        ``error``, ``mask_error`` and ``lesion_error``.
    """
    rules = rules_of(layout, rows)
    subjects = [part for _, part in rows.groupby("subject", sort=False)]
    with ThreadPoolExecutor(max(1, threads)) as pool:
        found = pool.map(lambda part: _measure_subject(rules, part, content), subjects)
        measures = {index: row for part in found for index, row in part.items()}
    table = pd.DataFrame.from_dict(measures, orient="index", columns=[*TEXTS, *NUMBERS])
    table[[*TEXTS]] = table[[*TEXTS]].fillna("")
    table[[*NUMBERS]] = table[[*NUMBERS]].astype(float)
    return pd.concat([rows, table.loc[rows.index]], axis=1)


def _measure_subject(rules: Rules, rows: pd.DataFrame, content: bool) -> dict[Any, dict[str, Any]]:
    """The measures of one subject by row index; whatever a file holds costs only its scan."""
    measures: dict[Any, dict[str, Any]] = {}
    outlines: dict[Any, np.ndarray] = {}
    open_mask, open_lesion = cache(read_raw), cache(Lesion)  # one mask serves all modalities
    for index, scan in rows.to_dict("index").items():
        lesion, mask = scan.get("lesion") or "", scan.get("mask") or ""
        if not content:
            missing = [p for p in (scan["image"], lesion, mask) if p and not Path(p).exists()]
            measures[index] = {"error": f"no such file: {missing[0]}" if missing else ""}
            continue
        try:
            image = Image(read_raw(scan["image"]), rules.stripped)
            measures[index] = image.measures()
        except Exception as error:
            measures[index] = {"error": reason(error, scan["image"])}
            continue
        if not image.sd:
            continue
        outlines[index] = image.filled
        if mask:
            measures[index] |= brain_mask_measures(mask, open_mask, image)
        if lesion:
            measures[index] |= lesion_measures(lesion, open_lesion, image, scan["modality"])
    if rules.coregistered and len(outlines) > 1:
        for index, outline in outlines.items():
            others = [o for i, o in outlines.items() if i != index and o.shape == outline.shape]
            # the best match: of three images, only the odd one fits none
            measures[index]["outline"] = max((dice(outline, o) for o in others), default=np.nan)
    return measures
