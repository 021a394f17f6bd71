"""Quality control: measures, outlier flags, pictures, and a reviewer's decisions."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from test_workflow import job_counts, make_stand_ins
from tools.qc_trees import SHAPE, measured, packed
from tools.workflow import snakemake
from uad.config import load
from uad.core.errors import ConfigError, DataError
from uad.core.files import read_tsv
from uad.core.nifti import write_volume
from uad.data.layouts import index_dataset
from uad.preprocess.picture import qc_picture
from uad.preprocess.slices import write_store
from uad.qc.decide import (
    decisions_of_run,
    exclusions,
    left_out,
    read_decisions,
    without_excluded,
)
from uad.qc.gallery import SCANS, packed_tile, sheets_of, shown_slices, tile_shape, write_sheet
from uad.qc.judge import MIN_SCANS, add_flags, medians, modified_z_scores, outliers, summarise
from uad.qc.measure import NAMES, measure_modality
from uad.report.quality import summary_page

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
@given(homogeneous, st.floats(0.01, 1e4), st.floats(-1e4, 1e4))
def test_a_homogeneous_set_has_no_outlier_whatever_its_unit(values, unit, offset):
    assert not outliers(np.array(values) * unit + offset).any()


@settings(max_examples=30, deadline=None)
@given(homogeneous, st.integers(0, 10**6), st.sampled_from([-1, 1]), st.floats(20, 1e6))
def test_a_planted_outlier_is_found_and_no_other(values, place, sign, distance):
    planted = np.array(values)
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
    assert (found["warnings"] == "").all()


def test_a_file_that_is_no_sidecar_is_named(scans):
    table, store, paths = scans
    paths[2][1].write_text("{}")
    with pytest.raises(DataError, match=r"s02_registered.json: is no sidecar.*Delete it"):
        measure_modality(table, store, paths, voxel_ml=2.0)


def test_a_failed_registration_is_flagged_with_its_value_and_the_median(scans):
    table, store, paths = scans
    bad = {**REGISTERED, "registration": {**REGISTERED["registration"], "overlap_dice": 0.4}}
    paths[5][1].write_text(json.dumps(bad))
    flagged = add_flags(measure_modality(table, store, paths, voxel_ml=2.0))
    hit = flagged[flagged["flags"].str.contains("overlap_dice")]
    assert hit["subject"].tolist() == ["s05"]
    assert "overlap with the atlas 0.4 (median 0.95)" in hit["why"].iloc[0]
    assert medians(flagged)["T2"]["overlap_dice"] == 0.95


def test_modalities_are_judged_apart(scans):
    table = measured(20, ["T1", "T2"])
    table.loc[table["modality"] == "T2", "intensity_p50"] *= 1000
    assert (add_flags(table)["flags"] == "").all()
    table.loc[0, "intensity_p50"] *= 1000  # a T1 scan that is as bright as the others' T2
    assert np.flatnonzero(add_flags(table)["flags"] != "").tolist() == [0]


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
    assert "Left out by a reviewer: ixi s\n(all scans): moved (R)" in page
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


def test_the_picture_of_a_registration_shows_the_bias_field(tmp_path):
    from PIL import Image

    x = np.indices((30, 36, 30))[0]
    mask = np.zeros(x.shape, dtype=bool)
    mask[5:25, 5:31, 5:25] = True
    volumes = {"image": mask * 100.0, "mask": mask, "field": mask * (0.8 + 0.4 * x / 29)}
    for name, data in volumes.items():
        write_volume(tmp_path / f"{name}.nii", data, np.diag([4.0, 4, 4, 1]))
    files = [tmp_path / f"{name}.nii" for name in ("image", "mask")]
    for name, field in (("without", None), ("with", tmp_path / "field.nii")):
        qc_picture(tmp_path / f"{name}.png", *files, None, None, "title", field)
    before, after = (
        np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")).astype(int)
        for name in ("without", "with")
    )
    assert after.shape[1] > before.shape[1]
    panel = after[40:-40, -after.shape[1] // 4 :]
    # x rises to the right of the patient, at the left of the picture: there the field is above 1
    orange, violet = panel[..., 0] - panel[..., 2] > 60, panel[..., 2] - panel[..., 1] > 40
    assert 0 < np.nonzero(orange)[1].mean() < np.nonzero(violet)[1].mean()


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
    assert read_decisions(decision_file("", head=""), DATASETS) == []
    assert read_decisions(decision_file(""), DATASETS) == []


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1e"])
def test_a_reason_may_hold_what_python_takes_for_the_end_of_a_line(decision_file, character):
    text = f"ixi\tIXI002\tT2\texclude\tghosts{character}and more\tA\t\r\n"
    (decision,) = read_decisions(decision_file(text), DATASETS)
    assert decision.reason == f"ghosts{character}and more" and decision.reviewer == "A"


def test_a_file_as_a_spreadsheet_saves_it_is_read(decision_file):
    text = 'ixi\tIXI002-Guys-0828\t\texclude\t"says ""no"""\tA. B.\t2026-01-02\r\n\n'
    (decision,) = read_decisions(decision_file(text, head="\ufeff" + HEAD), DATASETS)
    assert (decision.modality, decision.reason) == ("*", 'says "no"')
    assert decision.why == 'says "no" (reviewed by A. B., 2026-01-02)'
    needed = "dataset\tsubject\tverdict\nixi\tx\tkeep\n"
    assert read_decisions(decision_file(needed, head=""), DATASETS)[0].modality == "*"


