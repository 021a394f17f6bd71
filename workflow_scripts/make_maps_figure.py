"""Rule make_maps_figure: one reconstruction under several quality maps (Fig. 1)."""

from uad.air import invert_foreground, stored_decision
from uad.core.provenance import job
from uad.evaluate.score import score_volume
from uad.preprocess.slices import read_volumes
from uad.report.map_figures import figure_maps, map_samples

with job(snakemake) as context:
    files, figure = snakemake.input, snakemake.params.figure
    method = snakemake.params.methods[figure["method"]]
    invert = stored_decision(files.get("air"), method["air"])
    reconstructions = read_volumes(files.reconstructions[0], "test/")
    tested = [name.removeprefix("test/") for name in reconstructions]

    def layers(subject, volume, mask):
        """Input, reconstruction and its quality maps of a subject."""
        seen = invert_foreground(volume, mask) if invert else volume
        restored = reconstructions[f"test/{subject}"]
        maps = {
            key: mask * score_volume(key, seen, restored, **method["quality"])
            for key in ("l1", "ssim", "fusion")
        }
        return {"input": seen, "reconstruction": restored, **maps}

    samples = map_samples(files.store, tested, layers)
    title = f"{method['label']}, {figure['experiment']}, {figure['test']}"
    figure_maps(snakemake.output[0], samples, phantom=snakemake.params.phantom, title=title)
    context.facts |= {"slices": [[s["subject"], int(s["slice"])] for s in samples]}
