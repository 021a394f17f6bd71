"""Rule pack_slices: all volumes of one data set and modality, scaled and resampled, in one file."""

from uad.core.files import read_tsv
from uad.core.nifti import read_mask, read_volume
from uad.core.provenance import job
from uad.data.preprocessed import load_preprocessed
from uad.preprocess.intensity import Packing, pack_tumour_free, pack_volume
from uad.preprocess.slices import write_store


def packed(data, mask, lesion, name):
    """One scan as (volume, mask, lesion) on the packed grid, and its stack if it is trained on."""
    scan, packing = (data, mask, lesion), Packing.of(snakemake.params)
    stack = pack_tumour_free(*scan, packing, name) if packing.stack else ()
    return *pack_volume(*scan, packing, name), *stack


def registered(image, mask, lesion):
    """A scan of this workflow, from its files."""
    data, _ = read_volume(image)
    masks = (read_mask(path, data.shape, image).data for path in (mask, lesion))
    return packed(data, *masks, image)


def shared(row):
    """A scan that somebody else preprocessed: packed on its own axes, then turned."""
    scan = load_preprocessed(row, spacing=snakemake.params.preprocessing["spacing"])
    return tuple(map(scan.to_ras, packed(scan.image, scan.mask, scan.lesion, row["image"])))


with job(snakemake) as context:
    files = snakemake.input
    table = read_tsv(files.participants).fillna("")
    rows = table[table["modality"] == snakemake.wildcards.modality].to_dict("records")
    if snakemake.params.preprocessed:
        scans = map(shared, rows)
    else:
        scans = map(registered, files.images, files.masks, files.lesions)
    write_store(snakemake.output[0], [row["subject"] for row in rows], scans)
    context.facts |= {"volumes": len(rows)}
