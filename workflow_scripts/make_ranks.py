"""Rule make_ranks: mean ranks of a table's methods over volumes, and which of them differ."""

from uad.core.provenance import job
from uad.report.metric_files import collect_metrics
from uad.report.ranks import figure_ranks, rank_methods, write_ranks
from uad.report.table_spec import TableSpec

with job(snakemake):
    params, output = snakemake.params, snakemake.output
    spec = TableSpec.of(snakemake.wildcards.table, params.table, params.labels)
    ranks = rank_methods(collect_metrics(snakemake.input.metrics), spec)
    write_ranks(ranks, spec, [output.csv, output.md, output.html], phantom=params.phantom)
    figure_ranks(output.picture, ranks, spec, phantom=params.phantom)
