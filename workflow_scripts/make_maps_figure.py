"""Rule make_maps_figure: one reconstruction under several quality maps (Fig. 1)."""

import numpy as np

from uad.air import decision, invert_foreground
from uad.datasets.slices import read_store, read_volumes
from uad.files import read_json
from uad.provenance import job
from uad.reporting.figures import choose_slices, figure_maps
from uad.scoring import score_volume

with job(snakemake) as context:
    files, figure = snakemake.input, snakemake.params.figure
    method = snakemake.params.methods[figure["method"]]
    invert = decision(read_json(files.air) if files.air else {}, method["air"])
    restored = {
        key.split("/")[1]: volume
        for key, volume in read_volumes(files.reconstructions[0], "test/").items()
    }
    part = read_store(files.store, list(restored))
    lesions = dict(zip(part.subjects, part.lesions, strict=True))
    samples = []
    for subject, z in choose_slices(lesions):
        index = part.subjects.index(subject)
        volume, mask = part.volumes[index], part.masks[index]
        volume = invert_foreground(volume, mask) if invert else volume
        maps = {
            name: mask * score_volume(name, volume, restored[subject], **method["quality"])
            for name in ("l1", "ssim", "fusion")
        }
        layers = {
            "input": volume,
            "reconstruction": restored[subject],
            **maps,
            "truth": part.lesions[index],
        }
        # the atlas is stored left to right, back to front: turn it for display
        sample = {name: np.rot90(layer[:, :, z]) for name, layer in layers.items()}
        size = int(part.lesions[index].sum())
        samples.append({"subject": subject, "slice": z, "lesion_voxels": size, **sample})
    title = f"{method['label']}, {figure['experiment']}, {figure['test']}"
    figure_maps(snakemake.output[0], samples, phantom=snakemake.params.phantom, title=title)
    context.facts |= {"slices": [[s["subject"], int(s["slice"])] for s in samples]}
