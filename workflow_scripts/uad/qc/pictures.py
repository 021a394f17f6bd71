"""Pictures of packed volumes, many in one file: what the networks see, with the outlines."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from uad.core.files import atomic_path
from uad.preprocess.picture import LESION_COLOUR, MASK_COLOUR
from uad.qc.sheets import ACROSS, COLUMNS, DOWN, zoom_of

#: Part of the volume's depth that the slices span; above and below is little brain.
SPAN = (0.1, 0.9)
#: Of WebP, with loss: about 10 kB per scan, outlines stay sharp enough to judge.
WEBP_QUALITY = 72


def shown_slices(lesion: np.ndarray) -> list[int]:
    """Axial slices of a tile: the same in all scans, but one shows the lesion where it is largest.

    Args:
        lesion: bool ``(X, Y, Z)``.
    """
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

    Args:
        volume: ``(X, Y, Z)``, about [0, 1]; shown from 0 to 1.
        mask: bool, the brain; outlined just outside it.
        lesion: bool; outlined likewise.

    Returns:
        ``(height, width, 3)`` uint8.
    """
    zoom, colours = zoom_of(volume.shape), [_rgb(c) for c in (MASK_COLOUR, LESION_COLOUR)]
    panels = []
    for number in shown_slices(lesion):
        plane, *outlined = (
            np.kron(_upright(array[..., number]), np.ones((zoom, zoom), dtype=bool))
            for array in (np.clip(volume.astype(np.float32), 0, 1), mask, lesion)
        )
        pixels = np.repeat((plane * 255).round().astype(np.uint8)[..., None], 3, axis=-1)
        for region, colour in zip(outlined, colours, strict=True):
            pixels[_ring(region > 0)] = colour
        panels.append(pixels)
    rows = [np.concatenate(panels[i : i + ACROSS], axis=1) for i in range(0, len(panels), ACROSS)]
    return np.concatenate(rows, axis=0)


def _upright(plane: np.ndarray) -> np.ndarray:
    """(x, y) on RAS+ axes as rows from front to back and columns from right to left."""
    return plane[::-1, ::-1].T


def _ring(region: np.ndarray) -> np.ndarray:
    """Pixels outside a region that touch it."""
    padded = np.pad(region, 1)
    grown = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return grown & ~region


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def write_sheet(
    path: str | Path, scans: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> None:
    """Write the tiles of some scans as one WebP file, the same bytes for the same scans.

    Args:
        path: the file.
        scans: volume, brain and lesion of each, at most ``sheets.SCANS``.
    """
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
