"""Rule make_table: one table of the paper, measured beside published."""

from uad.core.files import read_tsv
from uad.core.provenance import job
from uad.report.metric_files import collect_metrics, read_published
from uad.report.not_ready import collect_readiness
from uad.report.tables import summarise, write_table

with job(snakemake):
    params, files = snakemake.params, snakemake.input
    table = {**params.table, "name": snakemake.wildcards.table, "labels": params.labels}
    tests = read_tsv(files.significance[0])
    metrics, published = collect_metrics(files.metrics), read_published(files.published)
    readiness = collect_readiness(files.readiness)
    facts = {"phantom": params.phantom, "significance": tests, "readiness": readiness}
    summary = summarise(metrics, table, published, **facts)
    notes = [f"protocol preset: {params.protocol}"]
    options = {"seed": params.seed, "notes": notes, "significance": tests}
    write_table(summary, table, snakemake.output, **options)
