"""What the gallery shows: sheets of pictures of packed volumes, and the data of its page.

A sheet is a grid of tiles, a tile per scan: axial slices of its packed volume. One file for some
scans keeps thousands of them light, and is still small enough for a page to load what it shows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from uad.core.files import atomic_path
from uad.core.paths import SUFFIX
from uad.data.layouts import bids_label
from uad.qc.measure import MEASURES, NAMES, SEPARATOR, medians

if TYPE_CHECKING:
    import pandas as pd

#: Scans of a sheet, and how many stand side by side.
SCANS, COLUMNS = 48, 6
#: Slices of a tile: side by side, one above the other.
ACROSS, DOWN = 4, 2
#: Pixels across a slice of a packed volume, at least; smaller ones are enlarged.
LEAST_PIXELS = 96
#: Part of the volume's depth that the slices span; above and below is little brain.
SPAN = (0.1, 0.9)
#: Of WebP, with loss: about 10 kB per scan, outlines stay sharp enough to judge.
WEBP_QUALITY = 72
#: Colours of brain and lesion (Okabe and Ito), as in :mod:`uad.preprocess.picture`.
COLOURS = (0x56, 0xB4, 0xE9), (0xE6, 0x9F, 0x00)
#: What the page knows of a scan, in this order.
_FIELDS = ["dataset", "subject", "name", "site", "modality", *NAMES, "warnings", "flags", "why"]


def sheets_of(subjects: Sequence[str]) -> list[list[str]]:
    """The subjects of each sheet of a data set and modality, in their order."""
    return [list(subjects[start : start + SCANS]) for start in range(0, len(subjects), SCANS)]


def _zoom(shape: Sequence[int]) -> int:
    """Pixels per voxel of a packed volume of this shape."""
    return max(1, math.ceil(LEAST_PIXELS / max(shape[:2])))


def tile_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Pixels (width, height) of the tile of a packed volume of this shape."""
    return ACROSS * shape[0] * _zoom(shape), DOWN * shape[1] * _zoom(shape)


def shown_slices(lesion: np.ndarray) -> list[int]:
    """Axial slices of a tile: alike in all scans, but one shows the largest area of the lesion."""
    depth = lesion.shape[-1]
    places = np.linspace(SPAN[0] * (depth - 1), SPAN[1] * (depth - 1), ACROSS * DOWN)
    slices = np.round(places).astype(int)
    area = lesion.sum(axis=(0, 1))
    if area.any():
        largest = int(area.argmax())
        slices[np.abs(slices - largest).argmin()] = largest
    return [int(number) for number in slices]


def packed_tile(volume: np.ndarray, mask: np.ndarray, lesion: np.ndarray) -> np.ndarray:
    """The tile of a scan: as a radiologist sees it, right of the patient at the left.

    A volume ``(X, Y, Z)``, shown from 0 to 1, with outlines just outside of the masks of brain and
    lesion, as ``(height, width, 3)`` uint8.
    """
    block = np.ones((_zoom(volume.shape),) * 2, dtype=bool)
    shown = np.clip(volume.astype(np.float32), 0, 1)
    panels = []
    for number in shown_slices(lesion):
        plane, *regions = (  # (x, y) on RAS+ axes: rows from the front, columns from the right
            np.kron(array[::-1, ::-1, number].T, block) for array in (shown, mask, lesion)
        )
        pixels = np.repeat((plane * 255).round().astype(np.uint8)[..., None], 3, axis=-1)
        for region, colour in zip(regions, COLOURS, strict=True):
            padded = np.pad(region > 0, 1)
            near = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
            pixels[near & ~(region > 0)] = colour
        panels.append(pixels)
    rows = [np.concatenate(panels[i : i + ACROSS], axis=1) for i in range(0, len(panels), ACROSS)]
    return np.concatenate(rows, axis=0)


def write_sheet(
    path: str | Path, scans: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> None:
    """Write the tiles of some scans (volume, brain, lesion) as one WebP file, always alike."""
    from PIL import Image

    tiles = [packed_tile(*scan) for scan in scans]
    height, width = tiles[0].shape[:2]
    rows = math.ceil(len(tiles) / COLUMNS)
    across = min(len(tiles), COLUMNS)
    sheet = np.zeros((rows * height, across * width, 3), dtype=np.uint8)
    for number, tile in enumerate(tiles):
        top, left = number // COLUMNS * height, number % COLUMNS * width
        sheet[top : top + height, left : left + width] = tile
    with atomic_path(path) as temporary:
        Image.fromarray(sheet).save(temporary, format="WEBP", quality=WEBP_QUALITY, method=4)


def gallery_data(
    tables: Mapping[str, pd.DataFrame],
    pictures: Mapping[str, Mapping[str, str]],
    shape: Sequence[int],
    decisions: Iterable[Mapping[str, str]],
) -> str:
    """What the page shows, as JSON that may stand in a script element.

    ``tables`` are flagged (:func:`uad.qc.measure.add_flags`), by data set, in the order of the
    sheets; ``pictures`` links of a data set to those of each stage (``skullstrip``, ``register``,
    ``packed``) with ``{subject}``, ``{suffix}``, ``{modality}``, ``{sheet}``; ``shape`` is that of
    a packed volume; ``decisions`` are those that the run honours.
    """
    width, height = tile_shape(shape)
    rows = [table.assign(dataset=name)[_FIELDS].astype(object) for name, table in tables.items()]
    data = {
        "measures": [{key: getattr(m, key) for key in ("name", "label", "unit")} for m in MEASURES],
        "tile": {"ratio": width / height, "columns": COLUMNS, "scans": SCANS},
        "suffixes": SUFFIX,
        "pictures": pictures,
        "medians": {name: medians(table) for name, table in tables.items()},
        "columns": _FIELDS,
        # a number that was not measured is null
        "rows": [row for part in rows for row in part.where(part.notna(), None).values.tolist()],
        "separator": SEPARATOR,
        "decisions": [{**row, "subject": bids_label(row["subject"])} for row in decisions],
    }
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c")  # no name in it can end the element
