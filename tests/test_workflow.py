"""The workflow's graph, on stand-ins of a few bytes, seconds each."""

import json
import re
import resource
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml

from tools.workflow import full_log, job_counts, make_stand_ins, snakemake, touch
from uad.core.nifti import write_volume
from uad.core.paths import Tree
from uad.preprocess import prediction_batches
from uad.run.launch import snapshot


def test_the_whole_paper_is_planned_from_stand_ins(root, indexed):
    assert len(pd.read_csv(indexed / "results/participants/ixi.tsv", sep="\t")) == 24
    arguments = ("-n", "paper", "--configfile", indexed / "small.yaml")
    counts = job_counts(snakemake(root, indexed, *arguments))
    assert counts == paper_jobs(ixi=12, brats21=10, mslub=4, room=1)


def paper_jobs(ixi, brats21, mslub, room):
    """Jobs of ``paper`` for data sets of these sizes: five folds, no method trained twice."""
    # T2 of all; FLAIR, T1-CE and T1 (for its AIR) of BraTS21; T1 of MSLUB (for its AIR)
    scans = ixi + 4 * brats21 + 2 * mslub
    # those with a skull, in batches whose number follows the size that the config expects
    on_ixi = {prediction_batches.number_of(f"IXI{i:03d}Guys{i:04d}", 64) for i in range(ixi)}
    on_mslub = {prediction_batches.number_of(f"patient{i:02d}", 4) for i in range(mslub)}
    # Table I: ten methods, one of them untrained; Table IV adds ddpm-iqa. Table II: four methods
    # on FLAIR and T1-CE; Table III adds two on FLAIR, Table IV ddpm-iqa on both.
    on_t2, on_flair, on_t1ce = 10 + 1, 4 + 2 + 1, 4 + 1
    cells = (2 * on_t2 + on_flair + on_t1ce) * 5
    jobs = {
        "predict_brain_masks": len(on_ixi) + 2 * len(on_mslub),
        "skullstrip_scan": scans,
        "register_scan": scans,
        "prepare_atlas": 1,
        "validate_dataset": 3,
        "pack_slices": 7,
        "make_splits": 4 * 5,
        "compute_air": 4 * 5,
        "train_model": (on_t2 - 1 + on_flair + on_t1ce) * 5,
        "reconstruct_volumes": cells,
        "score_volumes": cells,
        "search_threshold": cells,
        "evaluate_volumes": cells,
        "compare_methods": 4,
        "make_table": 4,
        "make_metrics_table": 4,  # for the notebook of the results
        "make_ranks": 3,
        "make_air_table": 1,
        "make_maps_figure": 2,
        "make_curves_figure": 4,
        "run_notebook": 4,
        "measure_quality": 3,  # for the notebook of the audit
        "save_config": 1,
        "paper": 1,
        **({"check_disk_space": 1} if room else {}),
    }
    return {**jobs, "total": sum(jobs.values())}


@pytest.fixture(scope="module")
def full_plan(root, tmp_path_factory):
    """Dry run of the whole paper on stand-ins of full size, as for a cluster."""
    folder = tmp_path_factory.mktemp("full")
    make_stand_ins(folder, ixi=577, brats21=1251, mslub=30)
    touch(folder, "results/preflight.json")  # a test machine need not have the disk for it
    snakemake(root, folder, "index")
    profile = ("--workflow-profile", root / "profiles/slurm")
    return snakemake(root, folder, "-n", *profile, "paper", fresh=True)


@pytest.mark.slow
def test_the_full_data_sets_give_110_trainings_and_the_expected_jobs(full_plan):
    counts = job_counts(full_plan)
    assert counts == paper_jobs(ixi=577, brats21=1251, mslub=30, room=0)
    assert counts["train_model"] == 110


@pytest.mark.slow
def test_the_graph_of_the_full_data_sets_fits_into_4_gib(full_plan):
    used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20  # largest child, GiB
    assert used < 4


