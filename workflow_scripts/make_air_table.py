"""Rule make_air_table: AIR by experiment and fold, and what the two rules decide."""

from uad.core.files import read_json
from uad.core.provenance import job
from uad.report.air import air_table, write_air_table
from uad.report.figures import figure_air

with job(snakemake):
    frame = air_table([read_json(path) for path in snakemake.input])
    output, phantom = snakemake.output, snakemake.params.phantom
    source = "synthetic phantom" if phantom else "the data sets named in the config"
    write_air_table(
        frame,
        [output.csv, output.md, output.html],
        phantom=phantom,
        caption_facts={"data_source": source, "seed": snakemake.params.seed},
    )
    figure_air(output.picture, frame, phantom=phantom)
