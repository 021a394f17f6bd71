"""Rule rescore_volumes: stored reconstructions under every variant of a study."""

from uad.air import invert_foreground, stored_decision
from uad.core.files import write_tsv
from uad.core.provenance import job
from uad.evaluate import cell_of
from uad.evaluate.rescore import Variant, rescore
from uad.preprocess.slices import read_store, read_volumes

with job(snakemake) as context:
    names, files, params = snakemake.wildcards, snakemake.input, snakemake.params
    invert = stored_decision(files.air, params.air)

    def volume(subject):
        """Scan as the network saw it, brain and lesion of a subject."""
        part = read_store(files.store, [subject])
        image, mask = part.volumes[0], part.masks[0]
        return invert_foreground(image, mask) if invert else image, mask, part.lesions[0]

    variants = [Variant(**variant) for variant in params.variants]
    rows = rescore(read_volumes(files.reconstructions[0]), volume, variants)
    cell = {**cell_of(names), "study": names.study}
    write_tsv(snakemake.output[0], rows.assign(**cell)[[*cell, *rows.columns]])
    context.facts |= {"variants": len(variants)}
