"""The phantom: layouts, reproducibility, anatomy, and intensities that agree with real scans."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from uad.config import load
from uad.config.inputs import Dataset
from uad.core.errors import ConfigError
from uad.core.files import sha256
from uad.phantom import subject_names, write_dataset, write_subject

SEED, SPACING = 20240815, 3.0
SUBJECTS = {"ixi": 1, "brats21": 6, "mslub": 6}
ALL = ("T1", "T1CE", "T2", "FLAIR")
MODALITIES = {"ixi": ("T1", "T2"), "brats21": ALL, "mslub": ALL}

# Ranges of the 10th, 50th and 90th percentile over real patients, after scaling each brain
# by its own 1st and 99th percentile: glioma (three patients) and MSLUB (three patients).
REAL_BRAIN = {
    ("brats21", "T1"): [(0.19, 0.45), (0.48, 0.82), (0.84, 0.95)],
    ("brats21", "T1CE"): [(0.19, 0.32), (0.44, 0.57), (0.61, 0.82)],
    ("brats21", "T2"): [(0.09, 0.30), (0.17, 0.41), (0.42, 0.63)],
    ("brats21", "FLAIR"): [(0.23, 0.27), (0.48, 0.61), (0.62, 0.73)],
    ("mslub", "T1"): [(0.10, 0.28), (0.67, 0.74), (0.89, 0.93)],
    ("mslub", "T2"): [(0.19, 0.20), (0.27, 0.29), (0.51, 0.75)],
    ("mslub", "FLAIR"): [(0.15, 0.50), (0.66, 0.74), (0.80, 0.89)],
}
REAL_LESION = {
    ("brats21", "T1"): [(0.17, 0.71), (0.40, 0.81), (0.68, 0.93)],
    ("brats21", "T1CE"): [(0.16, 0.36), (0.36, 0.54), (0.62, 0.84)],
    ("brats21", "T2"): [(0.26, 0.46), (0.41, 0.55), (0.53, 0.79)],
    ("brats21", "FLAIR"): [(0.67, 0.78), (0.82, 0.98), (0.99, 1.00)],
    ("mslub", "T1"): [(0.23, 0.50), (0.57, 0.70), (0.77, 0.86)],
    ("mslub", "T2"): [(0.28, 0.34), (0.41, 0.50), (0.65, 0.73)],
    ("mslub", "FLAIR"): [(0.78, 0.84), (0.92, 0.99), (1.00, 1.00)],
}
TOLERANCE = 0.1


class Scan:
    """One subject as written, with the scaling that the workflow's loader applies."""

    def __init__(self, root: Path, layout: str, subject: str) -> None:
        self.paths = write_subject(root, layout, subject, MODALITIES[layout], SPACING, SEED)
        arrays = [np.asarray(nib.load(path).dataobj) for path in self.paths]
        self.raw = dict(zip(MODALITIES[layout], arrays, strict=False))
        if layout == "brats21":
            self.seg = arrays[-1]
            self.brain = self.raw["T2"] > 0
        elif layout == "mslub":
            self.seg, self.brain = arrays[-2], arrays[-1] > 0
        if layout != "ixi":
            self.lesion = self.seg > 0
            self.healthy = self.brain & ~self.lesion

    def scaled(self, modality: str) -> np.ndarray:
        image = self.raw[modality].astype(float)
        low, high = np.percentile(image[self.brain], [1, 99])
        return np.clip((image - low) / (high - low), 0, 1) * self.brain


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """``scans(layout)``: subjects of a layout, written once."""
    root = tmp_path_factory.mktemp("phantom")

    @cache
    def write(layout: str) -> list[Scan]:
        names = subject_names(layout, SUBJECTS[layout], SEED)
        return [Scan(root / layout, layout, name) for name in names]

    return write


# --------------------------------------------------------------------------- layout


NAMES = {
    "ixi": r"IXI\d{3}-(Guys|HH|IOP)-\d{4}",
    "brats21": r"BraTS2021_\d{5}",
    "mslub": r"patient\d{2}",
}


