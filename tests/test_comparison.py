"""Two runs side by side: what is identical, where they part, why, and which cells it touches."""

import base64
import io
import json
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from tools.result_trees import CODE, ENVIRONMENT, LIBRARY, Forge, ResultTree
from uad.audit.compare import compare
from uad.audit.compare_contents import Tolerance, compare_files, kind_of
from uad.audit.compare_report import page as html_page
from uad.audit.compare_report import summary
from uad.core.errors import DataError
from uad.core.files import sha256

METHODS = ("thresh", "ddpm")
SCAN = "raw/brats21/b/b_flair.nii.gz"
STORE = "slices/brats21_FLAIR.safetensors"
TABLE = "tables/table3.csv"


def metrics(method, fold=0):
    return f"metrics/intra/{method}/fold-{fold}/brats21.tsv"


def tensor(values):
    from safetensors.numpy import save

    return save({"volumes": np.asarray(values, dtype=np.float32)})


def write_run(
    root, *, scans=(1.0, 2.0), erosion=3, seed=7, noise=0.0, methods=METHODS, of_training=None
):
    """A run of two scans, two methods and one table; every number follows from those before it.

    Args:
        root: the results folder.
        scans: value of each raw scan.
        erosion: a param of the scoring.
        seed: of the phantom and of the training.
        noise: what the training adds to its weights.
        methods: rows of the table.
        of_training: other fields of the records of the trainings.
    """
    tree = ResultTree(root)
    names = dict(zip("ab", scans, strict=False))
    tree.write("source.json", '{"source": "phantom"}')
    raw = {f"raw/brats21/{n}/{n}_flair.nii.gz": f"scan {v}" for n, v in names.items()}
    for key, content in raw.items():
        tree.write(key, content)
    rows = "".join(
        f"{key.removeprefix('raw/brats21/')}\t6\t{sha256(tree.path(key))}\n" for key in raw
    )
    tree.job(
        "make_phantom",
        {"raw/brats21.manifest.tsv": f"path\tbytes\tsha256\n{rows}"},
        wildcards={"dataset": "brats21"},
        params={"seed": 3, "root": "results/raw/brats21"},
    )
    registered = []
    for name, value in names.items():
        registered.append(f"preprocessed/brats21/sub-{name}/anat/sub-{name}_FLAIR.json")
        tree.job(
            "register_scan",
            {registered[-1]: json.dumps({"mean": value})},
            [f"raw/brats21/{name}/{name}_flair.nii.gz"],
            wildcards={"dataset": "brats21", "subject": name},
        )
    tree.job("pack_slices", {STORE: tensor(scans)}, registered, wildcards={"dataset": "brats21"})
    for method in methods:
        cell = {"experiment": "intra", "method": method, "fold": "0"}
        model = f"models/intra/{method}/fold-0/model.safetensors"
        maps = f"maps/intra/{method}/fold-0/brats21.safetensors"
        weights = sum(scans) / 10 + seed / 100 + (noise if method == "ddpm" else 0)
        tree.job(
            "train_model",
            {model: tensor([weights])},
            [STORE],
            wildcards=cell,
            params={"seed": seed},
            seeds={"run": seed},
            **(of_training or {}),
        )
        cell = {**cell, "test": "brats21"}
        tree.job(
            "score_volumes",
            {maps: tensor([weights / erosion])},
            [STORE, model],
            wildcards=cell,
            params={"erosion": erosion},
        )
        dice = f"{100 * weights / erosion:.4f}"
        tree.job(
            "evaluate_volumes",
            {metrics(method): f"subject\tdice\nb\t{dice}\n"},
            [maps, STORE],
            wildcards=cell,
        )
        tree.path(maps).unlink()  # temporary
    values = {m: tree.path(metrics(m)).read_text().split()[-1] for m in methods}
    lines = "".join(f"{m},intra,brats21,dice,{v},0.1\n" for m, v in values.items())
    tree.job(
        "make_table",
        {TABLE: f"row,experiment,test_dataset,metric,mean,std\n{lines}"},
        [metrics(method) for method in methods],
        wildcards={"table": "table3"},
    )
    return tree


