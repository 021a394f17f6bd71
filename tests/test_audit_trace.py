"""Lineage of a cell: what it depends on, all of that and nothing else, and what does not match."""

import json
import re

import pytest

from tools.result_trees import Forge, ResultTree, uad
from uad.audit.trace import trace
from uad.audit.trace_text import text_of
from uad.core.errors import DataError
from uad.core.files import sha256
from uad.core.records import load_records

METHODS = ("aided", "plain")
#: Dice of each fold's two test volumes, by method.
DICE = {"aided": [(0.4, 0.6), (0.5, 0.7)], "plain": [(0.1, 0.3), (0.2, 0.2)]}
TESTED = [("b1", "b2"), ("b3", "b4")]
CELL = {"table": "table9", "row": "aided", "column": "cross/sick", "metric": "dice"}
TABLE, PUBLISHED = "tables/table9.csv", "repository:resources/published/tables.csv"
WEIGHTS = "models/cross/aided/fold-0/model.safetensors"
THRESHOLD = "thresholds/cross/aided/fold-0/sick.json"
METRICS = "metrics/cross/aided/fold-{}/sick.tsv"
STORE, SPLIT, AIR = "slices/sick_T2.safetensors", "splits/cross/fold-0.tsv", "air/cross/fold-0.json"
BRAIN = "space-orig_label-brain_T2w.nii.gz"
#: ``b5`` of ``sick`` is in no split, ``b0`` is for validation.
SUBJECTS = {"well": [f"a{i}" for i in range(4)], "sick": [f"b{i}" for i in range(6)]}
SUBJECTS["other"] = ["c0", "c1"]


def raws(dataset, subject):
    return [f"raw/{dataset}/{subject}_{part}.nii.gz" for part in ("t2", "seg")]


def scan(dataset, subject, what="space-SRI24_desc-preproc_T2w.nii.gz"):
    return f"preprocessed/{dataset}/sub-{subject}/anat/sub-{subject}_{what}"


