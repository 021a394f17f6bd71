"""The audit of a small tree that is written at once: what passes, what is named, what is a note."""

import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml

from tools.result_trees import LOCK, Forge, ResultTree, uad
from uad import config as uad_config
from uad.air import air_statistics
from uad.audit.settings import expected
from uad.audit.tree import is_raw
from uad.audit.verdict import audit
from uad.core.errors import DataError
from uad.core.files import read_json, sha256, write_json, write_tsv
from uad.core.records import working_directory
from uad.evaluate import evaluate_volume, search_threshold
from uad.preprocess.slices import read_store, subjects_in, write_store, write_volumes
from uad.report.metric_files import collect_metrics
from uad.report.metrics_table import summarise_metrics, with_facts
from uad.report.table_spec import TableSpec
from uad.splits import intra_dataset, subjects_of

EXPERIMENT, TEST, METHOD = "intra_FLAIR", "brats21", "thresh"
FOLDS, SUBJECTS = (0, 1), [f"S{n}" for n in range(8)]
CONFIG, TABLE = "config.resolved.yaml", "tables/table3.csv"
PUBLISHED = "repository:resources/published/tables.csv"
MANIFEST, PEOPLE = f"raw/{TEST}.manifest.tsv", f"participants/{TEST}.tsv"
STORE = f"slices/{TEST}_FLAIR.safetensors"
SPLITS = [f"splits/{EXPERIMENT}/fold-{fold}.tsv" for fold in FOLDS]
AIR = [f"air/{EXPERIMENT}/fold-{fold}.json" for fold in FOLDS]
CELLS = [f"{EXPERIMENT}/{METHOD}/fold-{fold}/{TEST}" for fold in FOLDS]
MAPS = [f"maps/{cell}.safetensors" for cell in CELLS]
THRESHOLDS = [f"thresholds/{cell}.json" for cell in CELLS]
METRICS = [f"metrics/{cell}.tsv" for cell in CELLS]
READINESS = [f"readiness/{cell}.json" for cell in CELLS]


def raw(subject):
    return f"raw/{TEST}/{subject}/{subject}_flair.nii.gz"


def scan(subject):
    return f"preprocessed/{TEST}/sub-{subject}/anat/sub-{subject}_FLAIR.nii.gz"