@pytest.fixture
def here(tmp_path):
    return write_run(tmp_path / "here" / "results").root


@pytest.fixture
def other(tmp_path):
    """A function: a second run, with something changed; its results folder."""
    return lambda **changes: write_run(tmp_path / "there" / "results", **changes).root


def states(comparison):
    """Keys of the files that count, by state, without the identical ones."""
    found = {}
    for finding in comparison.results:
        if finding.state != "identical":
            found.setdefault(finding.state, set()).add(finding.key)
    return found


def only_origin(comparison):
    (origin,) = comparison.origins
    return origin


def reasons(comparison):
    return [reason.text for reason in only_origin(comparison).reasons]


# ---- verdict ----


def test_two_runs_of_one_config_are_identical_wherever_they_lie(here, other):
    comparison = compare(here, other())
    assert comparison.verdict == "identical" and comparison.same
    assert not states(comparison) and not comparison.origins and not comparison.cells
    assert not comparison.setup and not comparison.notes
    assert len(comparison.results) == 2 + 1 + 2 + 1 + 3 * 2 + 1 + 1  # raw, ..., table, source.json


def test_what_describes_a_run_has_no_part_in_the_verdict(here, other):
    there = other()
    (there / "logs" / "train_model" / "more.log").write_text("it took a while")
    (there / "config.resolved.yaml").write_text("run: {threads: 2}\n")
    for name in ("cost/ddpm.json", "benchmarks/a/b.tsv", "audit/audit.json", "crate.zip"):
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).write_text("1.5 seconds")
    comparison = compare(here, there)
    assert comparison.verdict == "identical"
    assert {f.key for f in comparison.about_the_run if f.differs} >= {"cost/ddpm.json"}
    assert comparison.setup["config"] == ["run none → {'threads': 2}"]


def test_files_that_are_not_there_are_compared_by_the_records(here, other):
    there = other()
    (there / STORE).unlink()
    assert compare(here, there).verdict == "identical"
    maps = {f.key: f for f in compare(here, there).results}[
        "maps/intra/ddpm/fold-0/brats21.safetensors"
    ]
    assert maps.by_record and maps.here == maps.there
    changed = compare(here, write_run(there.parent / "again", erosion=2).root)
    assert maps.key in states(changed)["not measured"]


def test_the_larger_of_two_runs_is_told_by_what_only_it_has(here, other):
    comparison = compare(here, other(methods=("thresh",)))
    assert comparison.verdict == "different"
    assert metrics("ddpm") in states(comparison)["only here"]
    assert only_origin(comparison).keys == ("models/intra/ddpm/fold-0/model.safetensors",)
    assert reasons(comparison) == ["not there: the job (train_model) did not run"]
    (cell,) = [cell for cell in comparison.cells if cell.row == "ddpm"]
    assert cell.here and cell.there is None


# ---- where the runs part ----


def test_what_a_job_newly_makes_is_told_from_a_job_that_did_not_run(here, other):
    there = other()
    (there / "slices/sizes.json").write_text("[1]")

    def change(record):
        digest = sha256(there / "slices/sizes.json")
        record["outputs"].append({"path": "results/slices/sizes.json", "sha256": digest})

        record["params"]["sizes"] = True

    Forge(there).record(STORE, change)
    assert reasons(compare(here, there)) == [
        "not here: the job (pack_slices) ran, and did not make it",
        "other params: sizes none → True",
    ]


def test_a_changed_raw_scan_is_the_first_difference_and_nothing_else_is(here, other):
    there = other()
    write_run(there, scans=(1.0, 2.5))
    # the list of the generated tree still has the scan as it was made
    shutil.copy(here / "raw/brats21.manifest.tsv", there / "raw/brats21.manifest.tsv")
    Forge(there).rehash("raw/brats21.manifest.tsv")
    comparison = compare(here, there)
    origin = only_origin(comparison)
    assert (origin.stage, origin.keys) == ("raw", (SCAN,))
    assert reasons(comparison) == ["other bytes: changed after it was made (there)"]
    assert {cell.row for cell in comparison.cells if cell.differs} == set(METHODS)


