"""The audit of a finished run names what was tampered with, and only that."""

import json
import shutil

import numpy as np
import pytest

from tools.result_trees import Forge
from uad.audit import audit

pytestmark = pytest.mark.slow

CELL = "intra_FLAIR/ddpm/fold-0"
SCAN = "preprocessed/brats21/sub-BraTS202100003/anat/sub-BraTS202100003"
OTHER = SCAN.replace("00003", "00005")
SPLIT = "splits/intra_FLAIR/fold-0.tsv"
STORE = "slices/brats21_FLAIR.safetensors"
TABLE = "tables/table3.csv"


@pytest.fixture(scope="module")
def before(finished):
    """What fails in the run as it is: nothing, if repository and run belong together."""
    return failing(finished / "results")


@pytest.fixture
def results(copy_of):
    return copy_of / "results"


@pytest.fixture
def forge(results):
    return Forge(results)


@pytest.fixture
def named(results, before):
    """The artifacts that the audit names after a test has tampered with the tree."""
    return lambda: failing(results) - before


def failing(results):
    return {finding.artifact for finding in audit(results).findings}


def reasons(results, artifact):
    (finding,) = (f for f in audit(results).findings if f.artifact == artifact)
    return finding.why


def test_an_untouched_run_passes_and_every_artifact_is_covered(finished):
    verdict = audit(finished / "results")
    assert not verdict.findings
    assert verdict.coverage == 100 and verdict.total == verdict.checked > 200
    assert verdict.phantom and not verdict.skipped
    # every file that is there is an artifact, a record, a log, a benchmark or the marker
    results = finished / "results"
    free = {"logs", "benchmarks", "audit", "source.json"}
    files = [p.relative_to(results) for p in results.rglob("*") if p.is_file()]
    files = [p for p in files if p.parts[0] not in free]
    repository = next(s for s in verdict.stages if s.name == "repository").total
    assert verdict.total == len(files) + repository
    assert verdict.temporary == 12


def test_a_run_that_was_moved_passes_as_well(results, before):
    elsewhere = results.rename(results.with_name("elsewhere"))
    assert failing(elsewhere) == before


@pytest.mark.parametrize(
    "artifact",
    [
        "raw/brats21/BraTS2021_00003/BraTS2021_00003_flair.nii.gz",
        "raw/brats21/BraTS2021_00003/BraTS2021_00003_seg.nii.gz",
        "raw/brats21.manifest.tsv",
        "participants/brats21.tsv",
        "atlas/head.nii.gz",
        f"{SCAN}_from-orig_to-SRI24_mode-image_desc-xfm_FLAIR.mat",
        f"{SCAN}_space-SRI24_desc-preproc_FLAIR.nii.gz",
        f"{SCAN}_space-SRI24_desc-preproc_FLAIR.json",
        STORE,
        SPLIT,
        "air/intra_FLAIR/fold-0.json",
        f"models/{CELL}/model.safetensors",
        f"models/{CELL}/history.csv",
        f"thresholds/{CELL}/brats21.json",
        f"metrics/{CELL}/brats21.tsv",
        f"curves/{CELL}/brats21.tsv",
        "significance/table3.tsv",
        TABLE,
        "tables/table3.html",
        "tables/air.csv",
        "studies/alpha.csv",
        f"studies/alpha/{CELL.replace('ddpm', 'pddpm-iqa')}/brats21.tsv",
        "cost/ddpm.json",
        "figures/figure3.png",
        "notebooks/air_statistics.ipynb",
        "report.html",
        "config.resolved.yaml",
        "preflight.json",
    ],
)
def test_a_flipped_byte_is_named(forge, named, artifact):
    forge.flip(artifact)
    assert named() == {artifact}


def test_a_flipped_byte_in_an_output_of_every_rule_is_named(finished, before, results, forge):
    from uad.records import load_records

    records = load_records(finished / "results").all.values()
    last_of_each = {record.rule: record.outputs[-1].key for record in records}
    for key in last_of_each.values():
        if not (results / key).exists():
            continue  # deleted after use
        forge.flip(key)
        assert failing(results) - before == {key}
        forge.flip(key)


@pytest.mark.parametrize(
    "record",
    [
        TABLE,
        SPLIT,
        STORE,
        f"metrics/{CELL}/brats21.tsv",
        f"maps/{CELL}/brats21.safetensors",
        f"{SCAN}_space-SRI24_desc-preproc_FLAIR.nii.gz",
        "report.html",
    ],
)
@pytest.mark.parametrize("place", [0.01, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 0.95])
def test_a_flipped_byte_in_a_record_is_named(results, forge, named, record, place):
    name = f"{record}.prov.json"
    size = (results / name).stat().st_size
    forge.flip(name, int(place * size))
    assert named() == {name}