@pytest.mark.slow
def test_ten_scans_are_one_submission_and_so_is_a_cell(full_plan):
    sizes = {}
    for part in full_plan.split("] Group job ")[1:]:
        stage, members = part.split(" ", 1)[0].split("_")[0], part.split("\n[", 1)[0]
        sizes.setdefault(stage, []).append(len(re.findall(r"^    rule ", members, re.M)))
    assert set(sizes) == {"skullstrip", "register", "evaluate"}
    assert set(sizes["evaluate"]) == {3}
    for stage in ("skullstrip", "register"):
        assert sum(sizes[stage]) == 5641
        assert max(sizes[stage]) == 10
        assert len(sizes[stage]) == 4 * 126 + 58 + 2 * 3  # BraTS, IXI, MSLUB


@pytest.mark.slow
def test_what_the_jobs_of_the_full_data_sets_request_is_sensible(full_plan):
    requests, on_gpu = {}, set()
    for rule, text in re.findall(r"rule (\w+):\n(?:.+\n)*? *resources: (.+)", full_plan):
        on_gpu |= {rule} if "gpu=1" in text else set()
        found = dict(re.findall(r"(\w+)=(\d+)", text))
        requests.setdefault(rule, []).append((int(found["mem_mb"]), int(found["runtime"])))
    largest = {rule: tuple(map(max, zip(*pairs, strict=True))) for rule, pairs in requests.items()}
    assert max(memory for memory, _ in largest.values()) <= 16000
    assert largest["train_model"][1] == 24 * 60  # mDDPM: 172 800 steps at half a second
    assert largest["register_scan"] == (4000, 10)
    assert 10 + 2 * 9 < largest["predict_brain_masks"][1] <= 10 + 2 * 25
    assert on_gpu == {"predict_brain_masks", "train_model", "reconstruct_volumes"}
    smallest = {rule: tuple(map(min, zip(*pairs, strict=True))) for rule, pairs in requests.items()}
    # the 1251 of BraTS need more than the 30 of MSLUB
    assert smallest["evaluate_volumes"][1] < largest["evaluate_volumes"][1] / 3


#: A stand-in for HD-BET in every process of a run: bright is brain. It notes when it is loaded.
FAKE_NETWORK = """
from pathlib import Path
from uad.preprocess import hdbet

def load(folds, place, tta):
    with open(Path(__file__).parent / "loaded", "a") as handle:
        handle.write(f"{folds}\\n")
    return lambda array, spacing: array > 5

hdbet.load_network, hdbet.require_weights = load, lambda folds: None
"""


@pytest.fixture
def bright_scans(root, tmp_path):
    """Four scans in one batch, and a copy of the code with a stand-in for the network."""
    snapshot(root, tmp_path / "code")
    (tmp_path / "code/workflow_scripts/sitecustomize.py").write_text(FAKE_NETWORK)
    content = {
        "datasets": {"ixi": {"modalities": ["T1"], "expected": 4}},
        "preprocessing": {"spacing": 4.0, "skullstrip": {"mode": "accurate"}},
        "experiments": {"cross_T2": {"modality": "T1"}},
    }
    (tmp_path / "overlay.yaml").write_text(yaml.safe_dump(content))
    for number in range(4):
        add_bright_scan(tmp_path, number)
    return tmp_path


def add_bright_scan(folder, number, brightness=9):
    data = np.ones((24, 24, 24 + number), dtype=np.float32)
    data[4:20, 4:20, 4:20] = brightness
    path = folder / f"data/ixi/IXI-T1/IXI{number:03d}-HH-{number:04d}-T1.nii.gz"
    write_volume(path, data, np.diag([8.0, 8.0, 8.0, 1.0]))
    return path


def bright_masks(*numbers):
    tree = Tree()
    names = dict(dataset="ixi", suffix="T1w", space="orig", label="brain", desc="mask")
    return [tree.scan("nii.gz", subject=f"IXI{n:03d}HH{n:04d}", **names) for n in numbers]


