"""How to send thousands of short jobs to SLURM: each way, measured against a running cluster.

    python benchmarks/measure_batching.py --ways plain arrays --output benchmarks/batching.json

Runs benchmarks/batching/Snakefile (strip with a GPU, register, pack) through
snakemake-executor-plugin-slurm, each way in a fresh directory. The figures come from sacct, from
wait4 of the snakemake process and from the clock of the scans themselves. The ways asked for
replace theirs in the output file; the others stay.
"""

import argparse
import contextlib
import datetime
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
GROUPED = {"groups": ["strip=strip", "register=register"]}
IN_TURN = {"resources": ["in_turn=1"], "set-resource-scopes": ["in_turn=local"]}
FIELDS = "JobName%60,JobID,State,Submit,Start,End,ReqTRES%100,TimelimitRaw,Comment%100"


def components(size: int) -> dict:
    """Profile lines that put this many jobs of a rule into one submission."""
    return {**GROUPED, "group-components": [f"strip={size}", f"register={size}"]}


def ways(size: int) -> dict[str, tuple[dict, dict]]:
    """Name of each way: its Snakemake config and its profile lines, added to the common ones."""
    few = {"jobs": 10}
    return {
        "plain": ({}, {}),
        "arrays": ({}, {"slurm-array-jobs": "all"}),
        "arrays, jobs: 10": ({}, {"slurm-array-jobs": "all"} | few),
        "arrays, jobs: 10, limit 10": (
            {},
            {"slurm-array-jobs": "all", "slurm-array-limit": 10} | few,
        ),
        "groups": ({}, components(size)),
        "groups in turn": ({"in_turn": 1}, components(size) | IN_TURN),
        "batches": ({"per_job": size}, {}),
    }


def profile(folder: Path, arguments: argparse.Namespace, extra: dict) -> Path:
    """Write the profile (JSON is YAML) and return its folder."""
    settings = {
        "executor": "slurm",
        "jobs": 100,
        "retries": 1,
        "latency-wait": 5,
        "show-failed-logs": True,
        "default-resources": [
            f"slurm_account={arguments.account}",
            f"slurm_partition={arguments.partition}",
        ],
        "slurm-status-command": "sacct",
        "slurm-init-seconds-before-status-checks": 5,
    }
    path = folder / "profile"
    path.mkdir()
    (path / "config.yaml").write_text(json.dumps(settings | extra, indent=1))
    return path


def own_cpu(pid: int) -> float | None:
    """CPU seconds of one living process without its children."""
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return None


