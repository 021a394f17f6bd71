"""Affine registration of a stripped scan to SRI24, crop to the brain, N4 bias correction.

Steps of pDDPM's preprocessing scripts: B-spline resampling to an isotropic voxel size, brain mask,
ANTs affine to the T1 brain of the atlas (for every modality, and for BraTS too, which is in that
space already), crop to the box of the mask, N4.
"""

from __future__ import annotations

import importlib.metadata
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from uad.core.errors import ConfigError, DataError
from uad.core.files import atomic_path, write_json
from uad.core.masks import dice
from uad.core.nifti import Scan, read_scan, read_scan_mask, write_volume
from uad.preprocess.ants_images import ants_workspace, import_ants, shear_of, to_ants
from uad.preprocess.atlas import atlas_spacing
from uad.preprocess.intensity import lifted
from uad.preprocess.orientation import (
    TRIED,
    Turn,
    axes_of,
    cubes,
    fit,
    likeness,
    mutual_information,
)

#: Overlap with the atlas' brain below which a registration has probably failed.
SUSPICIOUS_DICE = 0.85
#: Gaussian (mm) that turns the brain mask into N4's weights.
WEIGHT_SIGMA = 1.0
INTERPOLATIONS = {"nearest": "nearestNeighbor", "linear": "linear"}


@dataclass(frozen=True)
class RegisterOutputs:
    """Files that :func:`register_scan` writes; volumes are on the atlas' grid, cropped.

    ``image`` (float32) and ``bias_field`` (what N4 divided out: float32, mean 1 in the brain; None:
    not kept) are 0 outside the brain, masks are uint8; ``lesion`` is written where the scan has
    one. ``transform`` is an ITK affine from atlas to scan coordinates (``.mat`` of ANTs).
    """

    image: Path
    brain_mask: Path
    transform: Path
    sidecar: Path
    lesion: Path
    bias_field: Path | None = None


@dataclass(frozen=True)
class RegisterOptions:
    """How :func:`register_scan` works: voxels of ``spacing`` mm, as the atlas was prepared; the
    seed of the metric's sampling; ITK threads (only 1 gives the same bytes in every run).

    Lesions, of which ``lesion_labels`` count (None: above 0), are interpolated ``nearest``, or
    ``linear`` and then above 0, as the authors did, by which they grow. N4 takes at most
    ``n4_iterations`` per level to ``n4_tolerance``; ``n4_shrink`` is its subsampling at 1 mm, less
    at coarser voxels: N4 sees the same resolution.
    """

    spacing: float
    seed: int
    threads: int = 1
    lesion_interpolation: str = "nearest"
    lesion_labels: Sequence[int] | None = None
    n4: bool = True
    n4_iterations: Sequence[int] = (200, 200, 200, 200)
    n4_tolerance: float = 5e-4
    n4_shrink: int = 4

    @classmethod
    def of(cls, params: Mapping[str, Any], seed: int, threads: int) -> RegisterOptions:
        """From the params of the rule register_scan."""
        n4 = {f"n4_{k}": params["n4"][k] for k in ("iterations", "tolerance", "shrink")}
        kept = {k: params[k] for k in ("spacing", "lesion_interpolation", "lesion_labels")}
        return cls(**kept, seed=seed, threads=threads, n4=params["n4"]["enabled"], **n4)

    @property
    def shrink(self) -> int:
        """N4's subsampling at this voxel size, rounded up: none would cost ten times the time."""
        return max(1, math.ceil(self.n4_shrink / self.spacing))

    @property
    def facts(self) -> dict[str, Any]:
        """What the sidecar says of them."""
        labels = {} if self.lesion_labels is None else {"lesion_labels": list(self.lesion_labels)}
        return labels | {
            "spacing": float(self.spacing),
            "seed": int(self.seed),
            "image_interpolation": "bspline to the voxel size, linear to the atlas",
            "transform": "Affine, Mattes mutual information",
            "lesion_interpolation": INTERPOLATIONS[self.lesion_interpolation],
            "crop": True,
            "n4": bool(self.n4),
            "n4_mask": True,
            "n4_iterations": [int(value) for value in self.n4_iterations],
            "n4_tolerance": float(self.n4_tolerance),
            "n4_shrink": self.shrink,
        }


