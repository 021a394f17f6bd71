"""Rule make_report: tables, figures, notebooks and the run in one page, by Snakemake's report."""

import subprocess
import sys
import tempfile
from pathlib import Path

from uad.core.files import write_text
from uad.core.provenance import job
from uad.report.pages import report_style

with job(snakemake):
    files, params = snakemake.input, snakemake.params
    command = [sys.executable, "-m", "snakemake", "--snakefile", params.snakefile, "--nolock"]
    command += ["--configfile", files.config, "--cores", "1"]
    with tempfile.TemporaryDirectory() as folder:
        style = Path(folder, "report.css")
        write_text(style, report_style(files.style, files.workflow))
        command += ["--report-stylesheet", str(style)]
        # the output is whole or absent: Snakemake removes it if this fails
        subprocess.run(
            [*command, "--report", snakemake.output[0], "--", *params.targets], check=True
        )