class Run(ResultTree):
    """A phantom run of two methods: trained on ``well``, tested on ``sick`` and ``other``."""

    def __init__(self, root, folds=2):
        super().__init__(root)
        self.write(
            PUBLISHED,
            "table,row,experiment,test_dataset,metric,mean,std,source\n"
            "table9,aided,cross,sick,dice,55.5,1.5,a paper\n"
            "table9,famous,cross,sick,dice,60.0,2.0,a paper\n"
            "table8,aided,cross,sick,dice,60.0,2.0,a paper\n",
        )
        content = {"name": "SRI24", "source": "a wheel"}
        self.atlas = ["atlas/head.nii.gz", "atlas/atlas.json"]
        self.job("prepare_atlas", dict(zip(self.atlas, ["head", json.dumps(content)], strict=True)))
        for dataset in SUBJECTS:
            self.dataset({"dataset": dataset}, dataset)
        for fold in range(folds):
            self.fold({"experiment": "cross", "fold": str(fold)}, fold)
        self.table(folds)

    def dataset(self, place, name):
        manifest, rows = "path\tbytes\tsha256\n", "subject\timage\tlesion\n"
        for subject in SUBJECTS[name]:
            files = raws(name, subject)
            rows += "\t".join([subject, *(f"results/{key}" for key in files)]) + "\n"
            for key in files:
                digest = sha256(self.write(key, f"raw {key}"))
                manifest += f"{key.removeprefix(f'raw/{name}/')}\t1\t{digest}\n"
        phantom = {"dataset": {"phantom": {"subjects": len(SUBJECTS[name])}}}
        key, people, seeds = f"raw/{name}.manifest.tsv", f"participants/{name}.tsv", {"job": 77}
        self.job("make_phantom", {key: manifest}, wildcards=place, params=phantom, seeds=seeds)
        params = {"root": f"results/raw/{name}", "dataset": {"source": "phantom"}}
        self.job("index_dataset", {people: rows}, [key], wildcards=place, params=params)
        packed = []
        for subject in SUBJECTS[name]:
            of_scan = {**place, "subject": subject, "suffix": "T2w"}
            raw, mask = raws(name, subject), scan(name, subject, BRAIN)
            inputs = [raw[0], *self.atlas]
            self.job("skullstrip_scan", {mask: f"m {subject}"}, inputs, wildcards=of_scan)
            made = [scan(name, subject), scan(name, subject, "space-SRI24_label-brain_T2w.nii.gz")]
            content, inputs = {key: key for key in made}, [*raw, mask, *self.atlas]
            self.job("register_scan", content, inputs, wildcards=of_scan)
            packed += made
        store = {f"slices/{name}_T2.safetensors": f"store of {name}"}
        self.job("pack_slices", store, [*packed, people], wildcards={**place, "modality": "T2"})

    def fold(self, place, fold):
        split, air = f"splits/cross/fold-{fold}.tsv", f"air/cross/fold-{fold}.json"
        roles = [("well", s, "train") for s in ("a0", "a1")]
        roles += [("well", f"a{2 + fold % 2}", "val_healthy"), ("sick", "b0", "val_unhealthy")]
        roles += [("sick", s, "test") for s in TESTED[fold % 2]]
        roles += [("other", "c0", "val_unhealthy"), ("other", "c1", "test")]
        rows = "dataset\tsubject\trole\n" + "".join("\t".join(row) + "\n" for row in roles)
        people = [f"participants/{name}.tsv" for name in SUBJECTS]
        params = {"splits": {"kind": "clean", "seed": 42}}
        self.job("make_splits", {split: rows}, people, wildcards=place, params=params)
        decision = {"invert": True, "rule": "paper", "reference_dataset": "sick"}
        decision |= {"air_before": 1.2, "air_after": 2.4, "sets": {"sick": {"subjects": ["b0"]}}}
        stores = [f"slices/{name}_T2.safetensors" for name in ("sick", "other")]
        params = {"reference": "sick", "tests": ["sick", "other"]}
        content = {air: json.dumps(decision)}
        self.job("compute_air", content, [split, *stores], wildcards=place, params=params)
        for method in METHODS:
            self.method(place, fold, method, [split, *([air] if method == "aided" else [])])

    def method(self, place, fold, method, decided):
        cell, place = f"cross/{method}/fold-{fold}", {**place, "method": method}
        weights = f"models/{cell}/model.safetensors"
        self.job(
            "train_model",
            {weights: f"weights {cell}", f"models/{cell}/config.json": "{}"},
            ["slices/well_T2.safetensors", *decided],
            wildcards=place,
            params={"loop": {"epochs": 9}},
            facts={"weights_of_epoch": 7},
            seeds={"job": 4711},
        )
        place |= {"test": "sick"}
        rec, maps = (f"{kind}/{cell}/sick.safetensors" for kind in ("reconstructions", "maps"))
        self.job("reconstruct_volumes", {rec: cell}, [weights, STORE, *decided], wildcards=place)
        self.job("score_volumes", {maps: cell}, [rec, STORE, *decided[1:]], wildcards=place)
        found = json.dumps({"threshold": 0.25, "method": "halving", "subjects": ["b0"]})
        threshold = f"thresholds/{cell}/sick.json"
        self.job("search_threshold", {threshold: found}, [maps, STORE], wildcards=place)
        values = zip(TESTED[fold % 2], DICE[method][fold % 2], strict=True)
        lines = "subject\tdice\tauprc\n" + "".join(f"{s}\t{d}\t{d / 2}\n" for s, d in values)
        metrics = {f"metrics/{cell}/sick.tsv": lines}
        self.job("evaluate_volumes", metrics, [maps, STORE, threshold], wildcards=place)
        for key in (rec, maps):
            self.path(key).unlink()  # as a run does after use

    def table(self, folds):
        lines = (
            "row,experiment,test_dataset,metric,mean,std,n_folds,published_mean,published_std,"
            "n_volumes,published_source\n"
            f"aided,cross,sick,dice,55.0000,7.0711,{folds},55.5,1.5,4,a paper\n"
            f"plain,cross,sick,dice,20.0000,0.0000,{folds},55.5,1.5,4,a paper\n"
            "plain,cross,sick,auprc,nan,nan,0,nan,nan,0,none\n"
        )
        read = [f"metrics/cross/{m}/fold-{fold}/sick.tsv" for m in METHODS for fold in range(folds)]
        column = {"experiment": "cross", "test": "sick", "label": "Sick (T2)"}
        params = {"table": {"rows": list(METHODS), "columns": [column]}, "phantom": True}
        params["labels"] = {"aided": "Aided", "plain": "Plain"}
        names = {"table": "table9"}
        self.job("make_table", {TABLE: lines}, [*read, PUBLISHED], wildcards=names, params=params)


