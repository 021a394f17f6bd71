"""Pictures for quality control: three planes, outlines of the masks, atlas and bias field."""

from __future__ import annotations

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
#: Volume, its levels to outline, colour, line width.
Outline = tuple[np.ndarray, list[float], str, float]


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

    The slices pass through the middle of the lesion where there is one, else of the brain.
    Orientation is the radiologist's: right of the patient at the left, front (sagittal: face) at
    the top or the left. Voxels are shown in millimetres. A bias field gets a fourth panel.

    Masks and bias field are on the grid of the scan, which may have any orientation; registered
    scans have the outline of a prepared atlas, too. The PNG is below 150 kB, and the same bytes for
    the same content.

    Raises:
        DataError: a file is unusable, or a mask is on another grid.
    """
    from matplotlib.lines import Line2D

    scan = read_scan(image)
    mask = middle = read_scan_mask(brain_mask, scan)[0]
    names, outlines = [("brain mask", MASK_COLOUR)], [(mask, [0.5], MASK_COLOUR, 1.0)]
    if lesion is not None:
        lesions = read_scan_mask(lesion, scan)[0]
        middle = lesions if lesions.any() else mask
        names.append(("lesion", LESION_COLOUR))
        outlines.append((lesions, [0.5], LESION_COLOUR, 1.1))
    if atlas_dir is not None:
        names.append(("atlas", ATLAS_COLOUR))
        outlines.insert(0, (*_atlas_on(scan, Path(atlas_dir)), ATLAS_COLOUR, 0.6))
    centre = _centre(middle)
    planes = [*PLANES, *([PLANES[0]] if bias_field is not None else [])]
    figure, panels, strip = _figure_of(scan, planes)
    inside = scan.data[mask] if mask.any() else scan.data
    low = min(float(np.percentile(inside, 0.5)), 0.0)
    high = max(float(np.percentile(inside, 99.5)), low + 1e-6)
    for panel, plane in zip(panels, PLANES, strict=False):
        _draw_slice(panel, scan, scan.data, plane, centre, cmap="gray", vmin=low, vmax=high)
        _draw_outlines(panel, scan, outlines, plane, centre)
    if bias_field is not None:
        _draw_field(panels[-1], scan, read_scan(bias_field).data, mask, centre)
    figure.legend(
        handles=[Line2D([], [], color=colour, label=label) for label, colour in names],
        loc="lower right", ncols=len(names), fontsize=8, frameon=False, labelcolor="white",
        borderaxespad=0.1,
    )  # fmt: skip
    figure.text(0.01, 1 - strip / 2, title, color="white", fontsize=10, va="center")
    _save(figure, path)


def _figure_of(scan: Scan, planes: list[tuple]) -> tuple[Figure, np.ndarray, float]:
    """A figure, its panels side by side on one scale (mm per inch), the height of its margins."""
    from matplotlib.figure import Figure

    extent = [n * s + 2 * MARGIN for n, s in zip(scan.data.shape, scan.spacing, strict=True)]
    widths, size = [extent[across] for _, across, _, _ in planes], 3.5 * len(planes)
    # the panels keep their shape: the strips above and below take the rest
    height = size * max(extent[1:]) / sum(widths) + 0.7
    figure = Figure(figsize=(size, height), facecolor="black", dpi=80)
    panels = figure.subplots(1, len(planes), gridspec_kw={"width_ratios": widths, "wspace": 0.02})
    strip = 0.34 / figure.get_figheight()
    figure.subplots_adjust(left=0.005, right=0.995, bottom=strip, top=1 - strip)
    return figure, panels, strip


def _draw_slice(
    panel: Axes, scan: Scan, data: np.ndarray, plane: tuple, centre: list[int], **colours: Any
) -> None:
    """A slice as a radiologist sees it: R, or in the sagittal plane the face, at the left."""
    _, across, up, through = plane
    width, height = (scan.data.shape[a] * scan.spacing[a] for a in (across, up))
    pixels = np.take(data, centre[through], axis=through).T
    panel.imshow(
        pixels, origin="lower", extent=(0, width, 0, height), interpolation="nearest", **colours
    )
    panel.set_xlim(width + MARGIN, -MARGIN)
    panel.set_ylim(-MARGIN, height + MARGIN)
    panel.set_facecolor("black")
    panel.set_aspect("equal")
    panel.set_axis_off()


def _draw_outlines(
    panel: Axes, scan: Scan, outlines: list[Outline], plane: tuple, centre: list[int]
) -> None:
    name, across, up, through = plane
    xs, ys = ((np.arange(scan.data.shape[a]) + 0.5) * scan.spacing[a] for a in (across, up))
    for volume, levels, colour, width in outlines:
        cut = np.take(volume, centre[through], axis=through).T.astype(np.float32)
        for level in levels:
            if cut.min() < level < cut.max():
                panel.contour(xs, ys, cut, levels=[level], colors=colour, linewidths=width)
    where = scan.affine[through] @ [*centre, 1]
    _label(panel, f"{name}, {'xyz'[through]} = {where:.0f} mm")
    panel.text(
        0.005, 0.5, "A" if name == "sagittal" else "R", color="white", fontsize=9,
        transform=panel.transAxes, va="center",
    )  # fmt: skip


def _draw_field(
    panel: Axes, scan: Scan, field: np.ndarray, mask: np.ndarray, centre: list[int]
) -> None:
    """The bias field on the axial slice: violet where it darkened the scan, orange the contrary."""
    known = mask & (field > 0)  # a black voxel tells nothing of the field
    low, high = np.percentile(field[known], [1, 99]) if known.any() else (1.0, 1.0)
    # at least 5 %: a field next to nothing should look like nothing
    most = max(1 - low, high - 1, 0.05)
    shown = np.where(known, field, np.nan)
    _draw_slice(panel, scan, shown, PLANES[0], centre, cmap="PuOr_r", vmin=1 - most, vmax=1 + most)
    _label(panel, f"bias field: {low:.2f} (violet) to {high:.2f} (orange)")


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
    # the median voxel: inside the mass even when parts lie far away
    profiles = (mask.sum(axis=axes) for axes in ((1, 2), (0, 2), (0, 1)))
    return [int(np.searchsorted(np.cumsum(p), p.sum() / 2)) for p in profiles]


def _atlas_on(scan: Scan, atlas_dir: Path) -> tuple[np.ndarray, list[float]]:
    """The atlas' brain on the grid of a registered scan; levels of its border and of its fluid."""
    atlas = read_scan(atlas_dir / "brain.nii.gz")
    shift = np.linalg.solve(atlas.affine, scan.affine)
    start = np.round(shift[:3, 3]).astype(int)
    stop = start + scan.data.shape
    aligned = np.allclose(shift[:3, :3], np.eye(3), atol=1e-4) and np.allclose(
        shift[:3, 3], start, atol=1e-3
    )
    if aligned and (start >= 0).all() and (stop <= atlas.data.shape).all():
        # a cropped scan is a part of the atlas' grid: no resampling
        data = atlas.data[tuple(map(slice, start, stop))]
    else:
        data = import_ants().resample_image_to_target(
            to_ants(atlas.data, atlas.affine), to_ants(scan.data, scan.affine), "linear"
        ).numpy()  # fmt: skip
    tissue = float(np.median(atlas.data[atlas.data > 0]))
    return data, [0.3 * tissue, 0.75 * tissue]
