"""Rule make_sweep_figure: Dice and AUPRC over the number that a study sweeps."""

import pandas as pd

from uad.core.files import write_tsv
from uad.core.provenance import job
from uad.report.studies import figure_sweep, trained_points
from uad.report.tables import collect_metrics

with job(snakemake):
    files, params = snakemake.input, snakemake.params
    trained = {method: [method, *others] for method, others in params.trained.items()}
    metrics = collect_metrics(files.trained) if trained else pd.DataFrame()
    points = trained_points(metrics, trained, params.values)
    write_tsv(snakemake.output.points, points)
    figure_sweep(
        snakemake.output.picture,
        pd.read_csv(files.summary),
        params.spec,
        phantom=params.phantom,
        baseline_value={method: params.values[method] for method in params.spec["labels"]},
        trained=points if trained else None,
    )
