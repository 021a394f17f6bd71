"""Rule check_disk_space: refuse to start where the outputs cannot fit."""

from pathlib import Path

from uad.files import write_json
from uad.preflight import check_room, planned_bytes
from uad.provenance import job

with job(snakemake):
    config = snakemake.params.config
    folder = Path(config["results"])
    folder.mkdir(parents=True, exist_ok=True)
    planned = planned_bytes(config["datasets"], config["preprocessing"])
    write_json(snakemake.output[0], check_room(folder, planned))
