"""Rule make_ranks: mean ranks of a table's methods over volumes, and which of them differ."""

from uad.core.provenance import job
from uad.report.metric_files import collect_metrics
from uad.report.ranks import figure_ranks, rank_methods, write_ranks

with job(snakemake):
    params, output = snakemake.params, snakemake.output
    table = {**params.table, "name": snakemake.wildcards.table, "labels": params.labels}
    ranks = rank_methods(collect_metrics(snakemake.input.metrics), table)
    write_ranks(ranks, table, [output.csv, output.md, output.html], phantom=params.phantom)
    figure_ranks(output.picture, ranks, table, phantom=params.phantom)