@pytest.mark.parametrize("layout", NAMES)
def test_subjects_are_named_as_in_the_data_set(layout):
    names = subject_names(layout, 30, SEED)
    assert len(set(names)) == 30
    assert all(re.fullmatch(NAMES[layout], name) for name in names)
    assert subject_names(layout, 5, SEED) == names[:5]
    first = {"ixi": "IXI002-", "brats21": "BraTS2021_00000", "mslub": "patient01"}
    assert names[0].startswith(first[layout])


def test_files_are_named_as_in_the_data_set(tmp_path):
    def written(layout, modalities):
        paths = write_dataset(tmp_path / layout, layout, 1, modalities, 6.0, SEED)
        return [str(path.relative_to(tmp_path / layout)) for path in paths]

    name = subject_names("ixi", 1, SEED)[0]
    assert written("ixi", ["T2", "T1"]) == [f"IXI-T2/{name}-T2.nii.gz", f"IXI-T1/{name}-T1.nii.gz"]
    assert written("brats21", ALL) == [
        f"BraTS2021_00000/BraTS2021_00000_{part}.nii.gz"
        for part in ("t1", "t1ce", "t2", "flair", "seg")
    ]
    assert written("mslub", ALL) == [
        f"patient01/patient01_{part}.nii.gz"
        for part in ("T1W", "T1WKS", "T2W", "FLAIR", "consensus_gt", "brainmask")
    ]
    # and nothing else lies in the tree
    assert sum(path.is_file() for path in tmp_path.rglob("*")) == 2 + 5 + 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout": "ixi", "modalities": ["FLAIR"]}, "ixi data set has no FLAIR"),
        ({"modalities": ["PD"]}, "T1"),
        ({"modalities": []}, "'modalities' is missing"),
        ({"phantom": {"spacing": 0.0}}, "spacing"),
        ({"phantom": {"spacing": float("nan")}}, "spacing"),
    ],
)
def test_the_config_refuses_what_cannot_be_drawn(change, message):
    fine = {"layout": "mslub", "source": "phantom", "modalities": ["T1"]}
    Dataset.model_validate(fine)
    with pytest.raises(ValueError, match=message):
        Dataset.model_validate(fine | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"phantom": {"subjects": 999}},
            "ixi.phantom.subjects: .* names for 998 subjects",
        ),
        ({"layout": "bids"}, "datasets.ixi.layout: no phantom has this layout"),
    ],
)
def test_what_no_phantom_has_is_refused(content, change, message):
    content["datasets"]["ixi"] |= {"source": "phantom", **change}
    with pytest.raises(ConfigError, match=message):
        load(content)


# ------------------------------------------------------------------ reproducibility


def digests(root, layout, subject, modalities, seed=SEED):
    paths = write_subject(root, layout, subject, modalities, 6.0, seed)
    return {path.name: sha256(path) for path in paths}


@pytest.mark.parametrize("layout", ["ixi", "brats21", "mslub"])
def test_two_calls_give_the_same_bytes(tmp_path, layout):
    subject = subject_names(layout, 1, SEED)[0]
    first = digests(tmp_path / "a", layout, subject, MODALITIES[layout])
    assert digests(tmp_path / "b", layout, subject, MODALITIES[layout]) == first
    other = digests(tmp_path / "c", layout, subject, MODALITIES[layout], seed=SEED + 1)
    assert all(other[name] != first[name] for name in first)
    # an image does not depend on what else is asked for
    one = digests(tmp_path / "d", layout, subject, ["T2"])
    assert one == {name: first[name] for name in one}


def test_a_subject_does_not_depend_on_the_others(tmp_path):
    paths = write_dataset(tmp_path / "a", "mslub", 2, ["T2"], 6.0, SEED)
    alone = digests(tmp_path / "b", "mslub", "patient02", ["T2"])
    assert {path.name: sha256(path) for path in paths[-3:]} == alone


# -------------------------------------------------------------------------- geometry


def test_brats_has_the_field_of_view_of_the_real_grid(scans):
    image = nib.load(scans("brats21")[0].paths[0])
    assert image.shape == (80, 80, 52)
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
    assert image.header.get_zooms() == (3.0, 3.0, 3.0)
    # outer corner of the first voxel, as in the affine diag(-1, -1, 1), offset (0, 239, 0)
    assert nib.affines.apply_affine(image.affine, [-0.5] * 3) == pytest.approx([0.5, 239.5, -0.5])


