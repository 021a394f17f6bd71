"""The smallest phantom run through every stage, killed, resumed, fed bad input."""

import filecmp
import gzip
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml

from conftest import TARGETS
from test_workflow import job_counts, snakemake
from tools.runs import job_of, kill_in_training, kill_when, leftovers, start
from tools.workflow import full_log
from uad.core.files import read_json
from uad.preprocess.slices import subjects_in

pytestmark = pytest.mark.slow

#: What two runs must agree on, byte by byte.
COMPARED = tuple(
    "tables splits air thresholds metrics curves significance studies models slices".split()
)


def compared(folder):
    files = {}
    for stage in COMPARED:
        for path in sorted((folder / "results" / stage).rglob("*")):
            timed = path.name.startswith("cost.")  # seconds differ
            if path.is_file() and not path.name.endswith(".prov.json") and not timed:
                files[path.relative_to(folder / "results")] = path
    return files


def assert_same_results(one, other):
    ours, theirs = compared(one), compared(other)
    assert list(ours) == list(theirs)
    differing = [str(k) for k in ours if not filecmp.cmp(ours[k], theirs[k], shallow=False)]
    assert not differing


SIGNIFICANCE = "significant tested_against n_pairs smallest_difference largest_p_holm".split()


def test_every_promised_output_is_there_and_says_phantom(finished):
    results = finished / "results"
    table = pd.read_csv(results / "tables/table3.csv")
    assert list(table.columns[:9]) == (
        "row experiment test_dataset metric mean std n_folds published_mean published_std".split()
    )
    assert table["mean"].between(0, 100).all() and (table["n_folds"] == 2).all()
    for name in ("table3.md", "table3.tex", "table3.html", "air.md", "air.html"):
        assert "phantom" in (results / "tables" / name).read_text(encoding="utf-8").lower(), name
    pictures = [f"figures/{n}.png" for n in ("figure1", "figure3", "curves_FLAIR", "air")]
    for name in (*pictures, "studies/alpha.png", "report.html"):
        assert (results / name).stat().st_size > 10_000, name
    for name in ("studies/protocol_effects.md", "tables/cost.md", "validation/brats21.html"):
        assert "phantom" in (results / name).read_text(encoding="utf-8").lower(), name
    effects = pd.read_csv(results / "studies/protocol_effects.csv")
    assert {"no erosion", "no median"} <= set(effects["variant"])
    assert (pd.read_csv(results / "tables/table3.csv").columns[13:18] == SIGNIFICANCE).all()
    readiness = [
        read_json(results / f"readiness/intra_FLAIR/{method}/fold-0/brats21.json")["roles"]
        for method in ("ddpm", "thresh")
    ]
    assert set(readiness[0]) == {"test", "val_unhealthy"} and readiness[1] == {}
    notebook = (results / "notebooks/air_statistics.html").read_text(encoding="utf-8")
    assert "phantom" in notebook and "AIR" in notebook
    model = results / "models/intra_FLAIR/pddpm-iqa/fold-0"
    assert sorted(p.name for p in model.iterdir() if not p.name.endswith(".prov.json")) == [
        "config.json",
        "history.csv",
        "loss.png",
        "model.safetensors",
    ]
    assert not list(results.glob("maps/**/*.safetensors")), "temporary files stayed"
    assert not leftovers(finished)


def test_the_air_decision_reaches_the_methods_that_use_it_and_no_others(finished):
    results = finished / "results"
    air = read_json(results / "air/intra_FLAIR/fold-0.json")
    assert air["invert"] and air["mean_normal"] > 0.5
    for method, inverted in (("pddpm-iqa", True), ("ddpm", False)):
        assert read_json(results / f"models/intra_FLAIR/{method}/fold-0/config.json")["invert"] == (
            inverted
        )


def test_thresholds_come_from_validation_subjects_and_metrics_from_test_subjects(finished):
    results = finished / "results"
    for fold in (0, 1):
        split = pd.read_csv(results / f"splits/intra_FLAIR/fold-{fold}.tsv", sep="\t")
        role = split.set_index("subject")["role"]
        cell = f"intra_FLAIR/ddpm/fold-{fold}/brats21"
        used = read_json(results / f"thresholds/{cell}.json")["subjects"]
        assert set(role[used]) == {"val_unhealthy"}
        tested = pd.read_csv(results / f"metrics/{cell}.tsv", sep="\t")["subject"]
        assert set(role[tested]) == {"test"} and len(tested) == (role == "test").sum()


