"""Rule make_curves_figure: precision over recall and Dice over the threshold, by method."""

import pandas as pd

from uad.core.files import read_json, read_tsv
from uad.core.provenance import job
from uad.report.curves import figure_curves

with job(snakemake) as context:
    files, params = snakemake.input, snakemake.params
    folds = len(files.curves) // len(params.methods)
    curves, chosen = {}, {}
    for number, method in enumerate(params.methods.values()):
        mine = slice(number * folds, (number + 1) * folds)
        curves[method["label"]] = pd.concat(map(read_tsv, files.curves[mine]))
        chosen[method["label"]] = [read_json(p)["threshold"] for p in files.thresholds[mine]]
    tested = pd.concat(map(read_tsv, files.metrics)).drop_duplicates(["fold", "subject"])
    figure = params.figure
    figure_curves(
        snakemake.output[0],
        curves,
        phantom=params.phantom,
        title=f"{figure['experiment']}, {figure['test']}",
        chosen=chosen,
        prevalence=float(tested["prevalence"].mean()),
    )