@pytest.mark.slow
def test_masks_are_predicted_in_batches_and_a_bad_scan_fails_alone(bright_scans):
    code = bright_scans / "code"
    arguments = ("--keep-going", "--configfile", bright_scans / "overlay.yaml", "--")
    bad = bright_scans / "data/ixi/IXI-T1/IXI003-HH-0003-T1.nii.gz"
    whole = bad.read_bytes()
    add_bright_scan(bright_scans, 3, brightness=np.nan)
    output = snakemake(code, bright_scans, *arguments, *bright_masks(*range(4)), check=False)
    assert "(rule skullstrip_scan)\n  data/ixi/IXI-T1/IXI003-HH-0003-T1.nii.gz: " in output
    assert "Traceback" not in output and "(rule predict_brain_masks)" not in output
    there = [path for path in bright_masks(*range(4)) if (bright_scans / path).exists()]
    assert there == bright_masks(0, 1, 2)
    record = json.loads(
        (bright_scans / f"{Tree().brain_masks('ixi', 'T1w', 0)}.prov.json").read_text()
    )
    assert record["facts"]["without_mask"] == ["IXI003HH0003"] and len(record["inputs"]) == 4
    sidecar = json.loads(
        (bright_scans / bright_masks(0)[0].replace(".nii.gz", ".json")).read_text()
    )
    assert sidecar["brain_voxels"] == 16**3 and sidecar["mode"] == "accurate"

    # mended: the batch is predicted again, and its file goes when it has been used
    bad.write_bytes(whole)
    snakemake(code, bright_scans, *arguments, *bright_masks(*range(4)))
    assert (code / "workflow_scripts/loaded").read_text() == "5\n5\n"
    assert not (bright_scans / Tree().brain_masks("ixi", "T1w", 0)).exists()
    again = snakemake(code, bright_scans, *arguments, *bright_masks(*range(4)))
    assert "Nothing to be done" in again


@pytest.mark.slow
def test_what_a_mask_depends_on_is_seen_though_the_predictions_are_gone(bright_scans):
    code, overlay = bright_scans / "code", bright_scans / "overlay.yaml"
    content = yaml.safe_load(overlay.read_text())
    content["datasets"]["ixi"]["expected"] = 20  # two batches

    masks = bright_masks(*range(4))

    def counts(**skullstrip):
        content["preprocessing"]["skullstrip"] |= skullstrip
        overlay.write_text(yaml.safe_dump(content))
        output = snakemake(code, bright_scans, "-n", "--configfile", overlay, "--", *masks)
        found = job_counts(output)
        return found["predict_brain_masks"], found["skullstrip_scan"]

    overlay.write_text(yaml.safe_dump(content))
    snakemake(code, bright_scans, "--configfile", overlay, "--", *masks)
    batch = [prediction_batches.number_of(f"IXI{n:03d}HH{n:04d}", 2) for n in range(4)]
    assert set(batch) == {0, 1}
    content["run"] = {"scans_per_submission": 2}  # how a run is run is no part of a mask
    assert counts() == (0, 0)
    add_bright_scan(bright_scans, 0, brightness=8)
    assert counts() == (1, batch.count(batch[0]))
    assert counts(mode="fast") == (2, 4)


def roles(folder, path):
    return pd.read_csv(folder / path, sep="\t")["role"].value_counts().to_dict()


@pytest.mark.slow
def test_the_full_data_sets_are_split_as_published_in_number(root, tmp_path):
    make_stand_ins(tmp_path, ixi=577, brats21=1251, mslub=30)
    cross, intra = (f"results/splits/{e}/fold-0.tsv" for e in ("cross_T2", "intra_FLAIR"))
    last = "results/splits/intra_FLAIR/fold-4.tsv"
    snakemake(root, tmp_path, cross, intra, last)
    assert roles(tmp_path, cross) == {
        "train": 577 - 44 - 158, "val_healthy": 44, "test_healthy": 158,
        "val_unhealthy": 100 + 10, "test": 1151 + 20,
    }  # fmt: skip
    assert roles(tmp_path, intra) == {
        "train": 750, "val_healthy": 125, "val_unhealthy": 125, "test": 251
    }  # fmt: skip
    assert roles(tmp_path, last)["test"] == 250


