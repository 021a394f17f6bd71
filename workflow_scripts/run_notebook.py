"""Rule run_notebook: execute a parameterised notebook and render it."""

import os

import nbformat

from uad.core.files import write_text
from uad.core.provenance import job
from uad.report.notebooks import execute, page

with job(snakemake) as context:
    params, output = snakemake.params, snakemake.output
    folder = snakemake.config.get("results", "results")
    files = dict(snakemake.input.items())
    source = files.pop("notebook")
    # relative to the results: the executed notebook names no path of this machine
    inputs = {
        name: os.path.relpath(value, folder)
        if isinstance(value, str)
        else [os.path.relpath(path, folder) for path in value]
        for name, value in files.items()
    }
    parameters = {**inputs, **params.parameters, "phantom": params.phantom}
    notebook = execute(source, parameters, folder, context.library)
    write_text(output.ipynb, nbformat.writes(notebook) + "\n")
    write_text(output.html, page(notebook))