@pytest.mark.parametrize(
    "row, message",
    [
        ("ixl\ts\tT1\tkeep\t\t\t", r"line 2: unknown data set 'ixl'; did you mean 'ixi'"),
        ("ixi\ts\tT3\tkeep\t\t\t", r"line 2: unknown modality 'T3'; did you mean 'T1'|'T2'"),
        ("ixi\ts\tT1\texlude\twhy\t\t", r"unknown verdict 'exlude'; did you mean 'exclude'"),
        ("ixi\ts\tT1\texclude\t\tme\t", r"'s' is excluded without a reason; say why"),
        ("ixi\t\tT1\tkeep\t\t\t", r"line 2: no subject"),
        ("ixi\ts\tT1\tkeep\ta\tb\tc\td", r"line 2: 8 fields, but 7 columns"),
        ("ixi\ts\tT1\tkeep\nixi\ts\tT1\tunsure", r"lines 2 and 3 disagree about ixi s: keep"),
        ("ixi\ta-1\t*\texclude\tx\nixi\ta1\tT2\tkeep", r"exclude \(all scans\), keep \(T2\)"),
    ],
)
def test_a_mistake_is_named_with_its_line(decision_file, row, message):
    path = decision_file(row + "\n")
    with pytest.raises(DataError, match=message):
        read_decisions(path, DATASETS)
    with pytest.raises(ConfigError, match=r"qc_decisions.tsv"):
        decisions_of_run(path, DATASETS)


def test_a_missing_column_is_named_with_the_near_match(decision_file):
    path = decision_file("ixi\ts\tkeep\n", head="dataset\tsubject\tverdit\n")
    with pytest.raises(DataError, match=r"lacks 'verdict'; did you mean 'verdit'"):
        read_decisions(path, DATASETS)


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
        table = index_dataset("brats21", brats, ["T1", "T2"], {name: "motion"})
        assert len(table) == 6 and "BraTS202100002" not in set(table["subject"])
    with pytest.raises(DataError, match=r"'BraTS2021_0002' is not there \(did you mean 'BraTS2"):
        index_dataset("brats21", brats, ["T1"], {"BraTS2021_0002": "motion"})


def test_one_scan_is_left_out_and_the_others_of_its_subject_stay(brats):
    table = index_dataset("brats21", brats, ["T1", "T2"])
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


@pytest.fixture(scope="module")
def indexed(root, tmp_path_factory):
    """Indexed stand-ins."""
    folder = tmp_path_factory.mktemp("reviewed")
    make_stand_ins(folder, ixi=12, brats21=10, mslub=4)
    snakemake(root, folder, "index")
    return folder


