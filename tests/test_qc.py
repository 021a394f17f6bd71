"""Quality control: measures, outlier flags, pictures, and a reviewer's decisions."""

import json
import os
import subprocess
import time

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from test_workflow import job_counts, make_stand_ins
from tools.qc_trees import SHAPE, measured, packed
from tools.workflow import snakemake
from uad.config import load
from uad.core.errors import ConfigError, DataError
from uad.core.files import read_tsv
from uad.data.layouts import index_dataset
from uad.phantom import write_dataset
from uad.preprocess.slices import write_store
from uad.qc.decide import (
    exclusions,
    left_out,
    read_decisions,
    without_excluded,
)
from uad.qc.gallery import SCANS, packed_tile, sheets_of, shown_slices, tile_shape, write_sheet
from uad.qc.measure import (
    MIN_SCANS,
    NAMES,
    add_flags,
    measure_modality,
    medians,
    modified_z_scores,
    outliers,
    summarise,
)
from uad.report.pages import summary_page

DATASETS = {"ixi": ["T1", "T2"], "brats21": ["T1", "T2", "FLAIR"]}
HEAD = "dataset\tsubject\tmodality\tverdict\treason\treviewer\tdate\n"


# --- outliers


def test_scores_are_those_of_iglewicz_and_hoaglin():
    # median 3, absolute deviations 2 1 0 1 97, their median 1
    scores = modified_z_scores(np.array([1.0, 2, 3, 4, 100]))
    np.testing.assert_allclose(scores, 0.6745 * np.array([-2, -1, 0, 1, 97]))


RISING = np.linspace(1, 2, 20)


@pytest.mark.parametrize(
    "values, options, expected",
    [
        (np.full(50, 0.3), {}, []),
        (np.full(50, 0.3) + 1e-9 * np.arange(50), {}, []),  # rounding is no finding
        (np.append(np.full(50, 0.3), 0.9), {}, [50]),  # the median absolute deviation is 0
        (np.append(RISING, [np.nan, 50.0]), {}, [21]),
        (np.full(20, np.nan), {}, []),
        (np.append(RISING[: MIN_SCANS - 2], 50.0), {}, []),  # too few
        (np.append(RISING, 50.0), {"side": "low"}, []),
        (np.append(RISING, 50.0), {"side": "high"}, [20]),
        (np.append(RISING, 0.0), {"logarithmic": True}, [20]),  # an empty lesion
    ],
)
def test_outliers(values, options, expected):
    assert np.flatnonzero(outliers(values, **options)).tolist() == expected


homogeneous = st.integers(MIN_SCANS, 200).flatmap(
    lambda n: st.permutations(list(np.linspace(-1, 1, n)))
)


@settings(max_examples=30, deadline=None)
@given(homogeneous, st.integers(0, 1000), st.sampled_from([-1, 1]), st.floats(20, 1e6))
def test_a_planted_outlier_is_found_and_no_other_whatever_the_unit(values, place, sign, distance):
    planted = np.array(values)
    assert not outliers(planted * distance - 10 * place).any()
    planted[place % len(planted)] = sign * distance
    assert np.flatnonzero(outliers(planted)).tolist() == [place % len(planted)]


# --- measures

MASK = {"brain_ml": 1400.0, "island_voxels_dropped": 3, "warnings": ["touches the end"]}
REGISTERED = {
    "registration": {
        "overlap_dice": 0.95,
        "correlation": 0.5,
        "mutual_information": 0.2,
        "determinant": 1.1,
        "translation_mm": [3.0, 4.0, 0.0],
    },
    "brain_ml": 1500.0,
    "lesion_ml": 20.0,
    "bias_field": {"min": 0.8, "p01": 0.9, "p99": 1.08, "max": 1.2},
    "intensity_percentiles": {"1": 50, "50": 100, "99": 150},
    "warnings": [],
}


