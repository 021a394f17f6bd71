"""Rule index_dataset: who is in a data set, how old, and where their raw files are."""

import logging

from uad.core.files import write_tsv
from uad.core.provenance import job
from uad.data.people import add_ages
from uad.qc.decide import index_used

with job(snakemake) as context:
    spec, root = snakemake.params.dataset, snakemake.params.root
    index = index_used(spec, root, opened=True)
    table, ages = add_ages(index.table, spec["layout"], root)
    for name in ages.get("contradicting", ()):
        logging.warning("%s: rows with different ages of %s; unknown", ages["file"], name)
    context.facts |= {"subjects": table["subject"].nunique(), "scans": len(table), "ages": ages}
    reviewed = spec.get("reviewed", [])
    context.facts["left_out"] = {
        "config": spec["exclude"],
        "review": reviewed,
        "files": index.left_out,
    }
    write_tsv(snakemake.output[0], table)