def test_subjects_that_are_added_are_seen_and_one_that_lost_an_image_is_left_out(
    root, stand_ins, indexed
):
    shutil.copytree(indexed, stand_ins, dirs_exist_ok=True)
    touch(stand_ins, *(f"data/ixi/IXI-{m}/IXI600-HH-0600-{m}.nii.gz" for m in ("T1", "T2")))
    (stand_ins / "data/brats21/BraTS2021_00003/BraTS2021_00003_t1ce.nii.gz").unlink()
    arguments = ("index", "--keep-going", "--configfile", stand_ins / "small.yaml")
    snakemake(root, stand_ins, *arguments)
    record = json.loads((stand_ins / "results/participants/brats21.tsv.prov.json").read_text())
    assert record["facts"]["left_out"]["files"] == {"BraTS2021_00003": "no T1CE image"}
    assert "00003" not in (stand_ins / "results/participants/brats21.tsv").read_text()
    assert "IXI600-HH-0600" in (stand_ins / "results/participants/ixi.tsv").read_text()
    assert "index_dataset/mslub" not in full_log(stand_ins)  # which is as it was


@pytest.mark.slow
def test_ages_that_are_put_into_a_raw_tree_reach_the_index_and_the_record_of_the_splits(
    root, stand_ins
):
    split = "results/splits/cross_T2/fold-0.tsv"
    arguments = (split, "--configfile", stand_ins / "small.yaml")

    def stratified():
        snakemake(root, stand_ins, *arguments)
        return json.loads((stand_ins / f"{split}.prov.json").read_text())["facts"]["stratified_by"]

    assert stratified()["ixi"] == {"by": [], "groups": {"Guys": 12}}
    ages = [f"{i},{30 if i % 2 else 70}" for i in range(11)]
    (stand_ins / "data/ixi/IXI.csv").write_text("\n".join(["IXI_ID,AGE", *ages]))
    assert stratified()["ixi"] == {
        "by": ["age"],
        "groups": {"Guys, 60 and over": 6, "Guys, age unknown": 1, "Guys, below 40": 5},
    }
    indexed = json.loads((stand_ins / "results/participants/ixi.tsv.prov.json").read_text())
    assert indexed["facts"]["ages"]["known"] == 11
    (stand_ins / "data/ixi/IXI.csv").write_text("IXI_ID,AGE\n3,older")
    output = snakemake(root, stand_ins, *arguments, check=False)
    assert "IXI.csv: row 2 (IXI003): 'older' is no age" in output and "Traceback" not in output


@pytest.fixture
def one_fold(root, indexed):
    """Counts the jobs of targets, of one fold."""

    def count(*targets, **changes):
        overlay = indexed / "one_fold.yaml"
        overlay.write_text(yaml.safe_dump({"run": {"folds": [0]}, **changes}))
        arguments = ("-n", *targets, "--configfile", indexed / "small.yaml", overlay)
        return job_counts(snakemake(root, indexed, *arguments))

    return count


def test_a_table_a_study_and_the_costs_are_targets_with_published_splits_if_asked_for(one_fold):
    counts = one_fold("table3", "alpha", "cost", splits={"kind": "reference"})
    # the sweep scores what is stored: two methods, three experiments, one of them that of Table III
    assert counts["train_model"] == 4 + 2 * 3 - 1
    expected = {"make_table": 1, "rescore_volumes": 2 * 4, "make_sweep_figure": 1}
    expected |= {"measure_cost": 13, "make_cost_table": 1, "fetch_split_list": 8}
    assert {name: counts[name] for name in expected} == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "trainings", "others"),
    [
        ("table1", 9, {"make_table": 1, "compare_methods": 1}),
        ("table2", 2 * 4, {"make_table": 1}),
        ("table4", 3 * 2, {"make_table": 1}),
        ("alpha_trained", 6 * 3, {"rescore_volumes": 4, "make_sweep_figure": 1}),
        ("protocol_effects", 2 * 3, {"rescore_volumes": 2 * 4, "make_study": 1}),
        ("tableT1", 6, {"make_table": 1}),
        ("air_rules", 3 * 4, {"make_table": 1}),
        ("healthy", 10, {"evaluate_healthy": 2 * 11, "make_healthy_table": 1}),
    ],
)
def test_every_table_and_study_is_a_target_of_its_own(one_fold, target, trainings, others):
    counts = one_fold(target)
    assert counts["train_model"] == trainings
    assert {name: counts[name] for name in others} == others