@pytest.fixture
def scans(tmp_path):
    """Twelve scans: participants, their store and their sidecars."""
    subjects = [f"s{number:02d}" for number in range(12)]
    table = pd.DataFrame(
        {"subject": subjects, "name": subjects, "site": "x", "modality": "T2", "lesion": "seg"}
    )
    write_store(tmp_path / "store", subjects, [packed(seed) for seed in range(12)])
    for subject in subjects:
        (tmp_path / f"{subject}_mask.json").write_text(json.dumps(MASK))
        (tmp_path / f"{subject}_registered.json").write_text(json.dumps(REGISTERED))
    paths = [(tmp_path / f"{s}_mask.json", tmp_path / f"{s}_registered.json") for s in subjects]
    return table, tmp_path / "store", paths


def test_measures_are_those_of_the_sidecars_and_of_the_packed_volume(scans):
    table, store, paths = scans
    row = measure_modality(table, store, paths, voxel_ml=2.0).iloc[3]
    assert (row["mask_ml"], row["islands"], row["overlap_dice"]) == (1400, 3, 0.95)
    assert row["translation_mm"] == 5 and row["determinant"] == 1.1
    assert row["bias_range"] == pytest.approx(1.2) and row["intensity_contrast"] == 1.0
    assert row["warnings"] == "touches the end"
    volume, mask, lesion = packed(3)
    assert row["packed_brain_ml"] == 2.0 * mask.sum()
    assert row["packed_lesion_ml"] == 2.0 * lesion.sum()
    assert row["packed_mean"] == pytest.approx(volume[mask].astype(float).mean(), rel=1e-3)
    assert row["packed_lesion_ratio"] > 1


def test_preprocessed_scans_have_the_measures_of_the_packed_volume_only(scans):
    table, store, _ = scans
    found = measure_modality(table, store, None, voxel_ml=2.0)
    known = {name for name in NAMES if found[name].notna().all()}
    assert known == {name for name in NAMES if name.startswith("packed_")}


def test_a_failed_registration_is_flagged_with_its_value_and_the_median(scans):
    table, store, paths = scans
    bad = {**REGISTERED, "registration": {**REGISTERED["registration"], "overlap_dice": 0.4}}
    paths[5][1].write_text(json.dumps(bad))
    flagged = add_flags(measure_modality(table, store, paths, voxel_ml=2.0))
    hit = flagged[flagged["flags"].str.contains("overlap_dice")]
    assert hit["subject"].tolist() == ["s05"]
    assert "overlap with the atlas 0.4 (median 0.95)" in hit["why"].iloc[0]
    assert medians(flagged)["T2"]["overlap_dice"] == 0.95


def test_the_summary_counts_and_says_phantom_and_n():
    table = measured(20, ["T1"])
    table.loc[3, "overlap_dice"] = 0.1
    tables = {"brats21": add_flags(table)}
    decisions = [
        {"dataset": "brats21", "subject": "BraTS2021_00001", "modality": "*", "verdict": "keep"},
        {"dataset": "brats21", "subject": "BraTS202100002", "modality": "T1", "verdict": "unsure"},
    ]
    (row,) = rows = summarise(tables, decisions)
    assert (row["scans"], row["flagged"], row["keep"], row["unsure"]) == (20, 1, 1, 1)
    assert row["by_measure"] == {"overlap_dice": 1}
    excluded = [
        {"dataset": "ixi", "subject": "s", "modality": "*", "reason": "moved", "reviewer": "R"}
    ]
    page = summary_page(rows, excluded, 3.5, phantom=True)
    assert "(phantom data)" in page and "n = 20 scans" in page
    assert "overlap with the atlas: 1" in page
    assert "Left out by a reviewer: ixi s (all scans): moved (R)" in page
    page = summary_page(rows, [], 3.5, phantom=False)
    assert "phantom" not in page and "No reviewer has left out a scan" in page


# --- pictures


