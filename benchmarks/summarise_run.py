"""Where the time of a finished run went: jobs and core seconds per rule.

    python benchmarks/summarise_run.py results --cores 2

Reads the records beside the results (*.prov.json: seconds within the script) and, where a rule has
them, Snakemake's benchmarks (results/benchmarks: seconds with the start of the interpreter). Prints
a table, writes it to benchmarks/demo.json, and into benchmarks/README.md.
"""

import argparse
import csv
import datetime
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from speed import tables

from uad.core.files import read_json, write_json

HERE = Path(__file__).resolve().parent


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="results directory of a finished run")
    parser.add_argument("--cores", type=int, required=True, help="cores that the run had")
    parser.add_argument("--output", type=Path, default=HERE / "demo.json")
    parser.add_argument("--readme", type=Path, default=HERE / "README.md")
    arguments = parser.parse_args()
    summary = summarise(arguments.results, arguments.cores)
    write_json(arguments.output, summary)
    print(tables.render_demo(summary))
    tables.update(arguments.readme, arguments.output.parent)
    return 0


def summarise(results: Path, cores: int) -> dict:
    """Facts of a run, and of each rule, the one that took most first.

    Args:
        results: its results directory.
        cores: how many cores it had.

    Raises:
        SystemExit: there is no record.
    """
    records = [read_json(path) for path in sorted(results.rglob("*.prov.json"))]
    if not records:
        raise SystemExit(
            f"{results}: no *.prov.json below it; is it the results of a finished run?"
        )
    with_start = benchmarks(results / "benchmarks")
    jobs = defaultdict(list)
    for record in records:
        jobs[record["rule"]].append(record)
    total = sum(core_seconds(record) for record in records)
    rules = []
    for rule, its in jobs.items():
        used = sum(core_seconds(record) for record in its)
        started = with_start.get(rule)
        rules.append(
            {
                "rule": rule,
                "jobs": len(its),
                "core_seconds": round(used, 3),
                "seconds_a_job": round(statistics.mean(r["seconds"] for r in its), 3),
                "seconds_with_start": round(statistics.mean(started), 3) if started else None,
                "share": used / total,
            }
        )
    starts = [_time(record["started"]) for record in records]
    ends = [
        start + datetime.timedelta(seconds=record["seconds"])
        for start, record in zip(starts, records, strict=True)
    ]
    wall = (max(ends) - min(starts)).total_seconds()
    return {
        "started": min(record["started"] for record in records),
        "commit": records[0]["code"]["commit"],
        "cores": cores,
        "wall_s": round(wall, 3),
        "jobs": len(records),
        "core_seconds": round(total, 3),
        "busy": total / (wall * cores),
        # what the records themselves cost: hashes of inputs, outputs and code, versions
        "record_seconds": round(sum(record["record_seconds"] for record in records), 3),
        "rules": sorted(rules, key=lambda rule: -rule["core_seconds"]),
    }


def core_seconds(record: dict) -> float:
    """Seconds of a job times the threads that it was given."""
    return record["seconds"] * record["threads"]


def benchmarks(folder: Path) -> dict[str, list[float]]:
    """Rule -> seconds of its jobs, their start included."""
    found = defaultdict(list)
    for path in sorted(folder.rglob("*.tsv")):
        with path.open(encoding="utf-8", newline="") as handle:
            rows = csv.DictReader(handle, delimiter="\t")
            found[path.relative_to(folder).parts[0]] += [float(row["s"]) for row in rows]
    return found


def _time(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))


if __name__ == "__main__":
    sys.exit(main())