@pytest.mark.parametrize("layout", ["ixi", "brats21", "mslub"])
def test_images_and_masks_share_a_grid_and_have_their_types(scans, layout):
    for scan in scans(layout):
        images = [nib.load(path) for path in scan.paths]
        count = len(MODALITIES[layout])
        assert all(image.get_data_dtype() == np.int16 for image in images[:count])
        assert all(image.get_data_dtype() == np.uint8 for image in images[count:])
        assert all(np.array_equal(image.affine, images[0].affine) for image in images)
        assert all(image.shape == images[0].shape for image in images)
        assert all(300 < np.percentile(data, 99.5) < 3000 for data in scan.raw.values())


# --------------------------------------------------------------------------- anatomy


def test_brats_is_skull_stripped_with_labels_core_oedema_and_rim(scans):
    for scan in scans("brats21"):
        for image in scan.raw.values():
            assert image.min() == 0
            assert np.mean((image == 0) == ~scan.brain) > 0.9995
        assert 1.1 < scan.brain.sum() * SPACING**3 / 1e6 < 1.9
        assert set(np.unique(scan.seg)) == {0, 1, 2, 4}
        assert not (scan.lesion & ~scan.brain).any()


def test_mslub_has_small_lesions_within_its_brain_mask(scans):
    for scan in scans("mslub"):
        assert set(np.unique(scan.seg)) == {0, 1}
        assert not (scan.lesion & ~scan.brain).any()
        assert 0.0002 <= scan.lesion.sum() / scan.brain.sum() <= 0.007


@pytest.mark.parametrize("layout", ["ixi", "mslub"])
def test_whole_heads_have_tissue_outside_the_brain_and_noise_in_the_air(scans, layout):
    for scan in scans(layout):
        t1 = scan.raw["T1"].astype(float)
        head = t1 > 0.25 * np.percentile(t1, 98)
        assert 2.5 < head.sum() * SPACING**3 / 1e6 < 6.0
        if layout == "mslub":
            assert (head & ~scan.brain).sum() > 0.5 * scan.brain.sum()
        air = t1[:4, :, -4:]
        assert 0 < air.mean() < 0.08 * np.percentile(t1, 98)
        assert air.std() > 0


def fluid(scan: Scan) -> np.ndarray:
    return scan.healthy & (scan.scaled("T2") > 0.6)


@pytest.mark.parametrize("layout", ["brats21", "mslub"])
def test_anatomy_differs_between_subjects(scans, layout):
    def dice(a, b):
        return 2 * (a & b).sum() / (a.sum() + b.sum())

    every = scans(layout)
    for i, one in enumerate(every):
        for other in every[:i]:
            assert dice(one.brain, other.brain) < 0.985
            assert dice(fluid(one), fluid(other)) < 0.8


@pytest.mark.slow
def test_the_same_subject_at_another_resolution_has_the_same_anatomy(tmp_path):
    def read(spacing):
        paths = write_subject(tmp_path / str(spacing), "mslub", "patient01", ["T2"], spacing, SEED)
        return np.asarray(nib.load(paths[-1]).dataobj) > 0

    fine, coarse = read(2.0), read(4.0)
    repeated = coarse.repeat(2, 0).repeat(2, 1).repeat(2, 2)[tuple(map(slice, fine.shape))]
    assert 2 * (fine & repeated).sum() / (fine.sum() + repeated.sum()) > 0.94


# ------------------------------------------------------------------------- contrasts


@pytest.mark.parametrize("layout", ["brats21", "mslub"])
def test_contrasts_are_those_a_radiologist_expects(scans, layout):
    def signals(scan: Scan) -> np.ndarray:
        """Mean of fluid, grey matter, white matter and lesion (rows) on T1, T2, FLAIR."""
        t1, t2 = scan.scaled("T1"), scan.scaled("T2")
        # where T2 rules out partial volume with fluid, T1 parts white from grey matter
        solid = scan.healthy & (t2 < np.percentile(t2[scan.healthy], 60)) & (t1 > 0.45)
        low, high = np.percentile(t1[solid], [30, 70])
        regions = fluid(scan), solid & (t1 < low), solid & (t1 > high), scan.lesion
        images = t1, t2, scan.scaled("FLAIR")
        return np.array([[image[region].mean() for image in images] for region in regions])

    csf, gm, wm, lesion = np.mean([signals(scan) for scan in scans(layout)], axis=0)
    assert wm[0] > gm[0] > csf[0]
    assert csf[1] > gm[1] > wm[1]
    assert gm[2] > wm[2] > csf[2]
    assert wm[0] > lesion[0]
    assert csf[1] > lesion[1] > wm[1]
    assert lesion[2] > gm[2]


