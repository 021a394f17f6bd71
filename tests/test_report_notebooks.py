"""Notebooks: committed without outputs, executed with parameters, freed of what changes."""

import ast
import json
import re

import nbformat
import pandas as pd
import pytest

from uad.core.errors import DataError
from uad.report.notebooks import as_table, execute, page

NOTEBOOKS = ["air_statistics", "audit", "qualitative", "results"]


def notebook(*sources, parameters="x = 0"):
    """A notebook of code cells below a heading and a cell of parameters."""
    cells = [
        nbformat.v4.new_markdown_cell("# A & B\n\nText.", id="head"),
        nbformat.v4.new_code_cell(parameters, id="p", metadata={"tags": ["parameters"]}),
        *(nbformat.v4.new_code_cell(s, id=f"cell-{i}") for i, s in enumerate(sources)),
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


@pytest.fixture
def saved(tmp_path):
    """Write a notebook; gives its path."""

    def save(*sources, **options):
        path = tmp_path / "try.ipynb"
        nbformat.write(notebook(*sources, **options), path)
        return path

    return save


# --- as they are committed


@pytest.fixture(params=NOTEBOOKS)
def committed(root, request):
    return nbformat.read(root / "notebooks" / f"{request.param}.ipynb", as_version=4)


def trees_of(notebook, tag=None):
    """The parsed cells of code, or those that have a tag."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    cells = [cell for cell in cells if tag is None or tag in cell.metadata.get("tags", [])]
    return [ast.parse(cell.source) for cell in cells]


def test_a_committed_notebook_is_valid_titled_and_was_never_executed(committed):
    nbformat.validate(committed)
    assert committed.cells[0].source.startswith("# ")
    assert set(committed.metadata) <= {"kernelspec", "language_info"}
    assert "version" not in committed.metadata.language_info
    for cell in committed.cells:
        assert set(cell.metadata) <= {"tags"}
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


def test_one_cell_declares_all_parameters_with_defaults(committed):
    (declared,) = trees_of(committed, "parameters")
    assert declared.body and all(isinstance(line, ast.Assign) for line in declared.body)
    for line in declared.body:
        ast.literal_eval(line.value)
    assert "phantom" in {line.targets[0].id for line in declared.body}


def test_it_names_no_path_or_method_and_loads_neither_networks_nor_readers_of_scans(
    committed, content
):
    nodes = [node for tree in trees_of(committed) for node in ast.walk(tree)]
    strings = {n.value for n in nodes if isinstance(n, ast.Constant)}
    assert not strings & set(content["methods"])
    text = nbformat.writes(committed)
    assert "phantom" in text and not re.search(r'["\' ]/[a-z]+/', text)
    names = {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
    names |= {n.module for n in nodes if isinstance(n, ast.ImportFrom)}
    assert not {name.split(".")[0] for name in names} & {"torch", "monai", "ants"}


# --- rendered


def executed(*outputs):
    """An executed notebook whose one cell has these outputs."""
    content = notebook("1")
    content.cells[-1].outputs = list(outputs)
    return content


def test_a_page_has_results_in_full_and_code_folded_and_loads_nothing():
    data = {"text/html": "<table class='dataframe'><tr><td>7</td></tr></table>"}
    text = page(executed(nbformat.v4.new_output("execute_result", data)))
    assert text.startswith("<!DOCTYPE html>") and "<title>A &amp; B</title>" in text
    assert "<td>7</td>" in text and text.count('<details class="code">') == 2
    assert not re.search(r"(src|href)=[\"']?(https?:)?//|<script|@import", text)
    assert "&para;" not in text and "¶" not in text
    assert len(text) < 20_000


@pytest.mark.parametrize(
    ("output", "shown"),
    [
        (nbformat.v4.new_output("stream", name="stdout", text="a < b"), "<pre>a &lt; b</pre>"),
        (nbformat.v4.new_output("stream", name="stderr", text="oh"), '<pre class="stderr">oh'),
        (nbformat.v4.new_output("display_data", {"image/png": "QUJD\n"}), "base64,QUJD"),
        (nbformat.v4.new_output("display_data", {"text/markdown": "**x**"}), "<strong>x</strong>"),
        (nbformat.v4.new_output("execute_result", {"text/plain": "7"}), "<pre>7</pre>"),
    ],
)
def test_every_kind_of_output_is_shown(output, shown):
    assert shown in page(executed(output))


def test_a_table_shows_texts_as_they_are_and_has_a_style_of_its_own():
    frame = pd.DataFrame({"a & b\n<i>": ["<script>x</script>", "y"], "n": [0.12345, 2]})
    first, second = as_table(frame, precision=2).to_html(), as_table(frame, index=True).to_html()
    assert "&lt;script&gt;" in first and "<script>" not in first + second
    assert "a &amp; b<br>&lt;i&gt;" in first and ">0.12<" in first
    ids = [set(re.findall(r'id="(T_\w+?)[_"]', text)) for text in (first, second)]
    assert not ids[0] & ids[1]


# --- executed


@pytest.mark.slow
def test_two_executions_give_the_same_bytes_in_the_folder_that_was_named(saved, tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "number.txt").write_text("41")
    path = saved(
        "import os, uad.air\nimport pandas as pd\nprint(x + int(open('number.txt').read()))",
        "pd.DataFrame({'a': [x]}).style.set_uuid('t')",
        "import matplotlib.pyplot as plt\nplt.plot([0, x])\nplt.show()",
    )
    library = {"errors.py"}  # gets the library files that the kernel loaded
    first, second = (execute(path, {"x": 1}, folder, library) for _ in range(2))
    assert {"__init__.py", "errors.py", "air.py", "core/errors.py"} <= library
    assert not {name for name in library if name.startswith(("train", "/"))}
    assert nbformat.writes(first) == nbformat.writes(second)
    assert page(first) == page(second)
    text = nbformat.writes(first)
    assert "42" in text and "image/png" in text
    assert str(tmp_path) not in text and "papermill" not in text and " at 0x" not in text
    nbformat.validate(first)


@pytest.mark.slow
def test_a_failing_cell_is_named_with_its_error(saved, tmp_path, capfd):
    path = saved("a = 1", "\nopen('absent.tsv')\n")
    with pytest.raises(DataError) as failure:
        execute(path, {}, tmp_path)
    said = str(failure.value)
    assert said.startswith("try.ipynb: cell ") and "open('absent.tsv')" in said
    assert "FileNotFoundError" in said and "absent.tsv'" in said and "\n" not in said
    log = capfd.readouterr().err
    assert "Traceback" in log and "\x1b[" not in log


@pytest.mark.slow
def test_a_kernel_that_dies_is_said(saved, tmp_path):
    path = saved("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(DataError, match=r"try\.ipynb: its kernel ended .*memory"):
        execute(path, {}, tmp_path)


@pytest.mark.slow
def test_on_real_scans_the_results_are_compared_with_the_published_values(finished, root, tmp_path):
    results = finished / "results"
    summary = pd.read_csv(results / "tables/table3.csv")
    summary["difference"] = summary["mean"] - summary["published_mean"]
    summary["verdict"] = "outside (only 2 folds)"
    summary.to_csv(tmp_path / "table3.csv", index=False, na_rep="nan")
    (tmp_path / "table3.tsv").write_bytes((results / "significance/table3.tsv").read_bytes())
    given = {"tables": ["table3.csv"], "significance": ["table3.tsv"], "phantom": False}
    with_values = execute(root / "notebooks/results.ipynb", given, tmp_path)
    text = page(with_values)
    assert "phantom" not in re.sub(r"<details.*?</details>", "", text, flags=re.S).lower()
    assert "outside: 4 values" in text
    assert text.count('alt="figure"') == 2  # tested differences, distances from the paper
    published = execute(root / "notebooks/results.ipynb", {**given, "phantom": True}, tmp_path)
    assert "cannot rank methods" in page(published)


# --- of a finished run


@pytest.mark.slow
def test_the_notebooks_of_a_run_are_light_and_without_warnings(finished):
    folder = finished / "results/notebooks"
    assert sorted(path.stem for path in folder.glob("*.html")) == NOTEBOOKS
    assert sum(path.stat().st_size for path in folder.glob("*.html")) < 3_000_000
    for path in folder.glob("*.ipynb"):
        content = nbformat.read(path, as_version=4)
        outputs = [o for cell in content.cells for o in cell.get("outputs", [])]
        assert outputs and not [o for o in outputs if o.get("name") == "stderr"], path
        text = path.read_text(encoding="utf-8")
        assert str(finished) not in text and "papermill" not in json.dumps(content.metadata)
        assert "phantom" in path.with_suffix(".html").read_text(encoding="utf-8").lower()


@pytest.mark.slow
def test_the_audit_notebook_goes_down_to_the_raw_files_and_counts_the_flagged_scans(finished):
    text = (finished / "results/notebooks/audit.html").read_text(encoding="utf-8")
    for part in ("tables/table3.csv", "train_model", "_flair.nii.gz", "PHANTOM DATA"):
        assert part in text
    assert "Every record has the hash that it was written with." in text
    assert "<td" in text.partition("Quality control")[2]
