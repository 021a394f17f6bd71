"""Rule make_air_table: AIR by experiment and fold, and what the two rules decide."""

from uad.core.files import read_json
from uad.core.provenance import job
from uad.report.air_table import air_table, write_air_table
from uad.report.figures import figure_air

with job(snakemake):
    frame = air_table(map(read_json, snakemake.input))
    output, params = snakemake.output, snakemake.params
    tables = [output.csv, output.md, output.html]
    write_air_table(frame, tables, phantom=params.phantom, seed=params.seed)
    figure_air(output.picture, frame, phantom=params.phantom)