@pytest.mark.parametrize("word", ["format", "outputs", "inputs", "results/tables", "make_table"])
def test_a_record_that_cannot_be_used_any_more_is_named(results, forge, named, word):
    """Not its outputs, which it no longer explains."""
    forge.replace(f"{TABLE}.prov.json", word, word[::-1])
    assert named() == {f"{TABLE}.prov.json"}


@pytest.mark.parametrize(
    "artifact",
    [
        f"{SCAN}_space-SRI24_desc-preproc_FLAIR.nii.gz",
        f"models/{CELL}/model.safetensors",
        f"maps/{CELL}/brats21.safetensors",
        TABLE,
        "tables/air.csv",
        "studies/alpha.csv",
        "notebooks/air_statistics.ipynb",
    ],
)
def test_a_deleted_record_is_named_once_with_its_files(results, named, artifact):
    record = results / f"{artifact}.prov.json"
    lost = [f["path"].removeprefix("results/") for f in json.loads(record.read_bytes())["outputs"]]
    record.unlink()
    assert named() == {f"{artifact}.prov.json"}
    why = reasons(results, f"{artifact}.prov.json")
    assert all(name in why for name in lost if (results / name).exists())


def test_the_deleted_record_of_every_rule_is_named(finished, before, results):
    """Whatever a rule's outputs are called: the name of its record is that of the first."""
    from uad.records import load_records

    records = load_records(finished / "results")
    one_of_each = {record.rule: key for key, record in records.all.items()}
    assert len(one_of_each) >= 29
    for key in one_of_each.values():
        hidden = (results / key).rename(results.parent / "hidden")
        assert failing(results) - before == {key}
        hidden.rename(results / key)


@pytest.mark.parametrize(
    "artifact",
    [
        "raw/brats21/BraTS2021_00003/BraTS2021_00003_flair.nii.gz",
        f"{SCAN}_space-SRI24_label-brain_desc-mask_FLAIR.nii.gz",
        STORE,
        SPLIT,
        f"models/{CELL}/model.safetensors",
        f"metrics/{CELL}/brats21.tsv",
        "tables/table3.tex",
        "figures/air.png",
        "config.resolved.yaml",
    ],
)
def test_a_deleted_artifact_is_named(results, named, artifact):
    (results / artifact).unlink()
    assert named() == {artifact}


@pytest.mark.parametrize(
    "artifact",
    [
        "notes.txt",
        "tables/table9.csv",
        "tables/table3.bak.csv",
        f"metrics/{CELL}/mslub.tsv",
        "raw/brats21/BraTS2021_00003/BraTS2021_00003_t1.nii.gz",
        "logs/no_such_rule/job.log",
        f"preprocessed/brats21/sub-BraTS202199999/anat/{SCAN.rpartition('/')[2]}_T1w.json",
    ],
)
def test_a_foreign_file_is_named(results, named, artifact):
    (results / artifact).parent.mkdir(parents=True, exist_ok=True)
    (results / artifact).write_text("foreign")
    assert named() == {artifact}


def test_a_swapped_pair_of_scans_is_named(results, named):
    pair = [f"{scan}_space-SRI24_desc-preproc_FLAIR.nii.gz" for scan in (SCAN, OTHER)]
    swap(*(results / name for name in pair))
    assert named() == set(pair)


def test_a_swapped_pair_of_scans_whose_records_were_made_to_fit_is_named(results, forge, named):
    pair = [f"{scan}_space-SRI24_desc-preproc_FLAIR.nii.gz" for scan in (SCAN, OTHER)]
    swap(*(results / name for name in pair))
    for name in pair:
        forge.rehash(name, inputs=False)
    assert named() == set(pair)


def test_subjects_swapped_by_name_in_a_slice_store_are_found(results, forge, named):
    """All hashes fit; the participants table has another order."""
    from safetensors.numpy import load_file, save_file

    from uad.preprocess.slices import subjects_in

    names = subjects_in(results / STORE)
    names[3], names[5] = names[5], names[3]
    save_file(load_file(results / STORE), results / STORE, metadata={"subjects": json.dumps(names)})
    forge.rehash(STORE)
    assert named() == {STORE}


@pytest.mark.parametrize("pair", [(1, 4), (1, 5), (0, 4)])
def test_volumes_swapped_in_a_slice_store_are_found(results, forge, named, pair):
    """All hashes and names fit; AIR and metrics were measured on the volumes as they were."""
    from safetensors.numpy import load_file, save_file

    from uad.preprocess.slices import subjects_in

    names, arrays = subjects_in(results / STORE), load_file(results / STORE)
    for array in arrays.values():
        array[list(pair)] = array[list(pair[::-1])]
    save_file(arrays, results / STORE, metadata={"subjects": json.dumps(names)})
    forge.rehash(STORE)
    assert named() == {STORE}


