"""Who is in a data set, as the workflow uses it: the raw tree without those who are left out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uad.data.layouts import index_dataset
from uad.data.preprocessed import index_preprocessed
from uad.qc.decide import left_out, without_excluded

if TYPE_CHECKING:
    import pandas as pd


def index_used(spec: Mapping[str, Any], root: str | Path) -> pd.DataFrame:
    """The participants table of a data set, without ages.

    Args:
        spec: ``layout``, ``source``, ``modalities``, ``exclude`` (reason by name) and ``limit`` of
            the config; ``reviewed``, the exclusions of a reviewer
            (:func:`uad.qc.decide.exclusions`), may be missing.
        root: the raw tree, or the shared preprocessed one.

    Raises:
        DataError: the tree cannot be used, or who is excluded is not in it.
    """
    reviewed = spec.get("reviewed", [])
    whole = left_out(reviewed)
    chosen = spec["modalities"], {**spec["exclude"], **whole}, spec["limit"]
    if spec["source"] == "preprocessed":
        table = index_preprocessed(root, spec["layout"], *chosen)
    else:
        table = index_dataset(spec["layout"], root, *chosen)
    if not reviewed:
        return table
    # with a limit, the subjects behind it are not in the table either
    beyond = [row["subject"] for row in reviewed] if spec["limit"] else []
    absent = [*spec["exclude"], *whole, *beyond]
    return without_excluded(table, reviewed, may_be_absent=absent)
