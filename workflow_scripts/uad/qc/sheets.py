"""How packed volumes are spread over sheets of pictures; cheap to import.

A sheet is a grid of tiles, a tile per scan: axial slices of its packed volume. One file for some
scans keeps thousands of them light, and is still small enough for a page to load what it shows.
"""

import math
from collections.abc import Sequence

#: Scans of a sheet, and how many stand side by side.
SCANS, COLUMNS = 48, 6
#: Slices of a tile: side by side, one above the other.
ACROSS, DOWN = 4, 2
#: Pixels across a slice of a packed volume, at least; smaller ones are enlarged.
LEAST_PIXELS = 96


def sheets_of(subjects: Sequence[str]) -> list[list[str]]:
    """The subjects of each sheet of a data set and modality, in their order."""
    return [list(subjects[start : start + SCANS]) for start in range(0, len(subjects), SCANS)]


def zoom_of(shape: Sequence[int]) -> int:
    """Pixels per voxel of a packed volume of this shape."""
    return max(1, math.ceil(LEAST_PIXELS / max(shape[:2])))


def tile_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Pixels (width, height) of a tile.

    Args:
        shape: voxels of a packed volume.
    """
    return ACROSS * shape[0] * zoom_of(shape), DOWN * shape[1] * zoom_of(shape)