@pytest.fixture(scope="module")
def unspoilt(tmp_path_factory):
    return Run(tmp_path_factory.mktemp("trace") / "results")


@pytest.fixture
def run(unspoilt, tmp_path):
    """A copy that a test may spoil."""
    return unspoilt.copied(tmp_path)


@pytest.fixture
def forge(run):
    return Forge(run.root)


def traced(run, **changed):
    return trace(load_records(run.root, run.repository), **{**CELL, **changed})


@pytest.fixture(scope="module")
def lineage(unspoilt):
    return traced(unspoilt)


def node_of(lineage, key):
    return {node.key: node for node in lineage.nodes}[key]


def of(lineage, rule):
    """The nodes of a rule, by key."""
    return {node.key: node for node in lineage.nodes if node.rule == rule}


def scans_of(lineage):
    return {key for key in of(lineage, None) if key.startswith("raw/")}


# What a cell depends on


def test_the_value_is_the_tables_and_is_computed_again_from_its_own_folds(lineage):
    value = lineage.value
    assert (value["mean"], value["std"], value["n_folds"]) == (55, 7.0711, 2) and value["phantom"]
    assert (value["published_mean"], value["published_std"]) == (55.5, 1.5)
    assert [fold["value"] for fold in lineage.folds] == pytest.approx([50, 60])
    assert set(of(lineage, "evaluate_volumes")) == {METRICS.format(0), METRICS.format(1)}
    assert set(of(lineage, "train_model")) == {WEIGHTS, WEIGHTS.replace("fold-0", "fold-1")}
    assert not any("plain" in node.key for node in lineage.nodes) and lineage.problems == []


def test_of_a_store_only_the_subjects_that_matter_are_followed(lineage):
    stores = of(lineage, "pack_slices")
    assert {key: store.facts["subjects"] for key, store in stores.items()} == {
        "slices/well_T2.safetensors": {"train": ["a0", "a1"], "val_healthy": ["a2", "a3"]},
        STORE: {"val_unhealthy": ["b0"], "test": ["b1", "b2", "b3", "b4"]},
    }
    wanted = [("well", s) for s in SUBJECTS["well"]] + [("sick", s) for s in SUBJECTS["sick"][:5]]
    assert scans_of(lineage) == {key for pair in wanted for key in raws(*pair)}  # not b5
    rules = sorted(n.rule for n in lineage.nodes if n.place.get("subject") == "b1")
    assert rules == ["register_scan", "register_scan", "skullstrip_scan"]


def test_what_does_not_decide_is_not_followed(lineage, unspoilt):
    """AIR of other test sets; AIR for a method that does not use it."""
    assert "slices/other_T2.safetensors" not in of(lineage, "pack_slices")
    # the split was drawn from its participants, too
    assert "participants/other.tsv" in of(lineage, "index_dataset")
    assert not of(traced(unspoilt, row="plain"), "compute_air")


def test_every_node_leads_to_the_source_of_its_data(lineage):
    nodes = {node.key: node for node in lineage.nodes}

    def ends(key):
        return set().union(*map(ends, nodes[key].inputs)) if nodes[key].inputs else {key}

    manifests = {f"raw/{name}.manifest.tsv" for name in SUBJECTS}
    assert ends(TABLE) == {*manifests, "atlas/head.nii.gz", "atlas/atlas.json", PUBLISHED}
    assert nodes["raw/sick.manifest.tsv"].facts == {"seed": 77, "phantom": {"subjects": 6}}
    stations = [TABLE, METRICS.format(0), WEIGHTS, raws("well", "a0")[0]]
    assert [key for key in nodes if key in stations] == stations


