"""Rule make_methods_figure: anomaly maps of several methods on the same slices (Fig. 3)."""

import numpy as np

from uad.air import decision, invert_foreground
from uad.datasets.slices import read_store, read_volumes
from uad.datasets.splits import subjects_of
from uad.files import read_json, read_tsv
from uad.provenance import job
from uad.reporting.figures import MapColumn, choose_slices, figure_maps
from uad.scoring import score_volume

with job(snakemake) as context:
    files, params = snakemake.input, snakemake.params
    record = read_json(files.air) if files.air else {}
    subjects = subjects_of(read_tsv(files.split), params.figure["test"], "test")
    sizes = {s: int(read_store(files.store, [s]).lesions.sum()) for s in subjects}
    samples = []
    for subject, z in choose_slices(sizes, lambda s: read_store(files.store, [s]).lesions[0]):
        part = read_store(files.store, [subject])
        volume, mask, lesion = part.volumes[0], part.masks[0], part.lesions[0]
        layers = {"input": volume, "truth": lesion}
        for name, method in params.methods.items():
            seen = invert_foreground(volume, mask) if decision(record, method["air"]) else volume
            path = files.reconstructions[list(params.methods).index(name)]
            restoration = read_volumes(path, f"test/{subject}")[f"test/{subject}"]
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
