"""Synthetic brain MRI in the public file layouts of IXI, BraTS 2021 and MSLUB.

The demonstration data of the workflow: raw trees that the same code reads as the real ones.
Anatomy comes from the tissue probability maps of the ICBM152 2009a template (Fonov et al.,
NeuroImage 54, 2011, doi:10.1016/j.neuroimage.2010.07.033), which ship in the wheel of nilearn.
Every subject bends them by its own smooth random deformation, widens or narrows its sulci, and
gets a contrast per modality, a bias field, tissue texture and Rician noise. Whole-head layouts add
a skull, a scalp, eyes and a neck; the others add lesions: a glioma (necrotic core, enhancing rim,
oedema that follows the white matter) or multiple-sclerosis plaques.

Contrasts are set so that in-mask percentiles agree with those measured on real scans;
``tests/test_phantom.py`` holds them there. A phantom shows that the workflow works. It says
nothing about how well a method finds real lesions.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from uad.core.patterns import BRAIN, LESION, layout_of
from uad.core.seeds import derive_seed
from uad.phantom.anatomy import (
    LAYOUTS,
    Layout,
    make_anatomy,
    make_grid,
    template_at,
    template_coordinates,
)
from uad.phantom.lesions import make_plaques, make_tumour
from uad.phantom.scanner import make_images


def subject_names(layout: str, n: int, seed: int) -> list[str]:
    """Names of the first ``n`` subjects, in the data set's own style.

    The list for a smaller ``n`` is the beginning of the list for a larger one. The seed chooses
    IXI's site and scan number; the other layouts only count. How many names a layout has is
    ``LAYOUTS[layout].subject_limit``.
    """
    if layout == "ixi":
        return [_ixi_name(number, seed) for number in range(2, n + 2)]
    if layout == "brats21":
        return [f"BraTS2021_{number:05d}" for number in range(n)]
    return [f"patient{number:02d}" for number in range(1, n + 1)]


def write_dataset(
    out_dir: str | os.PathLike[str],
    layout: str,
    n: int,
    modalities: Sequence[str],
    spacing: float,
    seed: int,
) -> list[Path]:
    """Write ``n`` subjects by :func:`write_subject`; all paths, subject by subject."""
    names = subject_names(layout, n, seed)
    return [
        path
        for subject in names
        for path in write_subject(out_dir, layout, subject, modalities, spacing, seed)
    ]


def write_subject(
    out_dir: str | os.PathLike[str],
    layout: str,
    subject: str,
    modalities: Sequence[str],
    spacing: float,
    seed: int,
) -> list[Path]:
    """Write one subject's images, and its masks where the real data set has them; their paths.

    Images are int16 with a scanner-like scale that differs between scans (white or grey matter at
    some hundreds); masks are uint8. A subject depends on ``(seed, layout, subject)`` alone and each
    image also on its modality, not on which others are asked for. Equal arguments give equal bytes.
    ``spacing`` is the isotropic voxel size in mm, drawn sensibly from 0.5 to 6.

    Raises:
        DataError: nilearn's template files are not installed.
    """
    from uad.core.nifti import write_volume

    own_seed, patterns = derive_seed(seed, layout, subject), layout_of(layout)
    volumes, affine = _make_subject(LAYOUTS[layout], modalities, float(spacing), own_seed)
    paths = {role: Path(out_dir) / patterns.path(subject, role) for role in volumes}
    for role, data in volumes.items():
        write_volume(paths[role], data, affine)
    return list(paths.values())


def _ixi_name(number: int, seed: int) -> str:
    draw = derive_seed(seed, "ixi", "name", number)
    # Guys scanned more than half of IXI, Hammersmith a third, the Institute the rest
    site = ("Guys", "Guys", "Guys", "Guys", "HH", "HH", "HH", "IOP")[draw % 8]
    return f"IXI{number:03d}-{site}-{600 + draw // 8 % 2200:04d}"


def _make_subject(
    kind: Layout, modalities: Sequence[str], spacing: float, seed: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Images by modality and masks by what the layout calls them, and the affine."""
    template, grid = template_at(spacing), make_grid(kind, spacing)
    shape, tissue, lesion = (
        np.random.default_rng(derive_seed(seed, part)) for part in ("shape", "tissue", "lesions")
    )
    site = lesion.choice(template.tumour_sites) if kind.lesion == "tumour" else None
    coordinates = template_coordinates(kind, grid, shape, bulge=site)
    anatomy = make_anatomy(template, grid, coordinates, tissue)
    masks, lesions = {}, None
    if kind.lesion == "tumour":
        lesions = make_tumour(anatomy, site, lesion)
    elif kind.lesion == "plaques":
        lesions = make_plaques(anatomy, template, lesion)
    if lesions is not None:
        masks[LESION] = lesions.labels
    if kind.brain_mask:
        masks[BRAIN] = anatomy.brain.astype(np.uint8)
    return {**make_images(kind, anatomy, lesions, modalities, seed), **masks}, grid.affine
