"""Rule make_table: one table of the paper, measured beside published."""

from uad.core.files import read_tsv
from uad.core.provenance import job
from uad.report.tables import collect_metrics, read_published, summarise, write_table

with job(snakemake) as context:
    params, files = snakemake.params, snakemake.input
    table = params.table
    spec = {
        "name": snakemake.wildcards.table,
        "title": table["title"],
        "rows": table["rows"],
        "labels": params.labels,
        "columns": [
            {
                "experiment": column["experiment"],
                "test_dataset": column["test"],
                "label": column["label"] or f"{column['test']} ({column['experiment']})",
            }
            for column in table["columns"]
        ],
    }
    published = read_published(files.published)
    summary = summarise(
        collect_metrics(files.metrics),
        spec,
        published,
        phantom=params.phantom,
        significance=read_tsv(files.significance[0]),
    )
    source = "synthetic phantom" if params.phantom else "the data sets named in the config"
    write_table(
        summary,
        spec,
        list(snakemake.output),
        phantom=params.phantom,
        significance=read_tsv(files.significance[0]),
        caption_facts={
            "data_source": source,
            "seed": params.seed,
            "notes": [f"protocol preset: {params.protocol}"],
        },
    )
