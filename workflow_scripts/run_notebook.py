"""Rule run_notebook: execute a parameterised notebook and render it."""

import nbformat
import papermill
from nbconvert import HTMLExporter

from uad.files import atomic_path, write_text
from uad.provenance import job

with job(snakemake):
    output = snakemake.output
    parameters = {
        "air_files": list(snakemake.input.air),
        "stores": list(snakemake.input.stores),
        "phantom": snakemake.params.phantom,
    }
    with atomic_path(output.ipynb) as temporary:
        papermill.execute_notebook(
            snakemake.input.notebook,
            temporary,
            parameters=parameters,
            kernel_name="python3",
            progress_bar=False,
            cwd=".",  # the paths are relative to the working directory of the run
        )
    notebook = nbformat.read(output.ipynb, as_version=4)
    write_text(output.html, HTMLExporter(exclude_input_prompt=True).from_notebook_node(notebook)[0])
