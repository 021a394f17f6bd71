"""Rule download_dataset: a data set from its public home into its raw tree."""

from pathlib import Path

from uad.core.files import write_json
from uad.core.provenance import job
from uad.data.download import download

with job(snakemake) as context:
    params = snakemake.params
    spec = params.dataset
    imported, files = download(
        spec["layout"],
        Path(params.archives),
        Path(params.root),
        spec["modalities"],
    )
    record = {
        "raw_root": str(params.root),
        "files": [
            {"name": f.path.name, "checksum": f.checksum, "verified": f.verified, "url": f.url}
            for f in files
        ],
        "imported": {key: str(value) for key, value in imported._asdict().items()},
    }
    write_json(snakemake.output[0], record)
    context.facts |= {"files": record["files"]}
