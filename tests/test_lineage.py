"""Lineage of a cell: what it depends on, all of that and nothing else, and what does not match."""

import copy
import json
import re
import shutil
import subprocess
import sys

import pytest

from tools.result_trees import Forge, ResultTree
from uad.audit.trace import trace
from uad.audit.trace_picture import draw, figure_of, lay_out
from uad.core.errors import DataError
from uad.core.files import sha256
from uad.core.records import load_records

METHODS = ("aided", "plain")
LABELS = {"aided": "Aided", "plain": "Plain"}
#: Dice of each fold's two test volumes, by method.
DICE = {"aided": [(0.4, 0.6), (0.5, 0.7)], "plain": [(0.1, 0.3), (0.2, 0.2)]}
TESTED = [("b1", "b2"), ("b3", "b4")]
CELL = {"table": "table9", "row": "aided", "column": "cross/sick", "metric": "dice"}


class Run(ResultTree):
    """A phantom run of two methods: trained on ``well``, tested on ``sick`` and ``other``."""

    folds = 2
    spare = 6  # subjects of ``sick``; b5 is in no split, b0 is for validation

    def __init__(self, root):
        super().__init__(root)
        self.write("repository:resources/published/tables.csv", self.published())
        atlas = [f"atlas/{name}" for name in ("head.nii.gz", "atlas.json")]
        content = {"name": "SRI24", "source": "a wheel"}
        self.job("prepare_atlas", {atlas[0]: "head", atlas[1]: json.dumps(content)})
        for dataset, subjects in self.subjects().items():
            self.dataset(dataset, subjects, atlas)
        for fold in range(self.folds):
            self.fold(fold)
        self.table()

    def subjects(self):
        return {
            "well": [f"a{i}" for i in range(4)],
            "sick": [f"b{i}" for i in range(self.spare)],
            "other": ["c0", "c1"],
        }

    @staticmethod
    def published():
        head = "table,row,experiment,test_dataset,metric,mean,std,source\n"
        return head + (
            "table9,aided,cross,sick,dice,55.5,1.5,a paper\n"
            "table9,famous,cross,sick,dice,60.0,2.0,a paper\n"
            "table8,aided,cross,sick,dice,60.0,2.0,a paper\n"
        )

    def dataset(self, name, subjects, atlas):
        place = {"dataset": name}
        raws = {s: [f"raw/{name}/{s}_{part}.nii.gz" for part in ("t2", "seg")] for s in subjects}
        manifest = "path\tbytes\tsha256\n"
        for files in raws.values():
            for file in files:
                self.write(file, f"raw {file}")
                entry = self._entry(file)
                path = file.removeprefix(f"raw/{name}/")
                manifest += f"{path}\t{entry['bytes']}\t{entry['sha256']}\n"
        self.job(
            "make_phantom",
            {f"raw/{name}.manifest.tsv": manifest},
            wildcards=place,
            params={"dataset": {"phantom": {"subjects": len(subjects), "spacing": 4.0}}},
            seeds={"job": 77},
        )
        rows = [f"{s}\tresults/{raws[s][0]}\tresults/{raws[s][1]}\n" for s in subjects]
        self.job(
            "index_dataset",
            {f"participants/{name}.tsv": "subject\timage\tlesion\n" + "".join(rows)},
            [f"raw/{name}.manifest.tsv"],
            wildcards=place,
            params={"root": f"results/raw/{name}", "dataset": {"source": "phantom"}},
        )
        packed = []
        for subject in subjects:
            packed += self.scan({**place, "subject": subject, "suffix": "T2w"}, raws, atlas)
        self.job(
            "pack_slices",
            {f"slices/{name}_T2.safetensors": f"store of {name}"},
            [*packed, f"participants/{name}.tsv"],
            wildcards={**place, "modality": "T2"},
        )

    def scan(self, place, raws, atlas):
        subject = place["subject"]
        folder = f"preprocessed/{place['dataset']}/sub-{subject}/anat/sub-{subject}"
        mask = f"{folder}_space-orig_label-brain_desc-mask_T2w.nii.gz"
        raw = raws[subject]
        self.job("skullstrip_scan", {mask: f"m {subject}"}, [raw[0], *atlas], wildcards=place)
        made = [
            f"{folder}_{name}"
            for name in (
                "space-SRI24_desc-preproc_T2w.nii.gz",
                "space-SRI24_label-brain_desc-mask_T2w.nii.gz",
                "from-orig_to-SRI24_mode-image_desc-xfm_T2w.mat",
                "space-SRI24_desc-preproc_T2w.json",
            )
        ]
        content = {key: f"{key}" for key in made}
        self.job("register_scan", content, [*raw, mask, *atlas], wildcards=place)
        return made[:2]

    def fold(self, fold):
        place = {"experiment": "cross", "fold": str(fold)}
        split, air = f"splits/cross/fold-{fold}.tsv", f"air/cross/fold-{fold}.json"
        tested = TESTED[fold % 2]
        roles = [("well", s, "train") for s in ("a0", "a1")]
        roles += [("well", f"a{2 + fold % 2}", "val_healthy"), ("sick", "b0", "val_unhealthy")]
        roles += [("sick", s, "test") for s in tested]
        roles += [("other", "c0", "val_unhealthy"), ("other", "c1", "test")]
        rows = "".join("\t".join(row) + "\n" for row in roles)
        participants = [f"participants/{name}.tsv" for name in ("well", "sick", "other")]
        self.job(
            "make_splits",
            {split: "dataset\tsubject\trole\n" + rows},
            participants,
            wildcards=place,
            params={"splits": {"kind": "clean", "seed": 42}},
        )
        decision = {"invert": True, "rule": "paper", "reference_dataset": "sick"}
        decision |= {"air_before": 1.2, "air_after": 2.4, "sets": {"sick": {"subjects": ["b0"]}}}
        stores = [f"slices/{name}_T2.safetensors" for name in ("sick", "other")]
        self.job(
            "compute_air",
            {air: json.dumps(decision)},
            [split, *stores],
            wildcards=place,
            params={"reference": "sick", "tests": ["sick", "other"]},
        )
        for method in METHODS:
            used = [air] if method == "aided" else []
            self.method({**place, "method": method}, split, used, stores[0], tested)

    def method(self, place, split, air, store, tested):
        method, fold = place["method"], int(place["fold"])
        cell = f"cross/{method}/fold-{fold}"
        weights = f"models/{cell}/model.safetensors"
        self.job(
            "train_model",
            {weights: f"weights {cell}", f"models/{cell}/config.json": "{}"},
            ["slices/well_T2.safetensors", split, *air],
            wildcards=place,
            params={"loop": {"epochs": 9}},
            facts={"weights_of_epoch": 7, "steps": 90},
            seeds={"run": 1, "job": 4711},
            seconds=7260.0,
        )
        place = {**place, "test": "sick"}
        rec, maps = (f"{kind}/{cell}/sick.safetensors" for kind in ("reconstructions", "maps"))
        self.job(
            "reconstruct_volumes",
            {rec: f"rec {cell}"},
            [weights, store, split, *air],
            wildcards=place,
            facts={"volumes": 3, "t_test": 500},
        )
        self.job("score_volumes", {maps: f"maps {cell}"}, [rec, store, *air], wildcards=place)
        threshold = f"thresholds/{cell}/sick.json"
        found = {"threshold": 0.25, "method": "halving", "subjects": ["b0"]}
        self.job("search_threshold", {threshold: json.dumps(found)}, [maps, store], wildcards=place)
        values = zip(tested, DICE[method][fold % 2], strict=True)
        lines = "".join(f"{s}\t{dice}\t{dice / 2}\n" for s, dice in values)
        self.job(
            "evaluate_volumes",
            {f"metrics/{cell}/sick.tsv": f"subject\tdice\tauprc\n{lines}"},
            [maps, store, threshold],
            wildcards=place,
        )
        for key in (rec, maps):
            self.path(key).unlink()  # as a run does after use

    def table(self):
        head = (
            "row,experiment,test_dataset,metric,mean,std,n_folds,published_mean,published_std,"
            "n_volumes,published_source\n"
        )
        numbers = {"aided": ("55.0000", "7.0711"), "plain": ("20.0000", "0.0000")}
        rows = "".join(
            f"{m},cross,sick,dice,{mean},{std},{self.folds},55.5,1.5,4,a paper\n"
            for m, (mean, std) in numbers.items()
        )
        rows += "plain,cross,sick,auprc,nan,nan,0,nan,nan,0,none\n"
        self.job(
            "make_table",
            {"tables/table9.csv": head + rows, "tables/table9.md": "x"},
            [
                *(
                    f"metrics/cross/{m}/fold-{fold}/sick.tsv"
                    for m in METHODS
                    for fold in range(self.folds)
                ),
                "repository:resources/published/tables.csv",
            ],
            wildcards={"table": "table9"},
            params={
                "table": {
                    "rows": list(METHODS),
                    "columns": [{"experiment": "cross", "test": "sick", "label": "Sick (T2)"}],
                },
                "labels": LABELS,
                "phantom": True,
            },
        )