def test_masks_predicted_in_a_batch_lead_to_the_scans_that_matter_only(run):
    # as on a GPU: one network run masks b1 and b5, of whom only b1 matters
    batch = "preprocessed/sick/brain_masks/T2w_batch-0.safetensors"
    images, names = [raws("sick", s)[0] for s in ("b1", "b5")], {"dataset": "sick", "batch": "0"}
    asked = {"subjects": ["b1", "b5"]}
    run.job("predict_brain_masks", {batch: "masks"}, images, wildcards=names, params=asked)
    mask = scan("sick", "b1", BRAIN)
    names = {"dataset": "sick", "subject": "b1", "suffix": "T2w"}
    run.job("skullstrip_scan", [mask], [images[0], batch], wildcards=names)
    run.path(batch).unlink()
    found = traced(run)
    assert node_of(found, batch).status == "not kept" and node_of(found, batch).inputs == images[:1]
    assert images[1] not in scans_of(found) and found.problems == []
    assert re.search(r"– \w{12}  predict_brain_masks", text_of(found, True))


def test_a_downloaded_data_set_leads_to_addresses_and_checksums(run):
    files = [
        {"name": f"{n}.zip", "checksum": f"md5:{n * 16}", "verified": True, "url": f"https://x/{n}"}
        for n in ("ab", "cd")
    ]
    key, names = "raw/well.download.json", {"dataset": "well"}
    for ending in ("", ".prov.json"):
        run.path(f"raw/well.manifest.tsv{ending}").unlink()
    run.job("download_dataset", {key: json.dumps({"files": files})}, wildcards=names)
    params = {"root": "results/raw/well", "dataset": {"source": "download"}}
    run.job("index_dataset", ["participants/well.tsv"], [key], wildcards=names, params=params)
    found = traced(run)
    assert found.problems == [] and node_of(found, key).facts["files"] == files
    assert key in node_of(found, raws("well", "a0")[0]).inputs
    assert "https://x/ab" in text_of(found) and "checksum md5:abababab" in text_of(found)


def test_scans_preprocessed_by_others_lead_to_their_folder(run):
    for ending in ("", ".prov.json"):
        run.path(f"raw/well.manifest.tsv{ending}").unlink()
    names = {"dataset": "well"}
    params = {"root": "/data/well", "dataset": {"source": "preprocessed"}}
    run.job("index_dataset", ["participants/well.tsv"], wildcards=names, params=params)
    read = [raws("well", s)[0] for s in SUBJECTS["well"]]
    inputs, names = [*read, "participants/well.tsv"], {**names, "modality": "T2"}
    run.job("pack_slices", ["slices/well_T2.safetensors"], inputs, wildcards=names)
    found = traced(run)
    assert found.problems == []
    assert {key for key in scans_of(found) if "/well/" in key} == set(read)
    assert not [key for key in of(found, "register_scan") if "/well/" in key]
    assert "source preprocessed, root /data/well" in text_of(found)


# What does not match


ON_THE_WAY = [TABLE, METRICS.format(1), THRESHOLD, WEIGHTS, AIR, SPLIT, STORE, scan("sick", "b1"),
              "participants/sick.tsv",
              *raws("sick", "b1"), "raw/sick.manifest.tsv", "atlas/head.nii.gz"]  # fmt: skip
ELSEWHERE = [raws("sick", "b5")[0], "metrics/cross/plain/fold-0/sick.tsv",
             "slices/other_T2.safetensors"]  # fmt: skip


def test_changed_files_on_the_path_are_marked_and_only_those(run):
    for key in (*ON_THE_WAY, *ELSEWHERE):
        with run.path(key).open("ab") as handle:
            handle.write(b"\n")
    found = traced(run)
    assert {node.key for node in found.nodes if node.problems} == set(ON_THE_WAY)
    assert {node_of(found, key).status for key in ON_THE_WAY} == {"changed"}
    told = text_of(found).split(f"{len(ON_THE_WAY)} problems:")[1]
    assert all(key in told for key in ON_THE_WAY) and re.search(r"× \w{12}", text_of(found))
    unhashed = traced(run, check=False)
    assert unhashed.problems == [] and node_of(unhashed, STORE).status == "not checked"
    assert {n.status for n in of(unhashed, "score_volumes").values()} == {"not kept"}


