"""Rule make_gallery: the page to go through all scans, and its counts for the report."""

from uad.core.files import read_tsv, write_json, write_text
from uad.core.provenance import job
from uad.qc.measure import summarise
from uad.report.pages import gallery_page, summary_page

with job(snakemake) as context:
    params, output = snakemake.params, snakemake.output
    decisions, phantom = params.decisions, params.phantom
    paths = zip(params.datasets, snakemake.input.tables, strict=True)
    tables = {name: read_tsv(path) for name, path in paths}
    counts = summarise(tables, decisions)
    excluded = [row for row in decisions if row["verdict"] == "exclude"]
    write_text(
        output.gallery,
        gallery_page(
            tables,
            pictures=params.pictures,
            shape=params.shape,
            decisions=decisions,
            decisions_file=params.decisions_file,
            threshold=params.threshold,
            phantom=phantom,
        ),
    )
    write_json(output.json, {"phantom": phantom, "scans": counts, "excluded": excluded})
    write_text(output.html, summary_page(counts, excluded, params.threshold, phantom))
    context.facts |= {"scans": sum(map(len, tables.values())), "decisions": len(decisions)}