class Run(ResultTree):
    """A run of two folds of one method, as the config says and with numbers that agree."""

    def __init__(self, root, project):
        super().__init__(root)
        overlays = (project / "config.yaml", project / "tests/e2e/config.yaml")
        content = uad_config.merged(*(yaml.safe_load(path.read_text()) for path in overlays))
        content["tables"]["table3"] |= {"rows": [METHOD], "claims": []}
        self.job("save_config", {CONFIG: yaml.safe_dump(content)}, params={"config": "whole"})
        self.cfg = uad_config.load_files([self.path(CONFIG)])
        self.write("repository:uv.lock", LOCK)
        self.write("repository:resources/published/tables.csv",
                   "table,row,experiment,test_dataset,metric,mean,std,source\n")  # fmt: skip
        self.data()
        for fold in FOLDS:
            self.fold(fold)
        self.table()

    def asked(self, rule, outputs, inputs=(), wildcards=None, **params):
        """A job with the params that the config asks for."""
        names = wildcards or {}
        of_config = expected(self.cfg, SimpleNamespace(rule=rule, wildcards=names, params={}))
        params = {**of_config, "seed": self.cfg.seed, **params}
        self.job(rule, outputs, inputs, wildcards=names, params=params)

    def data(self):
        rows = []
        for subject in SUBJECTS:
            path = self.write(raw(subject), f"scan of {subject}")
            rows.append({"path": raw(subject).removeprefix(f"raw/{TEST}/"), "sha256": sha256(path)})
        write_tsv(self.path(MANIFEST), pd.DataFrame(rows))
        names = {"dataset": TEST}
        self.asked("make_phantom", [MANIFEST], wildcards=names)
        people = {"subject": SUBJECTS, "name": SUBJECTS, "site": TEST, "modality": "FLAIR"}
        people |= {"image": [f"results/{raw(s)}" for s in SUBJECTS], "lesion": ""}
        write_tsv(self.path(PEOPLE), pd.DataFrame(people))
        self.asked("index_dataset", [PEOPLE], [MANIFEST], names)
        for subject in SUBJECTS:
            outputs = {scan(subject): subject, scan(subject).replace("nii.gz", "mat"): subject}
            of_scan = {**names, "subject": subject, "suffix": "FLAIR"}
            self.asked("register_scan", outputs, [raw(subject)], of_scan)
        write_store(self.path(STORE), SUBJECTS, [volume(n) for n in range(len(SUBJECTS))])
        inputs = [*map(scan, SUBJECTS), PEOPLE]
        self.asked("pack_slices", [STORE], inputs, {**names, "modality": "FLAIR"})

    def fold(self, fold):
        place = {"experiment": EXPERIMENT, "fold": str(fold)}
        cell = {**place, "method": METHOD, "test": TEST}
        people = pd.read_csv(self.path(PEOPLE), sep="\t", keep_default_na=False)
        roles = intra_dataset(TEST, people, fold, 5, seed=42)
        write_tsv(self.path(SPLITS[fold]), roles)
        self.asked("make_splits", [SPLITS[fold]], [PEOPLE], place)
        validation = subjects_of(roles, TEST, "val_unhealthy")
        part = read_store(self.path(STORE), validation)
        asked = self.cfg.air_reference_of(EXPERIMENT), self.cfg.protocol.air_rule
        air = {
            "experiment": EXPERIMENT,
            "fold": fold,
            **air_statistics({TEST: part}, "FLAIR", *asked),
        }
        write_json(self.path(AIR[fold]), air)
        self.asked("compute_air", [AIR[fold]], [SPLITS[fold], STORE], place)
        errors = {"test": {"n_volumes": 1, "dssim": 0.2 + 0.1 * fold}}
        write_json(self.path(READINESS[fold]), {"experiment": EXPERIMENT, "method": METHOD,
                   "fold": fold, "test_dataset": TEST, "roles": errors})  # fmt: skip
        self.asked("score_volumes", {MAPS[fold]: "maps", READINESS[fold]: None}, [STORE], cell)
        found = search_threshold(list(part.volumes), list(part.lesions))
        write_json(self.path(THRESHOLDS[fold]), {**vars(found), "subjects": validation})
        self.asked("search_threshold", [THRESHOLDS[fold]], [MAPS[fold], STORE], cell)
        tested = read_store(self.path(STORE), subjects_of(roles, TEST, "test"))
        shared = {"experiment": EXPERIMENT, "method": METHOD, "fold": fold, "test_dataset": TEST}
        volumes = zip(tested.subjects, tested.volumes, tested.masks, tested.lesions, strict=True)
        job = SimpleNamespace(rule="evaluate_volumes", wildcards=cell, params={})
        options = found.threshold, 0, expected(self.cfg, job)["voxel_mm"]
        rows = [
            {**shared, "subject": subject, **evaluate_volume(v, lesion, mask, *options)}
            for subject, v, mask, lesion in volumes
        ]
        write_tsv(self.path(METRICS[fold]), pd.DataFrame(rows))
        inputs = [MAPS[fold], STORE, THRESHOLDS[fold]]
        self.asked("evaluate_volumes", [METRICS[fold]], inputs, cell)
        self.path(MAPS[fold]).unlink()  # as a run does after use

    def table(self):
        from uad.report.metric_files import collect_metrics, read_published
        from uad.report.tables import collect_readiness, summarise

        spec = TableSpec("table3", "A table", [METHOD], {(EXPERIMENT, TEST): "BraTS21"}, {})
        frame = collect_metrics([self.path(key) for key in METRICS])
        found = collect_readiness(map(self.path, READINESS))
        published = read_published(self.path(PUBLISHED))
        summary = summarise(frame, spec, published, phantom=True, readiness=found)
        self.path(TABLE).parent.mkdir()
        summary.to_csv(self.path(TABLE), index=False, float_format="%.4f")
        outputs = {TABLE: None, "tables/table3.md": "a page"}
        names = {"table": "table3"}
        inputs = [*METRICS, *READINESS, PUBLISHED]
        self.asked("make_table", outputs, inputs, names, phantom=True)


def volume(number):
    """A volume (6, 6, 4) with a bright lesion of its own size, its brain and its lesion."""
    rng = np.random.default_rng(number)
    content = rng.uniform(0.2, 0.4, (6, 6, 4)).astype(np.float16)
    lesion = np.zeros(content.shape, dtype=np.uint8)
    lesion[1 : 3 + number % 3, 1:4, 1] = 1
    content[lesion > 0] = 0.8 + 0.02 * number
    return content, np.ones_like(lesion), lesion


@pytest.fixture(scope="module")
def made(tmp_path_factory, root):
    return Run(tmp_path_factory.mktemp("audit") / "results", root)