def register_scan(
    image: str | Path,
    brain_mask: str | Path,
    lesion: str | Path | None,
    atlas_dir: str | Path,
    out: RegisterOutputs,
    options: RegisterOptions,
) -> dict[str, Any]:
    """Register one scan to the atlas and write it with its mask, lesion, transform and sidecar.

    The image is resampled first and masked afterwards, so that the B-spline does not ring at the
    edge of the mask. Masks are on the grid of the scan and go to the atlas (a folder of
    :func:`uad.preprocess.atlas.prepare_atlas`) in one step. Nothing is written unless every step
    succeeds; equal inputs give equal bytes (with one thread). Returned is the content of the
    sidecar, with a list ``warnings``.

    Raises:
        ConfigError: the atlas has another voxel size.
        DataError: an input is unusable, shapes differ, or the brain mask is empty.
    """
    prepared, spacing = atlas_spacing(atlas_dir), options.spacing
    if not np.isclose(prepared, spacing):
        raise ConfigError(f"{atlas_dir}: prepared at {prepared:g} mm, but {spacing:g} mm is asked")
    scan, mask, lesions, warnings = _read_inputs(image, brain_mask, lesion, options.lesion_labels)
    data, moved_up = lifted(scan.data, mask)
    scan = replace(scan, data=data)
    import_ants(options.threads)
    with ants_workspace(options.seed) as folder:
        warped, affine, facts, transform = _to_atlas(
            scan, mask, lesions, Path(atlas_dir), options, folder
        )
        warnings += facts.pop("warnings")
        final, field, field_range = _corrected(warped["image"], warped["mask"], affine, options)
        inside = final[warped["mask"]]
        sidecar = {
            "Sources": [str(path) for path in (image, brain_mask, lesion) if path is not None],
            "SpatialReference": "SRI24",
            "SkullStripped": True,
            "Resolution": f"{spacing:g} mm isotropic",
            "antspyx": importlib.metadata.version("antspyx"),
            "parameters": options.facts,
            **facts,
            **({"intensities_moved_up": _rounded(moved_up)} if moved_up else {}),
            "bias_field": field_range,
            "intensity_percentiles": {
                str(q): _rounded(np.percentile(inside, q)) for q in (1, 5, 25, 50, 75, 95, 99)
            },
            "warnings": warnings,
        }
        if lesions is not None:
            write_volume(out.lesion, warped["lesion"], affine)
        write_volume(out.brain_mask, warped["mask"], affine)
        write_volume(out.image, final.astype(np.float32), affine)
        if field is not None and out.bias_field is not None:
            write_volume(out.bias_field, field.astype(np.float32), affine)
        with atomic_path(out.transform) as temporary:
            shutil.copyfile(transform, temporary)
    write_json(out.sidecar, sidecar)
    return sidecar


def _read_inputs(
    image: str | Path,
    brain_mask: str | Path,
    lesion: str | Path | None,
    labels: Sequence[int] | None,
) -> tuple[Scan, np.ndarray, np.ndarray | None, list[str]]:
    """The scan, its masks (bool, on its axes) and warnings about them."""
    scan = read_scan(image)
    mask, warnings = read_scan_mask(brain_mask, scan)
    if not mask.any():
        raise DataError(
            f"{brain_mask}: the brain mask is empty. Skull stripping failed for {image}; choose "
            "another back end, or exclude the subject in the config."
        )
    if shear_of(scan.affine) > 0.01:
        warnings.append(f"{Path(image).name}: its axes are not orthogonal; the shear is ignored")
    if lesion is None:
        return scan, mask, None, warnings
    lesions, more = read_scan_mask(lesion, scan, labels)
    warnings += more
    if not lesions.any():
        warnings.append(f"{Path(lesion).name}: the lesion mask is empty")
    elif not (lesions & mask).any():
        warnings.append(f"{Path(lesion).name}: the lesion lies entirely outside the brain")
    return scan, mask, lesions, warnings


