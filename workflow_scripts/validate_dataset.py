"""Rule validate_dataset: a verdict per subject before any job works on its scans."""

from pathlib import Path

from uad.core.errors import DataError
from uad.core.files import read_tsv, write_text, write_tsv
from uad.core.provenance import job
from uad.qc.decide import index_used, left_out
from uad.qc.verdicts import (
    SEPARATOR,
    give_verdicts,
    refuse_unusable,
    stray_files,
    validate_tree,
)
from uad.report.html import render_page


def write(result, dataset, phantom, tsv, page):
    """The verdicts as a table and as a page."""
    title = f"Validation of {dataset}{' (phantom data)' if phantom else ''}"
    write_tsv(tsv, result.subjects)
    write_text(
        page,
        render_page(
            "validation.html",
            title=title,
            dataset=dataset,
            subjects=result.subjects.to_dict("records"),
            counts=result.counts,
            notes=result.notes,
            advice=result.advice,
        ),
    )


def summary(result, dataset, page):
    """What the user is told during the run; nothing where nothing is wrong."""
    lines, bad = list(result.notes), list(result.advice.items())
    if bad:
        lines.append(
            f"{len(bad)} of {len(result.subjects)} subjects should be excluded and are used until "
            f"the config excludes them, for example {bad[0][0]}: {bad[0][1].split(SEPARATOR)[0]}"
        )
    return "\n  ".join([f"Raw scans of {dataset} ({page}):", *lines]) if lines else ""


with job(snakemake) as context:
    params, name = snakemake.params, snakemake.wildcards.dataset
    spec, rows = params.dataset, read_tsv(snakemake.input[0]).fillna("")
    checked = validate_tree(spec["layout"], rows, snakemake.threads, params.backend)
    phantom = spec["source"] == "phantom"
    preprocessed = spec["source"] == "preprocessed"
    result = give_verdicts(
        checked,
        expected=None if spec["limit"] or phantom else spec["expected"],
        exclude={**spec["exclude"], **left_out(spec.get("reviewed", []))},
        unusable=index_used(spec, params.root, opened=True).left_out,
        strays=() if preprocessed else stray_files(spec["layout"], params.root),
    )
    try:
        refuse_unusable(name, checked)
    except DataError as error:
        # beside the declared outputs, which Snakemake removes after a failure
        page = Path(snakemake.output.html).with_suffix(".refused.html")
        write(result, name, phantom, page.with_suffix(".tsv"), page)
        raise DataError(f"{error}\nAll verdicts: {page}") from error
    print(summary(result, name, snakemake.output.html), end="")
    context.facts |= {"subjects": result.counts, "notes": result.notes}
    write_tsv(snakemake.output.scans, checked)
    write(result, name, phantom, snakemake.output.tsv, snakemake.output.html)
