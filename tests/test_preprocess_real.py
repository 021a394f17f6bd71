"""Preprocessing on real heads: IXI T1 with reference brain labels, MSLUB with lesions."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest

from tools.scans import register
from uad.core.files import read_json
from uad.core.masks import SMALLEST_HEAD_ML, dice, outline_ml
from uad.core.nifti import read_scan, read_scan_mask, read_volume, write_volume
from uad.preprocess.atlas import prepare_atlas
from uad.preprocess.brain_masks import predict_brain_masks, read_prediction
from uad.preprocess.intensity import Packing, pack_volume
from uad.preprocess.picture import qc_picture
from uad.preprocess.skullstrip import skull_strip

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("UAD_REAL_DATA", ROOT / "../shared/data")).resolve()

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        not (DATA / "ixi" / "brain_labels").is_dir(),
        reason=f"no real scans at {DATA}; set UAD_REAL_DATA (see the project's documentation)",
    ),
]

#: Subjects of the test of the network (25 s each on one core): the first with labels.
NETWORK_SUBJECTS = 4
#: Subjects of the cheaper tests; IXI034 is the hardest for the atlas.
ATLAS_SUBJECTS = 6
SPACING = 2.0
OPTIONS = {"spacing": SPACING, "seed": 1, "n4_iterations": (20, 20)}


def labelled(count):
    """T1 and brain labels of the first subjects that have both."""
    pairs = []
    for labels in sorted((DATA / "ixi" / "brain_labels").glob("*-labels.nii.gz")):
        scan = DATA / "ixi" / "IXI-T1" / labels.name.replace("-labels", "-T1")
        if scan.exists():
            pairs.append((scan, labels))
    assert len(pairs) >= count, f"{DATA}/ixi: {len(pairs)} labelled subjects, {count} are needed"
    return pairs[:count]


def overlap(mask, scan, labels):
    image = read_scan(scan)
    ours, warnings = read_scan_mask(mask, image)
    assert warnings == []
    return dice(ours, read_scan_mask(labels, image)[0])


@pytest.fixture(scope="module")
def atlas_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("atlas")
    prepare_atlas(folder, SPACING)
    return folder


@pytest.fixture(scope="module")
def atlas_masks(atlas_dir, tmp_path_factory):
    """Brain masks of the ``ants`` back end."""
    folder = tmp_path_factory.mktemp("masks")
    masks = {}
    for scan, _ in labelled(ATLAS_SUBJECTS):
        masks[scan] = folder / scan.name
        facts = skull_strip(scan, masks[scan], "ants", atlas_dir, seed=1)
        assert facts["warnings"] == [], scan.name
    return masks


def test_ants_masks_overlap_the_reference(atlas_masks: dict[Path, Path]):
    found = {s.name: overlap(atlas_masks[s], s, labels) for s, labels in labelled(ATLAS_SUBJECTS)}
    assert np.mean(list(found.values())) >= 0.95, found
    assert min(found.values()) >= 0.93, found


@pytest.mark.slow
def test_hdbet_masks_of_a_batch_overlap_the_reference_and_equal_single_runs(tmp_path):
    options, found = {"device": "cpu", "threads": 2}, {}
    pairs = {scan.name: (scan, labels) for scan, labels in labelled(NETWORK_SUBJECTS)}
    batch = tmp_path / "batch.safetensors"
    scans = {name: scan for name, (scan, _) in pairs.items()}
    assert predict_brain_masks(scans, batch, "hdbet", **options) == []
    for name, (scan, labels) in pairs.items():
        facts = skull_strip(
            scan, tmp_path / name, "hdbet", None, predicted=read_prediction(batch, name)
        )
        assert facts["warnings"] == [], name
        assert 1000 < facts["brain_ml"] < 2000
        found[name] = overlap(tmp_path / name, scan, labels)
    assert min(found.values()) >= 0.95, found
    # the last of them, for which the networks have seen others
    assert skull_strip(scan, tmp_path / "single.nii.gz", "hdbet", None, **options) == facts
    assert (tmp_path / "single.nii.gz").read_bytes() == (tmp_path / name).read_bytes()


def test_registered_heads_overlap_the_atlas(atlas_masks: dict[Path, Path], atlas_dir, tmp_path):
    found = {}
    for scan, mask in atlas_masks.items():
        files = {"image": scan, "mask": mask, "lesion": None}
        facts, out = register(scan.parent, atlas_dir, tmp_path / scan.name, **files, **OPTIONS)
        assert facts["warnings"] == [], scan.name
        found[scan.name] = facts["registration"]["overlap_dice"]
        assert facts["registration"]["correlation"] > 0.3, scan.name
        assert read_json(out.sidecar) == facts
    assert min(found.values()) >= 0.93, found
    picture = tmp_path / "picture.png"
    qc_picture(picture, out.image, out.brain_mask, None, atlas_dir, scan.name)
    assert picture.stat().st_size < 150_000


def test_mslub_lesions_stay_on_bright_tissue(atlas_dir, tmp_path):
    folder = DATA / "mslub" / "mni" / "patient19"
    if not folder.is_dir():
        pytest.skip(f"no MSLUB scans at {folder}")
    scan = folder / "patient19_FLAIR.nii.gz"
    facts = skull_strip(scan, tmp_path / "brain.nii.gz", "foreground", None)
    assert facts["warnings"] == []
    files = {
        "image": scan,
        "mask": tmp_path / "brain.nii.gz",
        "lesion": folder / "patient19_consensus_gt.nii.gz",
    }
    facts, out = register(folder, atlas_dir, tmp_path / "out", **files, **OPTIONS)
    assert facts["warnings"] == []
    assert facts["registration"]["overlap_dice"] >= 0.93
    raw = read_volume(folder / "patient19_consensus_gt.nii.gz")[0]
    # the atlas is larger than this brain: the lesion grows with it, by the same factor
    expected = (raw > 0).sum() / 1000 / facts["registration"]["determinant"]
    assert facts["lesion_ml"] == pytest.approx(expected, rel=0.05)
    image, mask, lesion = (read_volume(p)[0] for p in (out.image, out.brain_mask, out.lesion))
    volume, small, sick = pack_volume(image, mask, lesion, Packing(SPACING))
    healthy = volume[(small > 0) & (sick == 0)].astype(float).mean()
    assert volume[sick > 0].astype(float).mean() > healthy + 0.2


def test_a_brain_among_heads_is_taken_for_what_it_is(atlas_dir, tmp_path):
    (scan, labels), *_ = labelled(1)
    image = read_scan(scan)
    brain, _ = read_scan_mask(labels, image)
    write_volume(tmp_path / "brain.nii.gz", image.to_raw(image.data * brain), image.raw_affine)
    facts = skull_strip(tmp_path / "brain.nii.gz", tmp_path / "mask.nii.gz", "auto-ants", atlas_dir)
    assert facts["backend"] == "foreground" and facts["warnings"] == []
    assert overlap(tmp_path / "mask.nii.gz", scan, labels) > 0.98


@pytest.mark.slow
def test_heads_and_brains_are_told_apart_by_their_outline():
    found = {True: [], False: []}
    for path in sorted(DATA.rglob("*.nii.gz")):
        if not re.search("seg|gt|mask|labels|faults", path.name):
            scan = read_scan(path)
            is_head = not re.search("mslub/mni|tcga/", path.as_posix())
            found[is_head].append((outline_ml(scan.data, scan.spacing), path.name))
    assert len(found[True]) > 200 and len(found[False]) == 12
    assert max(found[False])[0] < 0.9 * SMALLEST_HEAD_ML < SMALLEST_HEAD_ML < min(found[True])[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flair", "t1"])
def test_a_scan_that_lost_its_orientation_is_turned(kind, atlas_dir, tmp_path):
    """As if saved again with the affine of a bare array (BraTS: LPS)."""
    source = DATA / "tcga" / "TCGA-DU-7294" / f"TCGA-DU-7294_{kind}.nii.gz"
    if not source.exists():
        pytest.skip(f"no TCGA scans at {source.parent}")
    write_volume(tmp_path / "image.nii.gz", read_volume(source)[0], np.eye(4))
    skull_strip(tmp_path / "image.nii.gz", tmp_path / "mask.nii.gz", "foreground", None)
    facts, _ = register(tmp_path, atlas_dir, tmp_path / "out", lesion=None, **OPTIONS)
    assert "is LPS in the image: it was turned" in facts["warnings"][0]
    assert facts["registration"]["overlap_dice"] > 0.93
    assert facts["registration"]["correlation"] > 0.3