class LongRun(Run):
    folds = 8


@pytest.fixture(scope="module")
def unspoilt(tmp_path_factory):
    return Run(tmp_path_factory.mktemp("lineage") / "results")


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    return LongRun(tmp_path_factory.mktemp("long") / "results")


def copied(run, folder):
    """A run to spoil."""
    shutil.copytree(run.root.parent, folder, dirs_exist_ok=True)
    other = copy.copy(run)
    other.root, other.repository = folder / "results", folder / "repository"
    return other


@pytest.fixture
def run(unspoilt, tmp_path):
    return copied(unspoilt, tmp_path)


def traced(run, **changed):
    options = {**CELL, **changed}
    return trace(load_records(run.root, run.repository), **options)


@pytest.fixture(scope="module")
def lineage(unspoilt):
    return traced(unspoilt)


def keys(lineage, stage):
    return {node.key for node in lineage.of(stage)}


# What a cell depends on


def test_the_value_is_the_tables_and_is_computed_again_from_the_folds(lineage):
    assert (lineage.value.mean, lineage.value.std, lineage.value.n_folds) == (55.0, 7.0711, 2)
    assert [fold.value for fold in lineage.folds] == pytest.approx([50, 60])
    assert str(lineage.value) == "55.00 ± 7.07 % (phantom)"
    assert lineage.value.published == "55.50 ± 1.50 (a paper)"
    assert lineage.problems == []


