"""Rule make_maps_figure: quality maps of one method (Fig. 1), or the maps of several (Fig. 3)."""

from uad.air import invert_foreground, stored_decision
from uad.core.provenance import job
from uad.evaluate.score import score_volume
from uad.preprocess.slices import read_volumes
from uad.report.map_figures import MAP_COLUMNS, MapColumn, figure_maps, map_samples

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
                scores = {score: score for score in ("l1", "ssim", "fusion")}
            for key, score in scores.items():
                shown[key] = mask * score_volume(score, seen, restored, **method["quality"])
        return shown

    # methods with the same measure share a colour scale
    maps = [MapColumn(n, m["label"], "map", m["score"]) for n, m in params.methods.items()]
    columns, title = (MAP_COLUMNS[0], *maps, MAP_COLUMNS[-1]), "Anomaly maps by method"
    if figure["kind"] == "maps":
        columns, title = MAP_COLUMNS, maps[0].title
    samples = map_samples(files.store, tested, layers)
    title = f"{title}, {figure['experiment']}, {figure['test']}"
    figure_maps(snakemake.output[0], samples, phantom=params.phantom, title=title, columns=columns)
    context.facts |= {"slices": [[s["subject"], int(s["slice"])] for s in samples]}