def test_a_scan_of_a_tree_elsewhere_is_known_by_its_data_set(here, other, tmp_path):
    trees = [here, other()]
    for place, (root, digest) in enumerate(zip(trees, "12", strict=True)):
        folder = f"/data{place}/brats21"
        shutil.rmtree(root / "raw")
        (root / "config.resolved.yaml").write_text(f"datasets: {{brats21: {{path: {folder}}}}}\n")
        for name in "ab":
            content = digest if name == "b" else "0"

            def change(record, name=name, content=content, folder=folder):
                path = f"{folder}/{name}/{name}_flair.nii.gz"
                record["inputs"] = [{"path": path, "bytes": 1, "sha256": content * 64}]

            Forge(root).record(
                f"preprocessed/brats21/sub-{name}/anat/sub-{name}_FLAIR.json", change
            )
    Forge(trees[1]).replace("preprocessed/brats21/sub-b/anat/sub-b_FLAIR.json", "2.0", "2.1")
    Forge(trees[1]).rehash("preprocessed/brats21/sub-b/anat/sub-b_FLAIR.json")
    comparison = compare(*trees)
    origin = only_origin(comparison)
    assert (origin.stage, origin.keys) == ("raw", (SCAN,))
    assert reasons(comparison) == ["other raw bytes"]


def test_a_changed_config_value_is_named_at_the_first_stage_that_reads_it(here, other):
    comparison = compare(here, other(erosion=2))
    origin = only_origin(comparison)
    assert origin.stage == "score_volumes"
    assert origin.keys == tuple(
        f"maps/intra/{m}/fold-0/brats21.safetensors" for m in sorted(METHODS)
    )
    assert reasons(comparison) == ["other params: erosion 3 → 2"]


def test_causes_of_their_own_are_all_origins_the_earliest_first(here, other):
    there = other(noise=0.5)
    Forge(there).replace("preprocessed/brats21/sub-a/anat/sub-a_FLAIR.json", "1.0", "1.5")
    Forge(there).rehash("preprocessed/brats21/sub-a/anat/sub-a_FLAIR.json")
    (there / TABLE).write_text((there / TABLE).read_text().replace("0.1", "0.2"))
    stages = [origin.stage for origin in compare(here, there).origins]
    assert stages == ["register_scan", "train_model", "make_table"]


ENVIRONMENT_THERE = {**ENVIRONMENT, "numpy": "2.3.6"}
OTHER_CODE = {
    **CODE,
    "library_sha256": "9" * 64,
    "library_files": {**LIBRARY, "noise.py": "8" * 64},
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seed": 8}, "other seed: run 7 → 8"),
        ({"noise": 0.5}, "same inputs, params, code: not deterministic here"),
        (
            {"noise": 0.5, "of_training": {"code": OTHER_CODE}},
            "other code: library noise.py",
        ),
        (
            {
                "noise": 0.5,
                "of_training": {
                    "code": {**OTHER_CODE, "library_files": LIBRARY, "script_sha256": "6" * 64}
                },
            },
            "other code: script train_model.py",
        ),
        (
            {
                "noise": 0.5,
                "of_training": {"environment": {**ENVIRONMENT, "lock_sha256": "f" * 64}},
            },
            "other environment: packages (uv.lock) eeeeeeeeeeee → ffffffffffff",
        ),
        (
            {"noise": 0.5, "of_training": {"environment": ENVIRONMENT_THERE}},
            "other environment: numpy 2.3.5 → 2.3.6",
        ),
        (
            {
                "noise": 0.5,
                "of_training": {"host": {"name": "b", "platform": "Linux", "device": "A100"}},
            },
            "other device: device cpu → A100",
        ),
        (
            {
                "noise": 0.5,
                "of_training": {"config": {"used": {"accelerator": "gpu"}, "sha256": "0" * 64}},
            },
            "other config: accelerator none → gpu",
        ),
    ],
)
def test_the_reason_is_what_the_records_say(here, other, changes, expected):
    comparison = compare(here, other(**changes))
    assert only_origin(comparison).stage == "train_model"
    assert reasons(comparison) == [expected]


