"""Checks of raw scans: what is wrong with which, in sentences.

A fault recommends an exclusion, a warning asks for a look. What one scan's own measures can say
stands in the list :data:`CHECKS`; the functions below it compare a scan with others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from uad.qc.raw import Rules, measure_scans, rules_of
from uad.qc.raw_mask import SUPPORT, match_masks, support

#: Between the findings of one row.
SEPARATOR = " | "

#: Plausible volumes (ml) of a brain and of a head, and of something that is neither.
BRAIN_ML, HEAD_ML, EMPTY_ML = (400.0, 2500.0), (1000.0, 7000.0), 100.0
#: Share of non-zero voxels below which a volume is as good as empty.
EMPTY_SHARE = 0.01
#: Two headers may put a corner of the volume this many voxels apart.
GRID_TOLERANCE = 0.5
#: Share of negative voxels that is more than noise.
NEGATIVE = 0.01
#: Axes this far from a right angle (cosine) are sheared.
SHEAR = 0.01
#: A share of the scans that makes a majority, and how many scans it takes.
MAJORITY, FEW = 0.6, 3
#: Lesion contrast (standard deviations) below which nothing supports a mask. T2 alone is not
#: enough to recommend an exclusion: a lesion beside a ventricle may have no contrast there.
NO_SUPPORT = 0.2
#: A displaced mask that gains this much FLAIR contrast lies in the wrong place.
DISPLACED = 0.3
#: Dice of the outlines of two images of one patient (co-registered, without skull).
OUTLINE = 0.96
#: Dice of a brain mask and what is not background in its image.
MASK_FITS = 0.9

FAULT, WARNING = "faults", "warnings"
#: Row of the table, level, sentence.
Finding = tuple[Any, str, str]


# --- one scan


def _facts(scan: Mapping[str, Any], rules: Rules) -> SimpleNamespace:
    """The measures of a scan, and what follows from them."""
    stripped = scan["stripped"] == "yes"
    low, high = BRAIN_ML if stripped else HEAD_ML
    unknown = {int(float(v)) for v in str(scan["lesion_values"]).split()} - rules.labels
    return SimpleNamespace(
        **scan,
        varied=scan["minimum"] != scan["maximum"],
        empty=scan["foreground_ml"] < EMPTY_ML or scan["nonzero"] < EMPTY_SHARE,
        low=low,
        high=high,
        body="brain" if stripped else "head",
        edge_mm=scan["voxel_ml"] ** (1 / 3) * 10,
        # preprocessed modalities were registered one by one, and their masks warped
        together=stripped and rules.coregistered and not rules.preprocessed,
        drawn=scan["lesion_ml"] > 0 and not rules.preprocessed,
        unknown=", ".join(map(str, sorted(unknown))),
        labels=", ".join(map(str, [0, *sorted(rules.labels)])),
        labels_more=len(unknown) if scan["lesion_ml"] > 0 else 0,
    )


#: (level, what it is about, whether it is wrong, sentence with measures in braces)
CHECKS: tuple[tuple[str, str, Callable[[Any], bool], str], ...] = (
    (FAULT, "{modality} image", lambda s: s.nonfinite > 0,
     "{nonfinite:.0f} voxels are NaN or infinite"),
    (FAULT, "{modality} image", lambda s: not s.varied,
     "constant ({minimum:g})"),
    (FAULT, "{modality} image", lambda s: s.varied and s.empty,
     "near-empty ({nonzero:.1%} of its voxels are not zero, {foreground_ml:.0f} ml of foreground)"),
    (FAULT, "{modality} image",
     lambda s: s.varied and not s.empty and not s.low <= s.foreground_ml <= s.high,
     "{foreground_ml:.0f} ml ({extent} mm) of {body} are not plausible ({low:.0f} to {high:.0f}); "
     "is the voxel size of {spacing} mm right?"),
    (WARNING, "{modality} image", lambda s: s.varied and s.negative > NEGATIVE,
     "{negative:.1%} of its voxels are negative"),
    (WARNING, "{modality} image", lambda s: s.varied and s.shear > SHEAR,
     "its axes are not orthogonal (cosine {shear:.3f})"),
    (WARNING, "{modality} image",
     lambda s: s.varied and s.header_mm > GRID_TOLERANCE * s.edge_mm,
     "qform and sform disagree by {header_mm:.1f} mm; sform is used"),
    (WARNING, "{modality} image", lambda s: s.together and s.outline < OUTLINE,
     "its brain has another outline than another image of this subject (Dice {outline:.2f}); "
     "is it the same person?"),
    (FAULT, "brain mask", lambda s: s.mask_error != "", "{mask_error}"),
    (FAULT, "brain mask and {modality} image", lambda s: s.mask_axes != "", "{mask_axes}"),
    (WARNING, "brain mask", lambda s: s.mask_axes == "" and s.mask_off > GRID_TOLERANCE,
     "its header lies {mask_off:.1f} voxels from that of the {modality} image; "
     "it is taken voxel for voxel"),
    (FAULT, "lesion mask", lambda s: s.lesion_error != "", "{lesion_error}"),
    (FAULT, "lesion mask and {modality} image", lambda s: s.lesion_axes != "", "{lesion_axes}"),
    (WARNING, "lesion mask", lambda s: s.lesion_axes == "" and s.lesion_off > GRID_TOLERANCE,
     "its header lies {lesion_off:.1f} voxels from that of the {modality} image; "
     "it is taken voxel for voxel"),
    (FAULT, "brain mask", lambda s: s.mask_maximum > 1,
     "has values up to {mask_maximum:g}; is it a mask?"),
    (FAULT, "brain mask", lambda s: s.mask_dice < MASK_FITS,
     "fits the {modality} image badly (Dice {mask_dice:.2f})"),
    (WARNING, "lesion mask", lambda s: s.lesion_ml == 0, "empty"),
    (FAULT, "lesion mask", lambda s: s.drawn and s.lesion_faint > 0,
     "float noise, {lesion_faint:.0f} voxels between 0 and 0.5 would count as lesion"),
    (WARNING, "lesion mask",
     lambda s: s.drawn and s.lesion_fractional > 0 and s.lesion_faint == 0,
     "{lesion_fractional:.0f} voxels are no whole numbers"),
    # whatever is above 0 counts as lesion: a label more does no harm, many are no labels
    (FAULT, "lesion mask", lambda s: s.labels_more > 3,
     "has the value(s) {unknown}, expected are {labels}"),
    (WARNING, "lesion mask", lambda s: 0 < s.labels_more <= 3,
     "has the value(s) {unknown}, expected are {labels}"),
    (FAULT, "lesion mask", lambda s: s.lesion_inside < 0.5,
     "{lesion_inside:.0%} of it is inside the {body} of the {modality} image"),
    (WARNING, "lesion mask", lambda s: 0.5 <= s.lesion_inside < 0.95,
     "only {lesion_inside:.0%} is inside the {body} of the {modality} image"),
)  # fmt: skip


def _check_scan(index: Any, scan: Mapping[str, Any], rules: Rules) -> Iterator[Finding]:
    """What one scan's own measures say."""
    facts = _facts(scan, rules)
    for level, what, wrong, sentence in CHECKS:
        if wrong(facts):
            yield index, level, f"{what}: {sentence}".format(**vars(facts))


