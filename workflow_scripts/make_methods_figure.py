"""Rule make_methods_figure: anomaly maps of several methods on the same slices (Fig. 3)."""

import numpy as np

from uad.air import decision, invert_foreground
from uad.datasets.slices import read_store, read_volumes
from uad.files import read_json
from uad.provenance import job
from uad.reporting.figures import MapColumn, choose_slices, figure_maps
from uad.scoring import score_volume

with job(snakemake) as context:
    files, params = snakemake.input, snakemake.params
    record = read_json(files.air) if files.air else {}
    restored = {
        name: read_volumes(path, "test/")
        for name, path in zip(params.methods, files.reconstructions, strict=True)
    }
    keys = next(iter(restored.values()))
    part = read_store(files.store, [key.split("/")[1] for key in keys])
    lesions = dict(zip(part.subjects, part.lesions, strict=True))
    samples = []
    for subject, z in choose_slices(lesions):
        index = part.subjects.index(subject)
        volume, mask, lesion = part.volumes[index], part.masks[index], part.lesions[index]
        layers = {"input": volume, "truth": lesion}
        for name, method in params.methods.items():
            seen = invert_foreground(volume, mask) if decision(record, method["air"]) else volume
            restoration = restored[name][f"test/{subject}"]
            layers[name] = mask * score_volume(
                method["score"], seen, restoration, **method["quality"]
            )
        # the atlas is stored left to right, back to front: turn it for display
        sample = {name: np.rot90(layer[:, :, z]) for name, layer in layers.items()}
        size = int(lesion.sum())
        samples.append({"subject": subject, "slice": z, "lesion_voxels": size, **sample})
    columns = [
        MapColumn("input", "input", "image"),
        # methods with the same measure share a colour scale
        *(
            MapColumn(name, method["label"], "map", method["score"])
            for name, method in params.methods.items()
        ),
        MapColumn("truth", "truth", "truth"),
    ]
    figure = params.figure
    figure_maps(
        snakemake.output[0],
        samples,
        phantom=params.phantom,
        title=f"Anomaly maps by method, {figure['experiment']}, {figure['test']}",
        columns=columns,
    )
    context.facts |= {"slices": [[s["subject"], int(s["slice"])] for s in samples]}
