"""Reconstructions that are known to be good, to check score, AIR, post-processing and metric.

A volume with a lesion and the same volume without it make a reconstruction as a trained network
would give it: half of the lesion is left, the image is a little blurred, and its brightness is
wrong by a smooth field. No network is involved, so this says nothing about training.

``cd tests; python -m tools.positive_control`` prints the table of docs/positive-control.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import ndimage

from uad.air import invert_foreground, paper_rule
from uad.config import Protocol
from uad.core.seeds import derive_seed
from uad.evaluate import average_precision, postprocess
from uad.evaluate.score import score_volume
from uad.preprocess.intensity import crop_or_pad

#: What is compared, in the order that is expected: name -> quality map, with AIR or without.
STEPS = {
    "l1": ("l1", False),
    "SSIM": ("ssim", False),
    "fusion": ("fusion", False),
    "fusion with AIR": ("fusion", True),
}

#: Post-processing of a grid of 48x48x25, as in the demo.
POSTPROCESSING = {"erosion": 1, "median": 3}

#: Window, clamp and alpha of the default protocol.
QUALITY = Protocol().quality


class Case(NamedTuple):
    """A scan in [0, 1], the same without its lesion, its brain and its lesion; all (x, y, z)."""

    scan: np.ndarray
    without: np.ndarray
    brain: np.ndarray
    lesion: np.ndarray


def phantom_case(seed: int, spacing: float = 4.0, shape: tuple[int, ...] = (48, 48, 25)) -> Case:
    """One FLAIR phantom with a glioma, drawn with and without it."""
    from uad.phantom.anatomy import (
        LAYOUTS,
        make_anatomy,
        make_grid,
        template_at,
        template_coordinates,
    )
    from uad.phantom.lesions import make_tumour
    from uad.phantom.scanner import make_images

    kind, template = LAYOUTS["brats21"], template_at(spacing)
    grid = make_grid(kind, spacing)
    rng = {name: np.random.default_rng(derive_seed(seed, name)) for name in ("lesion", "shape")}
    site = rng["lesion"].choice(template.tumour_sites)
    coordinates = template_coordinates(kind, grid, rng["shape"], bulge=site)
    anatomy = make_anatomy(template, grid, coordinates, np.random.default_rng(seed))
    lesions = make_tumour(anatomy, site, rng["lesion"])
    scan, without = (
        make_images(kind, anatomy, some, ["FLAIR"], seed)["FLAIR"] for some in (lesions, None)
    )
    return _scaled(scan, without, anatomy.brain, lesions.labels > 0, shape)


def real_cases(data: Path) -> Iterator[tuple[str, Case]]:
    """Real FLAIR lesions at 2 mm: name and case; the lesion is filled from the other hemisphere."""
    from uad.core.nifti import read_volume

    folders = [*sorted((data / "tcga").iterdir()), *sorted((data / "mslub/mni").iterdir())]
    for folder in folders:
        image, label = (
            next(
                path for path in sorted(folder.glob("*.nii.gz")) if path.stem.lower().endswith(end)
            )
            for end in (("flair.nii",), ("seg.nii", "gt.nii"))
        )
        scan, lesion = (read_volume(path)[0].astype(np.float32) for path in (image, label))
        brain = scan > 0
        lesion = (lesion > 0) & brain
        # both spaces have left and right on the first axis; the brain's middle is the mirror
        ends = np.flatnonzero(brain.any(axis=(1, 2)))[[0, -1]]
        other = int(ends.sum()) - np.arange(len(scan))
        mirrored = scan[np.clip(other, 0, len(scan) - 1)]
        grown = ndimage.binary_dilation(lesion, iterations=2).astype(np.float32)
        weight = ndimage.gaussian_filter(grown, 1) * (mirrored > 0)
        without = scan * (1 - weight) + mirrored * weight
        arrays = (scan, without, brain.astype(np.float32), lesion.astype(np.float32))
        halved = [ndimage.uniform_filter(array, 2)[::2, ::2, ::2] for array in arrays]
        yield folder.name, _scaled(*halved[:2], halved[2] > 0.5, halved[3] >= 0.5, (96, 96, 80))


def _scaled(scan: Any, without: Any, brain: Any, lesion: Any, shape: tuple[int, ...]) -> Case:
    low, high = np.percentile(scan[brain], [1, 99])
    images = (
        np.where(brain, np.clip((image - low) / (high - low), 0, 1), 0).astype(np.float32)
        for image in (scan, without)
    )
    arrays = (*images, brain.astype(np.uint8), lesion.astype(np.uint8))
    return Case(*(crop_or_pad(array, shape) for array in arrays))


def reconstruction(case: Case, seed: int, *, left: float = 0.5, blur: float = 0.35) -> np.ndarray:
    """The volume with ``left`` of its lesion, ``blur`` pixels of blur in the plane and a smooth
    error of brightness (standard deviation 0.09, width 7 voxels); float32 in [0, 1]."""
    error = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(case.scan.shape), 7)
    image = left * case.scan + (1 - left) * case.without
    image = ndimage.gaussian_filter(image, (blur, blur, 0)) + 0.09 * error / error.std()
    return np.where(case.brain > 0, np.clip(image, 0, 1), 0).astype(np.float32)


def control(
    cases: list[Case],
    seed: int,
    *,
    postprocessing: Mapping[str, Any] = POSTPROCESSING,
    quality: Mapping[str, Any] | None = None,
    invert_scan: bool = True,
) -> dict[str, float]:
    """Mean AUPRC of each of :data:`STEPS`, in percent, and the healthy DSSIM of the scans.

    Args:
        cases: the volumes.
        seed: of the errors of brightness.
        postprocessing: options of :func:`uad.evaluate.postprocess`.
        quality: options of the quality maps that replace those of :data:`QUALITY`.
        invert_scan: false leaves the scan as it is where AIR inverts the reconstruction, which is
            a mistake that the control must show.
    """
    rows = []
    for number, case in enumerate(cases):
        restored = reconstruction(case, derive_seed(seed, number))
        healthy = (case.brain > 0) & (case.lesion == 0)
        dssim = score_volume("ssim", case.scan, restored, **QUALITY)
        row = {"healthy DSSIM": float(dssim[healthy].mean())}
        for name, (score, air) in STEPS.items():
            pair = [case.scan, restored]
            if air and paper_rule(float(case.scan[healthy].mean())):
                pair[1] = invert_foreground(restored, case.brain)
                pair[0] = invert_foreground(case.scan, case.brain) if invert_scan else case.scan
            options = QUALITY | (quality or {})
            scores = postprocess(
                score_volume(score, *pair, **options), case.brain, **postprocessing
            )
            row[name] = 100 * average_precision(scores, case.lesion)
        rows.append(row)
    return pd.DataFrame(rows).mean().to_dict()


def main() -> None:
    """Print the table of five seeds, and of the real lesions."""
    rows = {f"phantom, seed {seed}": control(phantom_cases(seed), seed) for seed in range(5)}
    data = Path(os.environ.get("UAD_REAL_DATA", "../shared/data"))
    if data.is_dir():
        for name, case in real_cases(data):
            rows[name] = control([case], 0, postprocessing=POSTPROCESSING)
    print(pd.DataFrame(rows).T.round(2).to_markdown())


def phantom_cases(seed: int, number: int = 8) -> list[Case]:
    """Eight phantoms of a seed."""
    return [phantom_case(1000 * seed + n) for n in range(number)]


if __name__ == "__main__":
    main()
