"""Rule make_sweep_figure: Dice and AUPRC over the number that a study sweeps."""

import pandas as pd

from uad.core.files import write_tsv
from uad.core.provenance import job
from uad.report.curves import figure_sweep
from uad.report.metric_files import collect_metrics
from uad.report.study_table import trained_points
from uad.report.table_spec import StudySpec

with job(snakemake):
    files, params = snakemake.input, snakemake.params
    trained = {method: [method, *others] for method, others in params.trained.items()}
    metrics = collect_metrics(files.trained) if trained else pd.DataFrame()
    points = trained_points(metrics, trained, params.values)
    write_tsv(snakemake.output.points, points)
    figure_sweep(
        snakemake.output.picture,
        pd.read_csv(files.summary),
        StudySpec.of_study(**params.spec),
        phantom=params.phantom,
        baseline_values=params.values,
        trained=points,
    )
