"""Rule draw_packed_scans: pictures of some packed volumes, in one file."""

from uad.core.provenance import job
from uad.preprocess.slices import each_volume
from uad.qc.gallery import write_sheet

with job(snakemake):
    write_sheet(snakemake.output[0], each_volume(snakemake.input[0], snakemake.params.subjects))