def _to_atlas(
    scan: Scan,
    mask: np.ndarray,
    lesion: np.ndarray | None,
    atlas_dir: Path,
    options: RegisterOptions,
    folder: Path,
) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, Any], str]:
    """Image, mask and lesion, if any, on the atlas' grid, cropped to the box of the brain mask;
    their affine; what the sidecar says of them; the file of the transform, in ``folder``.
    """
    import ants

    atlas = read_scan(atlas_dir / "brain.nii.gz")
    atlas_mask = read_scan_mask(atlas_dir / "brain_mask.nii.gz", atlas)[0]
    image, inside, transform, warnings = _align(scan, mask, atlas, atlas_mask, options, folder)

    quality = _quality(image, inside, atlas.data, atlas_mask, ants.read_transform(transform))
    box = _box(inside)
    warped = {"image": image[box], "mask": inside[box]}
    if quality["overlap_dice"] < SUSPICIOUS_DICE:
        warnings.append(
            f"overlap with the atlas' brain is {quality['overlap_dice']:.3f}: look at the "
            "picture of the registration"
        )
    if lesion is not None:
        how = INTERPOLATIONS[options.lesion_interpolation]
        whole = _warp(lesion, scan, atlas, transform, how)
        warped["lesion"] = whole[box]
        if lesion.any() and not whole.any():
            warnings.append("the lesion is lost on the atlas' grid")
        if lost := int(whole.sum()) - int(warped["lesion"].sum()):
            warnings.append(f"{lost} lesion voxels lie outside the brain's box")
    start = [piece.start for piece in box]
    affine = atlas.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ start
    volumes = {name: _rounded(v.sum() * options.spacing**3 / 1000) for name, v in warped.items()}
    facts = {
        "registration": quality,
        "crop_start": start,
        "shape": list(warped["image"].shape),
        "brain_ml": volumes["mask"],
        "lesion_ml": volumes.get("lesion"),
        "warnings": warnings,
    }
    return warped, affine, facts, transform


def _align(
    scan: Scan,
    mask: np.ndarray,
    atlas: Scan,
    atlas_mask: np.ndarray,
    options: RegisterOptions,
    folder: Path,
) -> tuple[np.ndarray, np.ndarray, str, list[str]]:
    """Image and mask on the atlas, the file of the transform, warnings.

    Starts from the header's orientation and, where the result does not fit, from the three others
    that are most alike.
    """
    import ants

    fixed, moving = to_ants(atlas.data, atlas.affine), _isotropic(scan, mask, options.spacing)
    goal = cubes(atlas.data, atlas_mask, atlas.spacing)

    def attempt(number: int, turn: Turn | None) -> tuple[float, float, bool, Any]:
        start = None if turn is None else _start(turn, scan, mask, atlas, atlas_mask, folder)
        found = ants.registration(
            fixed=fixed,
            moving=moving,
            type_of_transform="Affine",
            initial_transform=start,
            outprefix=f"{folder}/register_{number}_",
            **_schedule(options.spacing),
        )
        transform = found["fwdtransforms"][0]
        inside = _warp(mask, scan, atlas, transform, "nearestNeighbor")
        image = np.maximum(found["warpedmovout"].numpy(), 0) * inside
        if not inside.any():
            return 0.0, 0.0, False, ()
        return *fit(cubes(image, inside, atlas.spacing), goal), (image, inside, transform)

    best, warnings = (*attempt(0, None), None), []
    if not best[2]:
        ranked = sorted(likeness(cubes(scan.data, mask, scan.spacing), goal), key=lambda x: -x[0])
        for number, (_, turn) in enumerate(ranked[:TRIED], 1):
            best = max(best, (*attempt(number, turn), turn), key=lambda x: (x[2], x[0]))
    value, ratio, will_do, result, turn = best
    if not will_do:
        raise DataError(
            f"{scan.path}: does not fit the atlas in any orientation (mutual information "
            f"{value:.3f} nats, {ratio:.1f} times that of the next best; for real scans see "
            "docs/qc.md). Look at the brain mask and at the axes in the header; mend them, or "
            "exclude the subject in the config."
        )
    if turn is not None and (axes := axes_of(turn)) != "RAS":
        warnings.append(
            f"what the header calls right, front and up is {axes} in the image: it was turned. "
            "'hdbet' and 'ants' went by the header, too: look at the brain mask. Left and right "
            "cannot be seen in an image; are they right in the header?"
        )
    return *result, warnings


def _start(
    turn: Turn, scan: Scan, mask: np.ndarray, atlas: Scan, atlas_mask: np.ndarray, folder: Path
) -> str:
    """A file with the transform that turns a scan and puts middle on middle (ITK, LPS+ world)."""
    import ants

    flip = np.diag([-1.0, -1.0, 1.0])
    axes, middles = [], []
    for volume, inside in ((scan, mask), (atlas, atlas_mask)):
        axes.append(volume.affine[:3, :3] / volume.spacing)
        middles.append(flip @ (volume.affine @ [*np.argwhere(inside).mean(axis=0), 1])[:3])
    transform = ants.create_ants_transform(
        matrix=flip @ axes[0] @ turn.T @ axes[1].T @ flip,
        center=middles[1],
        translation=middles[0] - middles[1],
    )
    path = str(folder / "start.mat")
    ants.write_transform(transform, path)
    return path


