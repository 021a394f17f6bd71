"""Rule index_dataset: who is in a data set, and where their raw files are."""

from uad.datasets.layouts import index_dataset
from uad.files import write_tsv
from uad.provenance import job

with job(snakemake) as context:
    spec = snakemake.params.dataset
    table = index_dataset(
        spec["layout"],
        snakemake.params.root,
        spec["modalities"],
        spec["exclude"],
        spec["limit"],
    )
    context.facts |= {"subjects": table["subject"].nunique(), "scans": len(table)}
    write_tsv(snakemake.output[0], table)
