"""Rule index_dataset: who is in a data set, how old, and where their raw files are."""

import logging

from uad.datasets.demographics import add_ages
from uad.datasets.layouts import index_dataset
from uad.datasets.preprocessed import index_preprocessed
from uad.files import write_tsv
from uad.provenance import job

with job(snakemake) as context:
    spec, root = snakemake.params.dataset, snakemake.params.root
    chosen = spec["modalities"], spec["exclude"], spec["limit"]
    if spec["source"] == "preprocessed":
        table = index_preprocessed(root, spec["layout"], *chosen)
    else:
        table = index_dataset(spec["layout"], root, *chosen)
    table, ages = add_ages(table, spec["layout"], root)
    for name in ages.get("contradicting", ()):
        logging.warning("%s: rows with different ages of %s; unknown", ages["file"], name)
    context.facts |= {"subjects": table["subject"].nunique(), "scans": len(table), "ages": ages}
    write_tsv(snakemake.output[0], table)
