"""Rule pack_slices: all volumes of one data set and modality, scaled and resampled, in one file."""

from uad.datasets.slices import write_store
from uad.preprocessing.intensity import pack_volume
from uad.provenance import job
from uad.volumes import read_mask, read_volume


def packed(image, mask, lesion):
    """One scan as (volume, mask, lesion) on the packed grid."""
    data, _ = read_volume(image)
    options = snakemake.params.preprocessing
    return pack_volume(
        data,
        read_mask(mask, data.shape, image),
        read_mask(lesion, data.shape, image),
        options["spacing"],
        field_of_view_mm=options["field_of_view"],
        shape=options["shape"],
        smooth=snakemake.params.curvature_flow,
        percentiles=options["percentiles"],
        name=image,
    )


with job(snakemake) as context:
    files = snakemake.input
    scans = list(zip(files.images, files.masks, files.lesions, strict=True))
    subjects = [image.split("/sub-")[1].split("/")[0] for image in files.images]
    write_store(snakemake.output[0], subjects, (packed(*scan) for scan in scans))
    context.facts |= {"volumes": len(subjects)}
