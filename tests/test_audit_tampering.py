"""The audit of a finished run names what was tampered with, and only that.

Forgeries that are possible in a small tree are in test_audit_checks.
"""

import json
import shutil

import numpy as np
import pytest

from tools.result_trees import Forge
from uad.audit.verdict import audit
from uad.core.files import read_json
from uad.core.records import load_records

pytestmark = pytest.mark.slow

CELL = "intra_FLAIR/ddpm/fold-0"
SCANS = [
    f"preprocessed/brats21/sub-BraTS2021{n}/anat/sub-BraTS2021{n}_space-SRI24_desc-preproc_FLAIR"
    ".nii.gz"
    for n in ("00003", "00005")
]
SPLIT, TABLE = "splits/intra_FLAIR/fold-0.tsv", "tables/table3.csv"
STORE = "slices/brats21_FLAIR.safetensors"
WEIGHTS = f"models/{CELL}/model.safetensors"


@pytest.fixture
def results(copy_of):
    return copy_of / "results"


@pytest.fixture
def forge(results):
    return Forge(results)


@pytest.fixture(scope="module")
def before(finished):
    """What fails in the run as it is: nothing, if repository and run belong together."""
    return set(failing(finished / "results"))


@pytest.fixture
def named(results, before):
    """The artifacts that the audit names after a test has tampered with the tree."""
    return lambda: set(failing(results)) - before


def failing(results):
    return {finding.artifact: finding.why for finding in audit(results).findings}


def outputs_that_are_there(results, record):
    content = json.loads((results / record).read_bytes())
    keys = [file["path"].removeprefix("results/") for file in content["outputs"]]
    return {key for key in keys if (results / key).exists()}


def test_an_untouched_run_passes_and_every_artifact_is_covered(finished):
    results = finished / "results"
    verdict = audit(results)
    assert not verdict.findings
    assert verdict.coverage == 100 and verdict.count("total") == verdict.count("checked") > 200
    assert verdict.phantom and not verdict.skipped and verdict.count("temporary") == 12
    # every file that is there is an artifact, a record, a log, a benchmark or the marker
    free = {"logs", "benchmarks", "audit", "source.json"}
    files = [p.relative_to(results) for p in results.rglob("*") if p.is_file()]
    files = [p for p in files if p.parts[0] not in free]
    repository = next(stage for stage in verdict.stages if stage.name == "repository").total
    assert verdict.count("total") == len(files) + repository


def test_a_run_that_was_moved_passes_as_well(results, before):
    elsewhere = results.rename(results.with_name("elsewhere"))
    assert set(failing(elsewhere)) == before


def test_a_flipped_byte_in_an_output_of_every_rule_is_named(results, forge, named):
    last = {r.rule: r.outputs[-1].key for r in load_records(results).all.values()}
    there = {key for key in last.values() if (results / key).exists()}  # others: deleted after use
    assert len(there) > 20
    for key in there:
        forge.flip(key)
    assert named() == there


def test_a_deleted_output_of_every_rule_is_named(results, named):
    first = {r.rule: r.outputs[0].key for r in load_records(results).all.values()}
    there = {key for key in first.values() if (results / key).exists()}
    for key in there:
        (results / key).unlink()
    assert named() == there


def test_the_files_of_a_deleted_record_of_every_rule_are_named(finished, before, results):
    one_of_each = {r.rule: key for key, r in load_records(results).all.items()}
    assert len(one_of_each) > 20
    for key in one_of_each.values():
        lost = outputs_that_are_there(results, key)
        hidden = (results / key).rename(results.parent / "hidden")
        found = set(failing(results)) - before
        # what is deleted after use is known by what was made from it
        assert found == (lost or {key.removesuffix(".prov.json")}), key
        hidden.rename(results / key)


@pytest.mark.parametrize("place", [0.01, 0.1, 0.3, 0.45, 0.6, 0.95])
def test_a_flipped_byte_in_a_record_is_named(results, forge, named, place):
    """With the files that it no longer explains, where it cannot be read any more."""
    records = [f"{key}.prov.json" for key in (TABLE, SPLIT, STORE, SCANS[0], "report.html")]
    explained = set().union(*(outputs_that_are_there(results, key) for key in records))
    for record in records:
        forge.flip(record, int(place * (results / record).stat().st_size))
    assert set(records) <= named() <= set(records) | explained


