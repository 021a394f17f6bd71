"""Pictures for quality control: three planes, outlines of the masks, atlas and bias field."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from uad.core.files import atomic_path
from uad.preprocess.scans import Scan, import_ants, read_scan, read_scan_mask, to_ants

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Colours that stay apart for colour-blind readers (Okabe and Ito), on grey.
MASK_COLOUR, LESION_COLOUR, ATLAS_COLOUR = "#56B4E9", "#E69F00", "#CC79A7"
#: Millimetres of black around the scan, for the letters.
MARGIN = 9.0
#: (name, axis across, axis up, axis through the picture) on RAS+ axes.
PLANES = (("axial", 0, 1, 2), ("coronal", 0, 2, 1), ("sagittal", 1, 2, 0))


def qc_picture(
    path: str | Path,
    image: str | Path,
    brain_mask: str | Path,
    lesion: str | Path | None,
    atlas_dir: str | Path | None,
    title: str,
    bias_field: str | Path | None = None,
) -> None:
    """Write one PNG: axial, coronal and sagittal slice with the outlines of the masks.

    Where a bias field is given, a fourth panel shows it on the axial slice.

    The slices pass through the middle of the lesion where there is one, else through the
    middle of the brain. Orientation is the radiologist's: right of the patient at the
    left, front (sagittal: face) at the top or the left. Voxels are shown in millimetres.

    Args:
        path: the PNG (below 150 kB, the same bytes for the same content).
        image: the scan, any orientation.
        brain_mask: its brain mask, on the same grid.
        lesion: its lesion mask, on the same grid, or None.
        atlas_dir: a prepared atlas to outline (registered scans), or None (raw scans).
        title: one line above the picture.
        bias_field: the field that was divided out, on the same grid, 0 outside the brain; or None.

    Raises:
        DataError: a file is unusable, or a mask is on another grid.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from PIL import Image

    scan = read_scan(image)
    mask = read_scan_mask(brain_mask, scan)[0]
    sick = read_scan_mask(lesion, scan)[0] if lesion is not None else None
    atlas = _atlas_on(scan, Path(atlas_dir)) if atlas_dir is not None else None
    field = read_scan(bias_field).data if bias_field is not None else None
    centre = _centre(sick if sick is not None and sick.any() else mask)
    inside = scan.data[mask] if mask.any() else scan.data
    top = float(np.percentile(inside, 99.5))
    bottom = min(float(np.percentile(inside, 0.5)), 0.0)

    extent = [n * s for n, s in zip(scan.data.shape, scan.spacing, strict=True)]
    planes = [*PLANES, *([PLANES[0]] if field is not None else [])]
    widths = [extent[across] + 2 * MARGIN for _, across, _, _ in planes]
    heights = [extent[up] + 2 * MARGIN for _, _, up, _ in PLANES]
    # all panels share one scale: millimetres per inch
    size = 3.5 * len(planes)
    # the panels keep their shape: the strips above and below take the rest
    figure = Figure(
        figsize=(size, size * max(heights) / sum(widths) + 0.7), facecolor="black", dpi=80
    )
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(planes), gridspec_kw={"width_ratios": widths, "wspace": 0.02})
    floor = 0.34 / figure.get_figheight()
    figure.subplots_adjust(left=0.005, right=0.995, bottom=floor, top=1 - floor)
    for panel, (name, across, up, through) in zip(panels, PLANES, strict=False):
        at = centre[through]
        wide, high = scan.spacing[across], scan.spacing[up]
        box = (0, extent[across], 0, extent[up])

        def cut(volume: np.ndarray, through: int = through, at: int = at) -> np.ndarray:
            return np.take(volume, at, axis=through).T

        panel.imshow(
            cut(scan.data), cmap="gray", vmin=bottom, vmax=max(top, bottom + 1e-6),
            origin="lower", extent=box, interpolation="nearest",
        )  # fmt: skip
        xs = (np.arange(scan.data.shape[across]) + 0.5) * wide
        ys = (np.arange(scan.data.shape[up]) + 0.5) * high

        def outline(volume: np.ndarray | None, level: float, colour: str, width: float,
                    panel=panel, xs=xs, ys=ys, cut=cut) -> None:  # fmt: skip
            if volume is None:
                return
            plane = cut(volume).astype(np.float32)
            if plane.min() < level < plane.max():
                panel.contour(xs, ys, plane, levels=[level], colors=colour, linewidths=width)

        if atlas is not None:
            for level in atlas[1]:
                outline(atlas[0], level, ATLAS_COLOUR, 0.6)
        outline(mask, 0.5, MASK_COLOUR, 1.0)
        outline(sick, 0.5, LESION_COLOUR, 1.1)
        # radiological: R at the left; in the sagittal plane the face looks left
        panel.set_xlim(extent[across] + MARGIN, -MARGIN)
        panel.set_ylim(-MARGIN, extent[up] + MARGIN)
        panel.set_facecolor("black")
        panel.set_aspect("equal")
        panel.set_axis_off()
        where = scan.affine[through] @ [*centre, 1]
        panel.text(
            0.02, -0.01, f"{name}, {'xyz'[through]} = {where:.0f} mm", color="white", fontsize=8,
            transform=panel.transAxes, va="top",
        )  # fmt: skip
        panel.text(
            0.005, 0.5, "A" if name == "sagittal" else "R", color="white", fontsize=9,
            transform=panel.transAxes, va="center",
        )  # fmt: skip
    if field is not None:
        _draw_field(panels[-1], field, mask, centre, extent)
    entries = [("brain mask", MASK_COLOUR)]
    entries += [("lesion", LESION_COLOUR)] if sick is not None else []
    entries += [("atlas", ATLAS_COLOUR)] if atlas is not None else []
    figure.legend(
        handles=[Line2D([], [], color=colour, label=label) for label, colour in entries],
        loc="lower right", ncols=len(entries), fontsize=8, frameon=False, labelcolor="white",
        borderaxespad=0.1,
    )  # fmt: skip
    figure.text(0.01, 1 - floor / 2, title, color="white", fontsize=10, va="center")
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    # a palette of 256 colours halves the file, and PIL writes no date and no version
    small = Image.fromarray(np.ascontiguousarray(pixels)).quantize(
        256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE
    )
    with atomic_path(path) as temporary:
        small.save(temporary, format="PNG", compress_level=9)