def test_the_rim_takes_up_contrast_and_the_core_does_not(scans):
    def gains(scan: Scan) -> list[float]:
        gain = scan.scaled("T1CE") - scan.scaled("T1")
        return [gain[region].mean() for region in (scan.seg == 4, scan.seg == 1, scan.healthy)]

    rim, core, healthy = np.mean([gains(scan) for scan in scans("brats21")], axis=0)
    assert rim > healthy + 0.1
    assert rim > core + 0.1


# --------------------------------------------------------- agreement with real scans


@pytest.mark.parametrize(
    ("region", "layout", "modality"),
    [("healthy", *key) for key in REAL_BRAIN] + [("lesion", *key) for key in REAL_LESION],
)
def test_intensities_agree_with_real_scans(scans, region, layout, modality):
    """The mean over subjects lies in the real range; TOLERANCE is for three patients' width."""
    ranges = (REAL_BRAIN if region == "healthy" else REAL_LESION)[layout, modality]
    found = np.mean(
        [
            np.percentile(scan.scaled(modality)[getattr(scan, region)], [10, 50, 90])
            for scan in scans(layout)
        ],
        axis=0,
    )
    for value, (low, high) in zip(found, ranges, strict=True):
        assert low - TOLERANCE <= value <= high + TOLERANCE, (found, ranges)


def test_tumours_take_up_about_one_per_cent_of_the_volume(scans):
    prevalence = [scan.lesion.mean() for scan in scans("brats21")]
    assert all(0.003 <= value <= 0.018 for value in prevalence)
    assert np.mean(prevalence) == pytest.approx(0.01, abs=0.003)


@pytest.mark.parametrize("region", ["brain", "volume"])
def test_intensity_alone_finds_the_tumour_on_t2_as_badly_as_on_real_scans(scans, region):
    found = []
    for scan in scans("brats21"):
        where = scan.brain if region == "brain" else np.ones_like(scan.brain)
        score = scan.scaled("T2")
        found.append(average_precision_score(scan.lesion[where], score[where]))
        # because fluid is brighter
        assert score[fluid(scan)].mean() > score[scan.lesion].mean()
    assert 0.05 <= np.mean(found) <= 0.5
    assert np.mean([0.05 <= value <= 0.5 for value in found]) > 0.8


def test_intensity_alone_does_not_find_plaques_on_t2(scans):
    found = [
        average_precision_score(scan.lesion.ravel(), scan.scaled("T2").ravel())
        for scan in scans("mslub")
    ]
    assert np.mean(found) < 0.1


@pytest.mark.parametrize("layout", ["brats21", "mslub"])
def test_healthy_means_lead_to_the_papers_inversion_rule(scans, layout):
    """Keep T2, invert FLAIR and contrast-enhanced T1, with some room for preprocessing."""

    def means(region):
        return {
            name: np.mean(
                [scan.scaled(name)[getattr(scan, region)].mean() for scan in scans(layout)]
            )
            for name in ALL
        }

    mean, lesion = means("healthy"), means("lesion")
    assert mean["T2"] <= 0.42
    assert mean["FLAIR"] >= 0.52
    assert mean["T1CE"] >= 0.52
    assert lesion["T2"] > mean["T2"]
    assert lesion["FLAIR"] > mean["FLAIR"]


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["ixi", "brats21", "mslub"])
def test_full_resolution(tmp_path, layout):
    subject = subject_names(layout, 1, SEED)[0]
    paths = write_subject(tmp_path, layout, subject, ["T2"], 1.0, SEED)
    images = [nib.load(path) for path in paths]
    assert images[0].header.get_zooms() == (1.0, 1.0, 1.0)
    if layout == "brats21":
        assert images[0].shape == (240, 240, 155)
        expected = [[-1, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]]
        assert np.array_equal(images[0].affine, expected)
        assert set(np.unique(np.asarray(images[1].dataobj))) == {0, 1, 2, 4}
