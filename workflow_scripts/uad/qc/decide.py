"""What a reviewer decided about scans: one table, read when the workflow is parsed.

A TSV file with the columns of :data:`COLUMNS`. Who is in the file under ``exclude`` is left out
of the participants table; all other verdicts change nothing that is computed. Importing this
module must stay cheap: every Snakemake process does.
"""

from __future__ import annotations

import csv
import difflib
import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from uad.core.errors import ConfigError, DataError, near
from uad.core.patterns import known_layouts
from uad.data.layouts import bids_label

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("dataset", "subject", "modality", "verdict", "reason", "reviewer", "date")
#: Columns that a file must have; the others may be missing.
NEEDED = ("dataset", "subject", "verdict")
VERDICTS = ("keep", "exclude", "unsure")
#: In the column ``modality``: all scans of the subject; an empty field says the same.
ALL = "*"


@dataclass(frozen=True)
class Decision:
    """One row of a decision file.

    Attributes:
        dataset: name in the config.
        subject: public name or BIDS label.
        modality: our modality name, or :data:`ALL`.
        verdict: one of :data:`VERDICTS`.
        reason: why; never empty where the verdict is ``exclude``.
        reviewer: who decided; may be empty.
        date: when, as written in the file; may be empty.
    """

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


def read_decisions(
    path: str | Path, datasets: Mapping[str, Sequence[str]] | None = None
) -> list[Decision]:
    """Read a decision file; none where there is no such file.

    Args:
        path: the TSV file, UTF-8.
        datasets: modalities of each data set of the config; None: names are not checked.

    Returns:
        The decisions in the order of the file, identical ones once.

    Raises:
        DataError: a column is missing, a name or verdict is unknown, an exclusion has no reason,
            or two rows disagree about a scan. It names every such line.
    """
    path = Path(path)
    lines = _read_lines(path) if path.exists() else []
    if not lines:
        return []
    head = lines[0][1]
    _check_head(path, head)
    problems, found = [], {}
    for number, row in lines[1:]:
        if len(row) > len(head):
            problems.append(f"line {number}: {len(row)} fields, but {len(head)} columns")
            continue
        values = dict.fromkeys(COLUMNS, "") | dict(zip(head, row, strict=False))
        values["modality"] = values["modality"] or ALL
        decision = Decision(**{name: values[name] for name in COLUMNS})
        problems += [f"line {number}: {problem}" for problem in _problems(decision, datasets)]
        found.setdefault(decision, number)
    problems += _contradictions(found)
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems[:20])
        more = f"\n  ... and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise DataError(f"{path}: the decisions cannot be used:\n{listed}{more}")
    return list(found)


def _read_lines(path: Path) -> list[tuple[int, list[str]]]:
    """Fields of the lines that are not empty, with their numbers."""
    try:
        # utf-8-sig: spreadsheets put a byte order mark first
        # not by lines: a reason may hold a character that Python takes for the end of one
        text = path.read_bytes().decode("utf-8-sig")
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter="\t"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a table of decisions ({error}).") from error
    lines = [(number, [field.strip() for field in row]) for number, row in enumerate(rows, 1)]
    return [(number, row) for number, row in lines if any(row)]


def _check_head(path: Path, head: Sequence[str]) -> None:
    missing = [f"'{name}'{near(name, head)}" for name in NEEDED if name not in head]
    if missing:
        raise DataError(
            f"{path}: the first line lacks {' and '.join(missing)}. A decision file is a table "
            f"with tabs between the columns {', '.join(COLUMNS)}."
        )
    if len(set(head)) < len(head):
        raise DataError(f"{path}: the first line names a column twice: {', '.join(head)}.")


def _problems(decision: Decision, datasets: Mapping[str, Sequence[str]] | None) -> Iterable[str]:
    """What is wrong with one row, for itself."""
    if datasets is not None and decision.dataset not in datasets:
        yield f"unknown data set '{decision.dataset}'{near(decision.dataset, datasets)}"
    modalities = {m for layout in known_layouts().values() for m in layout.modalities} | {ALL}
    if decision.modality not in modalities:
        yield f"unknown modality '{decision.modality}'{near(decision.modality, modalities)}"
    if not decision.subject:
        yield "no subject"
    if decision.verdict not in VERDICTS:
        yield f"unknown verdict '{decision.verdict}'{near(decision.verdict, VERDICTS)}"
    if decision.verdict == "exclude" and not decision.reason:
        yield f"'{decision.subject}' is excluded without a reason; say why"


def _contradictions(found: Mapping[Decision, int]) -> Iterable[str]:
    """Pairs of rows with different verdicts about the same scan."""
    by_subject: dict[tuple[str, str], list[Decision]] = {}
    for decision in found:
        by_subject.setdefault((decision.dataset, bids_label(decision.subject)), []).append(decision)
    for decisions in by_subject.values():
        for one, other in itertools.combinations(decisions, 2):
            same_scan = ALL in (one.modality, other.modality) or one.modality == other.modality
            if same_scan and one.verdict != other.verdict:
                yield (
                    f"lines {found[one]} and {found[other]} disagree about {one.dataset} "
                    f"{one.subject}: {one.verdict} ({_scope(one)}), {other.verdict} "
                    f"({_scope(other)}); keep one of them"
                )


def _scope(decision: Decision) -> str:
    return "all scans" if decision.modality == ALL else decision.modality


def exclusions(
    decisions: Iterable[Decision], dataset: str, modalities: Sequence[str]
) -> list[dict[str, str]]:
    """What the index of a data set depends on: the exclusions that concern it.

    Args:
        decisions: answer of :func:`read_decisions`.
        dataset: name in the config.
        modalities: those that the config lists for it; an exclusion in another concerns nobody.

    Returns:
        The rows as plain data, without the verdict, sorted: their order in the file is free.
    """
    rows = [
        {key: value for key, value in asdict(d).items() if key not in ("dataset", "verdict")}
        for d in decisions
        if d.dataset == dataset and d.verdict == "exclude" and d.modality in (ALL, *modalities)
    ]
    return sorted(rows, key=lambda row: (row["subject"], row["modality"]))


def without_excluded(
    table: pd.DataFrame, reviewed: Iterable[Mapping[str, str]], *, may_be_absent: Iterable[str] = ()
) -> pd.DataFrame:
    """A participants table without the single scans that a reviewer excluded.

    Args:
        table: participants table (``subject``, ``modality``).
        reviewed: answer of :func:`exclusions`; rows about all scans of a subject are passed over.
        may_be_absent: subjects that are left out already, by public name or BIDS label.

    Raises:
        DataError: a subject is unknown, or no scan is left.
    """
    single = [row for row in reviewed if row["modality"] != ALL]
    known = {*table["subject"], *map(bids_label, may_be_absent)}
    for row in single:
        if bids_label(row["subject"]) not in known:
            match = difflib.get_close_matches(row["subject"], set(table["subject"]), n=1)
            hint = f" (did you mean '{match[0]}'?)" if match else ""
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
    return {
        row["subject"]: Decision("", **{**row, "verdict": "exclude"}).why
        for row in reviewed
        if row["modality"] == ALL
    }


def decisions_of_run(path: str | Path, datasets: Mapping[str, Sequence[str]]) -> list[Decision]:
    """The decisions that a run honours; a fault is one of the configuration.

    Raises:
        ConfigError: as :func:`read_decisions`.
    """
    try:
        return read_decisions(path, datasets)
    except DataError as error:
        raise ConfigError(str(error)) from None