def _warp(
    data: np.ndarray, scan: Scan, atlas: Scan, transform: str, interpolator: str
) -> np.ndarray:
    """A mask of a scan on the grid of the atlas; interpolated, everything above 0 counts."""
    import ants

    fixed, moving = to_ants(atlas.data, atlas.affine), to_ants(data, scan.affine)
    warped = ants.apply_transforms(fixed, moving, [transform], interpolator=interpolator)
    return warped.numpy() > (0.5 if interpolator == "nearestNeighbor" else 0.0)


def _isotropic(scan: Scan, mask: np.ndarray, spacing: float) -> Any:
    """The masked scan at the working voxel size (cubic B-spline, at least 0), an ANTs image."""
    import ants

    whole = to_ants(scan.data, scan.affine)
    if np.allclose(scan.spacing, spacing, rtol=1e-4):
        return whole * to_ants(mask, scan.affine)
    small = ants.resample_image(whole, (spacing,) * 3, False, 4)
    inside = ants.resample_image_to_target(to_ants(mask, scan.affine), small, "nearestNeighbor")
    return small.new_image_like(np.maximum(small.numpy(), 0) * (inside.numpy() > 0.5))


def _schedule(spacing: float) -> dict[str, Any]:
    """Levels of the registration: those of ANTsPy at 1 mm, the same millimetres elsewhere.

    Levels finer than the voxels would repeat the last one and are left out.
    """
    levels = [
        (iterations, max(1, round(size / spacing)), sigma)
        for iterations, size, sigma in ((2100, 6, 3), (1200, 4, 2), (1200, 2, 1), (10, 1, 0))
        if size >= min(spacing, 6)
    ]
    iterations, shrink, sigmas = zip(*levels, strict=True)
    return {
        "aff_iterations": iterations,
        "aff_shrink_factors": shrink,
        "aff_smoothing_sigmas": sigmas,
        "smoothing_in_mm": True,
    }


def _box(mask: np.ndarray) -> tuple[slice, slice, slice]:
    """The smallest box that holds the mask."""
    from scipy import ndimage

    return ndimage.find_objects(mask.astype(np.uint8))[0]


def _corrected(
    data: np.ndarray, mask: np.ndarray, affine: np.ndarray, options: RegisterOptions
) -> tuple[np.ndarray, np.ndarray | None, dict[str, float] | None]:
    """N4 (Tustison et al. 2010): the image, its bias field (0: not known), the field's range."""
    if not options.n4:
        return data, None, None
    import ants

    within = to_ants(mask, affine)
    corrected = ants.n4_bias_field_correction(
        to_ants(data, affine),
        mask=within,
        weight_mask=ants.smooth_image(within, WEIGHT_SIGMA),
        shrink_factor=options.shrink,
        convergence={
            "iters": [int(value) for value in options.n4_iterations],
            "tol": float(options.n4_tolerance),
        },
    ).numpy()
    corrected = np.where(mask, np.nan_to_num(corrected), 0)
    used = mask & (data > 0) & (corrected > 0)
    inside = data[used] / corrected[used]
    if not inside.size:
        raise DataError("N4 left no brightness inside the brain mask")
    # N4 fixes the field up to a factor: a mean of 1 keeps the scan's own brightness
    corrected, inside = corrected * inside.mean(), inside / inside.mean()
    field = np.divide(data, corrected, out=np.zeros_like(corrected), where=corrected > 0)
    low, high = np.percentile(inside, [1, 99])
    figures = {"min": inside.min(), "p01": low, "p99": high, "max": inside.max()}
    return corrected, field, {name: _rounded(value) for name, value in figures.items()}


def _quality(
    image: np.ndarray, mask: np.ndarray, atlas: np.ndarray, atlas_mask: np.ndarray, transform: Any
) -> dict[str, Any]:
    """How well the scan lies on the atlas, by figures that need no reference."""
    ours, theirs = image[mask & atlas_mask], atlas[mask & atlas_mask]
    parameters = np.asarray(transform.parameters, dtype=np.float64)
    return {
        "overlap_dice": _rounded(dice(mask, atlas_mask)),
        "correlation": _rounded(_correlation(ours, theirs)),
        "mutual_information": _rounded(mutual_information(ours, theirs)),
        "determinant": _rounded(np.linalg.det(parameters[:9].reshape(3, 3))),
        "translation_mm": [_rounded(value) for value in parameters[9:]],
    }


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson correlation; 0 where it is not defined."""
    if x.size < 2 or x.std() == 0 or y.std() == 0:
        return 0.0
    return float(np.corrcoef(x.astype(np.float64), y.astype(np.float64))[0, 1])


def _rounded(value: Any) -> float:
    """Six significant digits: what a reader needs, and no noise of the last bit."""
    return float(f"{float(value):.6g}")
