"""Rule index_dataset: who is in a data set, how old, and where their raw files are."""

import logging

from uad.core.files import write_tsv
from uad.core.provenance import job
from uad.data.people import add_ages
from uad.qc.decide import index_used

with job(snakemake) as context:
    spec, root = snakemake.params.dataset, snakemake.params.root
    table, ages = add_ages(index_used(spec, root), spec["layout"], root)
    for name in ages.get("contradicting", ()):
        logging.warning("%s: rows with different ages of %s; unknown", ages["file"], name)
    context.facts |= {"subjects": table["subject"].nunique(), "scans": len(table), "ages": ages}
    context.facts["left_out"] = {"config": spec["exclude"], "review": spec.get("reviewed", [])}
    write_tsv(snakemake.output[0], table)
