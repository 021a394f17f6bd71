"""What is wrong with which raw scan, in sentences, and one verdict per subject.

A check yields findings: a fault recommends an exclusion, a warning asks for a look. Nothing is
excluded here, the decision stands in the config (``exclude: {name: reason}``). The index has left
out whose files are missing or damaged; damage that only the voxels show stops the work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from uad.core.errors import DataError, first_of
from uad.core.files import read_yaml
from uad.core.masks import SMALLEST_HEAD_ML
from uad.core.patterns import layout_of
from uad.qc.raw import (
    NO_AXES,
    NO_CODES,
    SUPPORT,
    Promise,
    match_masks,
    measure_scans,
    promise_of,
    support,
)

#: Between the findings of one row.
SEPARATOR = " | "
VERDICTS = ("used", "used with warning", "should be excluded", "excluded")

CHECKS = Path(__file__).with_name("checks.yaml")
BRAIN_ML, HEAD_ML = (400.0, 2500.0), (1000.0, 7000.0)  # plausible volumes
EMPTY_ML, EMPTY_SHARE = 100.0, 0.01  # foreground and share of non-zero voxels of no brain at all
MAJORITY, FEW = 0.6, 3  # share of the scans that makes a majority, and how many it takes
#: Lesion contrast (standard deviations) below which nothing supports a mask. T2 alone is not
#: enough to recommend an exclusion: a lesion beside a ventricle may have no contrast there.
NO_SUPPORT = 0.2
DISPLACED = 0.3  # FLAIR contrast that a mask gains which lies in the wrong place

FAULT, WARNING = "faults", "warnings"
#: Row of the table, level, sentence.
Finding = tuple[Any, str, str]


def validate_tree(
    layout: str, participants: pd.DataFrame, threads: int = 1, backend: str = ""
) -> pd.DataFrame:
    """Measure and check all scans of a participants table, some subjects at the same time.

    ``backend``: of skull stripping; scans that it is not for are named.
    """
    measures = match_masks(measure_scans(layout, participants, threads, backend))
    return check_scans(layout, measures, backend)


def check_scans(layout: str, measures: pd.DataFrame, backend: str = "") -> pd.DataFrame:
    """Say what is wrong with which scan of a data set (:func:`uad.qc.raw.measure_scans`).

    Two more columns, ``faults`` and ``warnings``, have sentences joined by :data:`SEPARATOR`.
    """
    promise, table = promise_of(layout, measures, backend), measures.reset_index(drop=True)
    read = table[(table["error"] == "") & (table["shape"] != "")]
    findings = [*_names(table, promise)]
    for scan in table[table["error"] != ""].itertuples():
        findings.append((scan.Index, FAULT, f"{scan.modality} image: {scan.error}"))
    facts = pd.DataFrame([_facts_of(scan, promise) for scan in read.to_dict("records")], read.index)
    for check in read_yaml(CHECKS) if len(read) else ():
        level = FAULT if "fault" in check else WARNING
        sentence = check.get("fault") or check["warning"]
        found = facts.query(check["when"], engine="python")
        for index, scan in zip(found.index, found.to_dict("records"), strict=True):
            findings.append((index, level, sentence.format_map(scan)))
    findings += [*_majority(read, promise), *_duplicates(read)]
    for _, subject in read.groupby("subject", sort=False):
        findings += _support(subject)
    texts: dict[tuple[Any, str], dict[str, None]] = {}
    for index, level, text in findings:
        texts.setdefault((index, level), {})[text] = None  # each once, in order
    return table.assign(
        **{
            level: [SEPARATOR.join(texts.get((index, level), ())) for index in table.index]
            for level in (FAULT, WARNING)
        }
    )


def _facts_of(scan: Mapping[str, Any], promise: Promise) -> dict[str, Any]:
    """The measures of a scan, and what they mean for its layout."""
    layout, stripped = promise.layout, scan["stripped"] == "yes"
    is_head = scan["outline_ml"] > SMALLEST_HEAD_ML
    low, high = BRAIN_ML if stripped else HEAD_ML
    # preprocessed scans were turned and cropped by somebody else
    axes, covers = (None, None) if promise.preprocessed else (layout.axes, layout.covers)
    spacing = np.array(scan["spacing"].split("x"), dtype=float)
    size = np.array(scan["shape"].split("x"), dtype=float) * spacing
    others = sorted({int(float(v)) for v in str(scan["lesion_values"]).split()} - promise.labels)
    return {
        **scan,
        "image": f"{scan['modality']} image",
        "preprocessed": promise.preprocessed,
        "constant": scan["minimum"] == scan["maximum"],
        "near_empty": scan["foreground_ml"] < EMPTY_ML or scan["nonzero"] < EMPTY_SHARE,
        "body": "brain" if stripped else "head",
        "low": low,
        "high": high,
        "unexpected": scan["outline_ml"] > BRAIN_ML[0] and promise.expected == is_head,
        "promised": promise.stripped is not None,  # by the layout
        "looks": "a head" if is_head else "a brain",
        "others": "brains without skull" if is_head else "heads",
        "axes": axes or "",
        "mirrored": _mirrored(scan["orientation"], axes) if axes else "",
        "one_mm": bool((spacing == 1).all()),
        "other_grid": bool(covers) and bool((np.abs(size - covers) >= spacing).any()),
        "size": "x".join(f"{mm:g}" for mm in size),
        "covers": "x".join(f"{mm:g}" for mm in covers or ()),
        "qform_invalid": bool(np.isinf(scan["header_mm"])),
        "half_voxel_mm": 5 * scan["voxel_ml"] ** (1 / 3),
        "count_of_others": len(others),
        "other_values": ", ".join(map(str, others)),
        "labels": ", ".join(map(str, [0, *sorted(promise.labels)])),
    }


def _mirrored(axes: str, others: str) -> str:
    """A hint where one of two orientations is the mirror image of the other."""
    if {axes, others} & {NO_CODES, NO_AXES}:
        return ""
    codes = (nib.orientations.axcodes2ornt(tuple(each)) for each in (axes, others))
    signs = {np.sign(np.linalg.det(nib.orientations.inv_ornt_aff(c, (1, 1, 1)))) for c in codes}
    return "; left and right may be exchanged (flipped affine)" if len(signs) > 1 else ""


# --- a scan among the others


def _names(table: pd.DataFrame, promise: Promise) -> Iterator[Finding]:
    for scan in table.itertuples():
        if not promise.layout.is_public(scan.name):
            yield scan.Index, WARNING, f"'{scan.name}' is no public name of this data set"
    looks = [("subject", "{names} have the same label {key}")]
    if ages := promise.layout.ages:  # a name begins with the number of a person
        number = table["name"].str.extract(rf"^({ages.prefix}\d{{{ages.digits}}})")[0]
        looks.append((number, "subject {key} is there as {names}"))
    for by, sentence in looks:
        for key, part in table.groupby(by):
            if len(names := part["name"].unique()) > 1:
                text = sentence.format(names=" and ".join(names), key=key)
                yield from ((index, FAULT, text) for index in part.index)


def _majority(read: pd.DataFrame, promise: Promise) -> Iterator[Finding]:
    """Scans that differ from most others of their modality and site.

    Where these are fewer than :data:`FEW`, the modality is the measure, or the data set.
    """
    for (modality, _), part in read.groupby(["modality", "site"]):
        same = read[read["modality"] == modality]
        peers = next((group for group in (part, same, read) if len(group) >= FEW), None)
        if peers is None:
            continue
        counts = {key: peers[key].value_counts() for key in ("orientation", "spacing", "shape")}
        common = {k: c.index[0] for k, c in counts.items() if c.iloc[0] >= MAJORITY * len(peers)}
        if promise.layout.axes and not promise.preprocessed:
            common.pop("orientation", None)  # compared with that already
        if not promise.one_grid:
            common.pop("shape", None)
        bodies = same.groupby("stripped")["foreground_ml"].agg(["size", "median"])
        for scan in part.itertuples():
            for key, usual in common.items():
                if (own := getattr(scan, key)) != usual and not {own, usual} & {NO_CODES, NO_AXES}:
                    yield scan.Index, WARNING, f"{modality} image: {_odd(key, own, usual)}"
            size, median = bodies.loc[scan.stripped]
            if size > FEW and EMPTY_ML < scan.foreground_ml < 0.6 * median:
                text = (
                    f"{modality} image: {scan.foreground_ml:.0f} ml of foreground, others have "
                    f"{median:.0f}; is a part of it missing?"
                )
                yield scan.Index, WARNING, text


def _odd(key: str, value: str, usual: str) -> str:
    if key == "spacing":
        return f"has voxels of {value} mm, most others voxels of {usual} mm"
    if key == "shape":
        return f"has a grid of {value}, most others a grid of {usual}"
    hint = _mirrored(value, usual)
    return f"its axes point to {value}, those of most others to {usual}{hint}"


def _duplicates(read: pd.DataFrame) -> Iterator[Finding]:
    same = "duplicate, the same voxels as"
    for _, part in read[read["minimum"] != read["maximum"]].groupby("digest"):
        names = dict(zip(part.index, part["name"] + " " + part["modality"], strict=True))
        for index, modality in part["modality"].items():
            if others := ", ".join(name for i, name in names.items() if i != index):
                text = f"{modality} image: {same} {others}; one carries a wrong name"
                yield index, FAULT, text
    for _, part in read[read["lesion_ml"] > 0].groupby("lesion_digest"):
        for index, name in part["name"].items():
            if others := ", ".join(sorted(set(part["name"]) - {name})):
                yield index, FAULT, f"lesion mask: {same} {others}"


def _support(subject: pd.DataFrame) -> Iterator[Finding]:
    """Whether the images of a subject show the lesion where its mask is."""
    decided = support(subject)
    if decided is None or decided[1] >= SUPPORT[decided[0]]:
        return
    modality, contrast = decided
    seen = f"{modality} contrast {contrast:.2f} sd"
    fits = next((name for name in subject["lesion_fits"] if name), "")
    flair = subject[subject["modality"] == "FLAIR"]
    best = float(flair["lesion_best"].max()) if len(flair) else np.nan
    everywhere = subject[subject["modality"].isin(SUPPORT)]["lesion_contrast"].max()
    level = FAULT
    if fits:
        text = f"does not fit its images ({seen}) but those of {fits}; masks exchanged?"
    elif best >= SUPPORT["FLAIR"] and best - contrast > DISPLACED:
        text = f"would fit the FLAIR image better {flair['lesion_where'].iloc[0]} ({seen})"
    elif modality == "FLAIR" and abs(everywhere) < NO_SUPPORT:
        text = f"its images show no lesion there ({seen}); is it another patient's?"
    elif contrast <= -NO_SUPPORT:
        level, text = WARNING, f"lies on something dark ({seen}); a cyst, or the wrong place?"
    else:
        level, text = WARNING, f"its images hardly show the lesion ({seen})"
    for index in subject.index:
        yield index, level, f"lesion mask: {text}"


# --- verdicts


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
    unusable: Mapping[str, str] | None = None,
    strays: Sequence[str] = (),
) -> Verdicts:
    """One verdict per subject; all but ``excluded`` are used until the config excludes them.

    ``expected`` is the number of subjects with the excluded ones, ``exclude`` their reasons by
    public name, ``unusable`` those of subjects that the index left out for a file, ``strays`` are
    files that belong to nobody (:func:`stray_files`).
    """
    unusable = unusable or {}
    exclude, rows = {**(exclude or {}), **unusable}, []
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
    said = Counter(text for *_, why in rows for text in why.split(SEPARATOR) if text)
    shared: dict[str, list[str]] = {}  # sentences about every subject, and of which files
    for sentence, count in said.items():
        if count == len(rows) >= FEW and ": " in sentence:
            what, _, text = sentence.partition(": ")
            shared.setdefault(text, []).append(what)
    known = {row[0] for row in rows}
    rows += [(n, "", "", "excluded", why) for n, why in exclude.items() if n not in known]
    columns = ["name", "subject", "site", "verdict", "why"]
    subjects = pd.DataFrame(sorted(rows), columns=columns)
    notes = [f"All {len(known)} subjects: {', '.join(w)}: {t}." for t, w in shared.items()]
    if unusable:
        listed = first_of(f"{name} ({why})" for name, why in unusable.items())
        notes.append(
            f"{len(unusable)} subject(s) left out, for a file that is missing or cannot be used: "
            f"{listed}. Everything goes on without them; once mended they are used."
        )
    if expected is not None and len(subjects) != expected:
        more = "more" if len(subjects) > expected else "fewer"
        notes.append(f"{len(subjects)} subjects, {more} than the expected {expected}.")
    if strays:
        shown = first_of(strays)
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
        names = dict.fromkeys(f"{name}: the reason" for name, _ in bad)
        raise DataError(
            f"{dataset}: {len(bad)} file(s) cannot be used:\n"
            + "\n".join(lines[:20])
            + ("\n  ..." if len(lines) > 20 else "")
            + "\nFetch them again, or exclude the subjects in the config: "
            f"datasets.{dataset}.exclude: {{{', '.join(names)}}}"
        )