@pytest.fixture
def run(made, tmp_path):
    """A copy that a test may spoil."""
    return made.copied(tmp_path)


@pytest.fixture
def forge(run):
    return Forge(run.root)


def audited(run, **options):
    return audit(run.root, repository=run.repository, **options)


def named(run, **options):
    """The artifacts that fail."""
    return {finding.artifact for finding in audited(run, **options).findings}


def notes(run, **options):
    """The notes of a tree that passes."""
    verdict = audited(run, **options)
    assert verdict.passed, verdict.findings
    return " ".join(verdict.notes)


# What passes


def test_a_tree_in_which_all_agrees_passes_completely(made):
    verdict = audited(made)
    assert verdict.passed, verdict.findings
    assert verdict.coverage == 100 and verdict.phantom and not verdict.skipped
    files = [p for p in made.root.rglob("*") if p.is_file() and "logs" not in p.parts]
    assert verdict.count("total") == len(files) + 1  # the published values are in the repository
    assert verdict.count("temporary") == len(MAPS)
    recomputed = {name for name in verdict.checks if "recomputed" in name}
    assert recomputed == {"splits recomputed", "AIR recomputed", "table cells recomputed"}


def test_what_a_run_leaves_beside_its_outputs_fails_nothing(run):
    for key in (
        "source.json",
        "README.md",
        "logs/make_table/other.log",
        "logs/audit/job.log",
        "benchmarks/register_scan/brats21/S0_FLAIR.tsv",
        "audit/audit.html",
        f"models/{EXPERIMENT}/ddpm/fold-0/checkpoint/state.json",
        f"validation/{TEST}.refused.html",
        "metrics/.tmp-node-1-brats21.tsv",
        "metrics/.tmp-node-1-brats21.tsv.prov.json",
    ):
        run.write(key, '{"source": "phantom"}')
    found = notes(run)
    assert "a training is in progress" in found and "a validation refused a data set" in found
    assert "metrics/.tmp-node-1-brats21.tsv: left by a killed job" in found


def test_a_verdict_is_the_same_twice_and_tells_no_time_and_no_place(run):
    first = audited(run).write(run.root / "audit").read_bytes()
    assert audited(run).write(run.root / "audit").read_bytes() == first
    text = (run.root / "audit/audit.json").read_text() + first.decode()
    assert str(run.root) not in text and not re.search(r"20\d\d-\d\d-\d\dT", text)


LEFT_OVER = [
    ({"experiment": EXPERIMENT, "fold": "7"}, "splits/{experiment}/fold-7.tsv", "fold 7 of"),
    ({"experiment": "older", "fold": "0"}, "splits/older/fold-0.tsv", "experiment older"),
    ({"method": "older", "test": TEST}, "reconstructions/x.safetensors", "method older"),
    ({"dataset": "older", "modality": "T2"}, "slices/older_T2.safetensors", "dataset older"),
    ({"dataset": TEST, "subject": "S99", "suffix": "FLAIR"}, scan("S99"),
     f"scans of {TEST} that its participants table does not list"),
    ({"dataset": TEST, "modality": "FLAIR", "sheet": "2"}, "qc/packed/sheet-2.webp",
     f"sheets of pictures of {TEST} FLAIR"),
]  # fmt: skip


def test_what_an_earlier_config_or_selection_left_is_a_note(run, forge):
    for names, key, _ in LEFT_OVER:
        run.job("make_other", {key.format(**names): "older"}, wildcards=names, params={"seed": 0})
    found = notes(run)
    assert all(f"left over: {what}" in found for *_, what in LEFT_OVER)
    forge.flip(scan("S99"))
    assert named(run) == {scan("S99")}  # its hash is still compared


def test_what_a_result_was_made_from_is_never_left_over(run, forge):
    names = {"dataset": TEST, "subject": "S99", "suffix": "FLAIR"}
    run.job("register_scan", {scan("S99"): "S99"}, [raw("S3")], wildcards=names)
    forge.record(STORE, lambda content: content["inputs"].append(run.entry(scan("S99"))))
    assert scan("S99") in named(run)


def test_a_stage_folder_may_be_a_link(run):
    elsewhere = run.root.parent / "scratch"
    (run.root / "preprocessed").rename(elsewhere)
    (run.root / "preprocessed").symlink_to(elsewhere)
    (elsewhere / "loop").symlink_to(run.root)
    run.write(f"preprocessed/{TEST}/foreign.nii.gz", "foreign")
    assert named(run) == {f"preprocessed/{TEST}/foreign.nii.gz"}


