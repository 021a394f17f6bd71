"""Rule make_metrics_table: all metrics of a table with intervals, also by strata of the volumes."""

from uad.core.files import read_tsv
from uad.core.provenance import job
from uad.report.curves import figure_lesions
from uad.report.metric_files import collect_metrics
from uad.report.metrics_table import described, summarise_metrics, with_facts, write_metrics
from uad.report.table_spec import TableSpec

with job(snakemake):
    params, files, output = snakemake.params, snakemake.input, snakemake.output
    spec = TableSpec.of(snakemake.wildcards.table, params.table, params.labels)
    participants = dict(zip(params.tests, map(read_tsv, files.participants), strict=True))
    metrics = with_facts(collect_metrics(files.metrics), participants, params.spacing**3 / 1000)
    columns = described(metrics)
    summary = summarise_metrics(metrics, spec, list(columns), seed=params.seed)
    paths = [output.csv, output.md, output.tex, output.html]
    write_metrics(summary, spec, columns, paths, phantom=params.phantom, seed=params.seed)
    figure_lesions(output.picture, metrics, spec, phantom=params.phantom)
