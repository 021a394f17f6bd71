"""uad detect: a trained model on a scan of one's own."""

import os
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from tools.workflow import snakemake
from uad.__main__ import main
from uad.core.errors import DataError
from uad.core.files import read_json
from uad.core.nifti import read_volume
from uad.detect import apply
from uad.detect.scans import MAP, MASK, modality_of, require_usable, scans_in
from uad.detect.trained_model import Subject
from uad.preprocess.slices import read_volumes

REAL = Path(os.environ.get("UAD_REAL_DATA", "../shared/data"))
NEW = Subject("brats21", "new", "brats21")
FLAIR = SimpleNamespace(experiment=SimpleNamespace(modality="FLAIR"))


def scan(path, shape=(40, 48, 40), head=True):
    """A ball of 3 litres (a head) or one (a brain), in a little noise."""
    rng = np.random.default_rng(0)
    centre = np.array(shape[:3])[:, None, None, None] / 2
    ball = ((np.indices(shape[:3]) - centre) ** 2).sum(0) < (18 if head else 12.5) ** 2
    data = ball * 100.0 + rng.random(shape[:3])
    volume = np.repeat(data[..., None], shape[3], axis=3) if len(shape) == 4 else data
    nib.save(nib.Nifti1Image(volume.astype(np.float32), np.diag([5.0, 5, 5, 1])), path)
    return path


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        ("sub-01_FLAIR.nii.gz", "FLAIR"),
        ("sub-01_ses-2_T2w.nii", "T2"),
        ("BraTS2021_00001_t1ce.nii.gz", "T1CE"),
        ("IXI002-Guys-0828-T1.nii.gz", "T1"),
        ("patient01_T2W.nii.gz", "T2"),
        ("mprage.nii.gz", "T1"),
        ("head.nii.gz", None),
        ("scan-2.nii.gz", None),
    ],
)
def test_the_modality_is_read_off_the_name(name, modality):
    assert modality_of(Path(name)) == modality


T1, STRIPPED = {"modality": "T1"}, {"stripped": True}


@pytest.mark.parametrize(
    ("name", "options", "shape", "head", "message"),
    [
        (
            "a_FLAIR.nii",
            {},
            (40, 48, 40, 3),
            True,
            "is not a 3D volume but 40x48x40x3",
        ),
        ("a_T2w.nii", {}, None, True, "is T2, but the model was .* FLAIR.*--modality FLAIR"),
        ("a_FLAIR.nii", T1, None, True, "is T1, but the model was trained on FLAIR"),
        ("a.nii", {}, None, True, "its name does not tell the modality.*--modality FLAIR"),
        ("a_FLAIR.nii", {}, None, False, "looks skull-stripped.* whole head .*--stripped"),
        ("a_FLAIR.nii", STRIPPED, None, True, "more than a brain.*Leave that out"),
        ("a_FLAIR.nii", {}, None, True, None),
        ("a.nii", {"modality": "FLAIR", "stripped": True}, None, False, None),
    ],
)
def test_what_a_model_cannot_take_is_refused(tmp_path, name, options, shape, head, message):
    path = scan(tmp_path / name, shape or (40, 48, 40), head)
    options = {"modality": None, "stripped": False, **options}
    if message is None:
        require_usable(FLAIR, path, NEW, **options)
        return
    with pytest.raises(DataError, match=message):
        require_usable(FLAIR, path, NEW, **options)