def test_other_code_that_made_the_same_is_no_difference_but_is_told(here, other):
    comparison = compare(here, other(of_training={"code": OTHER_CODE}))
    assert comparison.verdict == "identical"
    assert comparison.setup == {"rule train_model": ["other code: library noise.py"]}


def test_a_file_that_no_record_knows_is_told(here, other):
    there = other()
    for root, text in ((here, "one"), (there, "other")):
        (root / "notes.txt").write_text(text)
    comparison = compare(here, there)
    assert only_origin(comparison).keys == ("notes.txt",)
    assert reasons(comparison) == ["no record says how it was made"]


def test_a_record_that_was_edited_is_noted(here, other):
    there = other()
    Forge(there).replace(f"{TABLE}.prov.json", '"seconds": 1.0', '"seconds": 2.0')
    (note,) = compare(here, there).notes
    assert (
        note
        == f"1 records there cannot be relied on; the first: {TABLE}.prov.json was edited "
        + ("after it was written")
    )


def test_records_of_another_format_are_noted_and_the_files_compared(here, other):
    there = other()
    for path in there.rglob("*.prov.json"):
        Forge(there).record(path.relative_to(there).as_posix(), lambda r: r.update(format=1))
    (there / STORE).write_bytes(tensor([1.0, 9.0]))
    comparison = compare(here, there)
    assert "has format 1, not 2" in comparison.notes[0]
    origin = {key: origin for origin in comparison.origins for key in origin.keys}[STORE]
    assert [reason.text for reason in origin.reasons] == ["no record says how it was made"]


# ---- cells ----


def test_cells_rest_on_the_files_of_their_own_row(here, other):
    comparison = compare(here, other(noise=0.5))
    (cell,) = comparison.cells
    assert (cell.table, cell.row, cell.column, cell.metric) == (
        TABLE,
        "ddpm",
        "intra/brats21",
        "dice",
    )
    assert cell.difference == pytest.approx(-100 * 0.5 / 3, abs=1e-4)


def test_a_cell_that_rests_on_a_difference_and_is_the_same_is_touched(here, other):
    there = other()
    Forge(there).replace(metrics("ddpm"), "subject", "Subject")
    comparison = compare(here, there)
    (cell,) = comparison.cells
    assert cell.row == "ddpm" and not cell.differs and cell.difference == 0


def test_a_hand_edited_cell_is_an_origin_of_its_own(here, other):
    there = other(noise=0.5)
    Forge(there).replace(TABLE, "thresh,intra", "thresh,Intra")
    Forge(there).replace(TABLE, "Intra,brats21,dice,", "intra,brats21,dice,9")
    comparison = compare(here, there)
    assert [origin.keys for origin in comparison.origins][-1] == (TABLE,)
    assert (
        comparison.origins[-1].reasons[0].text.startswith("other bytes: changed after it was made")
    )
    assert {cell.row for cell in comparison.cells if cell.differs} == set(METHODS)


# ---- contents and tolerances ----


def png(level=100, name="PNG"):
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.full((4, 5), level, np.uint8)).save(stream, name, lossless=True)
    return stream.getvalue()


def nifti(tmp_path, value, dtype=np.float32):
    import nibabel as nib

    path = tmp_path / "volume.nii.gz"
    nib.save(nib.Nifti1Image(np.full((2, 2, 2), value, dtype), np.eye(4)), path)
    return path.read_bytes()


def mat(tmp_path, value):
    from scipy.io import savemat

    path = tmp_path / "transform.mat"
    savemat(path, {"AffineTransform_float_3_3": np.full((12, 1), value)}, format="4")
    return path.read_bytes()


def npy(value):
    stream = io.BytesIO()
    np.save(stream, np.float32(value))
    return stream.getvalue()


def page(picture, number="1.50"):
    return (
        f'<p>{number}±0.1</p><img src="data:image/png;base64,{base64.b64encode(picture).decode()}">'
    )