def test_raw_data_that_were_left_behind_fail_unless_that_was_said(run):
    shutil.rmtree(run.root / "raw" / TEST)
    assert named(run) == set(map(raw, SUBJECTS))
    assert f"{len(SUBJECTS)} raw files are not here" in notes(run, omitted=is_raw)


# Files and records


ONE_OF_EACH = [raw("S3"), MANIFEST, PEOPLE, scan("S4"), STORE, SPLITS[0], AIR[1], THRESHOLDS[0],
               METRICS[1], "tables/table3.md", CONFIG]  # fmt: skip


@pytest.mark.parametrize("how", ["changed", "deleted"])
def test_changed_and_deleted_files_are_named_and_nothing_else(run, forge, how):
    for key in ONE_OF_EACH:
        forge.flip(key) if how == "changed" else run.path(key).unlink()
    assert named(run) == set(ONE_OF_EACH)


@pytest.mark.parametrize("place", [0.01, 0.3, 0.95])
def test_a_flipped_byte_in_a_record_is_named(run, forge, place):
    """With the files that it no longer explains, where it cannot be read any more."""
    keys = (TABLE, SPLITS[0], STORE, scan("S3"))
    explained = {f["path"].removeprefix("results/") for k in keys for f in run.record(k)["outputs"]}
    records = {f"{key}.prov.json" for key in keys}
    for record in records:
        forge.flip(record, int(place * run.path(record).stat().st_size))
    assert records <= named(run) <= records | explained


def test_foreign_files_are_named(run):
    foreign = {
        "notes.txt",
        "tables/table9.csv",
        "tables/table3.bak.csv",
        f"metrics/{EXPERIMENT}/{METHOD}/fold-0/mslub.tsv",
        f"raw/{TEST}/S3/S3_t1.nii.gz",
        "logs/no_such_rule/job.log",
        scan("S3").replace("FLAIR.nii.gz", "T1w.json"),
    }
    for key in foreign:
        run.write(key, "foreign")
    assert named(run) == foreign


@pytest.mark.parametrize("forged", [False, True])
def test_a_swapped_pair_of_scans_is_named(run, forge, forged):
    """Also with the records of the jobs that wrote them made to fit."""
    pair = [scan("S3"), scan("S4")]
    one, other = (run.path(key).read_bytes() for key in pair)
    for key, content in zip(pair, (other, one), strict=True):
        run.write(key, content)
        if forged:
            forge.rehash(key, inputs=False)
    assert named(run) == set(pair)


def test_files_left_out_on_purpose_do_not_fail_unless_they_are_there_and_changed(run, forge):
    """As in a crate without images: what needs them is listed as not checked."""
    forge.flip(STORE)
    assert named(run, omitted={STORE}) == {STORE}
    run.path(STORE).unlink()
    verdict = audited(run, omitted={STORE})
    assert verdict.passed and verdict.count("omitted") == 1 and verdict.coverage == 100
    assert any(AIR[0] in text for text in verdict.skipped)
    assert verdict.checks["table cells recomputed"] > 0


def test_files_whose_record_is_deleted_are_named(run):
    """Also those that are deleted after use, by what was made from them."""
    lost = set()
    for key in (MANIFEST, scan("S3"), MAPS[1], CONFIG):
        lost |= {file["path"].removeprefix("results/") for file in run.record(key)["outputs"]}
        run.path(f"{key}.prov.json").unlink()
    assert named(run) == lost


def test_records_that_cannot_be_relied_on_are_named(run, forge):
    record = f"{TABLE}.prov.json"
    forge.replace(record, '"seconds": 1.0', '"seconds": 2.0')
    shutil.copy(run.path(f"{METRICS[0]}.prov.json"), run.root / "metrics/copy.tsv.prov.json")
    run.path(f"{SPLITS[0]}.prov.json").write_text("{")
    forge.replace(f"{SPLITS[1]}.prov.json", '"format": 2', '"format": 1')
    found = {f.artifact: f.why for f in audited(run).findings}
    assert set(found) == {
        record, "metrics/copy.tsv.prov.json", *(f"{key}.prov.json" for key in SPLITS)
    }  # fmt: skip
    assert "was edited" in found[record] and "is damaged" in found[f"{SPLITS[0]}.prov.json"]
    assert "not beside that file" in found["metrics/copy.tsv.prov.json"]
    assert "has format 1, not 2" in found[f"{SPLITS[1]}.prov.json"]


