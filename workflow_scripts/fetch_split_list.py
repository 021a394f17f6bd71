"""Rule fetch_split_list: a subject list that pDDPM published, with its checksum."""

from pathlib import Path

from uad.core.provenance import job
from uad.data.fetch import fetch
from uad.data.sources import File
from uad.published_splits import read_registry

with job(snakemake) as context:
    name, registry = snakemake.wildcards.list, read_registry()
    file = File(
        name=name,
        urls=[registry["url"].format(file=name)],
        checksum=f"sha256:{registry['files'][name]['sha256']}",
    )
    got = fetch(file, Path(snakemake.output[0]).parent)
    context.facts |= {"url": file.urls[0], "checksum": got.checksum, "verified": got.verified}