def test_a_missing_file_is_a_problem_unless_the_run_deletes_it_after_use(run):
    run.path(WEIGHTS).unlink()
    found = traced(run)
    assert [n.status for n in of(found, "train_model").values()] == ["missing", "as recorded"]
    assert {n.status for n in of(found, "score_volumes").values()} == {"not kept"}
    assert found.problems == [f"{WEIGHTS}: the file is missing"]


@pytest.mark.parametrize(
    ("key", "old", "new", "forged", "problem"),
    [
        (TABLE, "55.0000", "57.0000", True, "the cell says 57.0000 ± 7.0711, its metrics give 55"),
        (THRESHOLD, '"b0"', '"b1"', True, "used b1, whom the split has in test, not in val_un"),
        (METRICS.format(0), "b1", "b3", True, "has b1 of test 0 times"),
        (raws("sick", "b1")[0], "raw", "RAW", True, "was read with other bytes than raw/sick.m"),
        (WEIGHTS, "weights", "trained again", False, "reconstruct_volumes read other bytes"),
        (f"{AIR}.prov.json", '"seconds": 1.0', '"seconds": 2.0', None, "its record was edited"),
    ],
)
def test_what_contradicts_is_named_though_hashes_fit(run, forge, key, old, new, forged, problem):
    forge.replace(key, old, new)
    if forged is not None:
        forge.rehash(key, inputs=forged)
    found = traced(run).problems
    assert problem in " ".join(found)
    assert all(text.startswith(key.removesuffix(".prov.json")) for text in found)


def test_a_lost_record_ends_the_path_and_is_named(run):
    lost = [WEIGHTS, METRICS.format(1), STORE]
    for key in lost:
        run.path(f"{key}.prov.json").unlink()
    found = traced(run)
    assert len(found.folds) == 2
    assert {p.partition(":")[0] for p in found.problems if "no record says" in p} == set(lost)
    assert text_of(found).count("× no record says") == 3


def test_tables_that_cannot_be_read_are_named_and_end_nothing_else(run):
    keys = ("participants/sick.tsv", SPLIT)
    for key in (*keys, f"{SPLIT}.prov.json"):
        run.path(key).write_bytes(b"\xff\xfe")
    found = traced(run)
    assert all(any(p.startswith(f"{key}: ") for p in found.problems) for key in keys)


# Names


def test_rows_and_columns_have_several_names(unspoilt):
    for column in ("cross/sick", "Sick (T2)", "sick (t2)", "sick", "cross", None):
        cell = traced(unspoilt, row="Aided", column=column, check=False).cell
        assert (cell["row"], cell["test"]) == ("aided", "sick")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"table": "tabel9"}, "unknown table 'tabel9'. Did you mean 'table9'?"),
        ({"row": "aide"}, "unknown row 'aide'. Did you mean 'aided'? Known are: aided, plain."),
        ({"column": "sock"}, "Known are: cross/sick."),
        ({"metric": "dise"}, "Did you mean 'dice'? Known are: auprc, dice."),
        ({"row": "famous"}, "– (not of this run). Published only: famous cross/sick dice 60.00 ±"),
        ({"table": "table8"}, "– (not of this run). Published only: aided cross/sick dice 60.00"),
        ({"row": "plain", "metric": "auprc"}, "is – (it was not run). Published: not published"),
    ],
)  # fmt: skip
def test_a_cell_that_is_not_there_is_answered_with_what_there_is(unspoilt, changed, message):
    with pytest.raises(DataError, match=re.escape(message)):
        traced(unspoilt, **changed)


def test_a_column_name_that_fits_two_columns_lists_both(run, forge):
    other = {"experiment": "cross", "test": "other", "label": None}
    forge.record(TABLE, lambda content: content["params"]["table"]["columns"].append(other))
    with pytest.raises(DataError, match=r"cross/sick \(Sick \(T2\)\), cross/other \(other"):
        traced(run, column="cross")
    with pytest.raises(DataError, match="which column"):
        traced(run, column=None)


def test_a_table_whose_cell_cannot_be_found_is_an_error(run):
    for name, message in ((TABLE, "no line"), (f"{TABLE}.prov.json", "its record .* is damaged")):
        run.path(name).write_bytes(b"{}")
        with pytest.raises(DataError, match=message):
            traced(run)