def test_a_raw_scan_outside_of_the_tree_is_what_its_readers_saw(run):
    path, key = run.root.parent / "data/S9.nii.gz", "external:data/S9.nii.gz"
    path.parent.mkdir()
    path.write_bytes(b"scan")
    said = {"path": "data/S9.nii.gz", "bytes": 4, "sha256": sha256(path)}
    for stage in ("one", "two"):
        run.job(f"read_{stage}", {f"preprocessed/{stage}": stage})
        Forge(run.root).record(f"preprocessed/{stage}", lambda c: c.update(inputs=[said]))
    assert named(run) == set()
    path.write_bytes(b"SCAN")
    assert named(run) == {key}
    path.unlink()
    assert named(run) == {key} and named(run, omitted={key}) == set()


def test_real_raw_data_may_lie_in_the_tree(run):
    """As ``results/raw/mslub``, with files that no job reads beside the scans."""
    own, index = "raw/mslub/S9.nii.gz", "participants/mslub.tsv"
    run.write(own, "scan")
    run.write("raw/mslub/readme.pdf", "of the data set")
    rows = f"subject\tname\tmodality\timage\nS9\tS9\tT2\tresults/{own}\n"
    params = {"root": "results/raw/mslub"}
    run.job("index_dataset", {index: rows}, wildcards={"dataset": "mslub"}, params=params)
    run.job("register_other", {"preprocessed/S9": "S9"}, [own])
    assert named(run) == {index}  # made with other settings than the config has
    run.write(own, "SCAN")
    assert named(run) == {index, own}


def test_readers_of_another_version_of_a_repository_file_are_named(run):
    """The file is named where nobody saw it as it is, else those who saw another."""
    run.job("make_other", {"other.txt": "other"}, [PUBLISHED])
    run.path(PUBLISHED).write_text("changed")
    assert named(run) == {PUBLISHED}
    run.job("make_third", {"third.txt": "third"}, [PUBLISHED])
    assert named(run) == {TABLE, "other.txt"}


def test_what_was_made_from_an_older_version_is_named_and_so_is_what_was_replaced(run, forge):
    before = run.path(THRESHOLDS[0]).read_text()
    forge.replace(THRESHOLDS[0], '"threshold": ', '"threshold":  ')
    forge.rehash(THRESHOLDS[0], inputs=False)
    assert named(run) == {THRESHOLDS[0]}  # its record says that it was there before
    forge.record(THRESHOLDS[0], lambda content: content.update(started="2099-01-01T00:00:00Z"))
    assert named(run) == {METRICS[0]} and before != run.path(THRESHOLDS[0]).read_text()


def test_phantom_and_real_are_not_mixed(run, forge):
    run.write("source.json", '{"source": "real"}')
    assert named(run) == {"source.json"}
    run.write("source.json", '{"source": "phantom"}')
    forge.flip(CONFIG)
    assert audited(run).phantom  # the marker tells, too


# Versions and settings


def test_other_versions_than_those_of_the_neighbours_are_named(run, forge):
    forge.record(METRICS[0], lambda c: c["code"]["library_files"].update({"core/files.py": "0"}))
    forge.record(scan("S3"), lambda c: c["environment"].update(numpy="1.0"))
    # of two with as many the older is named
    forge.record(SPLITS[1], lambda c: c["code"].update(script_sha256="0" * 64))
    assert named(run) == {METRICS[0], scan("S3"), SPLITS[0], "repository:uv.lock"}


def test_other_versions_than_those_of_the_lock_are_named_with_the_jobs(run, forge):
    """Also where all jobs agree: a path or an active conda slipped them in."""
    for record in run.root.rglob("*.prov.json"):
        key = record.relative_to(run.root).as_posix()
        forge.record(key, lambda c: c["environment"].update(numpy="1.26.4", python="3.9.1"))
    (finding,) = audited(run).findings
    assert finding.artifact == "repository:uv.lock"
    number = len(list(run.root.rglob("*.prov.json")))
    assert f"It has numpy 2.3.5; {number} jobs ran with 1.26.4: compute_air (air/" in finding.why
    assert "It has python >=3.11, <3.14" in finding.why
    run.write("repository:uv.lock", LOCK + "\n")  # not the one that was recorded
    assert any("versions of packages" in text for text in audited(run).skipped)


def test_other_settings_than_those_of_the_config_are_named(run, forge):
    for key, param, value in [
        (THRESHOLDS[0], "search", "exact"),
        (METRICS[0], "component_max_size", 9),
        (scan("S3"), "spacing", 1.0),
        (AIR[0], "seed", 1),
    ]:
        forge.record(key, lambda c, param=param, value=value: c["params"].update({param: value}))
    assert named(run) == {THRESHOLDS[0], METRICS[0], scan("S3"), AIR[0]}