def test_a_folder_gives_its_scans_and_not_what_was_written_there_before(tmp_path):
    for name in ("b.nii.gz", "sub/a.nii", f"b{MAP}", f"b{MASK}", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert scans_in(tmp_path) == [tmp_path / "b.nii.gz", tmp_path / "sub/a.nii"]
    (tmp_path / "empty").mkdir()
    for place, message in (("empty", "holds no scan"), ("b.nii", "no such file or folder")):
        with pytest.raises(DataError, match=message):
            scans_in(tmp_path / place)


@pytest.mark.parametrize("place", ["", "results/models/intra_FLAIR/ddpm/fold-0"])
def test_a_folder_that_is_no_model_of_a_finished_run_is_named(tmp_path, capsys, place):
    folder = tmp_path / place
    folder.mkdir(parents=True, exist_ok=True)
    if place:
        (folder / "model.safetensors").touch()
    path = scan(tmp_path / "a_FLAIR.nii")
    assert main(["detect", str(path), "--model", str(folder), "--out", str(tmp_path / "out")]) == 2
    message = "config.resolved.yaml: no such file" if place else "no trained model"
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# On a finished run


def detect(run, scan, out, *options):
    model = run / "results/models/intra_FLAIR/pddpm-iqa/fold-0"
    return main(["detect", str(scan), "--model", str(model), "--out", str(out), *options])


def raw(run, subject):
    return run / f"results/raw/brats21/{subject}/{subject}_flair.nii.gz"


def roles(run):
    """Subject by role in fold 0."""
    lines = (run / "results/splits/intra_FLAIR/fold-0.tsv").read_text().splitlines()[1:]
    return {line.split("\t")[3]: line.split("\t")[1:3] for line in lines}


@pytest.mark.slow
def test_for_a_test_volume_the_map_is_that_of_the_run_to_the_bit(
    root, config, copy_of, tmp_path, monkeypatch
):
    """A method with AIR, noise and the fusion score; the run keeps no maps unless it is told to."""
    label, name = roles(copy_of)["test"]
    cell, results = "intra_FLAIR/pddpm-iqa/fold-0/brats21", copy_of / "results"
    how = ("--notemp", "--rerun-triggers", "mtime", "--configfile", config)
    snakemake(root, copy_of, f"results/maps/{cell}.safetensors", *how)
    found, find = [], apply.find_anomalies
    monkeypatch.setattr(
        apply, "find_anomalies", lambda *arguments: found.append(find(*arguments)) or found[0]
    )
    out = tmp_path / "out"
    assert detect(copy_of, raw(copy_of, name), out) == 0
    stored = read_volumes(results / f"maps/{cell}.safetensors")
    assert np.array_equal(found[0].scores, stored[f"test/{label}"])

    stem = f"{name}_flair_desc-anomaly"
    assert sorted(p.name for p in out.iterdir()) == [
        f"{stem}{ending}" for ending in (".json", ".png", "_map.nii.gz", "_mask.nii.gz")
    ]
    record = read_json(out / f"{stem}.json")
    assert "not a medical device" in record["notice"] and record["role_in_the_run"] == "test"
    threshold = read_json(results / f"thresholds/{cell}.json")["threshold"]
    assert record["threshold"]["value"] == threshold
    assert record["inverted"] == read_json(results / "air/intra_FLAIR/fold-0.json")["invert"]


@pytest.mark.slow
def test_map_and_mask_lie_on_the_grid_of_the_scan_however_its_axes_run(finished, tmp_path):
    _, name = roles(finished)["test"]
    image = nib.load(raw(finished, name))
    turned = nib.orientations.axcodes2ornt("PSL")
    new = tmp_path / "scans" / "sub" / "new_FLAIR.nii.gz"
    new.parent.mkdir(parents=True)
    nib.save(image.as_reoriented(turned), new)
    (tmp_path / "scans" / "other_T2w.nii.gz").symlink_to(new)
    out = tmp_path / "out"
    # one is refused, one is done
    assert detect(finished, tmp_path / "scans", out, "--stripped") == 1
    assert len(list((out / "sub").iterdir())) == 4
    scores, mask = (nib.load(out / f"sub/new_FLAIR{ending}") for ending in (MAP, MASK))
    for found in (scores, mask):
        assert found.shape == nib.load(new).shape
        np.testing.assert_allclose(found.affine, nib.load(new).affine, atol=1e-4)
    brain = read_volume(new)[0] > 0
    assert scores.get_fdata()[~brain].sum() < 0.1 * scores.get_fdata().sum()
    assert set(np.unique(mask.get_fdata())) <= {0, 1}
    assert read_json(out / "sub/new_FLAIR_desc-anomaly.json")["role_in_the_run"] is None
