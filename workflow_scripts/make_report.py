"""Rule make_report: tables, figures and notebooks in one page, by Snakemake's report."""

import subprocess
import sys

from uad.provenance import job

with job(snakemake):
    params = snakemake.params
    command = [sys.executable, "-m", "snakemake", "--snakefile", params.snakefile, "--nolock"]
    command += ["--configfile", snakemake.input.config, "--cores", "1"]
    # the output is whole or absent: Snakemake removes it if this fails
    subprocess.run([*command, "--report", snakemake.output[0], "--", *params.targets], check=True)
