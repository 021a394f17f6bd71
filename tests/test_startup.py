"""What is loaded before the work starts: no script waits for a package that it does not use."""

import ast
import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

#: What takes from 40 ms (pydantic) to 1 s (torch) to import.
HEAVY = (
    "ants matplotlib monai nibabel pandas papermill pydantic requests "
    "scipy.ndimage scipy.stats skimage sklearn torch"
).split()

#: (packages, what loads exactly these by its imports): scripts by name, and modules of the library.
#: The rows of one list are tried in one interpreter, so each loads all that the one before loads.
TABLE = {
    "reports": [
        (
            "",
            "uad.commands.audit_results uad.commands.launch_workflow uad.__main__ "
            "make_maps_figure run_notebook save_config uad.air",
        ),
        ("pydantic", "check_disk_space make_gallery make_report"),
        (
            "pandas pydantic",
            "compute_air describe_run fetch_split_list make_air_table make_cost_table "
            "make_curves_figure make_phantom make_splits make_ranks make_table "
            "measure_quality uad.report.figures uad.report.tables "
            "uad.commands.compare_results uad.commands.show_results uad.commands.trace_cell "
            "uad.commands.verify_crate",
        ),
        ("pandas pydantic requests", "pack_crate"),  # rocrate loads it
    ],
    "evaluation": [
        ("scipy.ndimage", "rescore_volumes score_volumes search_threshold uad.evaluate"),
        (
            "pandas scipy.ndimage",
            "compare_methods evaluate_healthy evaluate_volumes make_healthy_table "
            "make_metrics_table make_study make_sweep_figure",
        ),
    ],
    "scans": [
        (
            "nibabel",
            "predict_brain_masks prepare_atlas register_scan skullstrip_scan "
            "uad.preprocess.intensity uad.preprocess.picture",
        ),
        ("nibabel pydantic", "draw_packed_scans"),
        ("nibabel pandas pydantic", "index_dataset pack_slices uad.commands.show_plan"),
        ("nibabel pandas pydantic scipy.ndimage", "validate_dataset"),
    ],
    "data and networks": [
        (
            "pydantic",
            "download_atlas download_dataset "
            "uad.commands.import_datasets uad.commands.show_datasets",
        ),
        ("pydantic torch", "measure_cost"),
        ("pandas pydantic torch", "reconstruct_volumes train_model"),
    ],
}

#: Runs the statements of its argument; prints what is loaded after each.
PROGRAM = """
import json, sys
heavy, statements = map(json.loads, sys.argv[1:])
for statement in statements:
    exec(statement, {})
    print(json.dumps([name for name in heavy if name in sys.modules]))
"""


def loaded_after(statements):
    """The heavy packages that are loaded after each of the statements, in one new interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(HEAVY), json.dumps(statements)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "workflow_scripts")},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [set(json.loads(line)) for line in done.stdout.splitlines()]


def imports_of(name):
    """What a script imports at its top, without what it does; or the import of a module."""
    if name.startswith("uad."):
        return f"import {name}"
    path = ROOT / "workflow_scripts" / f"{name}.py"
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return "\n".join(ast.unparse(n) for n in body if isinstance(n, ast.Import | ast.ImportFrom))


def test_every_script_is_in_the_table_once():
    names = " ".join(names for rows in TABLE.values() for _, names in rows).split()
    scripts = [path.stem for path in (ROOT / "workflow_scripts").glob("*.py")]
    assert sorted(name for name in names if not name.startswith("uad.")) == sorted(scripts)


@pytest.mark.parametrize("stage", TABLE)
def test_nothing_loads_more_than_the_table_says_and_the_table_says_no_more(stage):
    rows = [(set(packages.split()), names.split()) for packages, names in TABLE[stage]]
    assert all(before <= packages <= set(HEAVY) for (before, _), (packages, _) in pairwise(rows))
    found = iter(loaded_after([imports_of(name) for _, names in rows for name in names]))
    for packages, names in rows:
        for name in names:
            loaded = next(found)
            assert loaded <= packages, f"{name} loads {sorted(loaded - packages)}, too"
        assert loaded == packages, f"none of {names} loads {sorted(packages - loaded)}"


def test_parsing_the_workflow_and_checking_a_config_load_neither_torch_nor_images():
    rules = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("rules/*.smk"))
    imports = re.findall(r"^from uad.* import .+$", rules, re.MULTILINE)
    assert imports
    check = "import yaml, uad.config; uad.config.load(yaml.safe_load(open('config.yaml')))"
    assert loaded_after([*imports, check])[-1] == {"pandas", "pydantic"}


def test_air_of_arrays_needs_no_torch():
    apply = "import uad.air, numpy; uad.air.invert_foreground(numpy.zeros(3), [1, 1, 0])"
    assert loaded_after([apply]) == [set()]
