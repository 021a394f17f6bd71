"""One or more scans in one process: sleep, note where and when in runs.jsonl, write the output."""

import json
import os
import time
from pathlib import Path

snakemake = globals()["snakemake"]
rule, params = snakemake.rule, snakemake.params
runs = Path("runs.jsonl")
output = Path(snakemake.output[0])

for scan in params.scans:
    start = time.time()
    time.sleep(params.seconds)
    record = {
        "rule": rule,
        "scan": scan,
        "start": start,
        "end": time.time(),
        "mem_mb": snakemake.resources.mem_mb,
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }
    lines = runs.read_text().splitlines() if runs.exists() else []
    before = sum((r["rule"], r["scan"]) == (rule, scan) for r in map(json.loads, lines))
    with runs.open("a") as file:
        file.write(json.dumps(record) + "\n")
    if scan == params.fail and before < params.fail_runs:
        message = f"{rule} of {scan} fails, run {before + 1}"
        Path(snakemake.log[0]).write_text(f"the rule's own log: {message}\n")
        raise SystemExit(message)
    target = output if len(params.scans) == 1 else output / f"{scan}.txt"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(record) + "\n")
