"""Rule make_cost_table: what the methods cost, side by side."""

from uad.core.files import read_json
from uad.core.provenance import job
from uad.report.cost_table import cost_table, write_cost_table

with job(snakemake):
    params = snakemake.params
    records = [read_json(path) for path in snakemake.input]
    table = cost_table([{**r, "label": params.labels[r["method"]]} for r in records])
    seed = ", ".join(map(str, sorted({r["seed"] for r in records})))
    write_cost_table(table, snakemake.output, phantom=params.phantom, seed=seed)
