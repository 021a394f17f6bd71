"""Rule make_methods_figure: anomaly maps of several methods on the same slices (Fig. 3)."""

from uad.air import invert_foreground, stored_decision
from uad.core.files import read_tsv
from uad.core.provenance import job
from uad.evaluate.score import score_volume
from uad.preprocess.slices import read_volumes
from uad.report.map_figures import MapColumn, figure_maps, map_samples
from uad.splits import subjects_of

with job(snakemake) as context:
    files, params, figure = snakemake.input, snakemake.params, snakemake.params.figure
    subjects = subjects_of(read_tsv(files.split), figure["test"], "test")

    def layers(subject, volume, mask):
        """Input and anomaly maps of a subject."""
        shown = {"input": volume}
        for path, (name, method) in zip(files.reconstructions, params.methods.items(), strict=True):
            invert = stored_decision(files.get("air"), method["air"])
            seen = invert_foreground(volume, mask) if invert else volume
            restored = read_volumes(path)[f"test/{subject}"]
            shown[name] = mask * score_volume(method["score"], seen, restored, **method["quality"])
        return shown

    samples = map_samples(files.store, subjects, layers)
    columns = [
        MapColumn("input", "input", "image"),
        # methods with the same measure share a colour scale
        *(
            MapColumn(name, method["label"], "map", method["score"])
            for name, method in params.methods.items()
        ),
        MapColumn("truth", "truth", "truth"),
    ]
    figure_maps(
        snakemake.output[0],
        samples,
        phantom=params.phantom,
        title=f"Anomaly maps by method, {figure['experiment']}, {figure['test']}",
        columns=columns,
    )
    context.facts |= {"slices": [[s["subject"], int(s["slice"])] for s in samples]}
