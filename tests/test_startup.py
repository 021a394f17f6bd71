"""What is loaded before the work starts: no script waits for a package that it does not use."""

import ast
import json
import os
import re
import subprocess
import sys

#: What takes from 40 ms (pydantic) to 1 s (torch) to import.
HEAVY = (
    "ants matplotlib monai nibabel pandas papermill pydantic requests "
    "scipy.ndimage scipy.stats skimage sklearn torch"
).split()
#: Scripts that work on networks.
NETWORKS = {"train_model", "reconstruct_volumes", "measure_cost"}
#: Runs the statements of its argument; prints what is loaded after each.
PROGRAM = """
import json, sys
heavy, statements = map(json.loads, sys.argv[1:])
for statement in statements:
    exec(statement, {})
    print(json.dumps([name for name in heavy if name in sys.modules]))
"""


def loaded_after(root, *statements):
    """The heavy packages that are loaded after each of the statements, in one new interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(HEAVY), json.dumps(statements)],
        env={**os.environ, "PYTHONPATH": str(root / "workflow_scripts")},
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [set(json.loads(line)) for line in done.stdout.splitlines()]


def imports_of(path):
    """What a script imports at its top, without what it does."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return "\n".join(ast.unparse(n) for n in body if isinstance(n, ast.Import | ast.ImportFrom))


def test_parsing_the_workflow_checking_a_config_and_help_load_neither_torch_nor_images(root):
    rules = "\n".join(path.read_text(encoding="utf-8") for path in root.glob("rules/*.smk"))
    imports = re.findall(r"^from uad.* import .+$", rules, re.MULTILINE)
    assert imports
    check = "import yaml, uad.config; uad.config.load(yaml.safe_load(open('config.yaml')))"
    apply = "import uad.air, numpy; uad.air.invert_foreground(numpy.zeros(3), [1, 1, 0])"
    before, *_, after = loaded_after(root, f"import uad.__main__; {apply}", *imports, check)
    assert before == set() and after == {"pandas", "pydantic"}


def test_only_scripts_of_networks_load_torch_and_none_loads_what_it_draws_or_registers_with(root):
    scripts = {path.stem: imports_of(path) for path in (root / "workflow_scripts").glob("*.py")}
    assert set(scripts) >= NETWORKS
    others = [imports for name, imports in scripts.items() if name not in NETWORKS]
    loaded = loaded_after(root, *others)[-1]
    # what the scripts of scans, tables and metrics have in common, and rocrate's requests
    assert loaded == {"nibabel", "pandas", "pydantic", "requests", "scipy.ndimage"}
