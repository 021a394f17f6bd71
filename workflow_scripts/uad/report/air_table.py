"""The table of the average intensity ratio (AIR), and of what follows from it.

The paper inverts a data set's intensities when that enlarges AIR, and predicts the
choice from a rule about means. The table shows the rule's choice and the enlarging
choice side by side, because they are not always the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from uad.core.errors import DataError
from uad.report.metric_files import check_unique
from uad.report.render import (
    Cell,
    Document,
    PathLike,
    Row,
    csv_text,
    data_and_seed,
    titled,
    write_document,
)

_PHANTOM_WARNING = (
    "These ratios are of phantom data, whose contrasts were chosen when the phantom was made: "
    "they show that the workflow runs, and say nothing about real scans."
)
#: Column of the CSV -> its heading in the table, if it is shown.
_COLUMNS = {
    "experiment": "",
    "modality": "modality",
    "reference_dataset": "measured on",
    "fold": "fold",
    "n_volumes": "volumes",
    "mean_normal": "μn",
    "mean_anomalous": "μa",
    "air_before": "AIR before",
    "air_if_inverted": "AIR of 1−x",
    "air_after": "AIR after",
    "rule": "",
    "invert": "inverted here",
    "paper_rule_invert": "paper's rule inverts",
    "maximising_invert": "larger AIR inverts",
    "choices_differ": "they differ",
    "violated_priors": "violated priors",
}
AIR_COLUMNS = list(_COLUMNS)
_NUMBERS = ["mean_normal", "mean_anomalous", "air_before", "air_if_inverted", "air_after"]
_CHOICES = ["invert", "paper_rule_invert", "maximising_invert", "choices_differ"]
_KEY = ["experiment", "reference_dataset", "fold"]
#: The table asks "what do the rules say" before "what was done".
_SHOWN = [c for c, head in _COLUMNS.items() if head and c not in ("invert", "violated_priors")]
_SHOWN += ["invert", "violated_priors"]
#: Between the sentences about violated priors of one fold.
_SEPARATOR = " | "


def air_table(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """One row per experiment and fold, and a mean row (``fold`` is ``mean``) per experiment.

    ``choices_differ`` tells where the paper's rule (invert when the mean of healthy
    tissue is above 0.5) and the choice with the larger ratio are not the same. In a
    mean row the choices are ``yes``, ``no`` or, where folds disagree, ``2 of 5``, and
    ``violated_priors`` counts the folds that violate any.

    Args:
        records: the contents of the JSON files of the AIR statistics.

    Raises:
        DataError: there is no record, a record lacks a field, or a fold is there twice.
    """
    frame = pd.DataFrame([_checked(record) for record in records], columns=AIR_COLUMNS)
    if frame.empty:
        raise DataError("No AIR statistics were given.")
    check_unique(frame, _KEY, "AIR statistics")
    frame = frame.sort_values(_KEY, ignore_index=True)
    parts = []
    for _, part in frame.groupby(_KEY[:2], sort=False):
        texts = {c: part[c].astype(str) for c in ("fold", "n_volumes")}
        choices = {c: part[c].map({True: "yes", False: "no"}) for c in _CHOICES}
        parts += [part.assign(**texts, **choices), _mean_row(part)]
    return pd.concat(parts, ignore_index=True).astype(dict.fromkeys(_NUMBERS, float))


def _checked(record: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the table, from the record of a fold."""
    name = f"AIR of {record.get('experiment', '?')}/fold-{record.get('fold', '?')}"
    needed = [c for c in AIR_COLUMNS if c != "choices_differ"]
    if missing := [c for c in needed if c not in record]:
        raise DataError(f"{name}: the fields {', '.join(missing)} are missing.")
    row = {c: record[c] for c in needed}
    for column in _NUMBERS:
        if not isinstance(row[column], int | float) or row[column] != row[column]:
            raise DataError(
                f"{name}: {column} is {row[column]}, expected a number. Has the validation set "
                "lesions?"
            )
    row["choices_differ"] = bool(row["paper_rule_invert"]) != bool(row["maximising_invert"])
    row["violated_priors"] = _SEPARATOR.join(row["violated_priors"]) or "none"
    return row


def _mean_row(part: pd.DataFrame) -> pd.DataFrame:
    """The folds of one experiment in one row."""
    same = ("experiment", "reference_dataset", "modality", "rule", "n_volumes")
    violating = int((part["violated_priors"] != "none").sum())
    mean = {
        **{c: _common(part[c]) for c in same},
        **{c: float(part[c].astype(float).mean()) for c in _NUMBERS},
        **{c: _votes(part[c]) for c in _CHOICES},
        "fold": "mean",
        "violated_priors": f"{violating} of {len(part)} folds" if violating else "none",
    }
    return pd.DataFrame([mean], columns=AIR_COLUMNS)


def _common(values: pd.Series) -> str:
    """The one value of a column, or its range where the rows differ."""
    distinct = sorted(set(values))
    return str(distinct[0]) if len(distinct) == 1 else f"{distinct[0]} to {distinct[-1]}"


def _votes(choices: pd.Series) -> str:
    yes, total = int(choices.astype(bool).sum()), len(choices)
    return {0: "no", total: "yes"}.get(yes, f"{yes} of {total}")


def write_air_table(
    frame: pd.DataFrame,
    out_paths: Iterable[PathLike],
    *,
    phantom: bool,
    caption_facts: Mapping[str, Any],
) -> None:
    """Write the frame of :func:`air_table`, as :func:`uad.report.tables.write_table` does."""
    rows, violations = [], []
    for record in frame.to_dict("records"):
        mean, priors = record["fold"] == "mean", record["violated_priors"]
        if not mean and priors != "none":
            sentences = priors.split(_SEPARATOR)
            place = f"{record['experiment']}, fold {record['fold']}"
            violations += [f"Prior violated in {place}: {sentence}" for sentence in sentences]
            record["violated_priors"] = f"{len(sentences)}, see below"
        cells = []
        for column in _SHOWN:
            value = record[column]
            text = f"{value:.3f}" if column in _NUMBERS else str(value)
            cells.append(Cell(text, rank=int(column == "choices_differ" and value != "no")))
        rows.append(Row(str(record["experiment"]), cells, apart=mean))
    document = Document(
        name="air",
        title=titled("Average intensity ratio (AIR) on the unhealthy validation sets", phantom),
        caption=[
            *data_and_seed(caption_facts),
            "μn and μa are the mean intensities of healthy tissue and of lesions before any "
            "inversion, averaged over volumes; AIR is the larger divided by the smaller.",
            f"Rule used here: {', '.join(sorted(set(frame['rule'])))}. The paper's rule inverts "
            "when μn is above 0.5; the other choice inverts when that makes AIR larger.",
            "Mean rows average the folds. All values are computed here, none is published.",
        ],
        warning=_PHANTOM_WARNING if phantom else "",
        corner="Experiment",
        heads=[("", _COLUMNS[column]) for column in _SHOWN],
        rows=rows,
        footnotes=[
            'The column "they differ" is bold where the two rules decide differently.',
            "Priors of the paper: 0 < μn < μa < 1 always; μn > 0.5 for FLAIR and T1-CE "
            "(later version: T1, too); μa < 0.5 for T2.",
            *violations,
            *caption_facts.get("notes", ()),
        ],
    )
    write_document(out_paths, document, csv_text(frame))
