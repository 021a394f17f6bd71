"""What a reviewer decided about scans: one table, read when the workflow is parsed.

Who is in the file under ``exclude`` is left out of the participants table; all other verdicts
change nothing that is computed. Every Snakemake process imports this module: it stays cheap.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from uad.core.errors import ConfigError, DataError, did_you_mean, near
from uad.core.patterns import known_layouts
from uad.data.layouts import Index, bids_label, index_dataset

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("dataset", "subject", "modality", "verdict", "reason", "reviewer", "date")
#: Columns that a file must have.
NEEDED = ("dataset", "subject", "verdict")
VERDICTS = ("keep", "exclude", "unsure")
#: In the column ``modality``: all scans of the subject; an empty field says the same.
ALL = "*"


class Decision(NamedTuple):
    """One row of a decision file; ``subject`` is a public name or a BIDS label."""

    dataset: str
    subject: str
    modality: str
    verdict: str
    reason: str = ""
    reviewer: str = ""
    date: str = ""

    @property
    def why(self) -> str:
        """Reason and who decided, for records and reports."""
        by = ", ".join(part for part in (self.reviewer, self.date) if part)
        return f"{self.reason} (reviewed by {by})" if by else f"{self.reason} (reviewed)"

    def problems(self, datasets: Mapping[str, Sequence[str]] | None) -> Iterable[str]:
        """What is wrong with the row, for itself."""
        if datasets is not None and self.dataset not in datasets:
            yield f"unknown data set '{self.dataset}'{near(self.dataset, datasets)}"
        modalities = {m for layout in known_layouts().values() for m in layout.modalities} | {ALL}
        if self.modality not in modalities:
            yield f"unknown modality '{self.modality}'{near(self.modality, modalities)}"
        if not self.subject:
            yield "no subject"
        if self.verdict not in VERDICTS:
            yield f"unknown verdict '{self.verdict}'{near(self.verdict, VERDICTS)}"
        if self.verdict == "exclude" and not self.reason:
            yield f"'{self.subject}' is excluded without a reason; say why"


def read_decisions(
    path: str | Path, datasets: Mapping[str, Sequence[str]] | None = None
) -> list[Decision]:
    """Read a decision file, identical rows once; none where there is no such file.

    ``datasets``: modalities of each data set of the config; without it names are not checked.

    Raises:
        ConfigError: a column is missing, a name or verdict is unknown, an exclusion has no
            reason, or two rows disagree about a scan. It names every such line.
    """
    head, *rows = _fields(Path(path)) or [NEEDED]
    problems, found = [], {}
    for number, row in enumerate(rows, start=2):
        if len(row) > len(head):
            problems.append(f"line {number}: {len(row)} fields, but {len(head)} columns")
        elif any(row):
            values = dict.fromkeys(COLUMNS, "") | dict(zip(head, row, strict=False))
            values["modality"] = values["modality"] or ALL
            decision = Decision(*(values[name] for name in COLUMNS))
            problems += [f"line {number}: {problem}" for problem in decision.problems(datasets)]
            found.setdefault(decision, number)
    problems += _contradictions(found)
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems[:20])
        more = f"\n  ... and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise ConfigError(f"{path}: the decisions cannot be used:\n{listed}{more}")
    return list(found)


def _fields(path: Path) -> list[list[str]]:
    """The fields of each line, the first of which names the columns; empty without a file."""
    try:
        # utf-8-sig: spreadsheets put a byte order mark first
        # not by lines: a reason may hold a character that Python takes for the end of one
        text = path.read_bytes().decode("utf-8-sig") if path.exists() else ""
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter="\t"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read as a table of decisions ({error}).") from error
    rows = [[field.strip() for field in row] for row in rows]
    head = rows[0] if rows else NEEDED
    if missing := [f"'{name}'{near(name, head)}" for name in NEEDED if name not in head]:
        raise ConfigError(
            f"{path}: the first line lacks {' and '.join(missing)}. A decision file is a table "
            f"with tabs between the columns {', '.join(COLUMNS)}."
        )
    if len(set(head)) < len(head):
        raise ConfigError(f"{path}: the first line names a column twice: {', '.join(head)}.")
    return rows


def _contradictions(found: Mapping[Decision, int]) -> Iterable[str]:
    """Pairs of rows with different verdicts about the same scan."""
    by_subject: dict[tuple[str, str], list[Decision]] = {}
    for decision in found:
        by_subject.setdefault((decision.dataset, bids_label(decision.subject)), []).append(decision)
    scope = {d: "all scans" if d.modality == ALL else d.modality for d in found}
    for decisions in by_subject.values():
        for one, other in itertools.combinations(decisions, 2):
            same_scan = ALL in (one.modality, other.modality) or one.modality == other.modality
            if same_scan and one.verdict != other.verdict:
                yield (
                    f"lines {found[one]} and {found[other]} disagree about {one.dataset} "
                    f"{one.subject}: {one.verdict} ({scope[one]}), {other.verdict} "
                    f"({scope[other]}); keep one of them"
                )


def exclusions(
    decisions: Iterable[Decision], dataset: str, modalities: Sequence[str]
) -> list[dict[str, str]]:
    """What the index of a data set depends on: the exclusions that concern it, sorted.

    An exclusion in another than its ``modalities`` concerns nobody.
    """
    rows = [
        {key: value for key, value in d._asdict().items() if key not in ("dataset", "verdict")}
        for d in decisions
        if d.dataset == dataset and d.verdict == "exclude" and d.modality in (ALL, *modalities)
    ]
    return sorted(rows, key=lambda row: (row["subject"], row["modality"]))


def without_excluded(
    table: pd.DataFrame, reviewed: Iterable[Mapping[str, str]], *, may_be_absent: Iterable[str] = ()
) -> pd.DataFrame:
    """A participants table without the single scans of :func:`exclusions`.

    ``may_be_absent``: subjects that are left out already, by public name or BIDS label.

    Raises:
        DataError: a subject is unknown, or no scan is left.
    """
    single = [row for row in reviewed if row["modality"] != ALL]
    known = {*table["subject"], *map(bids_label, may_be_absent)}
    for row in single:
        if bids_label(row["subject"]) not in known:
            hint = did_you_mean(row["subject"], set(table["subject"]))
            raise DataError(
                f"The decision file (qc.decisions) excludes the {row['modality']} scan of "
                f"'{row['subject']}', who is not in this data set{hint}; check the name."
            )
    gone = {(bids_label(row["subject"]), row["modality"]) for row in single}
    scans = zip(table["subject"], table["modality"], strict=True)
    left = table[[scan not in gone for scan in scans]].reset_index(drop=True)
    if left.empty:
        raise DataError("The decision file (qc.decisions) excludes every scan of this data set.")
    return left


def left_out(reviewed: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Subjects of :func:`exclusions` who are left out as a whole, and why, by name as given."""
    whole = [row for row in reviewed if row["modality"] == ALL]
    return {row["subject"]: Decision("", verdict="exclude", **row).why for row in whole}


def index_used(spec: Mapping[str, Any], root: str | Path, opened: bool = False) -> Index:
    """The index of a data set as the workflow uses it, without ages.

    ``spec`` has ``layout``, ``source``, ``modalities``, ``exclude`` (reason by name) and ``limit``
    of the config, and ``reviewed``, the answer of :func:`exclusions`, if there are any; ``opened``
    as in :func:`uad.data.layouts.index_dataset`.

    Raises:
        DataError: the tree cannot be used, or who is excluded is not in it.
    """
    reviewed = spec.get("reviewed", [])
    whole = left_out(reviewed)
    chosen = spec["modalities"], {**spec["exclude"], **whole}, spec["limit"]
    preprocessed = spec["source"] == "preprocessed"
    index = index_dataset(spec["layout"], root, *chosen, opened, preprocessed)
    if not reviewed:
        return index
    # with a limit, the subjects behind it are not in the table either
    beyond = [row["subject"] for row in reviewed] if spec["limit"] else []
    absent = [*spec["exclude"], *whole, *index.left_out, *beyond]
    table = without_excluded(index.table, reviewed, may_be_absent=absent)
    return index._replace(table=table)