def swap(one, other):
    kept = one.with_suffix(".kept")
    one.rename(kept)
    other.rename(one)
    kept.rename(other)


@pytest.mark.parametrize("forged", ["nothing", "its record", "all records"])
@pytest.mark.parametrize(
    ("artifact", "old", "new"),
    [
        (TABLE, "46.8538", "56.8538"),
        (TABLE, "29.9892", "9.9892"),
        (TABLE, ",21.1300,", ",31.1300,"),
        ("tables/table3.md", "46.85±", "56.85±"),
        ("tables/table3.html", "46.85±", "56.85±"),
        ("tables/table3.tex", "46.85$", "56.85$"),
        ("tables/air.csv", "2.4678", "3.4678"),
        ("air/intra_FLAIR/fold-0.json", '"mean_normal": 0.62', '"mean_normal": 0.52'),
    ],
)
def test_a_hand_edited_number_is_named(forge, named, artifact, old, new, forged):
    """Also by somebody who makes the records fit: it is computed again."""
    forge.replace(artifact, old, new)
    if forged != "nothing":
        forge.rehash(artifact, inputs=forged == "all records")
    assert named() == {artifact}


@pytest.mark.parametrize("column", ["dice", "threshold", "lesion_voxels"])
@pytest.mark.parametrize("forged", ["nothing", "its record", "all records"])
def test_hand_edited_metrics_are_named(results, forge, named, column, forged):
    """Also with all records made to fit: volumes, threshold and Dice belong together."""
    from uad.core.files import read_tsv, write_tsv

    artifact = f"metrics/{CELL}/brats21.tsv"
    rows = read_tsv(results / artifact)
    rows[column] += 10 if column == "lesion_voxels" else 0.01
    write_tsv(results / artifact, rows)
    if forged != "nothing":
        forge.rehash(artifact, inputs=forged == "all records")
    assert named() == {artifact}


def test_tables_that_do_not_follow_from_the_metrics_are_named(results, forge, named):
    """Metrics that could be, with all records made to fit: the table is what disagrees."""
    from uad.core.files import read_tsv, write_tsv

    artifact = f"metrics/{CELL}/brats21.tsv"
    rows = read_tsv(results / artifact)
    rows["auprc"] *= 1.1
    write_tsv(results / artifact, rows)
    forge.rehash(artifact)
    assert named() == {f"tables/table3.{ending}" for ending in ("csv", "md", "tex", "html")}


@pytest.mark.parametrize("forged", ["its record", "all records"])
def test_a_leaked_subject_is_named(forge, results, named, forged):
    """A training subject is put among the test subjects, and all hashes are made to fit."""
    lines = (results / SPLIT).read_text().splitlines()
    leaked = next(line for line in lines if "\ttrain\t" in line)
    text = "\n".join([*lines, leaked.replace("\ttrain\t", "\ttest\t"), ""])
    (results / SPLIT).write_text(text)
    forge.rehash(SPLIT, inputs=forged == "all records")
    assert named() == {SPLIT}
    assert "is in train and in test" in reasons(results, SPLIT)


def test_exchanged_roles_are_named(forge, results, named):
    """No subject is in two sets, but not in the one that seed and sizes give."""
    text = (results / SPLIT).read_text()
    swapped = text.replace("\ttest\t", "\t?\t", 1).replace("\ttrain\t", "\ttest\t", 1)
    (results / SPLIT).write_text(swapped.replace("\t?\t", "\ttrain\t"))
    forge.rehash(SPLIT)
    assert named() == {SPLIT}


def test_a_threshold_of_other_subjects_is_named(results, forge, named):
    artifact = f"thresholds/{CELL}/brats21.json"
    forge.replace(artifact, "BraTS202100004", "BraTS202100005")
    forge.rehash(artifact)
    assert named() == {artifact}
    assert "has in test, not in val_unhealthy" in reasons(results, artifact)


@pytest.mark.parametrize(
    "made_by_another",
    [
        [f"metrics/{CELL}/brats21.tsv"],
        [TABLE],
        [f"{scan}_space-SRI24_desc-preproc_FLAIR.nii.gz" for scan in (SCAN, OTHER)],
    ],
)
def test_artifacts_of_another_version_of_the_library_are_named(forge, named, made_by_another):
    def other(content):
        content["code"]["library_files"]["files.py"] = "0" * 64

    for artifact in made_by_another:
        forge.record(artifact, other)
    assert named() == set(made_by_another)