def notebook(picture, *, when="2026-01-01T00:00:00Z", identity="0a1b2c3d", text="mean 0.51"):
    cell = {
        "cell_type": "code",
        "id": identity,
        "metadata": {"papermill": {"start_time": when}, "execution": {"a": when}},
        "source": ["x = 1"],
        "outputs": [
            {"data": {"image/png": base64.b64encode(picture).decode()}, "metadata": {}},
            {"name": "stdout", "text": [f"{text}\n"]},
        ],
    }
    metadata = {"papermill": {"output_path": f"results/.tmp-node-12-{when}"}}
    return json.dumps({"cells": [cell], "metadata": metadata})


def measured(tmp_path, name, one, two, **options):
    paths = []
    for side, content in (("here", one), ("there", two)):
        path = tmp_path / side / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        paths.append(path)
    return compare_files(*paths, **options)


CASES = {
    "a.csv": lambda t: ["m,v\na,1.0000\n", "m,v\na,1.0001\n", "m,v\na,1.0100\n"],
    "a.tsv": lambda t: ["m\tv\nn/a\t1.0\n", "m\tv\nn/a\t1.00005\n", "m\tv\n2\t1.0\n"],
    "a.json": lambda t: ['{"t": [0.5]}', '{"t": [0.50001]}', '{"t": [0.51]}'],
    "a.safetensors": lambda t: [tensor([1.0]), tensor([1.00001]), tensor([1.1])],
    "a.npy": lambda t: [npy(1.0), npy(1.00001), npy(1.1)],
    "a.nii.gz": lambda t: [nifti(t, 1.0), nifti(t, 1.00001), nifti(t, 1.1)],
    "a.mat": lambda t: [mat(t, 1.0), mat(t, 1.0001), mat(t, 1.1)],
    "a.png": lambda t: [png(100), png(102), png(103)],
    "a.webp": lambda t: [png(level, "WEBP") for level in (100, 102, 103)],
    "a.html": lambda t: [page(png(100)), page(png(101), "1.51"), page(png(100), "1.52")],
    "a.md": lambda t: ["| 75.83±0.24 |", "| 75.84±0.24 |", "| 75.83±0.24 | n = 4"],
    "a.tex": lambda t: ["75.83 \\pm 1.00", "75.82 \\pm 1.00", "75.83 \\pm 2.00"],
    "a.ipynb": lambda t: [
        notebook(png()),
        notebook(png(101)),
        notebook(png(), text="mean 0.61"),
    ],
}


@pytest.mark.parametrize("name", CASES)
def test_contents_are_the_same_close_or_different(tmp_path, name):
    one, close, different = CASES[name](tmp_path)
    assert measured(tmp_path, name, one, one).state == "same content"
    assert measured(tmp_path, name, one, close).state == "within tolerance"
    assert measured(tmp_path, name, one, different).state == "different"
    strict = {kind_of(name): Tolerance(0), "picture": Tolerance(0)}
    loose = {kind_of(name): Tolerance(0.2), "picture": Tolerance(5)}
    assert measured(tmp_path, name, one, close, tolerances=strict).state == "different"
    if name not in ("a.tsv", "a.md", "a.tex"):  # there, something else differs
        assert (
            measured(tmp_path, name, one, different, tolerances=loose).state == "within tolerance"
        )


def test_how_far_two_arrays_are_apart_is_measured(tmp_path):
    found = measured(tmp_path, "a.safetensors", tensor([1.0, 2.0]), tensor([1.0, 2.5]))
    assert (found.absolute, found.relative, found.outside) == (0.5, 0.2, 1)
    assert str(found) == "largest difference 0.5, relative 0.2 (volumes)"


@pytest.mark.parametrize(
    ("name", "one", "two", "why"),
    [
        ("a.csv", "m,v\na,1\n", "m,v\na,1\nb,2\n", "1 and 2 entries in m"),
        ("a.csv", "m,v\na,1\n", "m,w\na,1\n", "v only here"),
        ("a.csv", "m,v\na,1\n", "m,v\nb,1\n", "'a' and 'b' in m"),
        ("a.json", '{"a": true}', '{"a": false}', "'True' and 'False' in a"),
        ("a.npy", npy([1.0]), npy([1.0, 2.0]), "1 float32 and 2 float32"),
        ("a.png", png(), png()[:40], "cannot be read there"),
        ("a.md", "n = 4", "n = 5", "'4' and '5'"),
        ("a.bin", "x", "y", "other bytes"),
    ],
)
def test_what_is_not_a_number_is_told(tmp_path, name, one, two, why):
    found = measured(tmp_path, name, one, two)
    assert found.state == "different" and why in str(found)


