"""Rule make_table: one table of the paper, measured beside published."""

from uad.core.files import read_tsv
from uad.core.provenance import job
from uad.report.metric_files import collect_metrics, read_published
from uad.report.render import data_source
from uad.report.tables import summarise, write_table

with job(snakemake) as context:
    params, files = snakemake.params, snakemake.input
    spec = {**params.table, "name": snakemake.wildcards.table, "labels": params.labels}
    tests = read_tsv(files.significance[0])
    metrics, published = collect_metrics(files.metrics), read_published(files.published)
    phantom = params.phantom
    summary = summarise(metrics, spec, published, phantom=phantom, significance=tests)
    facts = {
        "data_source": data_source(phantom),
        "seed": params.seed,
        "notes": [f"protocol preset: {params.protocol}"],
    }
    write_table(
        summary,
        spec,
        snakemake.output,
        phantom=phantom,
        caption_facts=facts,
        significance=tests,
    )
