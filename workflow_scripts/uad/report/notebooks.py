"""Notebooks of a run: executed with parameters, freed of what changes, rendered as light pages.

papermill, nbconvert and Jupyter's client are imported inside the functions.
"""

from __future__ import annotations

import html
import itertools
import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uad.core.errors import DataError
from uad.core.provenance import LIBRARY
from uad.report.html import TEMPLATES, render_page

if TYPE_CHECKING:
    import pandas as pd
    from nbformat import NotebookNode
    from pandas.io.formats.style import Styler

#: Tag of the cell that declares the parameters, and of the one that papermill adds.
PARAMETERS, INJECTED = "parameters", "injected-parameters"
#: Metadata of a notebook that do not tell when or where it was executed.
_KEPT = ("kernelspec", "language_info")
#: A last cell that is executed and not kept: the library files that the kernel loaded.
_LOADED = """\
import json, sys
print(json.dumps([getattr(m, "__file__", None) or "" for m in list(sys.modules.values())]))
"""
#: Numbers of the tables of a page: each has its own style.
_TABLES = itertools.count(1)
#: What identifies a terminal's colours in a traceback.
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def title_of(notebook: NotebookNode, name: str) -> str:
    """The first heading of a notebook; its file's name if it has none."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and cell.source.startswith("# "):
            return cell.source.splitlines()[0].removeprefix("# ").strip()
    return name


def as_table(frame: pd.DataFrame, *, index: bool = False, precision: int = 6) -> Styler:
    """A frame as a notebook shows it: every text as it is, a line break in a heading kept.

    Args:
        frame: the table.
        index: whether its index is shown.
        precision: decimals of its numbers.
    """

    def heading(text: Any) -> str:
        return html.escape(str(text)).replace("\n", "<br>")

    # numbered in the order of the page: two executions give the same names
    style = frame.style.set_uuid(f"t{next(_TABLES)}").set_table_attributes('class="dataframe"')
    style = style.format(precision=precision, escape="html").format_index(heading, axis=1)
    return style.format_index(heading, axis=0) if index else style.hide(axis="index")


def execute(
    source: str | os.PathLike[str],
    parameters: Mapping[str, Any],
    folder: str | os.PathLike[str],
    library: set[str] | None = None,
) -> NotebookNode:
    """Execute a notebook and take out what differs between two executions.

    Args:
        source: the notebook; its cell tagged ``parameters`` declares them with defaults.
        parameters: values as JSON has them; paths are relative to ``folder``, so that what was
            executed names no path of this machine.
        folder: working directory of the notebook: the results folder.
        library: gets the library files that the notebook loaded, relative to the library; they
            are not among those of this process.

    Returns:
        The executed notebook: no times, no execution metadata, cells with their own ids.

    Raises:
        DataError: a cell failed, a parameter is not declared, or the kernel ended; the message
            names the cell. The traceback is printed on standard error.
    """
    import nbformat
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    source = Path(source)
    notebook = nbformat.read(source, as_version=4)
    _check_parameters(source.name, notebook, parameters)
    notebook.cells.append(nbformat.v4.new_code_cell(_LOADED))
    # the notebook reads the library that its job reads, wherever a run was started from
    paths = [str(LIBRARY.parent), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ |= {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "JUPYTER_PREFER_ENV_PATH": "1",  # not a kernel that a user installed under the same name
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # make sets one without pictures
    }
    options = {"kernel_name": "python3", "progress_bar": False, "cwd": str(folder)}
    try:
        executed = papermill.execute_notebook(notebook, None, dict(parameters), **options)
    except papermill.PapermillExecutionError as error:
        print(_COLOURS.sub("", "\n".join(error.traceback)), file=sys.stderr)
        raise DataError(_failure(source.name, error)) from None
    except (DeadKernelError, CellTimeoutError) as error:
        raise DataError(
            f"{source.name}: its kernel ended before the notebook did ({error}). Was there too "
            "little memory? The log says more."
        ) from error
    loaded = _library_files(executed.cells.pop())
    if library is not None:
        library |= loaded
    return _without_traces(executed)


def _library_files(cell: NotebookNode) -> set[str]:
    """Files of the library, relative to it, among those that the executed last cell names."""
    text = "".join(output.text for output in cell.outputs if output.get("name") == "stdout")
    files = map(Path, json.loads(text.splitlines()[-1]))
    return {f.relative_to(LIBRARY).as_posix() for f in files if f.is_relative_to(LIBRARY)}


def _check_parameters(name: str, notebook: NotebookNode, parameters: Mapping[str, Any]) -> None:
    """Refuse a parameter that a notebook does not declare; papermill only warns."""
    tagged = [c.source for c in notebook.cells if PARAMETERS in c.metadata.get("tags", [])]
    declared = set(re.findall(r"^(\w+)\b[^=\n]*=", "\n".join(tagged), re.MULTILINE))
    if unknown := sorted(set(parameters) - declared):
        raise DataError(
            f"{name}: its cell tagged '{PARAMETERS}' does not declare {', '.join(unknown)}."
        )


def _failure(name: str, error: Any) -> str:
    """Which cell failed, and why."""
    lines = [line for line in error.source.splitlines() if line.strip()]
    first = f" ('{lines[0].strip()}')" if lines else ""
    cause = f"{error.ename}: {error.evalue}".strip()
    return f"{name}: cell {error.cell_index}{first} failed with {cause}"


def _without_traces(notebook: NotebookNode) -> NotebookNode:
    """A notebook without times, paths and ids that its execution gave it."""
    notebook.metadata = {k: v for k, v in notebook.metadata.items() if k in _KEPT}
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        cell.metadata = {"tags": tags} if tags else {}
        if INJECTED in tags:
            cell.id = INJECTED
        for output in cell.get("outputs", []):
            if "metadata" in output:
                output.metadata = {}
            # beside a picture or a table only the address of an object
            if len(output.get("data", {})) > 1:
                output.data.pop("text/plain", None)
    return notebook


def page(notebook: NotebookNode, name: str) -> str:
    """An executed notebook as one self-contained page, its code folded.

    Nothing is loaded from elsewhere, and the page is a tenth of nbconvert's own.

    Args:
        notebook: from :func:`execute`.
        name: of its file, used if it has no heading.
    """
    from nbconvert import HTMLExporter
    from pygments.formatters import HtmlFormatter

    template = (TEMPLATES / "notebook_cells.j2").read_text(encoding="utf-8")
    exporter = HTMLExporter(raw_template=template, exclude_anchor_links=True)
    body, _ = exporter.from_notebook_node(notebook)
    colours = HtmlFormatter(style="default", nobackground=True).get_style_defs(".highlight")
    title = html.unescape(title_of(notebook, name))
    return render_page("notebook.html", title=title, body=body, style=colours)
