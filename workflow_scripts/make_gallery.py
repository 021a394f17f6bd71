"""Rule make_gallery: the page to go through all scans, and its counts for the report."""

from pathlib import Path

from uad.core.files import read_tsv, write_json, write_text
from uad.core.provenance import job
from uad.qc.gallery import gallery_data, write_gallery
from uad.qc.summary import summarise, summary_document, verdicts_on
from uad.report.render import html_page

with job(snakemake) as context:
    files, params, output = snakemake.input, snakemake.params, snakemake.output
    tables = {n: read_tsv(path) for n, path in zip(params.datasets, files.tables, strict=True)}
    data = gallery_data(
        tables,
        pictures=params.pictures,
        shape=params.shape,
        decisions=params.decisions,
        decisions_file=params.decisions_file,
        threshold=params.threshold,
        phantom=params.phantom,
    )
    template = {Path(p).suffix[1:]: Path(p).read_text(encoding="utf-8") for p in files.template}
    write_gallery(output.gallery, data, template)
    counts = summarise(tables, verdicts_on(tables, params.decisions))
    excluded = [row for row in params.decisions if row["verdict"] == "exclude"]
    write_json(output.json, {"phantom": params.phantom, "scans": counts, "excluded": excluded})
    page = summary_document(counts, excluded, threshold=params.threshold, phantom=params.phantom)
    write_text(output.html, html_page(page))
    context.facts |= {"scans": len(data["rows"]), "decisions": len(params.decisions)}
