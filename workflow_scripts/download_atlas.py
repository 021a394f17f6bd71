"""Rule download_atlas: the SRI24 atlas from NITRC."""

from uad.core.files import write_json
from uad.core.provenance import job
from uad.data.sri24 import atlas_root, download_atlas

with job(snakemake) as context:
    archives = snakemake.params.archives
    atlas = download_atlas(archives)
    folder = str(atlas_root("download", archives))
    write_json(snakemake.output[0], {"folder": folder, "provenance": atlas.provenance})
    context.facts |= {"atlas": atlas.provenance}