def test_not_a_number_equals_itself_and_nothing_else(tmp_path):
    assert measured(tmp_path, "a.csv", "v\nnan\n", "v\nNaN\n").state == "same content"
    assert measured(tmp_path, "a.csv", "v\nnan\n", "v\n1.0\n").state == "different"
    assert measured(tmp_path, "a.csv", "v\ninf\n", "v\n-inf\n").state == "different"


def test_masks_must_agree_in_every_voxel(tmp_path):
    one, two = nifti(tmp_path, 0, np.uint8), nifti(tmp_path, 1, np.uint8)
    loose = {"array": Tolerance(10)}
    found = measured(tmp_path, "mask.nii.gz", one, two, tolerances=loose)
    assert str(found) == "8 of 8 integers, by up to 1 in voxels"


def test_what_differs_between_two_executions_of_a_notebook_is_left_out(tmp_path):
    one = notebook(png())
    two = notebook(png(), when="2027-02-03T04:05:06.7Z", identity="deadbeef")
    assert measured(tmp_path, "a.ipynb", one, two).state == "same content"
    pages = [
        f'<div id="cell-id={i}">done 2026-01-0{i[0]}T00:00:00Z</div>' for i in ("1" * 8, "2" * 8)
    ]
    assert measured(tmp_path, "a.html", *pages).state == "same content"


def test_the_places_of_two_runs_are_no_difference(here, other):
    there = other()

    def rename(record):
        record["roots"]["results"] = "/scratch/out"
        for file in [*record["inputs"], *record["outputs"]]:
            file["path"] = file["path"].replace("results/", "/scratch/out/")
        if "root" in record["params"]:
            record["params"]["root"] = "/scratch/out/raw/brats21"

    for path in there.rglob("*.prov.json"):
        Forge(there).record(path.relative_to(there).as_posix(), rename)
    for root, place in ((here, "results"), (there, "/scratch/out")):
        (root / "participants.tsv").write_text(f"subject\timage\na\t{place}/raw/brats21/a.nii.gz\n")
    comparison = compare(here, there)
    assert states(comparison) == {"same content": {"participants.tsv"}}
    assert comparison.verdict == "identical" and not comparison.setup


def test_within_tolerance_is_a_verdict_of_its_own_and_says_where_it_began(here, other):
    comparison = compare(here, other(noise=1e-6))
    assert comparison.verdict == "identical within tolerance" and comparison.same
    assert only_origin(comparison).stage == "train_model"
    # the maps are not there to be measured, but the metrics that were made from them are
    maps = "maps/intra/ddpm/fold-0/brats21.safetensors"
    assert states(comparison)["not measured"] == {maps}
    assert compare(here, other(noise=0.5), {"array": Tolerance(1)}).verdict == "different"


def test_what_cannot_be_measured_and_was_not_used_makes_a_difference(here, other):
    there = other()
    for root, content in ((here, "one"), (there, "two")):
        ResultTree(root).job("make_figure", {"figures/x.png": content}, [STORE])
        (root / "figures/x.png").unlink()
    comparison = compare(here, there)
    assert states(comparison) == {"not measured": {"figures/x.png"}}
    assert comparison.verdict == "different"


def test_a_tolerance_of_an_unknown_kind_is_refused(here):
    with pytest.raises(ValueError, match="no tolerance for 'arrays'"):
        compare(here, here, {"arrays": Tolerance(1)})


# ---- crates ----


def pack(results, path, folder="results"):
    with zipfile.ZipFile(path, "w") as archive:
        for file in results.rglob("*"):
            archive.write(file, f"{folder}/{file.relative_to(results)}")
    return path