def test_a_tile_shows_the_largest_lesion_and_outlines_outside_of_it():
    volume, mask, lesion = packed(20)
    largest = int(lesion.sum(axis=(0, 1)).argmax())
    assert largest in shown_slices(lesion) and len(shown_slices(lesion)) == 8
    tile = packed_tile(volume, mask, lesion)
    assert tile.shape == (*tile_shape(SHAPE)[::-1], 3)
    orange = (tile[..., 0] > 200) & (tile[..., 2] < 60)
    assert orange.any()
    # right of the patient is at the left of a slice
    columns = np.nonzero(orange)[1] % (tile.shape[1] // 4)
    assert columns.mean() < tile.shape[1] / 8


def test_a_sheet_is_light_and_the_same_bytes_again(tmp_path):
    from PIL import Image

    for name in ("one", "two"):
        write_sheet(tmp_path / f"{name}.webp", [packed(seed) for seed in range(7)])
    assert (tmp_path / "one.webp").read_bytes() == (tmp_path / "two.webp").read_bytes()
    assert (tmp_path / "one.webp").stat().st_size < 7 * 40_000
    width, height = tile_shape(SHAPE)
    assert Image.open(tmp_path / "one.webp").size == (6 * width, 2 * height)
    sheets = sheets_of([str(number) for number in range(2 * SCANS + 1)])
    assert [len(sheet) for sheet in sheets] == [SCANS, SCANS, 1]


# --- the decision file


@pytest.fixture
def decision_file(tmp_path):
    def write(text, head=HEAD):
        path = tmp_path / "qc_decisions.tsv"
        path.write_text(head + text, encoding="utf-8")
        return path

    return write


def test_no_file_and_an_empty_one_decide_nothing(tmp_path, decision_file):
    assert read_decisions(tmp_path / "none.tsv", DATASETS) == []
    assert read_decisions(decision_file(""), DATASETS) == []
    assert read_decisions(decision_file("", head=""), DATASETS) == []


def test_a_reason_may_hold_what_python_takes_for_the_end_of_a_line(decision_file):
    odd = "ghosts\u2028\u2029\x85\x0b\x0c\x1eand more"
    (decision,) = read_decisions(decision_file(f"ixi\ts\tT2\texclude\t{odd}\tA\t\r\n"), DATASETS)
    assert decision.reason == odd and decision.reviewer == "A"


def test_a_file_as_a_spreadsheet_saves_it_is_read(decision_file):
    text = 'ixi\tIXI002-Guys-0828\t\texclude\t"says ""no"""\tA. B.\t2026-01-02\r\n\n'
    (decision,) = read_decisions(decision_file(text, head="\ufeff" + HEAD), DATASETS)
    assert (decision.modality, decision.reason) == ("*", 'says "no"')
    assert decision.why == 'says "no" (reviewed by A. B., 2026-01-02)'
    needed = "dataset\tsubject\tverdict\nixi\tx\tkeep\n"
    assert read_decisions(decision_file(needed, head=""), DATASETS)[0].modality == "*"


@pytest.mark.parametrize(
    "text, message",
    [
        (HEAD + "ixl\ts\tT1\tkeep", "line 2: unknown data set 'ixl'; did you mean 'ixi'"),
        (HEAD + "ixi\ts\tT3\tkeep", "line 2: unknown modality 'T3'; did you mean 'T[12]'"),
        (HEAD + "ixi\ts\tT1\texlude\twhy", "unknown verdict 'exlude'; did you mean 'exclude'"),
        (HEAD + "ixi\ts\tT1\texclude\t\tme", "'s' is excluded without a reason; say why"),
        (HEAD + "ixi\t\tT1\tkeep", "line 2: no subject"),
        (HEAD + "ixi\ts\tT1\tkeep\ta\tb\tc\td", "line 2: 8 fields, but 7 columns"),
        (HEAD + "ixi\ts\tT1\tkeep\nixi\ts\tT1\tunsure", "lines 2 and 3 disagree about ixi s: keep"),
        (HEAD + "ixi\ta-1\t*\texclude\tx\nixi\ta1\tT2\tkeep", r"exclude \(all.*\), keep \(T2\)"),
        ("dataset\tsubject\tverdit\nixi\ts\tkeep", "lacks 'verdict'; did you mean 'verdit'"),
        ("dataset\tsubject\tverdict\tverdict\n", "names a column twice"),
    ],
)
def test_a_mistake_is_named_with_its_line(decision_file, text, message):
    with pytest.raises(ConfigError, match=f"(?s)qc_decisions.tsv.*{message}"):
        read_decisions(decision_file(text, head=""), DATASETS)


def test_only_exclusions_that_concern_a_data_set_reach_its_index(decision_file):
    text = (
        "ixi\tb\tT2\texclude\twhy\tme\t2026\n"
        "ixi\ta\t\texclude\twhy\t\t\n"
        "ixi\tc\t\tkeep\t\t\t\n"
        "ixi\td\tFLAIR\texclude\tnot used here\t\t\n"
        "brats21\te\t*\texclude\twhy\t\t\n"
    )
    found = exclusions(read_decisions(decision_file(text), DATASETS), "ixi", DATASETS["ixi"])
    assert [(row["subject"], row["modality"]) for row in found] == [("a", "*"), ("b", "T2")]
    assert found[1]["reviewer"] == "me"
    assert left_out(found) == {"a": "why (reviewed)"}


# --- what an exclusion does to the index


@pytest.fixture
def brats(tmp_path):
    make_stand_ins(tmp_path, ixi=0, brats21=4, mslub=0)
    return tmp_path / "data/brats21"


def test_a_subject_is_left_out_by_public_name_or_label(brats):
    for name in ("BraTS2021_00002", "BraTS202100002"):
        table = index_dataset("brats21", brats, ["T1", "T2"], {name: "motion"}).table
        assert len(table) == 6 and "BraTS202100002" not in set(table["subject"])
    with pytest.raises(DataError, match=r"'BraTS2021_0002' is not there \(did you mean 'BraTS2"):
        index_dataset("brats21", brats, ["T1"], {"BraTS2021_0002": "motion"})


def test_one_scan_is_left_out_and_the_others_of_its_subject_stay(brats):
    table = index_dataset("brats21", brats, ["T1", "T2"]).table
    row = {"subject": "BraTS2021_00002", "modality": "T2", "reason": "motion"}
    left = without_excluded(table, [row])
    assert len(left) == 7
    assert left[left["subject"] == "BraTS202100002"]["modality"].tolist() == ["T1"]
    with pytest.raises(DataError, match=r"the T2 scan of 'BraTS2021_9'.*did you mean"):
        without_excluded(table, [{**row, "subject": "BraTS2021_9"}])
    assert len(without_excluded(table, [{**row, "subject": "s"}], may_be_absent=["s"])) == 8
    everything = [
        {**row, "subject": s, "modality": m}
        for s, m in zip(table["subject"], table["modality"], strict=True)
    ]
    with pytest.raises(DataError, match="excludes every scan"):
        without_excluded(table, everything)


# --- dry runs


def test_decisions_rerun_only_what_they_concern(root, tmp_path):
    make_stand_ins(tmp_path, ixi=12, brats21=10, mslub=4)
    snakemake(root, tmp_path, "index")

    def plan(target, *rows):
        (tmp_path / "qc_decisions.tsv").write_text("\n".join([HEAD.strip(), *rows]))
        return snakemake(root, tmp_path, "-n", target, check=False)

    counts = job_counts(plan("qc"))
    # T2 of IXI; all of BraTS21; T1 and T2 of MSLUB: as many as the tables need
    assert counts["pack_slices"] == counts["draw_packed_scans"] == 7
    assert counts["register_scan"] == 12 + 4 * 10 + 2 * 4
    assert counts["measure_quality"] == 3 and counts["make_gallery"] == 1
    assert not counts["train_model"] and not counts["make_splits"]

    keep, other = "ixi\tIXI000-Guys-0000\t\tkeep", "ixi\tIXI001Guys0001\tFLAIR\texclude\twhy"
    assert "Nothing to be done" in plan("index", keep, other)
    output = plan("index", "brats21\tBraTS202100003\tT1CE\texclude\tmotion")
    assert job_counts(output)["index_dataset"] == 1 and "participants/brats21.tsv" in output
    assert "unknown data set 'ixl'; did you mean 'ixi'" in plan("index", "ixl\tx\t\tkeep")


def test_excluded_scans_are_absent_from_index_splits_and_record(root, tmp_path):
    make_stand_ins(tmp_path, ixi=0, brats21=12, mslub=0)
    (tmp_path / "qc_decisions.tsv").write_text(
        HEAD + "brats21\tBraTS2021_00003\t\texclude\tmotion\tme\t2026-01-02\n"
        "brats21\tBraTS202100005\tFLAIR\texclude\tcut\tme\t2026-01-02\n"
    )
    splits = [f"results/splits/intra_{name}/fold-0.tsv" for name in ("FLAIR", "T1CE")]
    snakemake(root, tmp_path, *splits)
    flair, t1ce = (set(read_tsv(tmp_path / path)["subject"]) for path in splits)
    assert len(flair) == 10 and len(t1ce) == 11 and t1ce - flair == {"BraTS202100005"}
    record = json.loads((tmp_path / "results/participants/brats21.tsv.prov.json").read_text())
    out = record["facts"]["left_out"]["review"]
    assert [(r["subject"], r["reason"], r["reviewer"]) for r in out] == [
        ("BraTS202100005", "cut", "me"),
        ("BraTS2021_00003", "motion", "me"),
    ]


# --- raw scans


def test_the_user_is_told_during_the_run_what_is_wrong_with_the_raw_scans(root, tmp_path):
    write_dataset(tmp_path / "data/brats21", "brats21", 3, ["T1", "T1CE", "T2", "FLAIR"], 6.0, 1)
    for path in (tmp_path / "data/brats21").rglob("*_t2.nii.gz"):
        image = nib.load(path)
        nib.save(nib.Nifti1Image(image.get_fdata(), np.eye(4)), path)
    output = snakemake(root, tmp_path, "validate")
    assert "Raw scans of brats21 (results/validation/brats21.html):" in output
    assert "All 3 subjects: T2 image: has the affine of a bare array" in output
    assert "3 of 3 subjects should be excluded and are used until the config" in output


# --- clocks


def test_scans_dated_in_the_future_are_named_with_what_to_do_before_any_job(root, tmp_path):
    make_stand_ins(tmp_path, ixi=12, brats21=10, mslub=4)
    path = tmp_path / "data/ixi/IXI-T2/IXI003-Guys-0003-T2.nii.gz"
    ahead = time.time() + 3 * 86400
    os.utime(path, (ahead, ahead))
    output = snakemake(root, tmp_path, "validate", check=False)
    assert "data/ixi: 1 file(s) are dated in the future, for example data/ixi/IXI-T2/IXI0" in output
    assert "jobs" not in output and not (tmp_path / "results/participants").exists()
    command = next(line for line in output.splitlines() if line.startswith("  find "))
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    assert "dated in the future" not in snakemake(root, tmp_path, "-n", "validate", check=False)


def test_a_job_whose_output_is_thrown_away_leaves_no_record(root, tmp_path):
    make_stand_ins(tmp_path, ixi=0, brats21=12, mslub=0)
    snakemake(root, tmp_path, "results/participants/brats21.tsv")
    ahead = time.time() + 3 * 86400
    os.utime(tmp_path / "results/participants/brats21.tsv", (ahead, ahead))
    split = "results/splits/intra_FLAIR/fold-0.tsv"
    assert "older modification time" in snakemake(root, tmp_path, split, check=False)
    assert not list((tmp_path / "results/splits").rglob("fold-0.tsv*"))


# --- the configuration


def test_the_run_knows_which_scans_it_works_on(content):
    cfg = load(content)
    assert cfg.qc.decisions == "qc_decisions.tsv" and cfg.qc.threshold == 3.5
    assert ("ixi", "T1") not in cfg.stores_of_run() and ("mslub", "T1") in cfg.stores_of_run()
    content["run"]["parts"] = ["paper", "later"]
    assert ("ixi", "T1") in load(content).stores_of_run()