def test_only_the_metrics_of_this_row_and_all_its_folds_are_followed(lineage):
    cell = [f"cross/aided/fold-{fold}" for fold in (0, 1)]
    assert keys(lineage, "metrics") == {f"metrics/{c}/sick.tsv" for c in cell}
    assert keys(lineage, "weights") == {f"models/{c}/model.safetensors" for c in cell}
    assert not any("plain" in node.key for node in lineage.nodes)


def test_of_a_store_only_the_subjects_that_matter_are_followed(lineage):
    training, tested = (lineage.subjects[f"slices/{d}_T2.safetensors"] for d in ("well", "sick"))
    assert training == {
        "train": {"a0": [0, 1], "a1": [0, 1]},
        "val_healthy": {"a2": [0], "a3": [1]},
    }
    assert tested == {
        "test": {"b1": [0], "b2": [0], "b3": [1], "b4": [1]},
        "val_unhealthy": {"b0": [0, 1]},
    }
    expected = [f"raw/well/a{i}" for i in range(4)] + [f"raw/sick/b{i}" for i in range(5)]
    wanted = {f"{subject}_{part}.nii.gz" for subject in expected for part in ("t2", "seg")}
    assert keys(lineage, "raw") == wanted  # and not b5, who is in no split


def test_the_test_set_that_does_not_decide_air_is_not_followed(lineage):
    assert "slices/other_T2.safetensors" not in {node.key for node in lineage.nodes}
    # the split was drawn from its participants, too
    assert "participants/other.tsv" in keys(lineage, "participants")


