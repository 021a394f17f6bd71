"""Rule validate_dataset: a verdict per subject before any job works on its scans."""

import logging
from pathlib import Path

from uad.core.errors import DataError
from uad.core.files import read_tsv, write_tsv
from uad.core.provenance import job
from uad.qc.decide import left_out
from uad.qc.validation import (
    refuse_unreadable,
    report,
    stray_files,
    validate_tree,
    write_report,
)

with job(snakemake) as context:
    params, name = snakemake.params, snakemake.wildcards.dataset
    spec, rows = params.dataset, read_tsv(snakemake.input[0]).fillna("")
    checked = validate_tree(spec["layout"], rows, threads=snakemake.threads)
    preprocessed = spec["source"] == "preprocessed"
    whole = not spec["limit"] and spec["source"] != "phantom"
    result = report(
        name,
        checked,
        expected=spec["expected"] if whole else None,
        exclude={**spec["exclude"], **left_out(spec.get("reviewed", []))},
        strays=() if preprocessed else stray_files(spec["layout"], params.root),
        phantom=spec["source"] == "phantom",
    )
    try:
        refuse_unreadable(name, checked)
    except DataError as error:
        # beside the declared outputs, which Snakemake removes after a failure
        page = Path(snakemake.output.html).with_suffix(".refused.html")
        write_report(result, page.with_suffix(".tsv"), page)
        raise DataError(f"{error}\nAll verdicts: {page}") from error
    for subject, why in result.advice.items():
        logging.warning("%s should be excluded: %s", subject, why)
    context.facts |= {"subjects": result.counts, "notes": result.notes}
    write_tsv(snakemake.output.scans, checked)
    write_report(result, snakemake.output.tsv, snakemake.output.html)
