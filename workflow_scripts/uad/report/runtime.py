"""What a run took, by rule, from the records of the jobs behind some files."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from uad.core.records import Record, Records
from uad.report.render import NOTHING, Cell, Document, PathLike, Row, counted, write_document

#: Column -> its heading and the format of its numbers.
_SHOWN = {
    "jobs": ("jobs", "{:.0f}"),
    "core_hours": ("core hours", "{:.3f}"),
    "longest_minutes": ("longest job [min]", "{:.2f}"),
    "memory_mib": ("memory [MiB]", "{:.0f}"),
    "gpu_memory_mib": ("GPU memory [MiB]", "{:.0f}"),
}


def jobs_behind(records: Records, keys: Sequence[str]) -> list[Record]:
    """The records of the jobs that made some files, and of those before them, by their keys."""
    makers = (records.producers.get(key) for key in records.ancestors(keys))
    found = {record.key: record for record in makers if record is not None}
    return [found[key] for key in sorted(found)]


def cost_by_rule(jobs: Sequence[Record]) -> pd.DataFrame:
    """By rule, the dearest first: how many jobs, core hours, longest job, largest memory."""
    frame = pd.json_normalize([job.content for job in jobs])
    frame["core_seconds"] = frame["seconds"] * frame["threads"]
    costs = (
        frame.astype({"peak_gpu_memory_mib": float})
        .groupby("rule")
        .agg(
            jobs=("rule", "size"),
            core_hours=("core_seconds", "sum"),
            longest_minutes=("seconds", "max"),
            memory_mib=("peak_memory_mib", "max"),
            gpu_memory_mib=("peak_gpu_memory_mib", "max"),
        )
    )
    costs = costs.assign(
        core_hours=costs["core_hours"] / 3600, longest_minutes=costs["longest_minutes"] / 60
    )
    return costs.sort_values("core_hours", ascending=False, kind="stable")


def write_runtime_page(path: PathLike, jobs: Sequence[Record], *, phantom: bool) -> None:
    """Write what the jobs took as a page, the dearest rule first."""
    costs = cost_by_rule(jobs)
    hosts = [job.content["host"] for job in jobs]
    texts = costs.assign(
        **{column: costs[column].map(form.format) for column, (_, form) in _SHOWN.items()}
    ).where(costs.notna(), NOTHING)
    rows = [Row(rule, list(map(Cell, line))) for rule, *line in texts.itertuples(name=None)]
    heads = [("", head) for head, _ in _SHOWN.values()]
    document = Document.of(
        "runtime",
        phantom=phantom,
        table={"corner": "Rule", "heads": heads, "rows": rows},
        jobs=counted(len(jobs), "job"),
        machines=counted(len({host["name"] for host in hosts}), "machine"),
        devices=sorted({host["device"] for host in hosts}),
        core_hours=costs["core_hours"].sum(),
    )
    write_document([path], document, costs)
