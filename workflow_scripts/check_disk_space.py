"""Rule check_disk_space: refuse to start where the outputs cannot fit."""

from pathlib import Path

from uad.core.files import write_json
from uad.core.provenance import job
from uad.run.room import check_room, mark_kind, model_bytes, planned_bytes

with job(snakemake):
    params = snakemake.params
    folder = Path(snakemake.output[0]).parent
    folder.mkdir(parents=True, exist_ok=True)
    mark_kind(folder, params.phantom)
    planned = planned_bytes(params.datasets, params.preprocessing)
    planned["weights"] = model_bytes(params.models, params.folds)
    write_json(snakemake.output[0], check_room(folder, planned))