def test_a_cell_of_a_table_of_all_metrics_is_traced_in_its_own_unit(run):
    made = next(r for r in load_records(run.root).all.values() if r.rule == "make_table")
    key, read = "tables/metrics_table9.csv", [e.key for e in made.inputs if e.key != PUBLISHED]
    head = "row,experiment,test_dataset,strata,stratum,metric,mean,std,n_folds,n_volumes"
    for mean, problems in ((0.55, 0), (0.56, 1)):
        lines = f"{head}\naided,cross,sick,all volumes,all volumes,dice,{mean},0.0707107,2,4\n"
        outputs, options = {key: lines}, {"wildcards": made.wildcards, "params": made.params}
        run.job("make_metrics_table", outputs, read, **options)
        lineage = traced(run, table="metrics_table9")
        assert len(node_of(lineage, key).problems) == problems
        text = text_of(lineage)
        assert f"{mean} ± 0.07071: 2 folds" in text and "recomputed mean 0.5500" in text
    with pytest.raises(DataError, match="unknown metric 'hd95'. Known are: dice"):
        traced(run, table="metrics_table9", metric="hd95")


# Text and JSON


def test_the_text_is_a_tree_with_every_file_once(lineage):
    text, full = text_of(lineage), text_of(lineage, True)
    for words in (
        "PHANTOM DATA",
        "55.00 ± 7.07 %: 2 folds, 4 test volumes\nby fold: 50.00, 60.00",
        "published: 55.50 ± 1.50 (a paper); a phantom is not comparable with it",
        "recomputed mean 55.0000, recomputed std 7.0711",
        "well train 2, well val healthy 1",
        "threshold 0.2500; method halving; subjects b0",
        "seed 4711, epochs 9, weights of epoch 7, device cpu, seconds 1.0",
        "invert True; rule paper; reference dataset sick; air before 1.2000",
        "subjects train a0, a1; val healthy a2, a3",
        "seed 77; phantom subjects 4",
        f"commit {'c' * 40}",
        f"├── {METRICS.format(0)}\n│   = ",
    ):
        assert words in text, words
    for node in lineage.nodes:
        assert len(re.findall(rf"^[│├└─ ]*{node.key}$", full, re.MULTILINE)) == 1, node.key


def test_many_siblings_are_cut_in_the_text_unless_they_do_not_match(tmp_path):
    run, key = Run(tmp_path / "results", folds=5), WEIGHTS.replace("fold-0", "fold-4")
    lineage = traced(run)
    text, full = text_of(lineage), text_of(lineage, True)
    assert "... and 3 more files of evaluate_volumes" in text
    assert (text.count("weights of epoch"), full.count("weights of epoch")) == (2, 5)
    assert "more file" not in full
    Forge(run.root).flip(key)
    text = text_of(traced(run))
    assert f"{key}: the file's SHA-256 is" in text
    assert METRICS.format(4) in text and "... and 2 more files of evaluate_volumes" in text


def test_the_json_holds_all_and_is_plain(lineage):
    content = json.loads(json.dumps(lineage.as_json(), allow_nan=False))
    assert [node["key"] for node in content["nodes"]] == [node.key for node in lineage.nodes]
    assert content["value"]["phantom"] is True and content["cell"]["column"] == "Sick (T2)"


# The command


def test_the_command_prints_the_tree_and_writes_it(run, tmp_path):
    table = ("trace", "--results", run.root, "--table", "table9")
    cell, name = ("--row", "aided", "--column", "sick"), "table9_aided_cross_sick_dice"
    done, folder = uad(*table, *cell), run.root / "audit" / "trace"
    written = sorted(path.name for path in folder.iterdir())
    assert written == [f"{name}.{ending}" for ending in ("json", "txt")]
    assert done.stdout.startswith((folder / f"{name}.txt").read_text())
    # the published values of this repository are not those of the synthetic one
    assert done.returncode == 1 and PUBLISHED in done.stdout
    done = uad(*table, *cell, "--output", run.path(TABLE))  # a file where the folder would be
    assert "table9" in done.stdout and "could not be written" in done.stdout
    assert "Traceback" not in done.stderr
    done = uad(*table, "--row", "aide")
    assert done.returncode == 2 and done.stderr.startswith("ERROR: table9: unknown row 'aide'")