def plan(root, folder, *targets):
    return snakemake(root, folder, "-n", *targets, check=False)


@pytest.fixture
def reviewed(indexed):
    """Writes the decision file of the stand-ins, for one test."""
    path = indexed / "qc_decisions.tsv"
    yield lambda text: path.write_text(HEAD + text)
    path.unlink(missing_ok=True)


def test_quality_control_needs_the_scans_of_the_run_and_no_training(root, indexed):
    counts = job_counts(plan(root, indexed, "qc"))
    # T2 of IXI; all of BraTS21; T1 and T2 of MSLUB: as many as the tables need
    assert counts["pack_slices"] == counts["draw_packed_scans"] == 7
    assert counts["register_scan"] == 12 + 4 * 10 + 2 * 4
    assert counts["measure_quality"] == 3 and counts["make_gallery"] == 1
    assert not counts["train_model"] and not counts["make_splits"]


def test_a_decision_that_changes_nothing_reruns_nothing(root, indexed, reviewed):
    reviewed("ixi\tIXI000-Guys-0000\t\tkeep\t\t\t\nixi\tIXI001Guys0001\tFLAIR\texclude\twhy\t\t\n")
    assert "Nothing to be done" in plan(root, indexed, "index")


def test_an_exclusion_reruns_the_index_of_its_data_set_only(root, indexed, reviewed):
    reviewed("brats21\tBraTS202100003\tT1CE\texclude\tmotion\tme\t2026-01-02\n")
    output = plan(root, indexed, "index")
    assert job_counts(output)["index_dataset"] == 1 and "participants/brats21.tsv" in output
    reviewed("ixl\tx\t\tkeep\t\t\t\n")
    assert "unknown data set 'ixl'; did you mean 'ixi'" in plan(root, indexed, "index")


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


# --- the configuration


def test_the_run_knows_which_scans_it_works_on(content):
    cfg = load(content)
    assert cfg.qc.decisions == "qc_decisions.tsv" and cfg.qc.threshold == 3.5
    assert ("ixi", "T1") not in cfg.stores_of_run() and ("mslub", "T1") in cfg.stores_of_run()
    content["run"]["parts"] = ["paper", "later"]
    assert ("ixi", "T1") in load(content).stores_of_run()


# --- a whole run

CROSS_FLAIR = {
    "datasets": {"mslub": {"phantom": {"subjects": 4}, "modalities": ["FLAIR"]}},
    "experiments": {
        "cross_FLAIR": {
            "setting": "cross", "modality": "FLAIR", "train": "mslub", "test": ["brats21"],
            "folds": 2,
        }
    },
    "tables": {
        "reviewed": {
            "title": "Reviewed", "rows": ["thresh"],
            "columns": [{"experiment": "cross_FLAIR", "test": "brats21"}],
        }
    },
    "figures": {},
    "run": {"tables": ["reviewed"], "figures": [], "folds": [0], "air_experiments": []},
}  # fmt: skip


@pytest.mark.slow
def test_an_excluded_subject_is_absent_from_the_table_whose_n_changes(root, config, copy_of):
    (copy_of / "overlay.yaml").write_text(yaml.safe_dump(CROSS_FLAIR))
    arguments = ("reviewed", "--configfile", config, copy_of / "overlay.yaml")
    results = copy_of / "results"

    def numbers():
        snakemake(root, copy_of, *arguments)
        split = read_tsv(results / "splits/cross_FLAIR/fold-0.tsv")
        metrics = read_tsv(results / "metrics/cross_FLAIR/thresh/fold-0/brats21.tsv")
        return set(split["subject"]), set(metrics["subject"]), results / "tables/reviewed.md"

    _, tested, table = numbers()
    assert "6 test volumes" in table.read_text()
    gone = sorted(tested)[0]
    (copy_of / "qc_decisions.tsv").write_text(
        HEAD + f"brats21\t{gone}\tFLAIR\texclude\tmotion\tme\t2026-01-02\n"
    )
    split, tested, table = numbers()
    assert gone not in split and gone not in tested
    assert "5 test volumes" in table.read_text()