def test_a_config_that_no_artifact_was_made_with_is_named_alone(run, forge):
    seed = yaml.safe_load(run.path(CONFIG).read_text())["seed"]
    forge.replace(CONFIG, f"\nseed: {seed}", f"\nseed: {seed + 1}")
    forge.rehash(CONFIG)
    assert named(run) == {CONFIG}


def test_other_params_than_those_of_the_neighbours_are_named(run):
    for fold in "012":
        names = {"experiment": EXPERIMENT, "fold": "0", "batch": fold}
        run.job("other", {f"{fold}.txt": "x"}, wildcards=names, params={"size": fold == "2"})
    assert named(run) == {"2.txt"}


# Who is in which set


def test_a_scan_that_was_made_from_another_subject_is_named(run, forge):
    forge.record(scan("S3"), lambda content: content.update(inputs=[run.entry(raw("S4"))]))
    assert named(run) == {scan("S3")}


def test_a_subject_in_two_sets_is_named(run, forge):
    lines = run.path(SPLITS[0]).read_text().splitlines()
    leaked = next(line for line in lines if "\ttrain\t" in line).replace("\ttrain\t", "\ttest\t")
    run.path(SPLITS[0]).write_text("\n".join([*lines, leaked, ""]))
    forge.rehash(SPLITS[0])
    (finding,) = audited(run).findings
    assert finding.artifact == SPLITS[0] and "is in train and in test" in finding.why


def test_roles_that_seed_and_sizes_do_not_give_are_named(run, forge):
    text = run.path(SPLITS[0]).read_text().replace("\ttest\t", "\t?\t", 1)
    text = text.replace("\ttrain\t", "\ttest\t", 1).replace("\t?\t", "\ttrain\t")
    run.path(SPLITS[0]).write_text(text)
    forge.rehash(SPLITS[0])
    assert SPLITS[0] in named(run) <= set(SPLITS)  # or the other fold tests the same subject


def test_published_splits_may_have_a_subject_in_two_sets_if_they_say_so(run):
    """As a note; and never in one that is learned from and in one that is judged by."""
    key, names = "splits/cross_T2/fold-0.tsv", {"experiment": "cross_T2", "fold": "0"}
    experiment = {"setting": "cross", "modality": "T2", "train": "ixi", "test": ["mslub"]}
    asked = {"experiment": experiment, "splits": {"kind": "reference"}}

    def why(*rows):
        lines = ["\t".join(("ixi", s, s, role, "1", also)) for s, role, also in rows]
        head = "dataset\tsubject\tname\trole\tweight\talso_in\n"
        run.job("make_splits", {key: head + "\n".join([*lines, ""])}, wildcards=names, params=asked)
        return {f.artifact: f.why for f in audited(run).findings}[key]

    kept = [("A", "train", "test_healthy"), ("A", "test_healthy", "train")]
    assert "is in" not in why(*kept)  # only its settings are not those of the config
    assert any("as in the published lists" in note for note in audited(run).notes)
    assert "is in train and in test" in why(("A", "train", "test"), ("A", "test", "train"))
    assert "is in train and in test_healthy" in why(*((s, role, "") for s, role, _ in kept))


def test_thresholds_and_metrics_of_other_subjects_than_the_splits_are_named(run, forge):
    used = read_json(run.path(THRESHOLDS[0]))["subjects"][0]
    tested = pd.read_csv(run.path(METRICS[1]), sep="\t")["subject"][0]
    forge.replace(THRESHOLDS[0], f'"{used}"', '"S99"')
    forge.replace(METRICS[1], f"\t{tested}\t", "\tS99\t")
    for key in (THRESHOLDS[0], METRICS[1]):
        forge.rehash(key)
    found = {f.artifact: f.why for f in audited(run).findings}
    assert "used S99, whom the split has in no set" in found[THRESHOLDS[0]]
    assert f"has {tested} of test 0 times" in found[METRICS[1]]
    assert set(found) <= {THRESHOLDS[0], METRICS[1], TABLE}


