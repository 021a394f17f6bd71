"""The audit of small trees that are written at once: what it reads, and what it says."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import yaml

from tools.result_trees import Forge, ResultTree
from uad import config as uad_config
from uad.audit.tree import is_raw
from uad.audit.verdict import audit
from uad.core.errors import DataError
from uad.core.files import write_json, write_tsv
from uad.core.walk import working_directory
from uad.evaluate import evaluate_volume, search_threshold
from uad.preprocess.slices import write_store
from uad.splits import intra_dataset
from uad.statistics import air_statistics

EXPERIMENT, TEST, METHOD = "intra_FLAIR", "brats21", "thresh"
FOLDS = (0, 1)
SUBJECTS = [f"S{n}" for n in range(8)]


@pytest.fixture(scope="module")
def made(tmp_path_factory, root):
    """A tree with a job of each kind that the checks look into: two folds of one method."""
    return _make(tmp_path_factory.mktemp("audit"), root)


@pytest.fixture
def tree(made, tmp_path):
    """A copy of it that a test may spoil."""
    shutil.copytree(made.root.parent, tmp_path / "run")
    copy = ResultTree(tmp_path / "run" / "results")
    copy._minute = made._minute
    return copy


@pytest.fixture
def forge(tree):
    return Forge(tree.root)


def _make(folder, root):
    tree = ResultTree(folder / "results")
    cfg = _config(tree, root)
    for subject in SUBJECTS:
        path = tree.path(f"raw/{TEST}/{subject}/{subject}_flair.nii.gz")
        path.parent.mkdir(parents=True)
        path.write_bytes(f"scan of {subject}".encode())
    _data(tree, cfg)
    for fold in FOLDS:
        _cell(tree, cfg, fold)
    _table(tree, cfg)
    return tree


def _config(tree, root):
    content = uad_config.merged(
        yaml.safe_load((root / "config.yaml").read_text()),
        yaml.safe_load((root / "tests/e2e/config.yaml").read_text()),
    )
    content["tables"]["table3"] |= {"rows": [METHOD], "claims": []}
    key = "config.resolved.yaml"
    tree.job("save_config", {key: yaml.safe_dump(content)}, params={"config": "whole"})
    return uad_config.load_files([tree.path(key)])


def _data(tree, cfg):
    from uad.audit.settings import expected  # what the config says is what the jobs were run with

    def params(rule, **wildcards):
        record = type("Asked", (), {"rule": rule, "wildcards": wildcards, "params": {}})
        return expected(cfg, record)

    tree.params = params
    from uad.core.files import sha256

    raw = tree.path(f"raw/{TEST}")
    files = sorted(p for p in raw.rglob("*") if p.is_file())
    rows = [
        {"path": str(p.relative_to(raw)), "bytes": p.stat().st_size, "sha256": sha256(p)}
        for p in files
    ]
    manifest, people = f"raw/{TEST}.manifest.tsv", f"participants/{TEST}.tsv"
    write_tsv(tree.path(manifest), pd.DataFrame(rows))
    dataset = {"dataset": TEST}
    seed = {"seed": cfg.seed}
    made = {**params("make_phantom", **dataset), **seed}
    tree.job("make_phantom", [manifest], wildcards=dataset, params=made)
    table = pd.DataFrame(
        {
            "subject": SUBJECTS,
            "name": SUBJECTS,
            "site": TEST,
            "modality": "FLAIR",
            "image": [f"results/{p.relative_to(tree.root)}" for p in files],
            "lesion": "",
        }
    )
    write_tsv(tree.path(people), table)
    asked = params("index_dataset", **dataset)
    tree.job("index_dataset", [people], [manifest], wildcards=dataset, params=asked)
    scans = []
    for subject, path in zip(SUBJECTS, files, strict=True):
        scan = f"preprocessed/{TEST}/sub-{subject}/anat/sub-{subject}_FLAIR"
        names = {"dataset": TEST, "subject": subject, "suffix": "FLAIR"}
        raw_key = path.relative_to(tree.root).as_posix()
        outputs = {f"{scan}.nii.gz": f"registered {subject}", f"{scan}.mat": f"moved {subject}"}
        asked = {**params("register_scan", **names), **seed}
        tree.job("register_scan", outputs, [raw_key], wildcards=names, params=asked)
        scans.append(f"{scan}.nii.gz")
    store = f"slices/{TEST}_FLAIR.safetensors"
    write_store(tree.path(store), SUBJECTS, [_volume(n) for n in range(len(SUBJECTS))])
    names = {"dataset": TEST, "modality": "FLAIR"}
    asked = {**params("pack_slices", **names), "preprocessed": False}
    tree.job("pack_slices", [store], [*scans, people], wildcards=names, params=asked)


def _volume(number):
    """A volume (6, 6, 4) with a bright lesion of its own size, its brain and its lesion."""
    rng = np.random.default_rng(number)
    volume = rng.uniform(0.2, 0.4, (6, 6, 4)).astype(np.float16)
    lesion = np.zeros(volume.shape, dtype=np.uint8)
    lesion[1 : 3 + number % 3, 1:4, 1] = 1
    volume[lesion > 0] = 0.8 + 0.02 * number
    return volume, np.ones_like(lesion), lesion


def _cell(tree, cfg, fold):
    """Split, AIR, maps (deleted again), threshold and metrics of a fold."""
    people, store = f"participants/{TEST}.tsv", f"slices/{TEST}_FLAIR.safetensors"
    place = {"experiment": EXPERIMENT, "fold": str(fold)}
    cell = {**place, "method": METHOD, "test": TEST}
    split = f"splits/{EXPERIMENT}/fold-{fold}.tsv"
    table = pd.read_csv(tree.path(people), sep="\t", keep_default_na=False)
    roles = intra_dataset(TEST, table, fold, 5, seed=42)
    write_tsv(tree.path(split), roles)
    asked = tree.params("make_splits", **place)
    tree.job("make_splits", [split], [people], wildcards=place, params=asked)

    from uad.preprocess.slices import read_store
    from uad.splits import subjects_of

    validation = subjects_of(roles, TEST, "val_unhealthy")
    air = f"air/{EXPERIMENT}/fold-{fold}.json"
    asked = tree.params("compute_air", **place)
    volumes = {TEST: read_store(tree.path(store), validation)}
    found = air_statistics(volumes, asked["modality"], asked["reference"], asked["rule"])
    write_json(tree.path(air), {"experiment": EXPERIMENT, "fold": fold, **found})
    tree.job("compute_air", [air], [split, store], wildcards=place, params=asked)

    where = f"{EXPERIMENT}/{METHOD}/fold-{fold}/{TEST}"
    maps = f"maps/{where}.safetensors"
    asked = tree.params("score_volumes", **cell)
    tree.job("score_volumes", {maps: b"maps"}, [store], wildcards=cell, params=asked)
    part = volumes[TEST]
    result = search_threshold(list(part.volumes), list(part.lesions))
    threshold = f"thresholds/{where}.json"
    write_json(tree.path(threshold), {**vars(result), "subjects": validation})
    asked = tree.params("search_threshold", **cell)
    tree.job("search_threshold", [threshold], [maps, store], wildcards=cell, params=asked)

    asked = tree.params("evaluate_volumes", **cell)
    tested = read_store(tree.path(store), subjects_of(roles, TEST, "test"))
    shared = {"experiment": EXPERIMENT, "method": METHOD, "fold": fold, "test_dataset": TEST}
    rows = [
        {**shared, "subject": subject, **evaluate_volume(v, lesion, m, result.threshold, 0)}
        for subject, v, m, lesion in zip(
            tested.subjects, tested.volumes, tested.masks, tested.lesions, strict=True
        )
    ]
    metrics = f"metrics/{where}.tsv"
    write_tsv(tree.path(metrics), pd.DataFrame(rows))
    tree.job("evaluate_volumes", [metrics], [maps, store, threshold], wildcards=cell, params=asked)
    tree.path(maps).unlink()


def _table(tree, cfg):
    from uad.report.tables import collect_metrics, read_published, summarise, write_table

    metrics = [f"metrics/{EXPERIMENT}/{METHOD}/fold-{fold}/{TEST}.tsv" for fold in FOLDS]
    published = "repository:resources/published/tables.csv"
    path = tree.path(published)
    path.parent.mkdir(parents=True)
    path.write_text("table,row,experiment,test_dataset,metric,mean,std,source\n")
    column = {"experiment": EXPERIMENT, "test_dataset": TEST, "label": "BraTS21"}
    spec = {"name": "table3", "title": "A table", "rows": [METHOD], "columns": [column]}
    frame = collect_metrics([tree.path(key) for key in metrics])
    summary = summarise(frame, spec, read_published(path), phantom=True)
    outputs = [f"tables/table3.{ending}" for ending in ("csv", "md", "tex", "html")]
    facts = {"data_source": "synthetic phantom", "seed": cfg.seed}
    places = [tree.path(key) for key in outputs]
    write_table(summary, spec, places, phantom=True, caption_facts=facts)
    names = {"table": "table3"}
    asked = {**tree.params("make_table", **names), "phantom": True, "seed": cfg.seed}
    tree.job("make_table", outputs, [*metrics, published], wildcards=names, params=asked)


def named(tree, **options):
    return {finding.artifact for finding in _audit(tree, **options).findings}


def _audit(tree, **options):
    return audit(tree.root, repository=tree.repository, **options)


# What passes ------------------------------------------------------------------------------------


def test_a_tree_in_which_all_agrees_passes_completely(made):
    verdict = _audit(made)
    assert verdict.passed, verdict.findings
    assert verdict.coverage == 100 and verdict.phantom and not verdict.skipped
    files = [p for p in made.root.rglob("*") if p.is_file() and "logs" not in p.parts]
    assert verdict.total == len(files) + 1  # the published values lie in the repository
    assert verdict.temporary == len(FOLDS)  # the maps
    recomputed = {name for name in verdict.checks if "recomputed" in name}
    assert recomputed == {"splits recomputed", "AIR recomputed", "table cells recomputed"}


def test_what_a_run_leaves_beside_its_outputs_is_no_foreign_file(tree):
    for key in (
        "source.json",
        "README.md",
        "logs/make_table/other.log",
        "logs/audit/job.log",
        "benchmarks/register_scan/brats21/S0_FLAIR.tsv",
        "audit/audit.html",
        f"models/{EXPERIMENT}/ddpm/fold-0/checkpoint/state.json",
        f"validation/{TEST}.refused.html",
    ):
        tree.write(key, '{"source": "phantom"}')
    verdict = _audit(tree)
    assert verdict.passed, verdict.findings
    assert len(verdict.notes) == 3  # the training, the refusal, the maps
    assert any("a training is in progress" in note for note in verdict.notes)


def test_a_verdict_is_the_same_twice_and_tells_no_time_and_no_place(tree):
    first = _audit(tree).write(tree.root / "audit").read_bytes()
    again = _audit(tree).write(tree.root / "audit")
    assert again.read_bytes() == first
    text = (tree.root / "audit/audit.json").read_text()
    assert str(tree.root) not in text + first.decode()
    assert not re.search(r"20\d\d-\d\d-\d\dT", text)


def test_commits_that_differ_are_told_and_fail_nothing(tree, forge):
    forge.record("tables/table3.csv", lambda content: content["code"].update(commit="d" * 40))
    verdict = _audit(tree)
    assert verdict.passed and any("2 commits" in note for note in verdict.notes)
    assert verdict.code == {"c" * 40: verdict.records - 1, "d" * 40: 1}


# What fails -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        f"raw/{TEST}/S3/S3_flair.nii.gz",
        f"raw/{TEST}.manifest.tsv",
        f"participants/{TEST}.tsv",
        f"preprocessed/{TEST}/sub-S3/anat/sub-S3_FLAIR.mat",
        f"slices/{TEST}_FLAIR.safetensors",
        f"splits/{EXPERIMENT}/fold-0.tsv",
        f"air/{EXPERIMENT}/fold-1.json",
        f"thresholds/{EXPERIMENT}/{METHOD}/fold-0/{TEST}.json",
        f"metrics/{EXPERIMENT}/{METHOD}/fold-1/{TEST}.tsv",
        "tables/table3.tex",
        "config.resolved.yaml",
    ],
)
@pytest.mark.parametrize("how", ["flip", "delete"])
def test_a_changed_or_deleted_file_is_named_alone(tree, forge, key, how):
    forge.flip(key) if how == "flip" else tree.path(key).unlink()
    assert named(tree) == {key}


#: Records whose files other jobs read.
READ = [
    f"raw/{TEST}.manifest.tsv",
    f"preprocessed/{TEST}/sub-S3/anat/sub-S3_FLAIR.nii.gz",
    f"slices/{TEST}_FLAIR.safetensors",
    f"maps/{EXPERIMENT}/{METHOD}/fold-1/{TEST}.safetensors",
]


@pytest.mark.parametrize("key", [*READ, "tables/table3.csv", "config.resolved.yaml"])
def test_a_deleted_record_is_named_alone(tree, key):
    tree.path(f"{key}.prov.json").unlink()
    assert named(tree) == {f"{key}.prov.json"}


@pytest.mark.parametrize("key", READ)
def test_a_deleted_record_is_known_without_logs_from_the_readers_of_its_files(tree, key):
    shutil.rmtree(tree.root / "logs")
    tree.path(f"{key}.prov.json").unlink()
    assert named(tree) == {f"{key}.prov.json"}


@pytest.mark.parametrize("rule", [])
def test_the_deleted_record_of_a_rule_that_runs_once_is_named(tree, rule):
    """Its files need have neither folder nor name in common."""
    record = tree.job(rule, dict.fromkeys(_ONCE[rule], f"by {rule}"))
    tree.path(record).unlink()
    (finding,) = _audit(tree).findings
    assert finding.artifact == record and all(key in finding.why for key in _ONCE[rule])


def test_a_rest_of_a_method_that_the_config_no_longer_has_is_a_note(tree):
    cell = {"experiment": EXPERIMENT, "method": "older", "fold": "0", "test": TEST}
    key = f"reconstructions/{EXPERIMENT}/older/fold-0/{TEST}.safetensors"
    tree.job("reconstruct_volumes", {key: "older"}, wildcards=cell)
    verdict = _audit(tree)
    assert verdict.passed and any("left over: method older" in note for note in verdict.notes)


def test_a_record_of_an_older_format_is_named(tree):
    path = tree.path("tables/table3.csv.prov.json")
    path.write_text(path.read_text().replace('"format": 2', '"format": 1'))
    (finding,) = _audit(tree).findings
    assert finding.artifact == "tables/table3.csv.prov.json"
    assert "has format 1, not 2" in finding.why and "tables/table3.md" in finding.why


def test_a_raw_scan_outside_of_the_tree_is_what_its_readers_saw(tree):
    scan = tree.root.parent / "data" / "S9.nii.gz"
    scan.parent.mkdir()
    scan.write_bytes(b"scan")
    from uad.core.files import sha256

    said = {"path": "data/S9.nii.gz", "bytes": 4, "sha256": sha256(scan)}
    names = {"dataset": "mslub", "subject": "S9", "suffix": "T2w"}
    rows = "subject\tname\tmodality\timage\nS9\tS9\tT2\tdata/S9.nii.gz\n"
    tree.job("index_dataset", {"participants/mslub.tsv": rows}, wildcards={"dataset": "mslub"})
    for stage in ("skullstrip", "register"):
        tree.job(f"{stage}_other", {f"preprocessed/{stage}": stage}, wildcards=names, inputs=[])
        Forge(tree.root).record(f"preprocessed/{stage}", lambda c: c.update(inputs=[said]))
    index = "participants/mslub.tsv"
    assert named(tree) == {index}  # made with other settings than the config has
    scan.write_bytes(b"SCAN")
    assert named(tree) == {index, "external:data/S9.nii.gz"}
    scan.unlink()
    assert named(tree) == {index, "external:data/S9.nii.gz"}
    assert named(tree, omitted={"external:data/S9.nii.gz"}) == {index}


def test_a_reader_of_another_version_of_a_repository_file_is_named(tree, forge):
    """The file is named where nobody saw it as it is, else those who saw another."""
    published = "repository:resources/published/tables.csv"
    tree.job("make_other", {"other.txt": "other"}, [published])
    tree.path(published).write_text("changed")
    assert named(tree) == {published}
    tree.job("make_third", {"third.txt": "third"}, [published])
    assert named(tree) == {"tables/table3.csv", "other.txt"}


def test_the_older_of_two_versions_is_named_where_both_have_as_many(tree, forge):
    keys = [f"splits/{EXPERIMENT}/fold-{fold}.tsv" for fold in FOLDS]
    forge.record(keys[1], lambda content: content["code"].update(script_sha256="0" * 64))
    assert named(tree) == {keys[0]}


def test_phantom_and_real_are_not_mixed(tree):
    tree.write("source.json", '{"source": "real"}')
    assert named(tree) == {"source.json"}


def test_published_splits_may_have_a_subject_in_two_sets_if_they_say_so(tree, forge):
    """As a note; and never in one that is learned from and in one that is judged by."""
    key = f"splits/{EXPERIMENT}/fold-0.tsv"
    header = "dataset\tsubject\tname\trole\tweight\talso_in\n"
    names = {"experiment": "cross_T2", "fold": "0"}
    experiment = {"setting": "cross", "modality": "T2", "train": "ixi", "test": ["mslub"]}
    asked = {"experiment": experiment, "splits": {"kind": "reference"}}

    def split(*rows):
        lines = ["\t".join(("ixi", s, s, role, "1", also)) for s, role, also in rows]
        tree.write(key.replace(EXPERIMENT, "cross_T2"), header + "\n".join([*lines, ""]))
        outputs = [key.replace(EXPERIMENT, "cross_T2")]
        tree.job("make_splits", outputs, wildcards=names, params=asked)
        findings = {f.artifact: f.why for f in _audit(tree).findings}
        return findings[outputs[0]]

    kept = [("A", "train", "test_healthy"), ("A", "test_healthy", "train")]
    assert "is in" not in split(*kept)  # only its settings are not those of the config
    assert any("as in the published lists" in note for note in _audit(tree).notes)
    assert "is in train and in test" in split(("A", "train", "test"), ("A", "test", "train"))
    assert "is in train and in test_healthy" in split(*((s, role, "") for s, role, _ in kept))


# What is no fault of the run --------------------------------------------------------------------


def notes(tree, **options):
    verdict = _audit(tree, **options)
    assert verdict.passed, verdict.findings
    return " ".join(verdict.notes)


def test_what_a_killed_job_left_is_a_note(tree):
    tree.write("metrics/.tmp-node-1-brats21.tsv", "half")
    tree.write("metrics/.tmp-node-1-brats21.tsv.prov.json", "{")
    assert "metrics/.tmp-node-1-brats21.tsv: left by a killed job" in notes(tree)


def test_maps_that_the_config_keeps_since_are_a_note(tree, forge):
    """run.keep_reconstructions was set after the run that deleted them."""
    forge.replace("config.resolved.yaml", "run:\n", "run:\n  keep_reconstructions: true\n")
    forge.rehash("config.resolved.yaml")
    assert "2 reconstructions and anomaly maps are not here" in notes(tree)


def _scan_of_nobody(tree):
    """A registered scan of somebody who is not in the participants table (any more)."""
    names = {"dataset": TEST, "subject": "S99", "suffix": "FLAIR"}
    key = f"preprocessed/{TEST}/sub-S99/anat/sub-S99_FLAIR.nii.gz"
    raw = f"raw/{TEST}/S3/S3_flair.nii.gz"
    tree.job("register_scan", {key: "S99"}, [raw], wildcards=names, params={"spacing": 7})
    return key


def test_scans_that_a_decision_excludes_since_are_a_note(tree, forge):
    key = _scan_of_nobody(tree)
    text = notes(tree)
    assert f"left over: scans of {TEST} that its participants table does not list" in text
    assert f"(1 file, such as {key})" in text
    forge.flip(key)
    assert named(tree) == {key}  # its hash is still compared


def test_a_scan_that_a_result_was_made_from_is_never_left_over(tree, forge):
    """A participants table without it hides nothing."""
    key = _scan_of_nobody(tree)

    def read(content):
        content["inputs"].append(tree._entry(key))

    forge.record(f"slices/{TEST}_FLAIR.safetensors", read)
    assert key in named(tree)


@pytest.mark.parametrize(
    ("names", "key", "what"),
    [
        ({"experiment": EXPERIMENT, "fold": "7"}, "splits/{experiment}/fold-7.tsv", "fold 7 of"),
        ({"experiment": "older", "fold": "0"}, "splits/older/fold-0.tsv", "experiment older"),
        ({"dataset": "older", "modality": "T2"}, "slices/older_T2.safetensors", "dataset older"),
        (
            {"dataset": TEST, "modality": "FLAIR", "sheet": "2"},
            f"qc/packed/{TEST}_FLAIR_sheet-2.webp",
            f"sheets of pictures of {TEST} FLAIR",
        ),
    ],
)
def test_what_an_earlier_config_left_is_a_note(tree, names, key, what):
    key = key.format(**names)
    tree.job("make_other", {key: "older"}, wildcards=names, params={"seed": 0})
    assert f"left over: {what}" in notes(tree)


def test_a_stage_folder_may_be_a_link(tree):
    elsewhere = tree.root.parent / "scratch"
    (tree.root / "preprocessed").rename(elsewhere)
    (tree.root / "preprocessed").symlink_to(elsewhere)
    (elsewhere / "loop").symlink_to(tree.root)
    before = _audit(tree)
    assert before.passed, before.findings
    tree.write(f"preprocessed/{TEST}/foreign.nii.gz", "foreign")
    assert named(tree) == {f"preprocessed/{TEST}/foreign.nii.gz"}


def test_decisions_that_changed_since_are_a_note(tree):
    text = f"dataset\tsubject\tmodality\tverdict\treason\n{TEST}\tS1\t*\texclude\tblurred\n"
    (tree.root.parent / "qc_decisions.tsv").write_text(text)
    assert "decisions of the quality control were changed" in notes(tree)


# Whose scan -------------------------------------------------------------------------------------


def test_a_copied_record_is_named(tree):
    key = f"metrics/{EXPERIMENT}/{METHOD}/fold-0/{TEST}.tsv.prov.json"
    shutil.copy(tree.path(key), tree.root / "metrics/copy.tsv.prov.json")
    assert named(tree) == {"metrics/copy.tsv.prov.json"}


def test_a_scan_that_was_made_from_another_subject_is_named(tree, forge):
    scan = f"preprocessed/{TEST}/sub-S3/anat/sub-S3_FLAIR.nii.gz"

    def read(content):
        content["inputs"] = [tree._entry(f"raw/{TEST}/S4/S4_flair.nii.gz")]

    forge.record(scan, read)
    assert named(tree) == {scan}


def test_real_raw_data_may_lie_in_the_tree(tree):
    """As ``results/raw/mslub``, with files that no job reads beside the scans."""
    scan = "raw/mslub/S9.nii.gz"
    tree.write(scan, "scan")
    tree.write("raw/mslub/readme.pdf", "of the data set")
    rows = f"subject\tname\tmodality\timage\nS9\tS9\tT2\tresults/{scan}\n"
    names, index = {"dataset": "mslub"}, "participants/mslub.tsv"
    asked = {"root": "results/raw/mslub"}
    tree.job("index_dataset", {index: rows}, wildcards=names, params=asked)
    names = {**names, "subject": "S9", "suffix": "T2w"}
    tree.job("register_other", {"preprocessed/S9": "S9"}, [scan], wildcards=names)
    assert named(tree) == {index}  # made with other settings than the config has
    tree.write(scan, "SCAN")
    assert named(tree) == {index, scan}


def test_raw_data_that_were_left_behind_are_counted(tree):
    shutil.rmtree(tree.root / "raw" / TEST)
    assert len(named(tree)) == len(SUBJECTS)
    assert f"{len(SUBJECTS)} raw files are not here" in notes(tree, omitted=is_raw)


def test_the_kind_of_data_is_known_without_the_config(tree, forge):
    tree.write("source.json", '{"source": "phantom"}')
    forge.flip("config.resolved.yaml")
    assert _audit(tree).phantom


def test_a_failing_record_without_files_is_in_the_coverage(tree):
    tree.write("foreign.txt", "foreign")
    (stage,) = (s for s in _audit(tree).stages if s.name == "other files")
    assert stage.failed == 1


def test_a_verdict_that_cannot_be_written_is_still_told(root, tree, tmp_path):
    tree.write("audit", "a file where the folder would be")
    Forge(tree.root).record("tables/table3.csv", lambda c: c["inputs"].pop())
    done = _script(root, tree.root)
    assert "PASSED" in done.stdout and "could not be written" in done.stdout
    assert done.returncode == 0
    done = _script(root, tree.root, "--output", tmp_path / "pages")
    assert (tmp_path / "pages/audit.html").is_file() and done.returncode == 0


@pytest.mark.parametrize(
    ("recorded", "wanted"),
    [("results", "."), ("./out/results/", ".."), ("/else/results", "."), ("../results", ".")],
)
def test_relative_paths_begin_where_the_run_was_started(tmp_path, recorded, wanted):
    """Never in the directory that the audit is called from."""
    root = tmp_path / "moved" / "renamed"
    root.mkdir(parents=True)
    assert working_directory(root, recorded) == (root.parent / wanted).resolve()


@pytest.mark.parametrize(
    ("rule", "params"),
    [
        ("train_model", {"data", "noise_field", "draw", "keep", "loop"}),
        ("reconstruct_volumes", {"noise_field", "batch", "t_test"}),
        ("predict_brain_masks", {"backend", "network"}),
    ],
)
def test_settings_that_results_depend_on_are_compared(made, rule, params):
    from uad.audit.settings import expected

    cfg = uad_config.load_files([made.path("config.resolved.yaml")])
    names = {"dataset": TEST, "experiment": EXPERIMENT, "method": "ddpm", "fold": "0", "test": TEST}
    asked = type("Asked", (), {"rule": rule, "wildcards": names, "params": {}})
    assert params <= set(expected(cfg, asked))


# Whom to tell -----------------------------------------------------------------------------------


def test_page_and_terminal_say_how_it_ends_and_name_what_fails(tree, forge):
    forge.flip("tables/table3.csv")
    tree.write("figures/<b>.png", "foreign")
    verdict = _audit(tree)
    text, html = verdict.text(), verdict.page()
    assert text.splitlines()[-1].startswith("FAILED: ") and "2 do not hold" in text
    assert "  tables/table3.csv: changed. Its content is not" in text
    assert "phantom data" in html and html.count("<h1>") == 1
    assert "figures/&lt;b&gt;.png" in html and "<script" not in html
    assert "PASSED" not in html + text


def test_coverage_is_not_rounded_up(tree):
    tree.path("participants/brats21.tsv.prov.json").unlink()
    verdict = _audit(tree)
    assert verdict.coverage < 100 and "(100 %)" not in verdict.text()


def _script(root, *arguments):
    command = [sys.executable, "-m", "uad", "audit", *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


def test_the_script_ends_with_the_verdict(root, tree):
    # the tree's repository file is not that of this repository
    done = _script(root, tree.root)
    assert done.returncode == 1
    assert "repository:resources/published/tables.csv: input changed" in done.stdout
    content = json.loads((tree.root / "audit/audit.json").read_text())
    assert not content["passed"] and len(content["findings"]) == 1
    Forge(tree.root).record("tables/table3.csv", lambda c: c["inputs"].pop())
    done = _script(root, tree.root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASSED" in done.stdout and "(100 %)" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "usage"),
        (["--unknown", "results"], 2, "usage"),
        (["nowhere"], 1, "nowhere: no such folder"),
    ],
)
def test_the_script_tells_how_it_is_used(root, arguments, status, message):
    done = _script(root, *arguments)
    assert done.returncode == status and message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_without_usable_records_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no record"):
        audit(tmp_path)
    write_json(tmp_path / "a.txt.prov.json", {"format": 1, "rule": "make_table"})
    with pytest.raises(DataError, match=r"none of its 1 records can be used; .* has format 1"):
        audit(tmp_path)
