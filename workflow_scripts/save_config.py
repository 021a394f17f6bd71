"""Rule save_config: the merged configuration of this run, as one file."""

import yaml

from uad.core.files import write_text
from uad.core.provenance import job

with job(snakemake):
    write_text(snakemake.output[0], yaml.safe_dump(snakemake.params.config, sort_keys=False))