def test_run_again_there_is_nothing_to_do(root, config, finished):
    before = {k: p.stat().st_mtime_ns for k, p in compared(finished).items()}
    output = snakemake(root, finished, *TARGETS, "--configfile", config)
    assert "Nothing to be done" in output
    assert before == {k: p.stat().st_mtime_ns for k, p in compared(finished).items()}


EVERYTHING_AFTER_SCORING = {
    "score_volumes",
    "search_threshold",
    "evaluate_volumes",
    "compare_methods",
    "make_table",
}
TRAINING = {"train_model", "reconstruct_volumes", "make_maps_figure", *EVERYTHING_AFTER_SCORING}


@pytest.mark.parametrize(
    ("overlay", "rules"),
    [
        ({"methods": {"ddpm": {"label": "other"}}}, {"make_table"}),
        ({"train": {"inference_batch": 7, "checkpoint_every": 2, "compile": "default"}}, set()),
        ({"protocol": {"threshold_search": "exact"}}, {"search_threshold"}),
        ({"protocol": {"component_max_size": 3}}, {"evaluate_volumes"}),
        ({"protocol": {"erosion": 0}}, EVERYTHING_AFTER_SCORING | {"reconstruct_volumes"}),
        ({"protocol": {"t_test": {"default": 500}}}, TRAINING - {"train_model"}),
        ({"protocol": {"alpha": 0.5}}, TRAINING),
        ({"train": {"learning_rate": 0.01}}, TRAINING),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_changed_key_reruns_the_rules_that_read_it_and_what_follows(
    root, config, finished, tmp_path, overlay, rules
):
    """Rules whose own parameters change must run; nothing before them may."""
    path = tmp_path / "change.yaml"
    path.write_text(yaml.safe_dump(overlay))
    arguments = ("-n", "table3", "figures", "--configfile", config, path)
    planned = set(job_counts(snakemake(root, finished, *arguments)))
    planned -= {"total", "figures", "table3", "save_config"}
    first = next(iter(rules & {"train_model"}), None)
    assert rules <= planned
    assert not planned & {"skullstrip_scan", "register_scan", "pack_slices", "make_splits"}
    assert ("train_model" in planned) == (first == "train_model")


def test_preprocessed_scans_enter_after_n4_and_give_the_same_slices(
    root, config, finished, tmp_path
):
    """The tree that the authors of pDDPM share, made here of registered scans."""
    shared = tmp_path / "shared/Test/Brats21"
    for folder in sorted((finished / "results/preprocessed/brats21").iterdir()):
        name = f"BraTS2021_{folder.name[-5:]}"
        for place, file in (
            (f"flair/{name}_flair", "desc-preproc_FLAIR"),
            (f"mask/{name}_mask", "label-brain_desc-mask_FLAIR"),
            (f"seg/{name}_seg", "label-lesion_desc-mask_FLAIR"),
        ):
            target = shared / f"{place}.nii.gz"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / f"anat/{folder.name}_space-SRI24_{file}.nii.gz", target)
    overlay = tmp_path / "preprocessed.yaml"
    brats21 = {"source": "preprocessed", "path": str(tmp_path / "shared"), "phantom": {}}
    overlay.write_text(yaml.safe_dump({"datasets": {"brats21": brats21}}))
    path = "results/slices/brats21_FLAIR.safetensors"
    snakemake(root, tmp_path, path, "--configfile", config, overlay)
    assert "rule pack_slices" in full_log(tmp_path)
    assert "register_scan" not in full_log(tmp_path)
    assert filecmp.cmp(tmp_path / path, finished / path, shallow=False)


def test_an_exclusion_packs_anew_but_preprocesses_nothing_again(root, config, copy_of):
    overlay = copy_of / "exclude.yaml"
    excluded = {"datasets": {"brats21": {"exclude": {"BraTS2021_00007": "a test"}}}}
    overlay.write_text(yaml.safe_dump(excluded))
    slices = "results/slices/brats21_FLAIR.safetensors"
    snakemake(root, copy_of, "results/validation/brats21.html", "--configfile", config, overlay)
    verdicts = pd.read_csv(copy_of / "results/validation/brats21.tsv", sep="\t")
    assert verdicts.set_index("name")["verdict"]["BraTS2021_00007"] == "excluded"
    snakemake(root, copy_of, slices, "--configfile", config, overlay)
    log = full_log(copy_of)
    assert "rule pack_slices" in log
    assert "rule skullstrip_scan" not in log and "rule register_scan" not in log
    assert "BraTS202100007" not in subjects_in(copy_of / slices)


def test_kill_minus_nine_anywhere_run_again_and_the_table_is_the_same(
    root, config, finished, tmp_path
):
    folder = tmp_path / "killed"
    # a registration job dies: Snakemake reports it and stops
    run = start(root, folder, [config], TARGETS)
    kill_when(run, lambda: True, lambda: job_of(run, "register_scan.py"))
    assert run.wait(timeout=120) != 0
    # the whole run dies in the middle of a training, after its first checkpoint
    run = start(root, folder, [config], TARGETS)
    kill_in_training(run, folder)
    # the same command again
    run = start(root, folder, [config], TARGETS)
    assert run.wait(timeout=900) == 0, (folder / "run.log").read_text()[-3000:]
    assert_same_results(finished, folder)
    resumed = [
        read_json(p)["facts"]["resumed"]
        for p in folder.glob("results/models/*/*/*/model.safetensors.prov.json")
    ]
    assert any(resumed)
    assert not leftovers(folder)


def truncated(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def empty(path):
    path.write_bytes(gzip.compress(b""))


def saved_anew(change):
    """Spoils a file by a change of its voxels."""

    def spoil(path):
        image = nib.load(path)
        nib.save(nib.Nifti1Image(change(np.asarray(image.dataobj)), image.affine), path)

    return spoil


no_lesion = saved_anew(lambda data: np.zeros(data.shape, np.uint8))


@pytest.mark.parametrize(
    ("file", "spoil", "message"),
    [
        ("flair", truncated, "cannot be read as a NIfTI volume"),
        ("flair", empty, "cannot be read as a NIfTI volume"),
        ("flair", saved_anew(lambda d: np.full(d.shape, np.nan, "f4")), "are NaN or infinite"),
        ("flair", saved_anew(lambda d: np.stack([d, d], axis=-1)), "is not a 3D volume"),
        ("flair", no_lesion, "the foreground back end found no brain"),
        ("seg", saved_anew(lambda d: d[:-2]), "the mask has shape"),
    ],
)
def test_a_bad_scan_gets_one_clear_message_and_finished_results_stay(
    root, config, copy_of, file, spoil, message
):
    scan = copy_of / f"results/raw/brats21/BraTS2021_00002/BraTS2021_00002_{file}.nii.gz"
    table = (copy_of / "results/tables/table3.csv").read_bytes()
    spoil(scan)
    output = snakemake(root, copy_of, "table3", "--configfile", config, check=False)
    # the index, the validation and the job of the scan may all meet it
    errors = [line for line in output.splitlines() if message in line]
    assert errors and all(scan.name in error for error in errors)
    assert len(errors) == len(set(errors))
    assert "Traceback (most recent call last)" not in output
    assert (copy_of / "results/tables/table3.csv").read_bytes() == table
    assert not leftovers(copy_of)


def test_validation_subjects_without_lesions_are_refused(root, config, copy_of):
    table = (copy_of / "results/tables/table3.csv").read_bytes()
    for mask in copy_of.glob("results/raw/brats21/*/*_seg.nii.gz"):
        no_lesion(mask)
    output = snakemake(root, copy_of, "table3", "--configfile", config, check=False)
    # whichever job looks first
    reasons = ("has a lesion: AIR and threshold cannot be determined", "has no lesion voxel")
    assert any(reason in output for reason in reasons)
    assert "Traceback (most recent call last)" not in output
    assert (copy_of / "results/tables/table3.csv").read_bytes() == table
