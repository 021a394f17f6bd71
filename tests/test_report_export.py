"""Volumes of a cell as NIfTI in two spaces, and the page: ``uad export``."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from scipy.io import savemat

from uad.__main__ import main
from uad.core.files import write_json, write_text
from uad.core.nifti import write_volume
from uad.core.paths import Tree
from uad.preprocess.slices import write_store, write_volumes

ROOT = Path(__file__).resolve().parents[1]
SHAPE = (48, 48, 25)  # at 4 mm
SUBJECTS = ("a", "b", "c", "d")
CELL = ("intra_FLAIR", "pddpm-iqa", 0, "brats21")
WORDS = ["export", "--experiment", "intra_FLAIR", "--method", "pddpm-iqa"]


def volume(subject):
    """(volume, mask, lesion) with a lesion that grows from subject to subject."""
    mask, lesion = np.zeros((2, *SHAPE), np.uint8)
    mask[5:40, 5:40, 2:22] = 1
    side = 3 + SUBJECTS.index(subject)
    lesion[12 : 12 + side, 20 : 20 + side, 8 : 8 + side] = 1
    return (0.3 * mask + 0.5 * lesion).astype(np.float16), mask, lesion


@pytest.fixture
def results(tmp_path, monkeypatch):
    """What a run with ``run.keep_reconstructions`` leaves of one cell; all scans lie on SRI24."""
    monkeypatch.chdir(tmp_path)
    content = yaml.safe_load((ROOT / "config.yaml").read_text())
    content["preprocessing"]["shape"] = list(SHAPE)
    write_text("results/config.resolved.yaml", yaml.safe_dump(content))
    tree, affine = Tree(), np.diag([4.0, 4, 4, 1])
    write_store(tree.slices("brats21", "FLAIR"), SUBJECTS, map(volume, SUBJECTS))
    layers = {f"test/{s}": volume(s) for s in SUBJECTS}
    maps = {name: part[2].astype(np.float32) for name, part in layers.items()}
    write_volumes(tree.per_test("maps", "safetensors", *CELL), maps)
    restored = {name: (0.3 * part[1]).astype(np.float16) for name, part in layers.items()}
    write_volumes(tree.per_test("reconstructions", "safetensors", *CELL), restored)
    write_json(tree.per_test("thresholds", "json", *CELL), {"threshold": 0.5})
    write_json(tree.air("intra_FLAIR", 0), {"invert": True})
    rows = ["subject\tname\tsite\tmodality\timage\tlesion"]
    for s in SUBJECTS:
        scan = {"dataset": "brats21", "subject": s, "suffix": "FLAIR"}
        write_volume(f"raw/{s}.nii.gz", np.ones((90, 90, 50), np.float32), np.diag([2.0, 2, 2, 1]))
        registered = tree.scan("nii.gz", space="SRI24", desc="preproc", **scan)
        write_volume(registered, np.ones(SHAPE, np.float32), affine)
        xfm = {"from": "orig", "to": "SRI24", "mode": "image", "desc": "xfm"}
        identity = np.concatenate([np.eye(3).ravel(), np.zeros(3)])[:, None]
        transform = {"AffineTransform_double_3_3": identity, "fixed": np.zeros((3, 1))}
        savemat(tree.scan("mat", **xfm, **scan), transform, format="4")
        rows.append(f"{s}\t{s}\tx\tFLAIR\traw/{s}.nii.gz\t")
    write_text(tree.participants("brats21"), "\n".join(rows) + "\n")
    return tmp_path / "exports/intra_FLAIR/pddpm-iqa/fold-0/brats21"


def read(folder, subject, space, layer):
    name = f"sub-{subject}_space-{space}_desc-{layer}_FLAIR"
    image = nib.load(folder / f"{name}.nii.gz")
    return (
        np.asarray(image.dataobj),
        image.affine,
        json.loads((folder / f"{name}.json").read_text()),
    )


def test_a_small_a_median_and_a_large_lesion_in_both_spaces(results, capsys):
    assert main(WORDS) == 0
    assert "index.html" in capsys.readouterr().out
    written = {path.name.split("_")[0] for path in results.glob("*.nii.gz")}
    assert written == {"sub-a", "sub-c", "sub-d"}
    assert len(list(results.glob("*.nii.gz"))) == len(list(results.glob("*.json"))) == 3 * 5 * 2
    image, mask, lesion = volume("d")
    packed, affine, about = read(results, "d", "SRI24", "input")
    np.testing.assert_allclose(np.diag(affine), [4, 4, 4, 1])
    np.testing.assert_allclose(packed, np.where(mask, 1 - image.astype(np.float32), 0), atol=1e-3)
    assert (about["inverted"], about["threshold"], about["fold"]) == (True, 0.5, 0)
    for layer in ("truth", "prediction"):
        own, affine, about = read(results, "d", "orig", layer)
        assert own.shape == (90, 90, 50)
        assert about["SpatialReference"] == "orig" and about["Sources"][-1] == "raw/d.nii.gz"
        # the same place and size in millimetres
        centre = np.argwhere(lesion).mean(0) * 4
        np.testing.assert_allclose(np.argwhere(own).mean(0) * 2, centre, atol=1)
        assert own.sum() * 8 == pytest.approx(lesion.sum() * 64, rel=0.3)
    page = (results / "index.html").read_text()
    assert page.count("data:image/png") == 3 * 5
    assert "http" not in page


def test_one_subject_can_be_named(results):
    assert main([*WORDS, "--subject", "b"]) == 0
    assert {path.name.split("_")[0] for path in results.glob("*.nii.gz")} == {"sub-b"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--subject", "e"], "e: not a test subject of brats21 in fold 0"),
        (["--method", "pddpm-iqq"], "--method pddpm-iqq: unknown; did you mean 'pddpm-iqa'"),
        (["--experiment", "intra_FLAI"], "--experiment intra_FLAI"),
        (["--fold", "1"], "`snakemake --configfile results/config.resolved.yaml --notemp results/"),
        (["--results", "elsewhere"], "Name the results of a run with --results"),
    ],
)
def test_what_cannot_be_written_is_said(results, more, message, capsys):
    assert main([*WORDS, *more]) == 2
    assert message in capsys.readouterr().err
    assert not results.exists()
