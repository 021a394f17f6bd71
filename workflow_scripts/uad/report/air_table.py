"""The table of the average intensity ratio (AIR), and of what follows from it.

The paper inverts a data set's intensities when that enlarges AIR, and predicts the
choice from a rule about means. The table shows the rule's choice and the enlarging
choice side by side, because they are not always the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from uad.report.render import Cell, Document, PathLike, Row, write_document

#: Columns of the CSV.
AIR_COLUMNS = (
    "experiment modality reference_dataset fold n_volumes mean_normal mean_anomalous air_before "
    "air_if_inverted air_after rule invert paper_rule_invert maximising_invert choices_differ "
    "violated_priors"
).split()
#: Column -> its heading in the table: what the rules say before what was done.
_SHOWN = {
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
}
_NUMBERS = ["mean_normal", "mean_anomalous", "air_before", "air_if_inverted", "air_after"]
_CHOICES = ["invert", "paper_rule_invert", "maximising_invert", "choices_differ"]
_KEY = ["experiment", "reference_dataset", "fold"]


def air_table(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """One row per experiment and fold, and a mean row (``fold`` is ``mean``) per experiment.

    ``choices_differ`` tells where the paper's rule and the choice with the larger ratio are not
    the same. In a mean row a choice is ``2 of 5`` where folds disagree.
    """
    frame = pd.DataFrame(list(records))
    frame = frame.assign(
        choices_differ=frame["paper_rule_invert"] != frame["maximising_invert"],
        violated_priors=frame["violated_priors"].map(lambda found: " | ".join(found) or "none"),
    )[AIR_COLUMNS]
    frame = frame.sort_values(_KEY, ignore_index=True)
    parts = []
    for _, part in frame.groupby(_KEY[:2], sort=False):
        texts = {c: part[c].astype(str) for c in ("fold", "n_volumes")}
        choices = {c: part[c].map({True: "yes", False: "no"}) for c in _CHOICES}
        parts += [part.assign(**texts, **choices), pd.DataFrame([_mean_row(part)])]
    return pd.concat(parts, ignore_index=True).astype(dict.fromkeys(_NUMBERS, float))


def _mean_row(part: pd.DataFrame) -> dict[str, Any]:
    """The folds of one experiment in one row: a range or a count where they differ."""
    row = {}
    for column in ("experiment", "reference_dataset", "modality", "rule", "n_volumes"):
        low, high = part[column].min(), part[column].max()
        row[column] = str(low) if low == high else f"{low} to {high}"
    for column in _CHOICES:
        votes = int(part[column].sum())
        row[column] = {0: "no", len(part): "yes"}.get(votes, f"{votes} of {len(part)}")
    violating = int((part["violated_priors"] != "none").sum())
    row["violated_priors"] = f"{violating} of {len(part)} folds" if violating else "none"
    return row | {"fold": "mean"} | part[_NUMBERS].astype(float).mean().to_dict()


def write_air_table(
    frame: pd.DataFrame, out_paths: Iterable[PathLike], *, phantom: bool, seed: int
) -> None:
    """Write the frame of :func:`air_table`, as :func:`uad.report.tables.write_table` does."""
    texts = frame.assign(**{c: frame[c].map("{:.3f}".format) for c in _NUMBERS})
    rows = [
        Row(
            record["experiment"],
            [
                Cell(record[c], rank=int(c == "choices_differ" and record[c] != "no"))
                for c in _SHOWN
            ],
            apart=record["fold"] == "mean",
        )
        for record in texts.to_dict("records")
    ]
    violated = frame[(frame["fold"] != "mean") & (frame["violated_priors"] != "none")]
    document = Document.of(
        "air",
        phantom=phantom,
        table={
            "corner": "Experiment",
            "heads": [("", head) for head in _SHOWN.values()],
            "rows": rows,
        },
        seed=seed,
        rules=sorted(set(frame["rule"])),
        violated=violated.to_dict("records"),
    )
    write_document(out_paths, document, frame)