def test_healthy_test_scans_of_others_than_the_splits_are_named(run):
    """Their reconstructions and maps are deleted after use."""
    rows = "dataset\tsubject\tname\trole\tweight\talso_in\nixi\tA\tA\ttest_healthy\t1\t\n"
    split, key = "splits/cross_T2/fold-0.tsv", "healthy/cross_T2/thresh/fold-0/mslub.tsv"
    names = {"experiment": "cross_T2", "fold": "0"}
    run.asked("make_splits", {split: rows}, wildcards=names)
    cell = {**names, "method": "thresh", "test": "mslub"}
    maps = key.replace(".tsv", ".maps.safetensors")
    run.asked("score_healthy", {maps: "maps"}, wildcards=cell)
    for subject in "AB":
        scans = f"subject\thealthy\n{subject}\tTrue\nM\tFalse\n"
        run.asked("evaluate_healthy", {key: scans}, [maps], cell)
        found = {finding.artifact: finding.why for finding in audited(run).findings}
        assert ("used B, whom the split has in no set" in found.get(key, "")) == (subject == "B")
    run.path(maps).unlink()
    assert maps not in named(run)


# Computed again


def store_with(run, names=None, volumes=None):
    """The slice store with other names or another order of volumes."""
    from safetensors.numpy import load_file, save_file

    arrays, there = load_file(run.path(STORE)), subjects_in(run.path(STORE))
    arrays = {key: array[volumes or range(len(there))] for key, array in arrays.items()}
    metadata = {"subjects": json.dumps([there[i] for i in names or range(len(there))])}
    save_file(arrays, run.path(STORE), metadata=metadata)
    Forge(run.root).rehash(STORE)


def test_volumes_exchanged_in_a_store_contradict_what_was_made_from_it(run):
    """All hashes and names fit; AIR and metrics were measured on the volumes as they were."""
    roles = pd.read_csv(run.path(SPLITS[0]), sep="\t").drop_duplicates("role")
    roles = roles.set_index("role")["subject"]
    one, other = (SUBJECTS.index(roles[role]) for role in ("val_unhealthy", "test"))
    order = list(range(len(SUBJECTS)))
    order[one], order[other] = other, one
    store_with(run, volumes=order)
    found = audited(run).findings
    assert found and all(STORE in finding.why for finding in found)


def test_subjects_exchanged_by_name_in_a_store_are_found(run):
    store_with(run, names=[0, 1, 2, 5, 4, 3, 6, 7])
    assert named(run) == {STORE}


def test_numbers_that_were_edited_with_all_records_made_to_fit_are_named(run, forge):
    forge.replace(AIR[0], '"mean_normal": 0.', '"mean_normal": 0.9')
    rows = pd.read_csv(run.path(METRICS[1]), sep="\t", keep_default_na=False)
    for column in ("dice", "threshold", "lesion_voxels", "recall"):
        change = {column: rows[column].astype(float) + (10 if "voxels" in column else 0.01)}
        write_tsv(run.path(METRICS[1]), rows.assign(**change))
        for key in (AIR[0], METRICS[1]):
            forge.rehash(key)
        assert named(run) == {AIR[0], METRICS[1]}, column


@pytest.mark.parametrize("forged", [False, True])
def test_a_cell_that_its_files_do_not_give_is_named(run, forge, forged):
    """Also in a table that is known to be changed."""
    table = pd.read_csv(run.path(TABLE), dtype=str, keep_default_na=False)
    table.loc[0, ["mean", "mean_healthy_dssim"]] = "12.3456"
    table.to_csv(run.path(TABLE), index=False)
    if forged:
        forge.rehash(TABLE)
    (finding,) = audited(run).findings
    assert finding.artifact == TABLE
    for column in ("mean", "mean_healthy_dssim"):
        assert f"Cell {METHOD}/{EXPERIMENT}/{TEST}/dice: {column} is 12.3456" in finding.why


def test_a_table_of_air_that_its_files_do_not_give_is_named(run):
    numbers = ["mean_normal", "mean_anomalous", "air_before", "air_if_inverted", "air_after"]
    table = pd.DataFrame([read_json(run.path(key)) for key in AIR])
    table = table[["experiment", "fold", *numbers, "invert"]]
    table["invert"] = table["invert"].map({True: "yes", False: "no"})

    def named_for(table):
        text = table.to_csv(index=False, float_format="%.4f")
        run.asked("make_air_table", {"tables/air.csv": text}, AIR)
        return {finding.artifact: finding.why for finding in audited(run).findings}

    assert named_for(table) == {}
    for place, column, value in [(0, "invert", "maybe"), (1, "air_after", 9.0)]:
        table.loc[place, column] = value
        assert f"is not what {AIR[place]} says ({column})" in named_for(table)["tables/air.csv"]


