"""One verdict per subject of a raw tree.

Nothing is excluded here: a fault is a recommendation, the decision stands in the config
(``exclude: {name: reason}``). Only a file that cannot be used at all stops the work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from uad.core.errors import DataError
from uad.core.patterns import layout_of
from uad.qc.raw_checks import FAULT, SEPARATOR, WARNING

VERDICTS = ("used", "used with warning", "should be excluded", "excluded")


@dataclass(frozen=True)
class Verdicts:
    """Verdicts about a data set.

    Attributes:
        subjects: ``name``, ``subject``, ``site``, ``verdict`` (one of :data:`VERDICTS`),
            ``why``; sorted by name.
        notes: sentences about the data set as a whole.
    """

    subjects: pd.DataFrame
    notes: list[str]

    @property
    def counts(self) -> dict[str, int]:
        """Subjects by verdict, all verdicts."""
        found = self.subjects["verdict"].value_counts()
        return {verdict: int(found.get(verdict, 0)) for verdict in VERDICTS}

    @property
    def advice(self) -> dict[str, str]:
        """What the config would say to follow the recommendations: name and reason."""
        bad = self.subjects[self.subjects["verdict"] == "should be excluded"]
        return dict(zip(bad["name"], bad["why"], strict=True))


def give_verdicts(
    checked: pd.DataFrame,
    *,
    expected: int | None = None,
    exclude: Mapping[str, str] | None = None,
    strays: Sequence[str] = (),
) -> Verdicts:
    """One verdict per subject.

    ``used``, ``used with warning`` and ``should be excluded`` are all used until the config
    excludes them; ``excluded`` are those that it excludes, with its reason.

    Args:
        checked: answer of :func:`uad.qc.raw_checks.validate_tree`.
        expected: number of subjects that the data set should have, excluded ones included.
        exclude: the config's exclusions: public name and reason.
        strays: files of the tree that belong to nobody (:func:`stray_files`).
    """
    exclude = exclude or {}
    rows = []
    for name, part in checked.groupby("name"):
        faults, warnings = (
            list(dict.fromkeys(t for text in part[level] if text for t in text.split(SEPARATOR)))
            for level in (FAULT, WARNING)
        )
        why = [*faults, *warnings]
        verdict = VERDICTS[2] if faults else VERDICTS[1] if why else VERDICTS[0]
        if name in exclude:
            verdict, why = "excluded", [exclude[name], *why]
        first = part.iloc[0]
        rows.append((name, first["subject"], first.get("site", ""), verdict, SEPARATOR.join(why)))
    known = {row[0] for row in rows}
    rows += [(n, "", "", "excluded", why) for n, why in exclude.items() if n not in known]
    columns = ["name", "subject", "site", "verdict", "why"]
    subjects = pd.DataFrame(sorted(rows), columns=columns)
    notes = []
    if expected is not None and len(subjects) != expected:
        more = "more" if len(subjects) > expected else "fewer"
        notes.append(f"{len(subjects)} subjects, {more} than the expected {expected}.")
    if strays:
        shown = ", ".join(strays[:5]) + (" ..." if len(strays) > 5 else "")
        notes.append(f"{len(strays)} file(s) with a name that belongs to nobody: {shown}.")
    return Verdicts(subjects, notes)


def stray_files(layout: str, root: str | Path) -> list[str]:
    """NIfTI files of a raw tree whose names no subject of the layout has, relative to it.

    The index passes over them without a word; a misspelt name is better said.
    """
    root, patterns = Path(root), layout_of(layout)
    paths = (path.relative_to(root) for path in sorted(root.rglob("*.nii*")) if path.is_file())
    return [str(path) for path in paths if not patterns.is_known(path.as_posix())]


def refuse_unusable(dataset: str, checked: pd.DataFrame) -> None:
    """Stop where a file cannot be used: no later step could go on without it.

    Raises:
        DataError: names every such file, and what to do.
    """
    columns = ("error", "mask_error", "lesion_error")
    bad = sorted(
        {(n, e) for c in columns for n, e in zip(checked["name"], checked[c], strict=True) if e}
    )
    if bad:
        lines = [f"  {name}: {why}" for name, why in bad]
        raise DataError(
            f"{dataset}: {len(bad)} file(s) cannot be used:\n"
            + "\n".join(lines[:20])
            + ("\n  ..." if len(lines) > 20 else "")
            + "\nFetch them again, or exclude the subjects in the config: "
            f"datasets.{dataset}.exclude: {{{bad[0][0]}: the reason}}"
        )