# --- a scan among the others


def _check_names(table: pd.DataFrame, rules: Rules) -> Iterator[Finding]:
    for scan in table.itertuples():
        if not rules.layout.is_public(scan.name):
            yield scan.Index, WARNING, f"'{scan.name}' is no public name of this data set"
    number = table["name"].str.extract(r"^(IXI\d{3})-")[0]
    for by, sentence in (
        ("subject", "{names} have the same label {key}"),
        (number, "subject {key} is there as {names}"),
    ):
        for key, part in table.groupby(by):
            if len(names := part["name"].unique()) > 1:
                text = sentence.format(names=" and ".join(names), key=key)
                yield from ((index, FAULT, text) for index in part.index)


def _check_majority(read: pd.DataFrame, rules: Rules) -> Iterator[Finding]:
    """Scans that differ from most others of their modality and site.

    Where these are fewer than :data:`FEW`, the modality is the measure, or the data set.
    """
    judged = ["orientation", "spacing", *(["shape"] if rules.one_grid else [])]
    groups = [
        dict(list(read.groupby(by))) for by in (["modality", "site"], ["modality"], lambda _: "all")
    ]
    for scan in read.itertuples():
        keys = ((scan.modality, scan.site), (scan.modality,), "all")
        parts = [group[key] for group, key in zip(groups, keys, strict=True)]
        peers = next((part for part in parts if len(part) >= FEW), None)
        if peers is None:
            continue
        for key in judged:
            counts, own = peers[key].value_counts(), getattr(scan, key)
            common = counts.index[0]
            if own != common and counts.iloc[0] >= MAJORITY * len(peers):
                yield scan.Index, WARNING, _odd(scan.modality, key, own, common)
        median = parts[1]["foreground_ml"].median()
        if len(parts[1]) > FEW and EMPTY_ML < scan.foreground_ml < 0.6 * median:
            text = (
                f"{scan.modality} image: {scan.foreground_ml:.0f} ml of foreground, others have "
                f"{median:.0f}; is a part of it missing?"
            )
            yield scan.Index, WARNING, text


