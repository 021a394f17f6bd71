"""Files that describe a run and not a result: they differ between any two runs."""

from __future__ import annotations

from fnmatch import fnmatchcase

#: By key; ``*`` also spans folders. Records are not files of a run here, but what is known of them.
ABOUT_THE_RUN = (
    "logs/*",
    "benchmarks/*",
    "audit/*",
    "notebooks/audit.*",  # shows the audit, with times and places
    "config.resolved.yaml",  # told apart by value; where it matters, it is in a job's params
    "preflight.json",  # disk figures
    "cost/*",  # seconds and memory on one machine
    "tables/cost.*",
    "report.html",  # holds the others, with the times of all jobs
    "report/*",  # its pages about the configuration and the data
    "crate.zip",  # holds the others, with their records
    "README.md",  # of the repository, where its own results folder is used
    "*/checkpoint/*",  # of a training that has not ended
)


def about_the_run(key: str) -> bool:
    """Whether a file, by its key, can differ without a result being another one."""
    return any(fnmatchcase(key, pattern) for pattern in ABOUT_THE_RUN)
