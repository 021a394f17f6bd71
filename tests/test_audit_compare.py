"""Two runs side by side: what is identical, where they part, why, and which cells it touches."""

import json
import shutil
import zipfile

import numpy as np
import pytest

from tools.result_trees import CODE, ENVIRONMENT, LIBRARY, Forge, ResultTree, uad
from uad.audit.compare import compare, page, summary
from uad.audit.compare_contents import TOLERANCES, Tolerance, compare_files
from uad.core.errors import DataError
from uad.core.files import sha256

METHODS = ("thresh", "ddpm")
MANIFEST, STORE = "raw/brats21.manifest.tsv", "slices/brats21_FLAIR.safetensors"
TABLE = "tables/table3.csv"


def raw(name):
    return f"raw/brats21/{name}/{name}_flair.nii.gz"


def metrics(method):
    return f"metrics/intra/{method}/fold-0/brats21.tsv"


def maps(method):
    return f"maps/intra/{method}/fold-0/brats21.safetensors"


def registered(name):
    return f"preprocessed/brats21/sub-{name}/anat/sub-{name}_FLAIR.json"


def tensor(values):
    from safetensors.numpy import save

    return save({"volumes": np.asarray(values, dtype=np.float32)})


def write_run(root, *, scans=(1.0, 2.0), erosion=3, seed=7, noise=0.0, methods=METHODS, **training):
    """A run of two scans, two methods and one table; every number follows from those before it.

    ``erosion`` is a param of the scoring, ``noise`` is added to the weights of ddpm, and
    ``training`` are other fields of the records of the trainings.
    """
    tree, manifest, dataset = ResultTree(root), "path\tbytes\tsha256\n", {"dataset": "brats21"}
    names = dict(zip("ab", scans, strict=True))
    tree.write("source.json", '{"source": "phantom"}')
    for name, value in names.items():
        digest = sha256(tree.write(raw(name), f"scan {value}"))
        manifest += f"{name}/{name}_flair.nii.gz\t6\t{digest}\n"
    params = {"seed": 3, "root": "results/raw/brats21"}
    tree.job("make_phantom", {MANIFEST: manifest}, wildcards=dataset, params=params)
    for name, value in names.items():
        content, place = {registered(name): json.dumps({"mean": value})}, {"subject": name}
        tree.job("register_scan", content, [raw(name)], wildcards={**dataset, **place})
    tree.job("pack_slices", {STORE: tensor(scans)}, map(registered, "ab"), wildcards=dataset)
    lines = "row,experiment,test_dataset,metric,mean,std\n"
    for method in methods:
        cell = {"experiment": "intra", "method": method, "fold": "0"}
        model = f"models/intra/{method}/fold-0/model.safetensors"
        weights = sum(scans) / 10 + seed / 100 + (noise if method == "ddpm" else 0)
        content, asked = {model: tensor([weights])}, {"params": {"seed": seed}}
        asked |= {"seeds": {"run": seed}, **training}
        tree.job("train_model", content, [STORE], wildcards=cell, **asked)
        cell, params = {**cell, "test": "brats21"}, {"erosion": erosion}
        content = {maps(method): tensor([weights / erosion])}
        tree.job("score_volumes", content, [STORE, model], wildcards=cell, params=params)
        dice = f"{100 * weights / erosion:.4f}"
        content = {metrics(method): f"subject\tdice\nb\t{dice}\n"}
        tree.job("evaluate_volumes", content, [maps(method), STORE], wildcards=cell)
        tree.path(maps(method)).unlink()  # temporary
        lines += f"{method},intra,brats21,dice,{dice},0.1\n"
    tree.job("make_table", {TABLE: lines}, map(metrics, methods), wildcards={"table": "table3"})
    return tree.root


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A run that no test changes."""
    return write_run(tmp_path_factory.mktemp("here") / "results")


@pytest.fixture
def other(tmp_path):
    """A function: a second run, with something changed; its results folder."""
    return lambda **changes: write_run(tmp_path / "there" / "results", **changes)


def states(comparison):
    """Keys of the files by state, without the identical ones."""
    found = {}
    for file in comparison["files"]:
        if file["state"] != "identical":
            found.setdefault(file["state"], set()).add(file["key"])
    return found


def only_origin(comparison):
    """Stage, files and reason of the one place where the runs part."""
    (origin,) = comparison["origins"]
    return origin["stage"], tuple(origin["keys"]), origin["reason"]


# The verdict


def test_two_runs_of_one_config_are_identical_wherever_they_lie(here, other):
    comparison = compare(here, other())
    assert comparison["verdict"] == "identical" and comparison["phantom"]
    assert not states(comparison) and not comparison["origins"] and not comparison["cells"]
    assert not comparison["config"] and not comparison["notes"]
    assert len(comparison["files"]) == 2 + 1 + 2 + 1 + 3 * 2 + 1 + 1  # raw, ..., table, source.json


def test_what_describes_a_run_has_no_part_in_the_verdict(here, other):
    there = other()
    (there / "logs" / "train_model" / "more.log").write_text("it took a while")
    (there / "config.resolved.yaml").write_text("run: {threads: 2}\n")
    for name in ("cost/ddpm.json", "benchmarks/a/b.tsv", "audit/audit.json", "crate.zip"):
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).write_text("1.5 seconds")
    comparison = compare(here, there)
    assert comparison["verdict"] == "identical" and not states(comparison)
    assert comparison["config"] == ["run none → {'threads': 2}"]


def test_files_that_are_not_there_are_compared_by_the_records(here, other, tmp_path):
    there = other()
    (there / STORE).unlink()
    comparison = compare(here, there)
    file = {f["key"]: f for f in comparison["files"]}[maps("ddpm")]
    assert comparison["verdict"] == "identical"
    assert file["here"] and file["here"] == file["there"]
    changed = compare(here, write_run(tmp_path / "again", erosion=2))
    assert maps("ddpm") in states(changed)["not measured"]


def test_the_larger_of_two_runs_is_told_by_what_only_it_has(here, other):
    comparison = compare(here, other(methods=("thresh",)))
    assert comparison["verdict"] == "different"
    assert metrics("ddpm") in states(comparison)["only here"]
    _, keys, reason = only_origin(comparison)
    assert keys == ("models/intra/ddpm/fold-0/model.safetensors",)
    assert reason == "not there: the job (train_model) did not run"
    (cell,) = comparison["cells"]
    assert cell["here"] and cell["there"] is None


def test_within_tolerance_is_a_verdict_of_its_own_and_says_where_it_began(here, other, tmp_path):
    comparison = compare(here, other(noise=1e-6))
    assert comparison["verdict"] == "identical within tolerance"
    assert only_origin(comparison)[0] == "train_model"
    # the maps are not there to be measured, but the metrics that were made from them are
    assert states(comparison)["not measured"] == {maps("ddpm")}
    far = write_run(tmp_path / "far", noise=0.5)
    assert compare(here, far, {"array": Tolerance(1)})["verdict"] == "different"


def test_pages_and_pictures_of_the_same_numbers_are_presentation_only(here, other, tmp_path):
    """Unless somebody changed one after it was made."""
    trees = [other(), write_run(tmp_path / "two")]
    for root, content in zip(trees, ("one", "two"), strict=True):
        ResultTree(root).job("make_figure", {"figures/x.png": content}, [STORE])
    comparison = compare(*trees)
    assert states(comparison) == {"presentation only": {"figures/x.png"}}
    assert comparison["verdict"] == "identical" and not comparison["origins"]
    (trees[0] / "figures/x.png").write_text("painted over")
    assert only_origin(compare(*trees))[1] == ("figures/x.png",)
    assert compare(*trees)["verdict"] == "different"


@pytest.mark.parametrize("place", ["/scratch/out", "results-demo"])
def test_the_places_of_two_runs_are_no_difference(here, other, place):
    there = other()

    def rename(record):
        text = json.dumps(record).replace("results/", f"{place}/")
        record.update(json.loads(text))
        record["roots"]["results"] = place

    for path in there.rglob("*.prov.json"):
        Forge(there).record(path.relative_to(there).as_posix(), rename)
    shutil.copytree(here, there.parent / "here")
    for root, name in ((there, place), (there.parent / "here", "results")):
        (root / "people.tsv").write_text(f"subject\timage\na\t{name}/raw/brats21/a.nii.gz\n")
    comparison = compare(there.parent / "here", there)
    assert states(comparison) == {"same content": {"people.tsv"}}
    assert comparison["verdict"] == "identical"


# Where the runs part


def test_a_changed_raw_scan_is_the_first_difference_and_nothing_else_is(here, other):
    there = other(scans=(1.0, 2.5))
    # the list of the generated tree still has the scan as it was made
    shutil.copy(here / MANIFEST, there / MANIFEST)
    Forge(there).rehash(MANIFEST)
    comparison = compare(here, there)
    assert only_origin(comparison) == ("raw", (raw("b"),), "changed after it was made (there)")
    assert {cell["row"].split()[0] for cell in comparison["cells"]} == set(METHODS)


def test_a_scan_of_a_tree_elsewhere_is_known_by_its_data_set(other, tmp_path):
    trees = [other(), write_run(tmp_path / "two")]
    for place, root in enumerate(trees):
        folder = f"/data{place}/brats21"
        shutil.rmtree(root / "raw")
        (root / "config.resolved.yaml").write_text(f"datasets: {{brats21: {{path: {folder}}}}}\n")
        for name in "ab":
            path, digest = f"{folder}/{name}/{name}_flair.nii.gz", str(place if name == "b" else 9)
            said = [{"path": path, "bytes": 1, "sha256": digest * 64}]
            Forge(root).record(
                registered(name), lambda record, said=said: record.update(inputs=said)
            )
    Forge(trees[1]).replace(registered("b"), "2.0", "2.1")
    Forge(trees[1]).rehash(registered("b"))
    assert only_origin(compare(*trees)) == ("raw", (raw("b"),), "other raw bytes")


def test_causes_of_their_own_are_all_origins_the_earliest_first(here, other):
    there = other(noise=0.5)
    Forge(there).replace(registered("a"), "1.0", "1.5")
    Forge(there).rehash(registered("a"))
    (there / TABLE).write_text((there / TABLE).read_text().replace(",0.1\n", ",0.2\n"))
    comparison = compare(here, there)
    stages = [origin["stage"] for origin in comparison["origins"]]
    assert stages == ["register_scan", "train_model", "make_table"]
    assert "changed after it was made" in comparison["origins"][-1]["reason"]


def of_training(**changes):
    return {"noise": 0.5, **changes}


OTHER_LIBRARY = {**CODE, "library_files": {**LIBRARY, "noise.py": "8" * 64}}
OTHER_SCRIPT = {**CODE, "library_files": LIBRARY, "script_sha256": "6" * 64}


@pytest.mark.parametrize(
    ("stage", "changes", "expected"),
    [
        ("score_volumes", {"erosion": 2}, "other params: erosion 3 → 2"),
        ("train_model", {"seed": 8}, "other seed: run 7 → 8"),
        ("train_model", of_training(), "same inputs, params, code: not deterministic here"),
        ("train_model", of_training(code=OTHER_LIBRARY), "other code: noise.py"),
        ("train_model", of_training(code=OTHER_SCRIPT), "other code: train_model.py"),
        ("train_model", of_training(environment={**ENVIRONMENT, "lock_sha256": "f" * 64}),
         f"other environment: lock_sha256 {ENVIRONMENT['lock_sha256'][:60]} → {'f' * 60}"),
        ("train_model", of_training(environment={**ENVIRONMENT, "numpy": "2.3.6"}),
         "other environment: numpy 2.3.5 → 2.3.6"),
        ("train_model", of_training(host={"name": "b", "platform": "Linux", "device": "A100"}),
         "other device: device cpu → A100"),
        ("train_model", of_training(config={"used": {"accelerator": "gpu"}, "sha256": "0" * 64}),
         "other config: accelerator none → gpu"),
    ],
)  # fmt: skip
def test_the_reason_is_what_the_records_say(here, other, stage, changes, expected):
    found, _, reason = only_origin(compare(here, other(**changes)))
    assert found == stage and reason == expected


def test_what_a_job_newly_makes_is_told_from_a_job_that_did_not_run(here, other):
    there = other()
    (there / "slices/sizes.json").write_text("[1]")
    said = {"path": "results/slices/sizes.json", "sha256": sha256(there / "slices/sizes.json")}
    Forge(there).record(STORE, lambda record: record["outputs"].append(said))
    reason = "not here: the job (pack_slices) ran, and did not make it"
    assert only_origin(compare(here, there))[2] == reason


def test_files_and_records_that_cannot_be_explained_are_told(here, other):
    there = other()
    (there / "notes.txt").write_text("one")
    Forge(there).replace(f"{TABLE}.prov.json", '"seconds": 1.0', '"seconds": 2.0')
    comparison = compare(here, there)
    assert only_origin(comparison)[1:] == (("notes.txt",), "not here")
    (note,) = comparison["notes"]
    assert note.startswith("1 records there cannot be relied on; the first: tables/table3.csv.prov")
    for path in there.rglob("*.prov.json"):
        Forge(there).record(path.relative_to(there).as_posix(), lambda r: r.update(format=1))
    (there / STORE).write_bytes(tensor([1.0, 9.0]))
    comparison = compare(here, there)
    assert "has format 1, not 2" in comparison["notes"][0]
    (reason,) = [o["reason"] for o in comparison["origins"] if STORE in o["keys"]]
    assert reason == "no record says how it was made"


# Cells


def test_cells_that_differ_are_told_with_both_values(here, other):
    (cell,) = compare(here, other(noise=0.5))["cells"]
    assert (cell["row"], cell["column"]) == ("ddpm intra brats21", "dice")
    assert cell["table"] == TABLE and cell["here"] == "12.3333 ± 0.1"
    assert cell["difference"] == pytest.approx(-100 * 0.5 / 3, abs=1e-4)


# Contents and tolerances


def nifti(folder, value, dtype=np.float32):
    import nibabel as nib

    nib.save(nib.Nifti1Image(np.full((2, 2, 2), value, dtype), np.eye(4)), folder / "v.nii.gz")
    return (folder / "v.nii.gz").read_bytes()


def mat(folder, value):
    from scipy.io import savemat

    savemat(folder / "t.mat", {"AffineTransform": np.full((12, 1), value)}, format="4")
    return (folder / "t.mat").read_bytes()


def measured(folder, name, one, two, **options):
    paths = []
    for side, content in (("here", one), ("there", two)):
        (folder / side).mkdir(exist_ok=True)
        paths.append(folder / side / name)
        paths[-1].write_bytes(content.encode() if isinstance(content, str) else content)
    return compare_files(*paths, **options)


#: A content, one within the tolerance of its kind, and one beyond.
CASES = {
    "a.csv": lambda t: ["m,v\na,1.0000\n", "m,v\na,1.0001\n", "m,v\na,1.0100\n"],
    "a.tsv": lambda t: ["m\tv\nn/a\t1.0\n", "m\tv\nn/a\t1.00005\n", "m\tv\n2\t1.0\n"],
    "a.json": lambda t: ['{"t": [0.5]}', '{"t": [0.50001]}', '{"t": [0.51]}'],
    "a.safetensors": lambda t: [tensor([1.0]), tensor([1.00001]), tensor([1.1])],
    "a.nii.gz": lambda t: [nifti(t, 1.0), nifti(t, 1.00001), nifti(t, 1.1)],
    "a.mat": lambda t: [mat(t, 1.0), mat(t, 1.0001), mat(t, 1.1)],
}


@pytest.mark.parametrize("name", CASES)
def test_contents_are_the_same_close_or_different(tmp_path, name):
    one, close, different = CASES[name](tmp_path)
    assert measured(tmp_path, name, one, one)[0] == "same content"
    assert measured(tmp_path, name, one, close)[0] == "within tolerance"
    assert measured(tmp_path, name, one, different)[0] == "different"
    strict = dict.fromkeys(TOLERANCES, Tolerance(0))
    assert measured(tmp_path, name, one, close, tolerances=strict)[0] == "different"


@pytest.mark.parametrize(
    ("name", "one", "two", "why"),
    [
        ("a.csv", "m,v\na,1\n", "m,v\na,1\nb,2\n", "m[1] only there"),
        ("a.csv", "m,v\na,1\n", "m,w\na,1\n", "v[0] only here"),
        ("a.csv", "m,v\na,1\n", "m,v\nb,1\n", "m[0]: 'a' → 'b'"),
        ("a.csv", "v\nnan\n", "v\n1.0\n", "nan → 1.0"),
        ("a.csv", "v\ninf\n", "v\n-inf\n", "inf → -inf"),
        ("a.json", '{"a": true}', '{"a": false}', "a: 'True' → 'False'"),
        ("a.safetensors", tensor([1]), tensor([1, 2]), "volumes: 1 float32 → 2 float32"),
        ("a.safetensors", tensor([1, 2]), tensor([1, 2.5]), "volumes: up to 0.5"),
        ("a.safetensors", tensor([1]), tensor([1])[:40], "cannot be read there"),
        ("a.bin", "x", "y", "other bytes"),
    ],
)
def test_what_is_not_a_number_is_told(tmp_path, name, one, two, why):
    found = measured(tmp_path, name, one, two)
    assert found[0] == "different" and why in found[1]


def test_masks_must_agree_in_every_voxel(tmp_path):
    masks = [nifti(tmp_path, value, np.uint8) for value in (0, 1)]
    found = measured(tmp_path, "mask.nii.gz", *masks, tolerances={"array": Tolerance(10)})
    assert found == ("different", "voxels: 8 of 8 integers")


# Crates


def zipped(results, path, folder="results"):
    with zipfile.ZipFile(path, "w") as archive:
        for file in results.rglob("*"):
            archive.write(file, f"{folder}/{file.relative_to(results)}")
    return path


def test_a_crate_is_compared_as_a_folder_or_as_a_zip(here, other, tmp_path):
    there = other(noise=0.5)
    shutil.rmtree(there / "raw/brats21")  # images are left out of a crate
    (there / STORE).unlink()
    zips = {"a.zip": "results", "b.zip": "crate/results", "c.zip": "tree"}
    crates = [zipped(there, tmp_path / name, folder) for name, folder in zips.items()]
    for crate in (there.parent, *crates):
        comparison = compare(here, crate)
        assert only_origin(comparison)[0] == "train_model", crate
        assert len(comparison["cells"]) == 1


def test_what_holds_no_results_is_refused(here, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.zip").write_bytes(b"PK nothing")
    refusals = {"empty": "holds no results", "broken.zip": "is no zip file"}
    for name, why in {**refusals, "nowhere": "no such folder"}.items():
        with pytest.raises(DataError, match=why):
            compare(here, tmp_path / name)


# Reports


def test_the_summary_fits_a_screen_and_the_reports_hold_everything(tmp_path):
    """More cells, files and longer names than fit a screen."""
    methods = tuple(f"a-method-with-a-long-name-{i:02}" for i in range(30))
    trees = [
        write_run(tmp_path / name / "results", methods=methods, scans=scans)
        for name, scans in (("here", (1.0, 2.0)), ("there", (1.0, 3.0)))
    ]
    (trees[1] / "a<b>.txt").write_text("x")
    comparison = compare(*trees)
    lines = summary(comparison).splitlines()
    assert len(lines) <= 60 and "First difference: raw" in lines
    assert lines[0] == "Verdict: different (phantom results: they cannot rank methods)"
    assert "  ... and 10 more" in lines  # 30 cells, 20 shown
    assert json.loads(json.dumps(comparison, allow_nan=False)) == comparison
    text = page(comparison)
    differing = set().union(*states(comparison).values()) - {"a<b>.txt"}
    assert all(key in text for key in differing) and registered("a") not in text
    assert all(cell["row"] in text for cell in comparison["cells"]) and "a&lt;b&gt;.txt" in text
    assert "hantom results" in text and "<script" not in text and "http" not in text
    assert text == page(compare(*trees))


def test_the_status_of_the_command_is_the_verdict(here, other, tmp_path):
    there = other(noise=0.5)
    done = uad("compare", there, there)
    assert done.returncode == 0 and "Verdict: identical" in done.stdout
    assert (there / "audit/compare.json").is_file() and (there / "audit/compare.html").is_file()
    assert uad("compare", there, here).returncode == 1
    done = uad("compare", here, tmp_path / "nowhere")
    assert done.returncode == 2 and "no such folder" in done.stderr
    assert uad("compare", here, here, "--tolerance", "arrays=1").returncode == 2
    archive = zipped(here, tmp_path / "here.zip")
    assert "--output" in uad("compare", archive, here).stderr
    options = ("--tolerance", "array=1e-3,1e-2", "--output", tmp_path / "out")
    assert uad("compare", archive, here, *options).returncode == 0
    assert (tmp_path / "out" / "compare.html").is_file()