def test_a_method_without_air_does_not_depend_on_the_decision(unspoilt):
    assert traced(unspoilt, row="plain").of("air") == []


def test_every_node_leads_to_the_source_of_its_data(lineage):
    nodes = {node.key: node for node in lineage.nodes}

    def ends(key):
        above = nodes[key].inputs
        return {key} if not above else set().union(*map(ends, above))

    assert ends("tables/table9.csv") == {
        "raw/well.manifest.tsv",
        "raw/sick.manifest.tsv",
        "raw/other.manifest.tsv",
        "atlas/head.nii.gz",
        "atlas/atlas.json",
        "repository:resources/published/tables.csv",
    }
    source = nodes["raw/sick.manifest.tsv"].facts
    assert (source["kind"], source["seed"]) == ("phantom", 77)


def test_each_scan_has_its_volume_transform_brain_mask_and_raw_files(lineage):
    stages = sorted(n.stage for n in lineage.nodes if n.place.get("subject") == "b1")
    assert stages == ["brain mask", "raw", "raw", "registered", "registered", "transform"]


def test_nodes_are_in_order_from_the_cell_to_the_raw_data(lineage):
    order = list(dict.fromkeys(node.stage for node in lineage.nodes))
    assert order[0] == "cell" and order[-1] == "source"
    assert order.index("metrics") < order.index("weights") < order.index("raw")


def test_masks_predicted_in_a_batch_lead_to_the_scans_that_matter_only(run):
    # as on a GPU: one network run masks b1 and b5, of whom only b1 matters
    batch = "preprocessed/sick/brain_masks/T2w_batch-0.safetensors"
    images = ["raw/sick/b1_t2.nii.gz", "raw/sick/b5_t2.nii.gz"]
    place = {"dataset": "sick", "suffix": "T2w", "batch": "0"}
    run.job(
        "predict_brain_masks",
        {batch: "masks"},
        images,
        wildcards=place,
        params={"subjects": ["b1", "b5"]},
    )
    mask = "preprocessed/sick/sub-b1/anat/sub-b1_space-orig_label-brain_desc-mask_T2w.nii.gz"
    scan = {"dataset": "sick", "subject": "b1", "suffix": "T2w"}
    run.job("skullstrip_scan", [mask], [images[0], batch], wildcards=scan)
    run.path(batch).unlink()
    found = traced(run)
    assert found.node(batch).status == "not kept"
    assert found.node(batch).inputs == images[:1]
    assert images[1] not in {node.key for node in found.nodes}
    assert "predicted in batch 0, not kept" in found.text(full=True)
    assert found.problems == []


def index(run, params, inputs=()):
    """Index ``well`` again, from another kind of source."""
    run.path("raw/well.manifest.tsv").unlink()
    run.path("raw/well.manifest.tsv.prov.json").unlink()
    key, place = "participants/well.tsv", {"dataset": "well"}
    run.job("index_dataset", [key], inputs, wildcards=place, params=params)


def test_a_downloaded_data_set_leads_to_addresses_and_checksums(run):
    files = [
        {"name": f"{n}.zip", "checksum": f"md5:{n * 16}", "verified": True, "url": f"https://x/{n}"}
        for n in ("ab", "cd")
    ]
    key = "raw/well.download.json"
    run.job("download_dataset", {key: json.dumps({"files": files})}, wildcards={"dataset": "well"})
    index(run, {"root": "results/raw/well", "dataset": {"source": "download"}}, [key])
    found = traced(run)
    assert found.problems == []
    assert found.node(key).facts["files"] == files
    assert key in found.node("raw/well/a0_t2.nii.gz").inputs
    assert "https://x/ab" in found.text() and "md5:abababababab (as published)" in found.text()