@pytest.mark.slow
def test_the_report_has_the_healthy_scans_with_the_extras_or_where_they_were_judged(
    indexed, one_fold
):
    assert not one_fold("report")["make_healthy_table"]
    extras = one_fold("report", run={"folds": [0], "parts": ["extras"]})
    touch(indexed, "results/tables/healthy.html")
    judged = one_fold("report")
    (indexed / "results/tables/healthy.html").unlink()
    assert extras["make_healthy_table"] == judged["make_healthy_table"] == 1


def test_the_demo_is_planned_before_the_phantom_exists(root, tmp_path):
    overlay = root / "config.demo.yaml"
    counts = job_counts(snakemake(root, tmp_path, "-n", "table1", "--configfile", overlay))
    assert counts["make_phantom"] == counts["index_dataset"] == 3
    assert counts["train_model"] == 9 * 2
    assert not counts["predict_brain_masks"]  # no network strips its skulls


def test_absent_data_are_explained_on_one_screen_without_a_traceback(root, tmp_path):
    output = snakemake(root, tmp_path, "-n", "paper", check=False)
    message = output[output.index("Raw data are missing") :]
    assert "Traceback" not in output and len(message.splitlines()) <= 24
    for part in ("data/ixi", "data/brats21", "data/mslub", "syn25829067", "make demo"):
        assert part in message


@pytest.mark.slow
def test_a_run_on_two_of_the_data_sets_does_not_ask_for_the_third(root, tmp_path):
    for i in range(24):
        touch(tmp_path, f"ixi/IXI-T1/IXI{i:03d}-HH-{i:04d}-T1.nii.gz")
    for name in ("patient07", "patient19", "patient90"):
        touch(tmp_path, f"m/{name}/{name}_T1W.nii.gz", f"m/{name}/{name}_consensus_gt.nii.gz")
    where = {"ixi": {"path": str(tmp_path / "ixi")}, "mslub": {"path": str(tmp_path / "m")}}
    (tmp_path / "paths.yaml").write_text(yaml.safe_dump({"datasets": where}))
    overlays = ("--configfile", root / "tests/real/config.yaml", tmp_path / "paths.yaml")
    snakemake(root, tmp_path, "index", *overlays)
    counts = job_counts(snakemake(root, tmp_path, "-n", "tables", "air", "figures", *overlays))
    assert counts["skullstrip_scan"] == 24 + 3 and counts["train_model"] == 5 * 3
    assert not counts["predict_brain_masks"]  # on the CPU the job of a scan does it


def published_lists(folder):
    """Lists like the published ones, about the stand-ins: one subject leaks into the test set."""
    ixi = [f"IXI{i:03d}-Guys-{i:04d}" for i in range(12)]
    lists = {
        "IXI_train_fold0.csv": [f"{n}_t1.nii.gz" for n in [*ixi[:7], ixi[0], ixi[9]]],
        "IXI_val_fold0.csv": [f"{n}_t1.nii.gz" for n in ixi[7:9]],
        "IXI_test.csv": [f"{n}_t1.nii.gz" for n in ixi[9:]],
        "Brats21_val.csv": [f"BraTS2021_{i:05d}" for i in range(3)],
        "Brats21_test.csv": [f"BraTS2021_{i:05d}" for i in range(3, 10)],
        "MSLUB_val.csv": ["patient00"],
        "MSLUB_test.csv": [f"patient{i:02d}" for i in (1, 2, 3)],
        "avail_t2.csv": [f"{n}_t2.nii.gz" for n in ixi],
    }
    folder.mkdir()
    for name, rows in lists.items():
        column = "0" if name == "avail_t2.csv" else "img_name"
        pd.DataFrame({column: rows}).to_csv(folder / name)


