"""Rule fetch_split_list: a subject list that pDDPM published, with its checksum."""

from pathlib import Path

from uad.datasets.download import fetch
from uad.datasets.splits import published_file
from uad.provenance import job

with job(snakemake) as context:
    name, target = snakemake.wildcards.list, Path(snakemake.output[0])
    entry = published_file(name)
    fetch(entry, target.parent)
    context.facts |= {"url": entry.url}