def test_scans_that_others_preprocessed_lead_from_the_store_to_their_folder(run):
    index(run, {"root": "/data/well", "dataset": {"source": "preprocessed"}})
    raws = [f"raw/well/a{i}_{part}.nii.gz" for part in ("t2", "seg") for i in range(4)]
    store, place = "slices/well_T2.safetensors", {"dataset": "well", "modality": "T2"}
    run.job("pack_slices", [store], [*raws, "participants/well.tsv"], wildcards=place)
    found = traced(run)
    assert found.problems == []
    assert {n.key for n in found.of("raw") if n.place["dataset"] == "well"} == set(raws)
    assert not [n for n in found.of("registered") if n.place["dataset"] == "well"]
    assert "source: the folder /data/well, preprocessed by others" in found.text()
    assert "raw: a0_t2.nii.gz" in found.text()


def test_a_relative_path_outside_of_the_results_begins_where_the_run_was_started(run):
    """As in the audit: not in the directory that the trace is called from."""
    raw = run.root.parent / "data" / "a0_t2.nii.gz"
    raw.parent.mkdir()
    raw.write_bytes(b"scan")
    said = {"path": "data/a0_t2.nii.gz", "bytes": 4, "sha256": sha256(raw)}
    scan = "preprocessed/well/sub-a0/anat/sub-a0_space-SRI24_desc-preproc_T2w.nii.gz"
    Forge(run.root).record(scan, lambda content: content["inputs"].append(said))
    node = traced(run).node("external:data/a0_t2.nii.gz")
    assert node.status == "as recorded", node.problems


# What does not match


@pytest.mark.parametrize(
    "key",
    [
        "tables/table9.csv",
        "metrics/cross/aided/fold-1/sick.tsv",
        "thresholds/cross/aided/fold-0/sick.json",
        "models/cross/aided/fold-0/model.safetensors",
        "air/cross/fold-0.json",
        "splits/cross/fold-1.tsv",
        "slices/sick_T2.safetensors",
        "preprocessed/sick/sub-b1/anat/sub-b1_space-SRI24_desc-preproc_T2w.nii.gz",
        "preprocessed/sick/sub-b1/anat/sub-b1_from-orig_to-SRI24_mode-image_desc-xfm_T2w.mat",
        "participants/sick.tsv",
        "raw/sick/b1_t2.nii.gz",
        "raw/sick/b1_seg.nii.gz",
        "raw/sick.manifest.tsv",
        "atlas/head.nii.gz",
    ],
)
def test_a_changed_file_on_the_path_is_marked_and_only_that(run, key):
    with run.path(key).open("ab") as handle:
        handle.write(b"\n")
    found = traced(run)
    assert {node.key for node in found.nodes if node.problems} == {key}
    assert found.node(key).status == "changed"
    assert re.search(r"× \w{12}", found.text())
    assert key in found.text().split("1 problem:")[1]


@pytest.mark.parametrize(
    "key",
    ["raw/sick/b5_t2.nii.gz", "metrics/cross/plain/fold-0/sick.tsv", "slices/other_T2.safetensors"],
)
def test_a_changed_file_elsewhere_is_no_matter_of_this_cell(run, key):
    Forge(run.root).flip(key)
    assert traced(run).problems == []


def test_a_missing_file_is_a_problem_unless_the_run_deletes_it_after_use(run):
    run.path("models/cross/aided/fold-0/model.safetensors").unlink()
    found = traced(run)
    assert [node.status for node in found.of("weights")] == ["missing", "as recorded"]
    assert {node.status for node in found.of("maps")} == {"not kept"}
    assert found.problems == ["models/cross/aided/fold-0/model.safetensors: the file is missing"]


def test_a_reader_that_saw_other_bytes_than_were_written_is_named(run):
    key = "models/cross/aided/fold-0/model.safetensors"
    run.write(key, "trained again")
    Forge(run.root).rehash(key, inputs=False)
    (problem,) = traced(run).problems
    assert problem.startswith(f"{key}: reconstruct_volumes read other bytes")


def test_a_hand_edited_cell_is_told_from_its_metrics(run):
    Forge(run.root).replace("tables/table9.csv", "55.0000", "57.0000")
    found = traced(run)
    assert any("the cell says 57.0000" in problem for problem in found.problems)
    assert any("its metrics give 55.0000" in problem for problem in found.problems)