def test_a_crate_is_compared_as_a_folder_or_as_a_zip(here, other, tmp_path):
    there = other(noise=0.5)
    shutil.rmtree(there / "raw/brats21")  # images are left out of a crate
    (there / STORE).unlink()
    for crate in (
        there.parent,
        pack(there, tmp_path / "a.zip"),
        pack(there, tmp_path / "b.zip", "crate/results"),
        pack(there, tmp_path / "c.zip", "tree"),
    ):
        comparison = compare(here, crate)
        assert only_origin(comparison).stage == "train_model", crate
        assert len(comparison.cells) == 1


def test_what_holds_no_results_is_refused(here, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.zip").write_bytes(b"PK nothing")
    for name, why in (
        ("empty", "holds no results"),
        ("nowhere", "no such folder"),
        ("broken.zip", "is not a zip file"),
    ):
        with pytest.raises(DataError, match=why):
            compare(here, tmp_path / name)


# ---- reports ----


@pytest.fixture
def long_one(tmp_path):
    """A comparison with more cells, files and longer names than fit a screen."""
    methods = tuple(f"a-method-with-a-long-name-{i:02}" for i in range(30))
    trees = [
        write_run(tmp_path / name / "results", methods=methods, scans=scans).root
        for name, scans in (("here", (1.0, 2.0)), ("there", (1.0, 3.0)))
    ]
    return compare(*trees)


def test_the_summary_fits_a_screen(long_one):
    lines = summary(long_one).splitlines()
    assert max(map(len, lines)) <= 100 and len(lines) <= 60
    assert lines[0] == "Verdict: different"
    assert "First difference: raw" in lines
    assert "  ... and 10 more" in lines  # 30 cells, 20 shown
    assert any("phantom" in line for line in lines)


def test_the_reports_hold_everything(long_one, tmp_path):
    content = json.loads(json.dumps(long_one.as_json(), allow_nan=False))
    assert content["verdict"] == "different" and content["phantom"]
    assert len(content["cells"]) == 30 and len(content["findings"]) == len(long_one.files)
    (tmp_path / "compare.html").write_text(html_page(long_one))
    text = (tmp_path / "compare.html").read_text()
    assert all(finding.key in text for finding in long_one.files)
    assert all(cell.row in text for cell in long_one.cells)
    assert "hantom results" in text and "<script" not in text and "http" not in text


def test_the_same_comparison_gives_the_same_reports(here, other, tmp_path):
    there = other(noise=0.5)
    for name in ("one.html", "two.html"):
        (tmp_path / name).write_text(html_page(compare(here, there)))
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_names_are_escaped_in_the_page(here, other, tmp_path):
    there = other()
    (there / "a<b>.txt").write_text("x")
    (tmp_path / "compare.html").write_text(html_page(compare(here, there)))
    assert "a&lt;b&gt;.txt" in (tmp_path / "compare.html").read_text()


# ---- command ----


@pytest.fixture
def command(root):
    def run(*arguments):
        script = ["-m", "uad", "compare"]
        whole = [sys.executable, *script, *map(str, arguments)]
        return subprocess.run(whole, capture_output=True, text=True)

    return run


def test_the_status_of_the_command_is_the_verdict(here, other, command, tmp_path):
    there = other(noise=0.5)
    done = command(here, here)
    assert done.returncode == 0 and "Verdict: identical" in done.stdout
    assert (here / "audit" / "compare.json").is_file()
    assert (here / "audit" / "compare.html").is_file()
    assert command(here, there).returncode == 1
    done = command(here, tmp_path / "nowhere")
    assert (
        done.returncode == 2 and "no such folder" in done.stderr and "Traceback" not in done.stderr
    )


def test_tolerances_of_the_command(here, other, command, tmp_path):
    assert command(here, here, "--tolerance", "arrays=1").returncode == 2
    assert command(here, here, "--tolerance", "array=many").returncode == 2
    archive = pack(here, tmp_path / "here.zip")
    assert "--output" in command(archive, here).stderr
    done = command(archive, here, "--tolerance", "array=1e-3,1e-2", "--output", tmp_path / "out")
    assert done.returncode == 0 and (tmp_path / "out" / "compare.html").is_file()
