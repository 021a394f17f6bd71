"""Rule make_table: one table of the paper, measured beside published."""

from uad.core.files import read_tsv
from uad.core.provenance import job
from uad.report.metric_files import collect_metrics, read_published
from uad.report.table_spec import TableSpec
from uad.report.tables import collect_readiness, summarise, write_table

with job(snakemake):
    params, files = snakemake.params, snakemake.input
    spec = TableSpec.of(snakemake.wildcards.table, params.table, params.labels)
    tests = read_tsv(files.significance[0])
    summary = summarise(
        collect_metrics(files.metrics),
        spec,
        read_published(files.published),
        phantom=params.phantom,
        significance=tests,
        readiness=collect_readiness(files.readiness),
    )
    notes = [f"protocol preset: {params.protocol}"]
    options = {"seed": params.seed, "notes": notes, "significance": tests}
    write_table(summary, spec, snakemake.output, **options)