def test_a_lost_record_ends_the_path_and_is_named(run):
    for key in (
        "models/cross/aided/fold-0/model.safetensors",
        "metrics/cross/aided/fold-1/sick.tsv",
    ):
        run.path(f"{key}.prov.json").unlink()
    found = traced(run)
    assert len(found.folds) == 2
    assert {p.split(": ")[0] for p in found.problems if "no record says" in p} == {
        "models/cross/aided/fold-0/model.safetensors",
        "metrics/cross/aided/fold-1/sick.tsv",
    }
    assert "no record says" in found.text()


def test_a_lost_record_of_a_store_is_named_too(run):
    run.path("slices/sick_T2.safetensors.prov.json").unlink()
    found = traced(run)
    assert any(p.startswith("slices/sick_T2.safetensors: no record") for p in found.problems)
    assert found.text() and figure_of(found)


@pytest.mark.parametrize("key", ["participants/sick.tsv", "splits/cross/fold-0.tsv"])
@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe"])
def test_a_table_that_cannot_be_read_is_named_and_ends_nothing_else(run, key, content):
    for name in (key, f"{key}.prov.json"):
        run.path(name).write_bytes(content)
        found = traced(run)
        assert any(problem.startswith(f"{key}: ") for problem in found.problems), name
        assert max(map(len, found.text(full=True).splitlines())) <= 100
        assert figure_of(found)


@pytest.mark.parametrize(
    ("name", "message"),
    [("tables/table9.csv.prov.json", "its record .* is damaged"), ("tables/table9.csv", "no line")],
)
def test_a_table_whose_cell_cannot_be_found_is_an_error(run, name, message):
    run.path(name).write_bytes(b"{}")
    with pytest.raises(DataError, match=message):
        traced(run)


def test_an_edited_record_is_named(run):
    Forge(run.root).replace(
        "air/cross/fold-0.json.prov.json", '"rule": "compute_air"', '"rule":  "compute_air"'
    )
    assert traced(run).problems == []  # the same content, written otherwise
    Forge(run.root).replace("air/cross/fold-0.json.prov.json", '"seconds": 1.0', '"seconds": 2.0')
    assert traced(run).problems == [
        "air/cross/fold-0.json: its record was edited after it was written"
    ]


def test_a_threshold_from_a_test_subject_is_named(run):
    key = "thresholds/cross/aided/fold-0/sick.json"
    Forge(run.root).replace(key, '"b0"', '"b1"')
    Forge(run.root).rehash(key)
    (problem,) = traced(run).problems
    assert "is from b1" in problem and "val_unhealthy" in problem


def test_metrics_of_other_subjects_than_the_splits_are_named(run):
    key = "metrics/cross/aided/fold-0/sick.tsv"
    Forge(run.root).replace(key, "b1", "b3")
    Forge(run.root).rehash(key)
    (problem,) = traced(run).problems
    assert "tests other subjects" in problem and "b1, b3" in problem


def test_a_raw_file_that_fits_the_records_but_not_the_manifest_is_named(run):
    key = "raw/sick/b1_t2.nii.gz"
    Forge(run.root).flip(key)
    Forge(run.root).rehash(key)
    (problem,) = traced(run).problems
    assert problem.startswith(key) and "manifest" in problem


def test_without_the_check_records_are_compared_and_nothing_is_hashed(run):
    Forge(run.root).flip("raw/sick/b1_t2.nii.gz")
    found = traced(run, check=False)
    assert found.problems == [] and {n.status for n in found.of("raw")} == {"not checked"}
    assert {n.status for n in found.of("maps")} == {"not kept"}
    assert "not checked" in found.text()


# Names


@pytest.mark.parametrize("column", ["cross/sick", "Sick (T2)", "sick (t2)", "sick", "cross", None])
def test_a_column_has_several_names(unspoilt, column):
    assert traced(unspoilt, column=column).cell.test == "sick"


