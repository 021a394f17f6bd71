"""Skull stripping: one interface, several back ends.

``hdbet`` (Isensee et al. 2019) is what the paper used for IXI and MSLUB; ``ants``
warps the atlas' brain mask and needs no network; ``foreground`` is for scans that
come already stripped, as BraTS and the public MSLUB files do. ``auto-<back end>`` takes
``foreground`` for a scan that has no skull, and the named one for a head.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from uad.core.errors import ConfigError, DataError, unknown
from uad.core.masks import SMALLEST_HEAD_ML, background_of, largest_component, outline_ml
from uad.core.nifti import Scan, read_scan, write_volume
from uad.preprocess.ants_images import ants_workspace, import_ants, to_ants
from uad.preprocess.hdbet import HdBet
from uad.preprocess.intensity import lifted

#: Brain volume (ml) outside of which an adult's mask is suspicious.
PLAUSIBLE_ML = (400.0, 2500.0)
#: Voxel sizes (mm) at which the ``ants`` back end registers and fits the mask.
REGISTER_SPACING, REFINE_SPACING = 3.0, 2.0
#: Brain tissue is brighter than this part of the brain's median.
TISSUE_LEVEL = 0.35

#: Before the name of the back end for heads: scans without skull take ``foreground``.
AUTO = "auto-"

BackEnd = Callable[..., tuple[np.ndarray, dict[str, Any]]]


def skull_strip(
    image: str | Path,
    out_mask: str | Path,
    backend: str,
    atlas_dir: str | Path | None,
    *,
    seed: int = 0,
    threads: int = 1,
    predicted: tuple[np.ndarray, dict[str, Any]] | None = None,
    **network: Any,
) -> dict[str, Any]:
    """Write the brain mask of a scan of any orientation, on the grid of the file (uint8, 0 or 1).

    ``backend`` is ``hdbet``, ``ants`` (with ``seed``, and ``atlas_dir`` of
    :func:`uad.preprocess.atlas.prepare_atlas`) or ``foreground``, or ``auto-`` before one of them.
    With one thread every run gives the same bytes. ``predicted`` are mask and facts where a network
    has run already (:func:`uad.preprocess.brain_masks.read_prediction`), ``network`` options of
    :class:`uad.preprocess.hdbet.HdBet`. Returned are facts for the JSON sidecar (volumes in
    millilitres), with a list ``warnings``.

    Raises:
        ConfigError: the back end is unknown or not installed.
        DataError: the scan is unusable, or its mask is empty.
    """
    auto, backend = backend.startswith(AUTO), backend.removeprefix(AUTO)
    if backend not in BACKENDS:
        raise ConfigError(unknown("skull-stripping back end", backend, BACKENDS))
    scan = read_scan(image)
    outline = outline_ml(scan.data, scan.spacing)
    is_head = outline > SMALLEST_HEAD_ML
    if auto and not is_head:
        backend, predicted = "foreground", None
    found, facts = predicted or BACKENDS[backend](
        scan, atlas_dir=atlas_dir, seed=seed, threads=threads, **network
    )
    if auto:
        facts = {**facts, "auto": f"a {'head' if is_head else 'brain'} of {outline:.0f} ml"}
    if found.shape != scan.data.shape:
        raise DataError(
            f"{image}: has {scan.data.shape} voxels, but its predicted mask {found.shape}. "
            "The scan was changed since: run the same command again."
        )
    mask = largest_component(found)
    if not (voxels := int(mask.sum())):
        raise DataError(
            f"{image}: the {backend} back end found no brain. Look at the scan; choose another "
            "back end for this data set, or exclude the subject in the config."
        )
    volume = voxels * scan.voxel_ml
    warnings = [*_doubts(backend, volume, outline), *_cut_sides(mask)]
    write_volume(out_mask, scan.to_raw(mask), scan.raw_affine)
    return {
        "backend": backend,
        **facts,
        "brain_ml": round(volume, 3),
        "brain_voxels": voxels,
        "island_voxels_dropped": int(found.sum()) - voxels,
        "warnings": warnings,
    }


def _doubts(backend: str, brain_ml: float, outline: float) -> Iterator[str]:
    """Warnings where a mask, or a back end for a scan with such an outline (ml), is implausible."""
    low, high = PLAUSIBLE_ML
    if not low <= brain_ml <= high:
        hint = " Is the scan really skull-stripped?" if backend == "foreground" else ""
        yield f"brain volume of {brain_ml:.0f} ml is outside {low:.0f} to {high:.0f} ml.{hint}"
    is_head = outline > SMALLEST_HEAD_ML
    if is_head == (backend == "foreground"):
        means = "a head, not a brain" if is_head else "a brain without skull, not a head"
        yield (
            f"an outline of {outline:.0f} ml is {means}: '{backend}' is not for it. Set "
            "skullstrip: auto for this data set."
        )


def _cut_sides(mask: np.ndarray) -> Iterator[str]:
    """A warning where the mask reaches the last plane (a cut brain), lower end excepted."""
    names = ("left", "right", "back", "front", "top")
    faces = (mask[0], mask[-1], mask[:, 0], mask[:, -1], mask[:, :, -1])
    # a few voxels on the border are noise; a fiftieth of a side is a cut brain
    cut = [name for name, face in zip(names, faces, strict=True) if face.mean() > 0.02]
    if cut:
        yield f"the brain mask touches the end of the scan: {', '.join(cut)}"


def _foreground(scan: Scan, **_: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """Everything that differs from the background."""
    from scipy import ndimage

    background = background_of(scan.data)
    mask = largest_component(scan.data != background)
    return ndimage.binary_fill_holes(mask), {"background": background}


def _ants(
    scan: Scan, *, atlas_dir: str | Path | None, seed: int, threads: int, **_: Any
) -> tuple[np.ndarray, dict[str, Any]]:
    """Affine registration of the atlas head to the scan; the atlas' mask follows it.

    The warped mask is then fitted to the tissue: an affine misses single gyri and takes in
    some dura, a non-linear registration was worse.
    """
    if atlas_dir is None:
        raise ConfigError("the skull-stripping back end 'ants' needs a prepared atlas")
    ants = import_ants(threads)
    head, mask = (read_scan(Path(atlas_dir) / f"{n}.nii.gz") for n in ("head", "brain_mask"))
    whole = to_ants(lifted(scan.data)[0], scan.affine)
    coarse = ants.resample_image(whole, (REGISTER_SPACING,) * 3, False, 0)
    working = ants.resample_image(whole, (REFINE_SPACING,) * 3, False, 0)
    with ants_workspace(seed) as folder:
        found = ants.registration(
            fixed=coarse,
            moving=to_ants(head.data, head.affine),
            type_of_transform="Affine",
            outprefix=f"{folder}/skull_",
            aff_iterations=(1000, 500, 250),
            aff_shrink_factors=(4, 2, 1),
            aff_smoothing_sigmas=(2, 1, 0),
        )
        warped = ants.apply_transforms(
            working, to_ants(mask.data, mask.affine), found["fwdtransforms"], interpolator="linear"
        )
    fitted = _fit_to_tissue(working.numpy(), warped.numpy() > 0.5)
    image = working.new_image_like(fitted.astype(np.float32))
    on_scan = ants.resample_image_to_target(image, whole, "linear").numpy() > 0.5
    facts = {
        "working_spacing": [REGISTER_SPACING, REFINE_SPACING],
        "versions": {"antspyx": importlib.metadata.version("antspyx")},
    }
    return on_scan, facts


def _fit_to_tissue(data: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Fit a mask (grid of ``REFINE_SPACING``) that is right within millimetres to what is bright.

    Bone is dark in every contrast and separates brain from scalp: take what is bright
    within 4 mm of the mask, cut thin bridges (dura, vessels), keep the largest piece and
    close its sulci. The inner part of the mask stays whatever its brightness (ventricles).
    """
    from scipy import ndimage

    if not mask.any():
        return mask
    near = ndimage.distance_transform_edt(~mask) * REFINE_SPACING <= 4.0
    smooth = ndimage.gaussian_filter(data, 1.0 / REFINE_SPACING)
    tissue = near & (smooth > TISSUE_LEVEL * np.median(data[mask]))
    tissue = largest_component(ndimage.binary_opening(tissue, iterations=2))
    tissue = ndimage.binary_closing(tissue, iterations=2)
    core = ndimage.binary_erosion(mask, iterations=2)
    return ndimage.binary_fill_holes(tissue | core)


def _hdbet(
    scan: Scan, *, atlas_dir: str | Path | None, seed: int, **options: Any
) -> tuple[np.ndarray, dict[str, Any]]:
    """HD-BET for one scan; :mod:`uad.preprocess.brain_masks` loads it once for many."""
    network = HdBet(**options)
    return network.predict(scan), network.facts


#: Name in the config -> function(scan, **options) -> (mask on the axes of the scan, facts).
BACKENDS: dict[str, BackEnd] = {"hdbet": _hdbet, "ants": _ants, "foreground": _foreground}
