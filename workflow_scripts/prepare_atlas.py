"""Rule prepare_atlas: the SRI24 atlas at the working voxel size."""

from pathlib import Path

from uad.core.provenance import job
from uad.preprocess.atlas import prepare_atlas

with job(snakemake):
    params = snakemake.params
    record = snakemake.input[0] if params.atlas == "download" else None
    prepare_atlas(Path(snakemake.output[0]).parent, params.spacing, params.atlas, record)
