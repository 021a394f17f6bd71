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

#: Tag of the cell that papermill adds below the one that declares the parameters.
INJECTED = "injected-parameters"
#: A last cell that is executed and not kept: the library files that the kernel loaded.
_LOADED = """\
import json, sys
print(json.dumps([getattr(m, "__file__", None) or "" for m in list(sys.modules.values())]))
"""
#: Numbers of the tables of a page: each has its own style.
_TABLES = itertools.count(1)


def as_table(frame: pd.DataFrame, *, index: bool = False, precision: int = 6) -> Styler:
    """A frame as a notebook shows it: every text as it is, a line break in a heading kept."""

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
    """Execute a notebook in a folder and take out what differs between two executions.

    Its cell tagged ``parameters`` declares them with defaults. Paths among the values are relative
    to the folder, so that what was executed names no path of this machine. ``library`` gets the
    library files that the notebook loaded.

    Raises:
        DataError: a cell failed, or the kernel ended; the message names the cell. The traceback is
            printed on standard error.
    """
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError

    name = Path(source).name
    notebook = nbformat.read(source, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(_LOADED))
    os.environ |= {
        "PYTHONPATH": str(LIBRARY.parent),  # the library that its job reads
        "JUPYTER_PREFER_ENV_PATH": "1",  # not a kernel that a user installed under the same name
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # make sets one without pictures
    }
    options = {"kernel_name": "python3", "progress_bar": False, "cwd": str(folder)}
    try:
        executed = papermill.execute_notebook(notebook, None, dict(parameters), **options)
    except papermill.PapermillExecutionError as error:
        # without a terminal's colours
        print(re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback)), file=sys.stderr)
        first = next((f" ('{x.strip()}')" for x in error.source.splitlines() if x.strip()), "")
        cause = f"{error.ename}: {error.evalue}".strip()
        raise DataError(f"{name}: cell {error.cell_index}{first} failed with {cause}") from None
    except DeadKernelError as error:
        raise DataError(
            f"{name}: its kernel ended before the notebook did ({error}). Was there too "
            "little memory? The log says more."
        ) from error
    outputs = executed.cells.pop().outputs
    text = "".join(output.text for output in outputs if output.get("name") == "stdout")
    loaded = map(Path, json.loads(text.splitlines()[-1]))
    if library is not None:
        library |= {f.relative_to(LIBRARY).as_posix() for f in loaded if f.is_relative_to(LIBRARY)}
    return _without_traces(executed)


def _without_traces(notebook: NotebookNode) -> NotebookNode:
    """A notebook without times, paths and ids that its execution gave it."""
    kept = ("kernelspec", "language_info")
    notebook.metadata = {k: v for k, v in notebook.metadata.items() if k in kept}
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


def page(notebook: NotebookNode) -> str:
    """An executed notebook, which starts with a heading, as one page, its code folded.

    Nothing is loaded from elsewhere, and the page is a tenth of nbconvert's own.
    """
    from nbconvert import HTMLExporter
    from pygments.formatters import HtmlFormatter

    template = (TEMPLATES / "notebook_cells.j2").read_text(encoding="utf-8")
    exporter = HTMLExporter(raw_template=template, exclude_anchor_links=True)
    body, _ = exporter.from_notebook_node(notebook)
    colours = HtmlFormatter(style="default", nobackground=True).get_style_defs(".highlight")
    title = notebook.cells[0].source.splitlines()[0].removeprefix("# ")
    return render_page("notebook.html", title=title, body=body, style=colours)
