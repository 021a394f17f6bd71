"""Pictures for quality control: three planes, outlines of the masks, atlas and bias field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from uad.core.files import atomic_path
from uad.core.nifti import Scan, read_scan, read_scan_mask
from uad.preprocess.ants_images import import_ants, to_ants

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
    from matplotlib.lines import Line2D

    view = _read_view(image, brain_mask, lesion, atlas_dir, bias_field)
    figure, panels, strip = _figure_of(view)
    for panel, plane in zip(panels, PLANES, strict=False):
        _draw_plane(panel, plane, view)
    if view.field is not None:
        _draw_field(panels[-1], view)
    entries = [("brain mask", MASK_COLOUR)]
    entries += [("lesion", LESION_COLOUR)] if view.lesion is not None else []
    entries += [("atlas", ATLAS_COLOUR)] if view.atlas is not None else []
    figure.legend(
        handles=[Line2D([], [], color=colour, label=label) for label, colour in entries],
        loc="lower right", ncols=len(entries), fontsize=8, frameon=False, labelcolor="white",
        borderaxespad=0.1,
    )  # fmt: skip
    figure.text(0.01, 1 - strip / 2, title, color="white", fontsize=10, va="center")
    _save(figure, path)


@dataclass(frozen=True)
class _View:
    """What a picture shows, all on the grid of the scan.

    ``atlas`` has the atlas' brain and the levels to outline; ``centre`` is the voxel through which
    the slices pass; ``grey`` are the values shown black and white.
    """

    scan: Scan
    mask: np.ndarray
    lesion: np.ndarray | None
    atlas: tuple[np.ndarray, list[float]] | None
    field: np.ndarray | None
    centre: list[int]
    grey: tuple[float, float]

    @property
    def extent(self) -> list[float]:
        """Millimetres along each axis."""
        return [n * s for n, s in zip(self.scan.data.shape, self.scan.spacing, strict=True)]


def _read_view(
    image: str | Path,
    brain_mask: str | Path,
    lesion: str | Path | None,
    atlas_dir: str | Path | None,
    bias_field: str | Path | None,
) -> _View:
    scan = read_scan(image)
    mask = read_scan_mask(brain_mask, scan)[0]
    lesions = read_scan_mask(lesion, scan)[0] if lesion is not None else None
    inside = scan.data[mask] if mask.any() else scan.data
    low = min(float(np.percentile(inside, 0.5)), 0.0)
    return _View(
        scan,
        mask,
        lesions,
        _atlas_on(scan, Path(atlas_dir)) if atlas_dir is not None else None,
        read_scan(bias_field).data if bias_field is not None else None,
        _centre(lesions if lesions is not None and lesions.any() else mask),
        (low, max(float(np.percentile(inside, 99.5)), low + 1e-6)),
    )


def _figure_of(view: _View) -> tuple[Figure, np.ndarray, float]:
    """A figure, its panels side by side on one scale (mm per inch), the height of its margins."""
    from matplotlib.figure import Figure

    planes = [*PLANES, *([PLANES[0]] if view.field is not None else [])]
    widths = [view.extent[across] + 2 * MARGIN for _, across, _, _ in planes]
    heights = [view.extent[up] + 2 * MARGIN for _, _, up, _ in PLANES]
    size = 3.5 * len(planes)
    # the panels keep their shape: the strips above and below take the rest
    figure = Figure(
        figsize=(size, size * max(heights) / sum(widths) + 0.7), facecolor="black", dpi=80
    )
    panels = figure.subplots(1, len(planes), gridspec_kw={"width_ratios": widths, "wspace": 0.02})
    strip = 0.34 / figure.get_figheight()
    figure.subplots_adjust(left=0.005, right=0.995, bottom=strip, top=1 - strip)
    return figure, panels, strip


def _draw_plane(panel: Axes, plane: tuple[str, int, int, int], view: _View) -> None:
    """A slice of the scan with the outlines, as a radiologist sees it."""
    name, across, up, through = plane
    scan, at = view.scan, view.centre[through]
    _draw_slice(
        panel, np.take(scan.data, at, axis=through).T, (view.extent[across], view.extent[up]),
        cmap="gray", vmin=view.grey[0], vmax=view.grey[1],
    )  # fmt: skip
    xs, ys = ((np.arange(scan.data.shape[a]) + 0.5) * scan.spacing[a] for a in (across, up))
    outlines = (
        [(view.atlas[0], level, ATLAS_COLOUR, 0.6) for level in view.atlas[1]] if view.atlas else []
    )
    outlines += [(view.mask, 0.5, MASK_COLOUR, 1.0)]
    outlines += [(view.lesion, 0.5, LESION_COLOUR, 1.1)] if view.lesion is not None else []
    for volume, level, colour, width in outlines:
        cut = np.take(volume, at, axis=through).T.astype(np.float32)
        if cut.min() < level < cut.max():
            panel.contour(xs, ys, cut, levels=[level], colors=colour, linewidths=width)
    where = scan.affine[through] @ [*view.centre, 1]
    _label(panel, f"{name}, {'xyz'[through]} = {where:.0f} mm")
    panel.text(
        0.005, 0.5, "A" if name == "sagittal" else "R", color="white", fontsize=9,
        transform=panel.transAxes, va="center",
    )  # fmt: skip


def _draw_field(panel: Axes, view: _View) -> None:
    """The bias field on the axial slice: violet where it darkened the scan, orange the contrary."""
    known = view.mask & (view.field > 0)  # a black voxel tells nothing of the field
    low, high = np.percentile(view.field[known], [1, 99]) if known.any() else (1.0, 1.0)
    # at least 5 %: a field next to nothing should look like nothing
    most = max(1 - low, high - 1, 0.05)
    plane = np.where(known, view.field, np.nan)[..., view.centre[2]].T
    _draw_slice(panel, plane, view.extent[:2], cmap="PuOr_r", vmin=1 - most, vmax=1 + most)
    _label(panel, f"bias field: {low:.2f} (violet) to {high:.2f} (orange)")


def _draw_slice(panel: Axes, pixels: np.ndarray, size: Sequence[float], **colours: Any) -> None:
    """Radiological: R at the left; in the sagittal plane the face looks left."""
    width, height = size
    panel.imshow(
        pixels, origin="lower", extent=(0, width, 0, height), interpolation="nearest", **colours
    )
    panel.set_xlim(width + MARGIN, -MARGIN)
    panel.set_ylim(-MARGIN, height + MARGIN)
    panel.set_facecolor("black")
    panel.set_aspect("equal")
    panel.set_axis_off()


def _label(panel: Axes, text: str) -> None:
    panel.text(0.02, -0.01, text, color="white", fontsize=8, transform=panel.transAxes, va="top")


def _save(figure: Figure, path: str | Path) -> None:
    """A palette of 256 colours halves the file, and PIL writes no date and no version."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])
    small = Image.fromarray(pixels).quantize(
        256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE
    )
    with atomic_path(path) as temporary:
        small.save(temporary, format="PNG", compress_level=9)


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
