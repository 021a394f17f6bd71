"""Rule prepare_atlas: the SRI24 atlas at the working voxel size."""

from pathlib import Path

from uad.preprocessing.atlas import prepare_atlas
from uad.provenance import job

with job(snakemake):
    params = snakemake.params
    record = snakemake.input[0] if params.atlas == "download" else None
    prepare_atlas(Path(snakemake.output[0]).parent, params.spacing, params.atlas, record)