def _draw_field(
    panel: Axes, field: np.ndarray, mask: np.ndarray, centre: list[int], extent: list[float]
) -> None:
    """The bias field on the axial slice: violet where it darkened the scan, orange the contrary."""
    known = mask & (field > 0)  # a black voxel tells nothing of the field
    low, high = np.percentile(field[known], [1, 99]) if known.any() else (1.0, 1.0)
    # at least 5 %: a field next to nothing should look like nothing
    most = max(1 - low, high - 1, 0.05)
    plane = np.where(known, field, np.nan)[..., centre[2]].T
    panel.imshow(
        plane, cmap="PuOr_r", vmin=1 - most, vmax=1 + most, origin="lower",
        extent=(0, extent[0], 0, extent[1]), interpolation="nearest",
    )  # fmt: skip
    panel.set_axis_off()
    panel.set_facecolor("black")
    panel.set_aspect("equal")
    panel.set_xlim(extent[0] + MARGIN, -MARGIN)
    panel.set_ylim(-MARGIN, extent[1] + MARGIN)
    panel.text(
        0.02, -0.01, f"bias field: {low:.2f} (violet) to {high:.2f} (orange)", color="white",
        fontsize=8, transform=panel.transAxes, va="top",
    )  # fmt: skip


def _centre(mask: np.ndarray) -> list[int]:
    """Voxel in the middle of a mask: the median along each axis (the grid's middle if empty)."""
    if not mask.any():
        return [n // 2 for n in mask.shape]
    centre = []
    for axis in range(3):
        counts = mask.sum(axis=tuple(a for a in range(3) if a != axis))
        # the median voxel: inside the mass even when parts lie far away
        centre.append(int(np.searchsorted(np.cumsum(counts), counts.sum() / 2)))
    return centre


def _atlas_on(scan: Scan, atlas_dir: Path) -> tuple[np.ndarray, list[float]]:
    """The atlas' brain on the grid of a registered scan, with the levels to outline.

    The levels are the border of the brain and the border between fluid and tissue.
    """
    atlas = read_scan(atlas_dir / "brain.nii.gz")
    shift = np.linalg.solve(atlas.affine, scan.affine)
    start = np.round(shift[:3, 3]).astype(int)
    aligned = np.allclose(shift[:3, :3], np.eye(3), atol=1e-4) and np.allclose(
        shift[:3, 3], start, atol=1e-3
    )
    stop = start + scan.data.shape
    if aligned and (start >= 0).all() and (stop <= atlas.data.shape).all():
        # a cropped scan is a part of the atlas' grid: no resampling
        data = atlas.data[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
    else:
        ants = import_ants()
        data = ants.resample_image_to_target(
            to_ants(atlas.data, atlas.affine), to_ants(scan.data, scan.affine), "linear"
        ).numpy()
    tissue = float(np.median(atlas.data[atlas.data > 0]))
    return data, [0.3 * tissue, 0.75 * tissue]