def run(command: list[str], folder: Path, timeout: float) -> dict:
    """Run Snakemake there; its exit code (or that it hung), wall and CPU seconds."""
    start = time.monotonic()
    with (folder / "snakemake.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
        cpu, hung = 0.0, False
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            cpu = own_cpu(process.pid) or cpu
            if time.monotonic() - start > timeout * (1 if not hung else 1.2):
                # the first time as Ctrl-C, which cancels what was submitted
                process.send_signal(signal.SIGKILL if hung else signal.SIGINT)
                hung = True
            time.sleep(0.2)
    process.returncode = os.waitstatus_to_exitcode(status)
    return {
        "exit": process.returncode if not hung else f"none after {timeout:.0f} s",
        "wall_s": round(time.monotonic() - start, 1),
        "cpu_main_s": round(cpu, 1),
        "cpu_with_sbatch_and_sacct_s": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_mb": usage.ru_maxrss // 1024,
    }


def accounting(began: float) -> list[dict]:
    """What SLURM's accounting says about all jobs since then, an array task a row."""
    time.sleep(3)  # slurmdbd hears of a job's end a moment later
    since = datetime.datetime.fromtimestamp(began).isoformat(timespec="seconds")
    command = ["sacct", "-X", "-P", "-n", "--allusers", "--format", FIELDS, "--starttime", since]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    names = [field.partition("%")[0] for field in FIELDS.split(",")]
    return [dict(zip(names, line.split("|"), strict=True)) for line in answer.stdout.splitlines()]


def seconds(stamp: str) -> float | None:
    """Epoch seconds of a time of sacct; none for Unknown."""
    with contextlib.suppress(ValueError):
        return datetime.datetime.fromisoformat(stamp).timestamp()
    return None


def rule_of(job: dict) -> str:
    """Rule or group of a job, from the comment that the plugin sets."""
    return re.sub(r"^(?:rule|group)_|_wildcards_.*", "", job["Comment"]).partition("_")[0]


def summarise(jobs: list[dict], records: list[dict]) -> dict:
    """Submissions, requests, overhead a scan and the longest time in which no job ran."""
    spans = [(seconds(job["Start"]), seconds(job["End"])) for job in jobs]
    spans = sorted(span for span in spans if None not in span)
    idle, reached = 0.0, spans[0][1] if spans else 0.0
    for start, end in spans[1:]:
        idle, reached = max(idle, start - reached), max(reached, end)
    held = defaultdict(float)
    requests = defaultdict(Counter)
    for job in jobs:
        start, end = seconds(job["Start"]), seconds(job["End"])
        if None not in (start, end):
            held[rule_of(job)] += end - start
        requests[rule_of(job)][f"{job['ReqTRES']} time={job['TimelimitRaw']}min"] += 1
    runs, asleep = Counter(record["rule"] for record in records), defaultdict(float)
    for record in records:
        asleep[record["rule"]] += record["end"] - record["start"]
    return {
        "submissions": len({job["JobID"].partition("_")[0] for job in jobs}),
        "array_tasks": sum("_" in job["JobID"] for job in jobs),
        "states": dict(Counter(job["State"].split()[0] for job in jobs)),
        "requests": {rule: dict(counts) for rule, counts in requests.items()},
        "overhead_s_per_scan": {
            rule: round((held[rule] - asleep[rule]) / runs[rule], 2) for rule in runs
        },
        "longest_idle_s": idle,
        "scans_run": dict(runs),
        "devices": sorted({str(r["gpus"]) for r in records if r["rule"] == "strip"}),
    }


def measure(name: str, arguments: argparse.Namespace) -> dict:
    """Run one way in a fresh directory."""
    config, extra = ways(arguments.size)[name]
    folder = Path(tempfile.mkdtemp(prefix="batching-", dir=arguments.scratch))
    given = {"scans": arguments.scans, "per_job": 1, "seconds": arguments.seconds, "in_turn": ""}
    given |= {"fail": "", "fail_runs": 0} | config
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(HERE / "batching/Snakefile")]
    command += ["--profile", str(profile(folder, arguments, extra))]
    command += ["--config", *(f"{key}={value}" for key, value in given.items())]
    began = time.time()
    figures = run(command, folder, arguments.timeout)
    log = (folder / "snakemake.log").read_text()
    records = folder / "runs.jsonl"
    lines = records.read_text().splitlines() if records.exists() else []
    ours = re.search(r"SLURM run ID: (\S+)|$", log)[1]
    if ours and figures["exit"] != 0:
        subprocess.run(["scancel", "--name", ours], timeout=60, check=False)
    jobs = defaultdict(list)
    for job in accounting(began):
        jobs[job["JobName"] == ours].append(job)
    figures |= summarise(jobs[True], [json.loads(line) for line in lines])
    # a busy cluster makes the times worthless
    figures["jobs_of_others"] = sum(seconds(job["Start"]) is not None for job in jobs[False])
    if arguments.keep:
        print(name, folder, file=sys.stderr)
    else:
        shutil.rmtree(folder)
    return figures


def main() -> None:
    """Measure the ways asked for and merge them into the output file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ways", nargs="+", choices=ways(1), default=list(ways(1)))
    parser.add_argument("--scans", type=int, default=60)
    parser.add_argument("--size", type=int, default=20, help="scans of a group or batch")
    parser.add_argument("--seconds", type=float, default=2.0, help="sleep of a scan in a rule")
    parser.add_argument("--timeout", type=float, default=600, help="seconds; later is a hang")
    parser.add_argument("--account", default="ci")
    parser.add_argument("--partition", default="main")
    parser.add_argument("--scratch", type=Path, help="shared folder for the runs")
    parser.add_argument("--keep", action="store_true", help="keep the runs' folders")
    parser.add_argument("--output", type=Path, default=HERE / "batching.json")
    arguments = parser.parse_args()
    # started with & from a script, it would hand down an ignored SIGINT
    signal.signal(signal.SIGINT, signal.default_int_handler)

    result = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    figures = result.get("ways", {})
    for name in arguments.ways:
        figures[name] = measure(name, arguments)
        print(name, json.dumps(figures[name]), flush=True)
        slurm = subprocess.run(["sinfo", "--version"], capture_output=True, text=True, timeout=10)
        result = {
            "machine": {"system": platform.platform(), "cores": os.cpu_count()},
            "date": datetime.date.today().isoformat(),
            "versions": {
                package: version(package)
                for package in ("snakemake", "snakemake-executor-plugin-slurm")
            }
            | {"slurm": slurm.stdout.strip()},
            "scans": arguments.scans,
            "scans_per_group_or_batch": arguments.size,
            "seconds_per_scan_and_rule": arguments.seconds,
            "ways": {way: figures[way] for way in ways(1) if way in figures},
        }
        arguments.output.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