def test_a_row_may_be_named_by_its_label(unspoilt):
    assert traced(unspoilt, row="Aided").cell.row == "aided"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"table": "tabel9"}, "unknown table 'tabel9'. Did you mean 'table9'?"),
        ({"row": "aide"}, "unknown row 'aide'. Did you mean 'aided'? Known are: aided, plain."),
        ({"column": "sock"}, "Known are: cross/sick."),
        ({"metric": "dise"}, "Did you mean 'dice'? Known are: auprc, dice."),
    ],
)
def test_an_unknown_name_is_answered_with_what_there_is(unspoilt, changed, message):
    with pytest.raises(DataError, match=re.escape(message)):
        traced(unspoilt, **changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"row": "famous"}, "cells of famous are – .*Published only: cross/sick dice 60.00 ± 2.00"),
        ({"table": "table8"}, "table8: – .*published only.*Tables of this run: table9"),
        ({"row": "plain", "metric": "auprc"}, "is – .*not run.*not published"),
    ],
)
def test_a_cell_that_was_not_run_says_so(unspoilt, changed, message):
    with pytest.raises(DataError, match=message):
        traced(unspoilt, **changed)


def test_a_column_name_that_fits_two_columns_lists_both(run):
    def two(content):
        content["params"]["table"]["columns"].append(
            {"experiment": "cross", "test": "other", "label": None}
        )

    Forge(run.root).record("tables/table9.csv", two)
    with pytest.raises(DataError, match=r"cross/sick \(Sick \(T2\)\), cross/other \(other"):
        traced(run, column="cross")
    with pytest.raises(DataError, match="which column"):
        traced(run, column=None)


# Text, JSON, picture


def test_the_text_is_a_tree_within_100_columns_that_says_phantom(lineage):
    text = lineage.text()
    assert max(map(len, text.splitlines())) <= 100
    assert "PHANTOM DATA" in text and "55.00 ± 7.07 % (phantom)" in text
    assert "published: 55.50 ± 1.50 (a paper)" in text
    assert "recomputed from the metrics: 55.0000 ± 7.0711" in text
    assert "clean split, seed 42; well: train 2, val_healthy 1; sick: val_unhealthy 1" in text
    assert "halving search on 1 validation subject: b0" in text
    assert "seed 4711, weights of epoch 7 of 9, on cpu, 2 h 1 min" in text
    assert "anomaly maps, not kept; hash from its record" in text
    assert "AIR decision: inverted, AIR 1.20 → 2.40" in text
    assert "source: phantom generator, seed 77" in text
    assert f"commit {'c' * 12}" in text


def test_the_text_shows_every_file_once_with_its_hash(lineage):
    text = lineage.text(full=True)
    for node in lineage.nodes:
        shown = re.findall(rf" [=–] {node.short}", text)
        same = sum(other.sha256 == node.sha256 for other in lineage.nodes)
        assert len(shown) == same, node.key


def test_many_siblings_are_cut_in_the_text_and_never_in_the_json(long):
    found = traced(long)
    assert "... and 6 more folds: 50.00, 60.00" in found.text()
    assert "more folds" not in found.text(full=True)
    assert len(found.as_json()["folds"]) == 8
    assert found.text().count("weights of epoch") == 2
    assert found.text(full=True).count("weights of epoch") == 8


def test_what_does_not_match_is_shown_though_its_siblings_are_cut(long, tmp_path):
    run, key = copied(long, tmp_path), "models/cross/aided/fold-7/model.safetensors"
    Forge(run.root).flip(key)
    text = traced(run).text()
    assert f"{key}: the file's SHA-256 is" in " ".join(text.split())
    assert "fold 7: 60.0000" in text and "... and 5 more folds" in text


def test_the_json_holds_all_and_is_plain(lineage):
    content = json.loads(json.dumps(lineage.as_json(), allow_nan=False))
    assert [node["key"] for node in content["nodes"]] == [node.key for node in lineage.nodes]
    assert content["value"]["phantom"] is True
    assert content["cell"]["column"] == "Sick (T2)"


