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
from uad.report.render import (
    Cell,
    Document,
    PathLike,
    Row,
    checked_facts,
    csv_text,
    html_page,
    markdown,
    write_all,
)

_PHANTOM_WARNING = (
    "These ratios are of phantom data, whose contrasts were chosen when the phantom was made: "
    "they show that the workflow runs, and say nothing about real scans."
)

AIR_COLUMNS = [
    "experiment",
    "modality",
    "reference_dataset",
    "fold",
    "n_volumes",
    "mean_normal",
    "mean_anomalous",
    "air_before",
    "air_if_inverted",
    "air_after",
    "rule",
    "invert",
    "paper_rule_invert",
    "maximising_invert",
    "choices_differ",
    "violated_priors",
]
_AIR_NUMBERS = ["mean_normal", "mean_anomalous", "air_before", "air_if_inverted", "air_after"]
#: Between the sentences about violated priors of one fold.
_SEPARATOR = " | "
_AIR_CHOICES = ["invert", "paper_rule_invert", "maximising_invert"]


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
    needed = [c for c in AIR_COLUMNS if c != "choices_differ"]
    rows = []
    for number, record in enumerate(records):
        missing = [c for c in needed if c not in record]
        if missing:
            name = f"{record.get('experiment', '?')}/fold-{record.get('fold', '?')}"
            raise DataError(
                f"AIR record {number} ({name}): the fields {', '.join(missing)} are missing."
            )
        row = {c: record[c] for c in needed}
        bad = [c for c in _AIR_NUMBERS if not isinstance(row[c], int | float) or row[c] != row[c]]
        if bad:
            raise DataError(
                f"AIR record {number} ({row['experiment']}/fold-{row['fold']}): {bad[0]} is "
                f"{row[bad[0]]}, expected a number. Has the validation set lesions?"
            )
        row["choices_differ"] = bool(row["paper_rule_invert"]) != bool(row["maximising_invert"])
        row["violated_priors"] = _SEPARATOR.join(row["violated_priors"]) or "none"
        rows.append(row)
    if not rows:
        raise DataError("No AIR statistics were given.")
    frame = pd.DataFrame(rows, columns=AIR_COLUMNS)
    key = ["experiment", "reference_dataset", "fold"]
    if frame.duplicated(key).any():
        raise DataError(f"AIR statistics given twice: {frame[frame.duplicated(key)][key].iloc[0]}.")
    frame = frame.sort_values(key, ignore_index=True)

    parts = []
    for _, part in frame.groupby(["experiment", "reference_dataset"], sort=False):
        mean = {c: _common(part[c]) for c in ("experiment", "reference_dataset", "modality")}
        mean |= {"fold": "mean", "rule": _common(part["rule"])}
        mean |= {c: float(part[c].astype(float).mean()) for c in _AIR_NUMBERS}
        mean["n_volumes"] = _common(part["n_volumes"])
        violating = int((part["violated_priors"] != "none").sum())
        mean["violated_priors"] = f"{violating} of {len(part)} folds" if violating else "none"
        choices = [*_AIR_CHOICES, "choices_differ"]
        mean |= {c: _votes(part[c]) for c in choices}
        single = part.assign(
            fold=part["fold"].astype(str),
            n_volumes=part["n_volumes"].astype(str),
            **{c: part[c].map({True: "yes", False: "no"}) for c in choices},
        )
        parts += [single, pd.DataFrame([mean], columns=AIR_COLUMNS)]
    return pd.concat(parts, ignore_index=True).astype(dict.fromkeys(_AIR_NUMBERS, float))


def _common(values: pd.Series) -> str:
    """The one value of a column, or its range where the rows differ."""
    distinct = sorted(set(values))
    return str(distinct[0]) if len(distinct) == 1 else f"{distinct[0]} to {distinct[-1]}"


def _votes(choices: pd.Series) -> str:
    yes, total = int(choices.astype(bool).sum()), len(choices)
    return {0: "no", total: "yes"}.get(yes, f"{yes} of {total}")


def write_air_table(
    frame: pd.DataFrame,
    out_paths: Iterable[PathLike] | Mapping[str, PathLike],
    *,
    phantom: bool,
    caption_facts: Mapping[str, Any],
    title: str = "Average intensity ratio (AIR) on the unhealthy validation sets",
) -> None:
    """Write the frame of :func:`air_table` as ``.csv``, ``.md`` or ``.html``.

    Args:
        frame: from :func:`air_table`.
        out_paths: files to write; their suffixes choose the formats.
        phantom: the data are phantoms: title and caption say so.
        caption_facts: as for :func:`write_table`.
        title: the table's title.
    """
    facts = checked_facts(caption_facts)
    heads = {
        "modality": "modality",
        "reference_dataset": "measured on",
        "fold": "fold",
        "n_volumes": "volumes",
        "mean_normal": "μn",
        "mean_anomalous": "μa",
        "air_before": "AIR before",
        "air_if_inverted": "AIR of 1−x",
        "air_after": "AIR after",
        "paper_rule_invert": "paper's rule inverts",
        "maximising_invert": "larger AIR inverts",
        "choices_differ": "they differ",
        "invert": "inverted here",
        "violated_priors": "violated priors",
    }
    rows, violations = [], []
    for _, record in frame.iterrows():
        priors = record["violated_priors"]
        if record["fold"] != "mean" and priors != "none":
            sentences = priors.split(_SEPARATOR)
            place = f"{record['experiment']}, fold {record['fold']}"
            violations += [f"Prior violated in {place}: {sentence}" for sentence in sentences]
            record = record.replace(priors, f"{len(sentences)}, see below")
        texts = [f"{record[c]:.3f}" if c in _AIR_NUMBERS else str(record[c]) for c in heads]
        strong = record["choices_differ"] != "no"
        cells = [
            Cell(text, rank=int(strong and column == "choices_differ"))
            for column, text in zip(heads, texts, strict=True)
        ]
        rows.append(Row(str(record["experiment"]), cells, apart=record["fold"] == "mean"))
    rules = ", ".join(sorted(set(frame["rule"])))
    caption = [
        f"Data: {str(facts['data_source']).rstrip('.')}. Seed {facts['seed']}.",
        "μn and μa are the mean intensities of healthy tissue and of lesions before any "
        "inversion, averaged over volumes; AIR is the larger divided by the smaller.",
        f"Rule used here: {rules}. The paper's rule inverts when μn is above 0.5; the other "
        "choice inverts when that makes AIR larger.",
        "Mean rows average the folds. All values are computed here, none is published.",
    ]
    document = Document(
        name="air",
        title=f"{title} (phantom data)" if phantom else title,
        caption=caption,
        warning=_PHANTOM_WARNING if phantom else "",
        corner="Experiment",
        heads=[("", head) for head in heads.values()],
        rows=rows,
        footnotes=[
            'The column "they differ" is bold where the two rules decide differently.',
            "Priors of the paper: 0 < μn < μa < 1 always; μn > 0.5 for FLAIR and T1-CE "
            "(later version: T1, too); "
            "μa < 0.5 for T2.",
            *violations,
            *facts["notes"],
        ],
    )
    write_all(
        out_paths,
        {
            ".csv": lambda: csv_text(frame),
            ".md": lambda: markdown(document),
            ".html": lambda: html_page(document),
        },
    )
