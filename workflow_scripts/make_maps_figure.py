"""Rule make_maps_figure: quality maps of one method (Fig. 1), or the maps of several (Fig. 3)."""

from uad.air import invert_foreground, stored_decision
from uad.core.provenance import job
from uad.evaluate.score import score_volume
from uad.preprocess.slices import read_volumes
from uad.report.map_figures import figure_maps, map_samples

QUALITY_MAPS = {"l1": "ℓ1 map", "ssim": "SSIM map", "fusion": "fusion map"}

with job(snakemake) as context:
    files, params, figure = snakemake.input, snakemake.params, snakemake.params.figure
    methods = dict(zip(params.methods, files.reconstructions, strict=True))
    tested = [
        name.removeprefix("test/") for name in read_volumes(files.reconstructions[0], "test/")
    ]

    def layers(subject, volume, mask):
        """What is shown of a subject: images, and maps within the brain."""
        shown = {"input": volume}
        for name, path in methods.items():
            method = params.methods[name]
            inverted = stored_decision(files.get("air"), method["air"])
            seen = invert_foreground(volume, mask) if inverted else volume
            restored = read_volumes(path)[f"test/{subject}"]
            scores = {name: method["score"]}
            if figure["kind"] == "maps":
                shown |= {"input": seen, "reconstruction": restored}
                scores = {score: score for score in QUALITY_MAPS}
            for key, score in scores.items():
                shown[key] = mask * score_volume(score, seen, restored, **method["quality"])
        return shown

    samples = map_samples(files.store, tested, layers)
    if figure["kind"] == "maps":
        images, maps = ["input", "reconstruction"], {k: (v, k) for k, v in QUALITY_MAPS.items()}
        title = next(iter(params.methods.values()))["label"]
    else:
        images, maps = ["input"], {n: (m["label"], m["score"]) for n, m in params.methods.items()}
        title = "Anomaly maps by method"
    title = f"{title}, {figure['experiment']}, {figure['test']}"
    options = {"phantom": params.phantom, "title": title}
    figure_maps(snakemake.output[0], samples, images, maps, **options)
    context.facts |= {"slices": [[s["subject"], int(s["slice"])] for s in samples]}
