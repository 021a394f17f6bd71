"""Rule index_dataset: who is in a data set, and where their raw files are."""

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
    context.facts |= {"subjects": table["subject"].nunique(), "scans": len(table)}
    write_tsv(snakemake.output[0], table)