def _odd(modality: str, key: str, value: str, common: str) -> str:
    if key == "spacing":
        return f"{modality} image: has voxels of {value} mm, most others voxels of {common} mm"
    if key == "shape":
        return f"{modality} image: has a grid of {value}, most others a grid of {common}"
    mirrored = _handedness(value) != _handedness(common)
    note = "; left and right may be exchanged (flipped affine)" if mirrored else ""
    return f"{modality} image: its axes point to {value}, those of most others to {common}{note}"


def _handedness(axes: str) -> int:
    """+1 or -1: the sign of the determinant that goes with axis codes such as ``LPS``."""
    place = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}
    sign = round(float(np.linalg.det(np.eye(3)[[place[a] for a in axes]])))
    return sign * (-1) ** sum(a in "LPI" for a in axes)


def _check_duplicates(read: pd.DataFrame) -> Iterator[Finding]:
    for _, part in read[read["minimum"] != read["maximum"]].groupby("digest"):
        for scan in part.itertuples():
            others = [f"{o.name} {o.modality}" for o in part.itertuples() if o.Index != scan.Index]
            if others:
                text = f"duplicate, the same voxels as {', '.join(others)}"
                yield scan.Index, FAULT, f"{scan.modality} image: {text}; one carries a wrong name"
    for _, part in read[read["lesion_ml"] > 0].groupby("lesion_digest"):
        for scan in part.itertuples():
            if others := sorted(set(part["name"]) - {scan.name}):
                text = f"duplicate, the same voxels as {', '.join(others)}"
                yield scan.Index, FAULT, f"lesion mask: {text}"


def _check_support(subject: pd.DataFrame) -> Iterator[Finding]:
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
    elif best - contrast > DISPLACED:
        text = f"would fit the FLAIR image better {flair['lesion_where'].iloc[0]} ({seen})"
    elif modality == "FLAIR" and everywhere < NO_SUPPORT:
        text = f"its images show no lesion there ({seen}); is it another patient's?"
    else:
        level, text = WARNING, f"its images hardly show the lesion ({seen})"
    for index in subject.index:
        yield index, level, f"lesion mask: {text}"


def check_scans(layout: str, measures: pd.DataFrame) -> pd.DataFrame:
    """Say what is wrong with which scan of a data set.

    Args:
        layout: as for :func:`uad.qc.raw.measure_scans`.
        measures: its answer for all subjects.

    Returns:
        ``measures`` with two more columns of text, ``faults`` and ``warnings``, empty where
        there is nothing to say; several are joined by :data:`SEPARATOR`. What concerns one
        image starts with its modality.
    """
    rules, table = rules_of(layout, measures), measures.reset_index(drop=True)
    read = table[(table["error"] == "") & (table["shape"] != "")]
    findings = [*_check_names(table, rules)]
    for scan in table[table["error"] != ""].itertuples():
        findings.append((scan.Index, FAULT, f"{scan.modality} image: {scan.error}"))
    for index, scan in read.to_dict("index").items():
        findings += _check_scan(index, scan, rules)
    findings += [*_check_majority(read, rules), *_check_duplicates(read)]
    for _, subject in read.groupby("subject", sort=False):
        findings += _check_support(subject)
    texts: dict[tuple[Any, str], dict[str, None]] = {}
    for index, level, text in findings:
        texts.setdefault((index, level), {})[text] = None  # each once, in order
    return table.assign(
        **{
            level: [SEPARATOR.join(texts.get((index, level), ())) for index in table.index]
            for level in (FAULT, WARNING)
        }
    )


def validate_tree(
    layout: str, participants: pd.DataFrame, *, content: bool = True, threads: int = 1
) -> pd.DataFrame:
    """Measure and check all scans of a data set.

    Args:
        layout: ``ixi``, ``brats21`` or ``mslub``.
        participants: table of :func:`uad.data.layouts.index_dataset`, or of
            :func:`uad.data.preprocessed.index_preprocessed`.
        content: open the files; False for names only (seconds for any data set).
        threads: subjects at the same time.

    Returns:
        One row per subject and modality: the measures, ``faults`` and ``warnings``.
    """
    measures = measure_scans(layout, participants, content=content, threads=threads)
    return check_scans(layout, match_masks(measures) if content else measures)
