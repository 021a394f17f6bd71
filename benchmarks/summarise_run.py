"""Where the time of a finished run went: jobs and core seconds per rule.

    python benchmarks/summarise_run.py results-demo --cores 2

Reads the records beside the results (*.prov.json: seconds within the script). Writes
benchmarks/demo.json and the table in benchmarks/README.md.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd
import speed_tables

from uad.core.files import read_json, write_json

HERE = Path(__file__).resolve().parent


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="results directory of a finished run")
    parser.add_argument("--cores", type=int, required=True, help="cores that the run had")
    parser.add_argument("--folder", type=Path, default=HERE, help="of demo.json and README.md")
    arguments = parser.parse_args(words)
    write_json(arguments.folder / "demo.json", summarise(arguments.results, arguments.cores))
    speed_tables.update(arguments.folder)
    return 0


def summarise(results: Path, cores: int) -> dict:
    """Facts of a run, and of each rule, the one that took most first.

    Raises:
        SystemExit: there is no record.
    """
    records = [read_json(path) for path in sorted(results.rglob("*.prov.json"))]
    if not records:
        raise SystemExit(
            f"{results}: no *.prov.json below it; is it the results of a finished run?"
        )
    jobs = pd.DataFrame(records, columns=["rule", "seconds", "threads", "started"])
    # seconds of a job times the threads that it was given
    jobs["core_seconds"] = jobs["seconds"] * jobs["threads"]
    rules = jobs.groupby("rule").agg(
        jobs=("seconds", "size"),
        core_seconds=("core_seconds", "sum"),
        seconds_a_job=("seconds", "mean"),
    )
    total = float(jobs["core_seconds"].sum())
    rules["share"] = rules["core_seconds"] / total
    rules = rules.sort_values("core_seconds", ascending=False).reset_index()
    starts = pd.to_datetime(jobs["started"])
    ends = starts + pd.to_timedelta(jobs["seconds"], unit="s")
    wall = (ends.max() - starts.min()).total_seconds()
    return {
        "started": jobs["started"].min(),
        "commit": records[0]["code"]["commit"],
        "cores": cores,
        "jobs": len(jobs),
        "wall_s": wall,
        "core_seconds": round(total, 3),
        "busy": total / (wall * cores),
        # what the records themselves cost: hashes of inputs, outputs and code, versions
        "record_seconds": round(sum(record["record_seconds"] for record in records), 3),
        "rules": rules.round(3).to_dict("records"),
    }


if __name__ == "__main__":
    sys.exit(main())