def overlap(a, b):
    return a.x0 < b.x1 and b.x0 < a.x1 and a.y0 < b.y1 and b.y0 < a.y1


@pytest.mark.parametrize("kind", ["unspoilt", "long"])
def test_nothing_in_the_picture_overlaps_or_is_cut(kind, request):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    found = traced(request.getfixturevalue(kind))
    boxes, width, height = lay_out(found)
    places = [Bbox.from_bounds(box.x, box.y, 1.22, 0.5) for box in boxes.values()]
    assert not any(overlap(a, b) for i, a in enumerate(places) for b in places[:i])
    assert all(p.x0 > 0 and p.x1 < width and p.y0 > 0 and p.y1 < height for p in places)

    figure = figure_of(found)
    renderer = FigureCanvasAgg(figure).get_renderer()
    (axes,) = figure.axes
    texts = [text.get_window_extent(renderer) for text in axes.texts]
    assert not any(overlap(a, b) for i, a in enumerate(texts) for b in texts[:i])
    whole = figure.bbox
    assert all(whole.x0 <= t.x0 and t.x1 <= whole.x1 and t.y0 >= 0 for t in texts)
    written = [t for t in axes.texts if "…" in t.get_text()]
    assert not written, [t.get_text() for t in written]
    # what is written in a box stays in it
    inside = [p for p in axes.patches if type(p).__name__ == "FancyBboxPatch"]
    frames = [p.get_window_extent(renderer) for p in inside]
    for text, extent in zip(axes.texts, texts, strict=True):
        around = [f for f in frames if overlap(f, extent)]
        if around:
            (frame,) = around
            assert frame.x0 <= extent.x0 and extent.x1 <= frame.x1, text.get_text()


def test_the_picture_is_light_says_phantom_and_is_equal_for_equal_input(lineage, tmp_path):
    for name in ("one.png", "two.png"):
        draw(lineage, tmp_path / name)
    one = (tmp_path / "one.png").read_bytes()
    assert one == (tmp_path / "two.png").read_bytes() and len(one) < 300_000
    assert any("phantom data" in text.get_text() for text in figure_of(lineage).axes[0].texts)


def test_the_picture_marks_what_does_not_match(run):
    Forge(run.root).flip("models/cross/aided/fold-0/model.safetensors")
    texts = [text.get_text() for text in figure_of(traced(run)).axes[0].texts]
    assert [text for text in texts if text.startswith("×")] == ["× weights"]


# The command


def command(root, run, *arguments):
    script = ["-m", "uad", "trace"]
    return subprocess.run(
        [sys.executable, *script, "--results", run.root, *arguments], capture_output=True, text=True
    )


def test_the_command_prints_the_tree_and_writes_three_files(root, run):
    done = command(root, run, "--table", "table9", "--row", "aided", "--column", "sick")
    folder = run.root / "audit" / "trace"
    assert sorted(path.name for path in folder.iterdir()) == [
        f"table9_aided_cross_sick_dice.{ending}" for ending in ("json", "png", "txt")
    ]
    assert done.stdout.startswith((folder / "table9_aided_cross_sick_dice.txt").read_text())
    # the published values of this repository are not those of the synthetic one
    assert done.returncode == 1 and "repository:resources/published/tables.csv" in done.stdout


def test_the_command_prints_the_tree_also_where_it_cannot_write(root, run, tmp_path):
    run.write("audit", "a file where the folder would be")
    cell = "--table", "table9", "--row", "aided", "--column", "sick"
    done = command(root, run, *cell)
    assert "table9" in done.stdout and "could not be written" in done.stdout
    assert "Traceback" not in done.stderr
    command(root, run, *cell, "--output", tmp_path / "pages")
    assert len(list((tmp_path / "pages").iterdir())) == 3


def test_the_command_answers_a_wrong_name_without_a_traceback(root, run):
    done = command(root, run, "--table", "table9", "--row", "aide")
    assert done.returncode == 1
    assert done.stderr.startswith("ERROR: table9: unknown row 'aide'")