@pytest.mark.slow
def test_the_published_splits_are_a_choice_of_the_config(root, stand_ins):
    published_lists(stand_ins / "lists")
    reference = {"folder": "lists", "verify": False}
    overlay = stand_ins / "reference.yaml"
    overlay.write_text(yaml.safe_dump({"splits": {"kind": "reference", "reference": reference}}))
    path = "results/splits/cross_T2/fold-0.tsv"
    snakemake(root, stand_ins, path, "--configfile", overlay)
    split = pd.read_csv(stand_ins / path, sep="\t")
    assert split["role"].value_counts().to_dict() == {
        "train": 7, "val_healthy": 2, "test_healthy": 3, "val_unhealthy": 4, "test": 10
    }  # fmt: skip
    assert split.set_index("subject")["weight"]["IXI000Guys0000"] == 2
    record = json.loads((stand_ins / f"{path}.prov.json").read_text())["facts"]["published"]
    assert "IXI009-Guys-0009" in json.dumps(record)


def test_the_page_of_a_refused_phantom_says_phantom(root, tmp_path):
    make_stand_ins(tmp_path, ixi=0, brats21=2, mslub=0)
    for path in tmp_path.rglob("*_t1ce.nii.gz"):  # made and then spoilt, which no header shows
        noise = np.random.default_rng(0).integers(1, 999, (40, 40, 40))
        write_volume(path, noise.astype(np.int16), np.eye(4))
        content = path.read_bytes()
        path.write_bytes(content[:30_000] + content[-8:])  # the last bytes tell the length
    (tmp_path / "results-demo/raw").mkdir(parents=True)
    (tmp_path / "data/brats21").rename(tmp_path / "results-demo/raw/brats21")
    touch(tmp_path, "results-demo/raw/brats21.manifest.tsv")
    arguments = ("results-demo/validation/brats21.html", "--configfile", root / "config.demo.yaml")
    output = snakemake(root, tmp_path, *arguments, check=False)
    pages = list(tmp_path.glob("results-demo/validation/*.html"))
    assert [page.name for page in pages] == ["brats21.refused.html"], output
    assert "All verdicts: results-demo/validation/brats21.refused.html" in output
    assert "Validation of brats21 (phantom data)" in pages[0].read_text()


def test_phantom_and_real_results_are_not_mixed_in_one_tree(root, indexed, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results/source.json").write_text('{"source": "phantom"}')
    output = snakemake(root, tmp_path, "index", check=False)
    assert "holds results of a phantom run" in output and "--config results=" in output


def test_a_config_mistake_is_refused_before_any_job(root, tmp_path):
    path = tmp_path / "overlay.yaml"
    path.write_text(yaml.safe_dump({"methods": {"mine": {"model": "pdpm"}}}))
    output = snakemake(root, tmp_path, "-n", "paper", "--configfile", path, check=False)
    assert "unknown model 'pdpm'; did you mean 'pddpm'?" in output and "Traceback" not in output
    assert not (tmp_path / "results").exists()


def test_no_rule_script_or_table_code_names_a_method(root, content):
    names = [n for n in content["methods"] if n not in content["models"]] + ["pddpm", "mddpm"]
    files = [root / "Snakefile", *root.glob("rules/*.smk"), *root.glob("workflow_scripts/*.py")]
    files += [*root.glob("workflow_scripts/uad/report/*.py")]
    for path in files:
        code = path.read_text(encoding="utf-8")
        for name in names:
            assert f'"{name}"' not in code and f"'{name}'" not in code, f"{path} names {name}"


def test_every_rule_with_a_script_has_one_of_its_own_name(root):
    for path in root.glob("rules/*.smk"):
        for rule, body in re.findall(
            r"^(?:rule|checkpoint) (\w+):\n(.*?)(?=^\S|\Z)", path.read_text(), re.M | re.S
        ):
            if "script:" in body:
                assert f"{{SCRIPTS}}/{rule}.py" in body
                assert (root / "workflow_scripts" / f"{rule}.py").exists()