def test_an_artifact_of_another_version_of_its_script_is_named(forge, named):
    artifact = f"thresholds/{CELL}/brats21.json"
    forge.record(artifact, lambda content: content["code"].update(script_sha256="0" * 64))
    assert named() == {artifact}


def test_an_artifact_of_another_environment_is_named(forge, named):
    artifact = f"models/{CELL}/model.safetensors"
    forge.record(artifact, lambda content: content["environment"].update(numpy="1.0"))
    assert named() == {artifact}


@pytest.mark.parametrize(
    ("artifact", "param", "value"),
    [
        (f"thresholds/{CELL}/brats21.json", "search", "exact"),
        (f"metrics/{CELL}/brats21.tsv", "component_max_size", 9),
        (f"models/{CELL}/model.safetensors", "loss", "l2"),
        (f"models/{CELL}/model.safetensors", "seed", 1),
        (f"models/{CELL}/model.safetensors", "noise_field", "per_sample"),
        (f"{SCAN}_space-SRI24_desc-preproc_FLAIR.nii.gz", "spacing", 1.0),
        (STORE, "curvature_flow", False),
    ],
)
def test_an_artifact_of_another_config_is_named(forge, named, artifact, param, value):
    forge.record(artifact, lambda content: content["params"].update({param: value}))
    assert named() == {artifact}


def test_a_config_that_no_artifact_was_made_with_is_named_alone(results, forge, named):
    forge.replace("config.resolved.yaml", "seed: 3141", "seed: 3142")
    forge.rehash("config.resolved.yaml")
    assert named() == {"config.resolved.yaml"}


def test_what_was_made_from_an_older_version_is_named(results, forge, named):
    """As after an interrupted rerun: the threshold is new, the metrics are not."""
    artifact = f"thresholds/{CELL}/brats21.json"
    forge.replace(artifact, '"evaluations": 20', '"evaluations": 21')
    forge.rehash(artifact, inputs=False)
    forge.record(artifact, lambda content: content.update(started="2099-01-01T00:00:00Z"))
    assert named() == {f"metrics/{CELL}/brats21.tsv", "figures/curves_FLAIR.png"}
    assert "an older version" in reasons(results, "figures/curves_FLAIR.png")


def test_several_tampered_artifacts_are_all_named(forge, results, named):
    expected = {
        "figures/figure1.png",
        f"models/{CELL}/model.safetensors",
        "cost/ddpm.json.prov.json",
    }
    forge.flip("figures/figure1.png")
    forge.flip(f"models/{CELL}/model.safetensors")
    (results / "cost/ddpm.json.prov.json").unlink()
    assert named() == expected


def test_files_left_out_on_purpose_do_not_fail(results, before):
    """As in a crate without images: what needs them is listed as not checked."""
    from uad.records import load_records

    def is_image(name):
        return name.endswith((".nii.gz", ".mat")) or name.startswith(("slices/", "raw/brats21/"))

    left_out = [k for k in (*load_records(results).outputs,) if is_image(k)]
    for name in left_out:
        (results / name).unlink()
    shutil.rmtree(results / "raw/brats21")
    verdict = audit(results, omitted=is_image)
    assert {f.artifact for f in verdict.findings} == before
    assert verdict.omitted == len(left_out) + 16 and verdict.coverage == 100
    assert any("air/intra_FLAIR/fold-0.json" in text for text in verdict.skipped)
    assert verdict.checks["table cells recomputed"] > 0


def test_an_image_that_was_left_out_but_is_there_is_still_compared(results, forge, named):
    forge.flip(STORE)
    assert STORE in {f.artifact for f in audit(results, omitted={STORE}).findings}


def test_kept_maps_are_compared_with_the_thresholds(results, forge):
    """The Dice of a threshold, from maps that a run with keep_reconstructions has."""
    from uad.core.files import read_json
    from uad.preprocess.slices import read_store, write_volumes

    forge.replace("config.resolved.yaml", "\nrun:\n", "\nrun:\n  keep_reconstructions: true\n")
    forge.rehash("config.resolved.yaml")
    verdict = audit(results)
    assert any("12 reconstructions and anomaly maps are not here" in n for n in verdict.notes)
    maps, artifact = f"maps/{CELL}/brats21.safetensors", f"thresholds/{CELL}/brats21.json"
    subject = read_json(results / artifact)["subjects"][0]
    lesion = read_store(results / STORE, [subject]).lesions[0]
    write_volumes(results / maps, {f"val_unhealthy/{subject}": lesion.astype(np.float32)})
    forge.rehash(maps)
    assert "gives a Dice of 1.000000" in reasons(results, artifact)