def test_a_mean_in_the_table_of_all_metrics_that_its_volumes_do_not_give_is_named(run, forge):
    key, names = "tables/metrics_table3.csv", {"table": "table3"}
    metrics = collect_metrics([run.path(path) for path in METRICS])
    people = pd.read_csv(run.path(PEOPLE), sep="\t")
    table = TableSpec("table3", "T", [METHOD], {(EXPERIMENT, TEST): "BraTS21"}, {})
    facts = with_facts(metrics, {TEST: people}, 0.001)
    summary = summarise_metrics(facts, table, ["dice", "auprc", "lesion_voxels"], seed=0)
    summary.to_csv(run.path(key), index=False, float_format="%.6g", na_rep="nan")
    run.asked("make_metrics_table", [key], [*METRICS, PEOPLE], names, phantom=True)
    verdict = audited(run)
    assert not verdict.findings and verdict.checks["cells of all metrics recomputed"] == 3
    summary.loc[2, "mean"] *= 1.01
    summary.to_csv(run.path(key), index=False, float_format="%.6g", na_rep="nan")
    forge.rehash(key)
    (finding,) = audited(run).findings
    assert finding.artifact == key
    assert f"Cell {METHOD}/{EXPERIMENT}/{TEST}/lesion_voxels: mean is" in finding.why


def test_kept_maps_are_compared_with_the_thresholds(run, forge):
    """The Dice of a threshold, from maps that a run with keep_reconstructions has."""
    subject = read_json(run.path(THRESHOLDS[0]))["subjects"][0]
    lesion = read_store(run.path(STORE), [subject]).lesions[0]
    write_volumes(run.path(MAPS[0]), {f"val_unhealthy/{subject}": 1 - lesion.astype(np.float32)})
    forge.rehash(MAPS[0])
    found = {finding.artifact: finding.why for finding in audited(run).findings}
    assert "gives a Dice of 0.000000" in found[THRESHOLDS[0]]


def test_possible_metrics_that_the_table_does_not_follow_from_leave_the_table_named(run, forge):
    rows = pd.read_csv(run.path(METRICS[0]), sep="\t", keep_default_na=False)
    write_tsv(run.path(METRICS[0]), rows.assign(auprc=rows["auprc"].astype(float) * 0.9))
    forge.rehash(METRICS[0])
    assert named(run) == {TABLE}


# Whom to tell


def test_page_and_terminal_say_how_it_ends_and_name_what_fails(run, forge):
    forge.flip("tables/table3.md")
    run.write("figures/<b>.png", "foreign")
    verdict = audited(run)
    text, html = verdict.text(), verdict.write(run.root / "audit").read_text()
    assert text.splitlines()[-1].startswith("FAILED: ") and "2 do not hold" in text
    assert "  tables/table3.md: changed. Its content is not" in text
    assert "phantom data" in html and html.count("<h1>") == 1
    assert "figures/&lt;b&gt;.png" in html and "<script" not in html and "PASSED" not in html + text
    assert verdict.coverage < 100 and "(100 %)" not in text  # never rounded up


@pytest.mark.parametrize(
    ("recorded", "wanted"),
    [("results", "."), ("./out/results/", ".."), ("/else/results", "."), ("../results", ".")],
)
def test_relative_paths_begin_where_the_run_was_started(tmp_path, recorded, wanted):
    """Never in the directory that the audit is called from."""
    root = tmp_path / "moved" / "renamed"
    root.mkdir(parents=True)
    assert working_directory(root, recorded) == (root.parent / wanted).resolve()


def test_the_command_ends_with_the_verdict(run, tmp_path):
    # the published values of this repository are not those of the tree's
    done = uad("audit", run.root)
    assert done.returncode == 1
    assert f"{PUBLISHED}: input changed" in done.stdout
    assert not read_json(run.root / "audit/audit.json")["passed"]
    Forge(run.root).record(TABLE, lambda content: content["inputs"].pop())
    shutil.rmtree(run.root / "audit")
    run.write("audit", "a file where the folder would be")
    done = uad("audit", run.root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASSED" in done.stdout and "(100 %)" in done.stdout
    assert "could not be written" in done.stdout
    assert uad("audit", run.root, "--output", tmp_path / "pages").returncode == 0
    assert (tmp_path / "pages/audit.html").is_file()
    done = uad("audit", "nowhere")
    assert done.returncode == 2 and "nowhere: no such folder" in done.stderr


def test_a_folder_without_usable_records_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no record"):
        audit(tmp_path)
    write_json(tmp_path / "a.txt.prov.json", {"format": 1, "rule": "make_table"})
    with pytest.raises(DataError, match=r"none of its 1 records can be used; .* has format 1"):
        audit(tmp_path)
