"""Rule make_healthy_table: what the methods find in healthy scans, side by side."""

from uad.core.files import read_json
from uad.core.provenance import job
from uad.report.healthy_table import healthy_table, write_healthy_table

with job(snakemake):
    params = snakemake.params
    table = healthy_table(map(read_json, snakemake.input))
    write_healthy_table(table, snakemake.output, params.labels, phantom=params.phantom)
