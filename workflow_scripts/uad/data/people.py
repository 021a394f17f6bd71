"""Ages of subjects, from a table at the root of a raw tree; splits are balanced by them.

Read are ``participants.tsv`` (BIDS: ``participant_id``, ``age``) in the tree of any data set, and
the table that a data set publishes (``ages`` of its layout), as a workbook or saved as text.
The columns of IXI's table are from descriptions of it; the file itself was not at hand.
"""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pandas as pd

from uad.core.errors import DataError
from uad.core.patterns import Ages, AnyLayout, layout_of
from uad.data.layouts import PARTICIPANTS, bids_label, demographics_file

#: Plausible ages (years).
AGES = (0.0, 120.0)
#: Ages of one subject that lie further apart (years) contradict each other.
TOLERANCE = 1.0
#: Cells that say nothing, lower case.
_EMPTY = ("", "n/a", "na", "nan")


def add_ages(
    participants: pd.DataFrame, layout: AnyLayout, root: str | Path
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Add the column ``age`` (years) to a participants table, where any age is known.

    Missing ages are NaN; without any the table stays as it came. The facts for the record are
    ``file`` (None without one), ``known`` and ``unknown`` (numbers of subjects) and
    ``contradicting`` (public names of those whose rows give different ages: unknown).

    Raises:
        DataError: the file cannot be read, lacks a column, has an age that is none or a row
            without a subject, or is about nobody of the data set.
    """
    path = demographics_file(layout, root)
    if path is None:
        return participants, {"file": None}
    patterns = layout_of(layout)
    published = None if path.name == PARTICIPANTS else patterns.ages
    has_ages, listed = _read(path, published)
    names = participants["name"].drop_duplicates()
    # a published table knows the first part of IXI002-Guys-0828
    first = published and len(published.prefix) + published.digits
    keys = {name: name[:first] if published else f"sub-{bids_label(name)}" for name in names}
    people = {who for who, *_ in listed}
    if has_ages and not people & set(keys.values()):
        example = f" (such as {min(people)})" if people else ""
        raise DataError(
            f"{path}: none of its {len(people)} subjects{example} is in this data set (such as "
            f"{min(keys.values())}). Correct or remove the file."
        )
    sites = {who: site for who, _, site in listed if site.lower() not in _EMPTY}
    told = patterns.site or any("{site}" in pattern for _, pattern in patterns.patterns)
    if sites and not told:
        found = participants["name"].map(lambda name: sites.get(keys[name]))
        participants = participants.assign(site=found.fillna(participants["site"]))
    ages: dict[str, list[float]] = defaultdict(list)
    for who, age, _ in listed:
        if age is not None:
            ages[who].append(age)
    aged = {name: ages[key] for name, key in keys.items() if ages[key]}
    contradicting = [name for name, found in aged.items() if max(found) - min(found) > TOLERANCE]
    known = {name: found[0] for name, found in aged.items() if name not in contradicting}
    facts = {
        "file": str(path),
        "known": len(known),
        "unknown": len(names) - len(known),
        "contradicting": contradicting,
    }
    if not known:
        return participants, facts
    table = participants.copy()
    table.insert(table.columns.get_loc("site") + 1, "age", table["name"].map(known))
    return table, facts


def _read(path: Path, published: Ages | None) -> tuple[bool, list[tuple[str, float | None, str]]]:
    """Whether a table has ages, and for each of its rows the subject, the age and the site."""
    person, age = (published.subject, published.age) if published else ("participant_id", "age")
    needed = [person, age] if published else [person]  # BIDS asks for nothing but the name
    for sheet in _sheets(path):  # a workbook has others, with the meaning of codes
        head, *rows = [[cell.strip() for cell in row] for row in sheet] or [[]]
        head = [cell.lower() for cell in head]
        if {column.lower() for column in needed} <= set(head):
            break
    else:
        raise DataError(
            f"{path}: no column {' and '.join(needed)} in its first row, which should name the "
            "columns. Correct or remove the file."
        )
    listed = []
    for number, row in enumerate(rows, start=2):
        cells = dict(zip(head, row, strict=False))
        who, text = cells.get(person.lower(), ""), cells.get(age.lower(), "")
        if who.lower() in _EMPTY and text.lower() in _EMPTY:
            continue
        if (key := _key(who, published)) is None:
            form = f"a number, such as 2 for {_key('2', published)}" if published else "sub-NAME"
            raise DataError(
                f"{path}: row {number}: '{who}' names no subject; expected is {form}. Correct or "
                "remove the file."
            )
        unknown = text.lower() in _EMPTY
        found = None if unknown else _age(text, f"{path}: row {number} ({key})")
        listed.append((key, found, cells.get("site", "")))
    return age.lower() in head, listed


def _sheets(path: Path) -> list[list[list[str]]]:
    """The cells of each sheet of a workbook, or of a text table, as text."""
    try:
        if path.suffix == ".xls":
            return _workbook(path)
        text = path.read_text(encoding="utf-8-sig")
        head = text.partition("\n")[0]
        # a spreadsheet may have written semicolons for commas
        mark = "\t" if path.suffix == ".tsv" else max(",;", key=head.count)
        return [list(csv.reader(io.StringIO(text, newline=""), delimiter=mark))]
    except Exception as error:  # damaged workbooks make their library fail in many ways
        why = " ".join(str(error).split())[:120] or type(error).__name__
        what, cure = "a UTF-8 text table", "Save it as that, or remove it"
        if path.suffix == ".xls":
            what = "an Excel 97 workbook"
            cure = f"Fetch it again, or save it as {path.with_suffix('.csv').name}"
        raise DataError(f"{path}: cannot be read as {what} ({why}). {cure}.") from error


def _workbook(path: Path) -> list[list[list[str]]]:
    # pandas gives up its reader of this format
    import xlrd

    errors = xlrd.error_text_from_code
    # what the library has to say about odd files is no news here
    book = xlrd.open_workbook(path, logfile=io.StringIO())
    return [
        [
            [errors[c.value] if c.ctype == xlrd.XL_CELL_ERROR else str(c.value) for c in row]
            for row in map(sheet.row, range(sheet.nrows))
        ]
        for sheet in book.sheets()
    ]


def _key(text: str, published: Ages | None) -> str | None:
    """``IXI002`` for 2, 2.0 (a cell of a workbook), 002 or IXI002; in BIDS ``sub-<label>``."""
    if published is None:
        label = bids_label(text.removeprefix("sub-"))
        return f"sub-{label}" if label else None
    number = rf"(?:{published.prefix})?(\d{{1,{published.digits}}})(?:\.0+)?"
    match = re.fullmatch(number, text, re.IGNORECASE)
    return f"{published.prefix}{int(match[1]):0{published.digits}}" if match else None


def _age(text: str, where: str) -> float:
    try:
        # a decimal comma; "89+", as BIDS lets old ages be hidden
        age = float(text.replace(",", ".").removesuffix("+"))
    except ValueError:
        age = float("nan")
    low, high = AGES
    if not low <= age <= high:
        raise DataError(
            f"{where}: '{text}' is no age in years, from {low:g} to {high:g}. Correct it, leave "
            "it empty, or remove the file."
        )
    return round(age, 2)  # to the hundredth, as the published splits have them