def test_foreign_files_are_named(results, named):
    foreign = {
        "notes.txt",
        "tables/table9.csv",
        "tables/table3.bak.csv",
        f"metrics/{CELL}/mslub.tsv",
        "raw/brats21/BraTS2021_00003/BraTS2021_00003_t1.nii.gz",
        "logs/no_such_rule/job.log",
        SCANS[0].replace("FLAIR.nii.gz", "T1w.json"),
    }
    for key in foreign:
        (results / key).parent.mkdir(parents=True, exist_ok=True)
        (results / key).write_text("foreign")
    assert named() == foreign


@pytest.mark.parametrize("forged", [False, True])
def test_a_swapped_pair_of_scans_is_named(results, forge, named, forged):
    one, other = (results / key for key in SCANS)
    kept = one.rename(one.with_suffix(".kept"))
    other.rename(one)
    kept.rename(other)
    for key in SCANS if forged else ():
        forge.rehash(key, inputs=False)
    assert named() == set(SCANS)


@pytest.mark.parametrize("forged", ["nothing", "its record", "all records"])
def test_hand_edited_numbers_are_named(results, forge, named, forged):
    """Also by somebody who makes the records fit: they are computed again."""
    edits = {"tables/air.csv": 5, TABLE: 4}  # mean_normal, mean
    for key, column in edits.items():
        head, line, *rest = (results / key).read_text().splitlines()
        cells = line.split(",")
        cells[column] = str(float(cells[column]) + 1)
        (results / key).write_text("\n".join([head, ",".join(cells), *rest, ""]))
        if forged != "nothing":
            forge.rehash(key, inputs=forged == "all records")
    assert named() == set(edits)


def test_a_leak_and_exchanged_volumes_are_named_though_all_hashes_fit(results, forge, named):
    from safetensors.numpy import load_file, save_file

    from uad.preprocess.slices import subjects_in

    names, arrays = subjects_in(results / STORE), load_file(results / STORE)
    arrays = {key: array[[0, 4, 2, 3, 1, *range(5, len(names))]] for key, array in arrays.items()}
    save_file(arrays, results / STORE, metadata={"subjects": json.dumps(names)})
    forge.rehash(STORE)
    found = failing(results)
    assert found and all(STORE in found[key] for key in named())
    lines = (results / SPLIT).read_text().splitlines()
    leaked = next(line for line in lines if "\ttrain\t" in line).replace("\ttrain\t", "\ttest\t")
    (results / SPLIT).write_text("\n".join([*lines, leaked, ""]))
    forge.rehash(SPLIT)
    assert "is in train and in test" in failing(results)[SPLIT]


def test_artifacts_of_other_code_environment_and_config_are_named(forge, named):
    threshold = f"thresholds/{CELL}/brats21.json"
    changes = {
        TABLE: lambda c: c["code"]["library_files"].update({"core/files.py": "0" * 64}),
        threshold: lambda c: c["code"].update(script_sha256="0" * 64),
        SCANS[0]: lambda c: c["environment"].update(numpy="1.0"),
        WEIGHTS: lambda c: c["params"].update(noise_field="per_sample"),
        STORE: lambda c: c["params"].update(curvature_flow=False),
    }
    for key, change in changes.items():
        forge.record(key, change)
    assert named() == set(changes)


def test_files_left_out_on_purpose_do_not_fail(results, before):
    """As in a crate without images: what needs them is listed as not checked."""

    def is_image(name):
        return name.endswith((".nii.gz", ".mat")) or name.startswith(("slices/", "raw/brats21/"))

    left_out = [key for key in load_records(results).outputs if is_image(key)]
    for name in left_out:
        (results / name).unlink()
    shutil.rmtree(results / "raw/brats21")
    verdict = audit(results, omitted=is_image)
    assert {f.artifact for f in verdict.findings} == before
    assert verdict.count("omitted") == len(left_out) + 16 and verdict.coverage == 100
    assert any("air/intra_FLAIR/fold-0.json" in text for text in verdict.skipped)
    assert verdict.checks["table cells recomputed"] > 0


def test_an_image_that_was_left_out_but_is_there_is_still_compared(results, forge):
    forge.flip(STORE)
    assert STORE in {f.artifact for f in audit(results, omitted={STORE}).findings}


def test_kept_maps_are_compared_with_the_thresholds(results, forge):
    """The Dice of a threshold, from maps that a run with keep_reconstructions has."""
    from uad.preprocess.slices import read_store, write_volumes

    maps, threshold = f"maps/{CELL}/brats21.safetensors", f"thresholds/{CELL}/brats21.json"
    subject = read_json(results / threshold)["subjects"][0]
    lesion = read_store(results / STORE, [subject]).lesions[0]
    write_volumes(results / maps, {f"val_unhealthy/{subject}": lesion.astype(np.float32)})
    forge.rehash(maps)
    assert "gives a Dice of 1.000000" in failing(results)[threshold]
