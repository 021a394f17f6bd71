"""The subjects of a raw tree, found by the names of the files."""

from __future__ import annotations

import os
import re
import shlex
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from uad.core.errors import DataError, did_you_mean
from uad.core.files import sha256, text_digest
from uad.core.patterns import (
    BRAIN,
    LESION,
    AnyLayout,
    Files,
    known_layouts,
    layout_name,
    layout_of,
    visible_files,
)
from uad.data.sources import load_registry

if TYPE_CHECKING:
    import pandas as pd

#: The table of subjects of BIDS, which any raw tree may have at its root.
PARTICIPANTS = "participants.tsv"
WAYS = """\
With the archives in one folder: make import ARCHIVES=/that/folder (docs/data.md). Or
put or link each tree there, or name another: datasets.<name>.path in the config.
What is there and what is missing: make datasets. To try the workflow without any
data: make demo (a synthetic phantom)."""
#: How deep below a folder links are looked at.
LINKS_DEPTH = 8
#: Nanoseconds that the clocks of two machines may differ.
CLOCKS = 60 * 10**9


def bids_label(name: str) -> str:
    """The public subject name as a BIDS label (letters and digits only)."""
    return re.sub(r"[^A-Za-z0-9]", "", name)


class Index(NamedTuple):
    """The subjects that are used, and the others.

    ``table`` has a row per subject and modality, sorted: ``subject`` (BIDS label), ``name`` (public
    name), ``site``, ``modality``, ``image``, ``lesion`` (empty for healthy; ``mask``, the brain
    mask, only of preprocessed data). ``left_out`` says by public name which file is missing or
    cannot be used.
    """

    table: pd.DataFrame
    left_out: dict[str, str]


def index_dataset(
    layout: AnyLayout,
    root: str | Path,
    modalities: list[str],
    exclude: Iterable[str] = (),
    limit: int | None = None,
    opened: bool = False,
    preprocessed: bool = False,
) -> Index:
    """List the subjects of a tree that are not excluded (by public name or BIDS label), the first
    ``limit`` of them by name; each needs a file of each modality (ours).

    ``opened``: the header and the length of each file decide whether it can be used, too.
    ``preprocessed``: the tree is that of :mod:`uad.data.preprocessed`, not a raw one.

    Raises:
        DataError: no subject, most of them lack a usable file, an unknown excluded name.
    """
    patterns, called = layout_of(layout), layout_name(layout)
    for modality in modalities:
        if modality not in patterns.modalities:
            raise DataError(f"{root}: the {called} data set has no {modality} images.")
    if preprocessed:
        from uad.data.preprocessed import scan_preprocessed

        root, found = scan_preprocessed(root, layout, modalities)
    else:
        found = _scan(Path(root), layout, modalities, exclude)
    excluded = _excluded_names(exclude, found, root)
    found = {name: files for name, files in sorted(found.items()) if name not in excluded}
    if patterns.incomplete == "skip":
        found = {n: files for n, files in found.items() if set(modalities) <= set(files)}
    needed = [*patterns.needs(modalities), *([BRAIN] if preprocessed else [])]
    names: list[str] = []
    left_out: dict[str, str] = {}
    for name, files in found.items():
        if len(names) == limit:
            break
        if why := _why_left_out(files, needed, opened):
            left_out[name] = why
        else:
            names.append(name)
    _refuse(root, names, left_out, modalities)
    for name in names:
        _refuse_other_twin(name, found[name], needed)
    table = table_of(
        {
            "name": name,
            "site": found[name].site or patterns.site_of(name) or called,
            "modality": modality,
            "image": str(found[name][modality]),
            "lesion": str(found[name].get(LESION, "")),
            **({"mask": str(found[name][BRAIN])} if preprocessed else {}),
        }
        for name in names
        for modality in modalities
    )
    return Index(table, left_out)


def _scan(
    root: Path, layout: AnyLayout, modalities: list[str], exclude: Iterable[str]
) -> dict[str, Files]:
    """The files of each subject of a raw tree, with those that are links to nowhere."""
    patterns = layout_of(layout)
    found = patterns.scan(root, modalities)
    dead = dead_links(root)
    members = {path: patterns.find(path.relative_to(root).as_posix()) for path in dead}
    lost = [path for path in dead if not (members[path] or any(n in str(path) for n in exclude))]
    if lost or (dead and not any(found.values())):
        raise DataError(f"{root}: {about_dead_links(lost or dead)}")
    if not any(found.values()):
        how = load_registry().of_layout(layout).how_to_get()
        raise DataError(
            f"{root}: no subject in the {layout_name(layout)} layout. What fits it: uad layouts "
            f"{root}. To have it: {how}."
        )
    for path, member in members.items():
        if member:
            found.setdefault(member.subject, Files()).setdefault(member.role, path)
    return found


def _excluded_names(exclude: Iterable[str], names: Iterable[str], root: str | Path) -> set[str]:
    """Public names of the subjects that are left out, by the names (or labels) as given."""
    known = {name: name for name in names}
    known |= {bids_label(name): name for name in known}
    for name in exclude:
        if name not in known:
            raise DataError(
                f"{root}: excluded subject '{name}' is not there{did_you_mean(name, known)}; check "
                "its name in the config (datasets.<name>.exclude) or in the decision file "
                "(qc.decisions)."
            )
    return {known[name] for name in exclude}


def _why_left_out(files: Files, needed: list[str], opened: bool) -> str:
    """Which files a subject lacks, or which cannot be used; empty: it has all that is needed."""
    from uad.core.nifti import why_unusable

    why = []
    for role in needed:
        what = role if role in (LESION, BRAIN) else f"{role} image"
        path = files.get(role)
        if path is None:
            why.append(f"no {what}")
        elif not path.exists():
            why.append(f"{what}: a link to nowhere: {path}")
        elif opened:
            twins = [other for one, other in files.twins if one == path]
            reasons = ((each, why_unusable(each)) for each in (path, *twins))
            why += [f"{what}: {reason}: {each}" for each, reason in reasons if reason]
    return "; ".join(why)


def _refuse(
    root: str | Path, names: list[str], left_out: Mapping[str, str], modalities: list[str]
) -> None:
    """Stop where too many subjects are left out for an accident, or the names cannot serve."""
    if len(left_out) > len(names):
        lines = [f"  {name}: {why}" for name, why in left_out.items()]
        raise DataError(
            f"{root}: {len(left_out)} of {len(left_out) + len(names)} subjects have a missing "
            "file, or one that cannot be used:\n"
            + "\n".join([*lines[:20], *["  ..."][: len(lines) - 20]])
            + "\nOne such subject would be left out, but these are too many. Complete the tree "
            "(make datasets says what is missing; make import ARCHIVES=<the folder of the files>), "
            "or exclude the subjects in the config with the reason: datasets.<name>.exclude."
        )
    if not names:
        raise DataError(
            f"{root}: no subject has all of {', '.join(modalities)}. Import the rest (make "
            "datasets says what), or list what you have in the config: datasets.<name>.modalities."
        )
    labels = Counter(map(bids_label, names))
    if alike := [name for name in names if labels[bids_label(name)] > 1]:
        raise DataError(
            f"{root}: {', '.join(alike[:5])}: names that differ only in signs; rename one of them."
        )


def _refuse_other_twin(name: str, files: Files, needed: list[str]) -> None:
    """Stop where two files claim to be one image of a subject, and their voxels differ."""
    import numpy as np

    from uad.core.nifti import open_volume

    for one, other in files.twins:
        if one not in (files.get(what) for what in needed):
            continue
        first, second = open_volume(one), open_volume(other)
        same = np.array_equal(first.data, second.data, equal_nan=True)
        if not same or not np.allclose(first.affine, second.affine):
            raise DataError(
                f"{name}: {one} and {other} are the same image by their names, and differ. Remove "
                "the one that is wrong."
            )


def dead_links(root: str | Path, skip: Iterable[str | Path] = ()) -> list[Path]:
    """The links of a folder whose targets are gone, but for those below ``skip``."""
    broken = visible_files(root, LINKS_DEPTH, map(Path, skip), broken=True)
    return sorted(path for path in broken if path.is_symlink())


def about_dead_links(dead: Sequence[Path]) -> str:
    """What there is to say about links of :func:`dead_links`."""
    return (
        f"{len(dead)} link(s) lead nowhere, such as {dead[0]}, to {dead[0].readlink()}. Put "
        "the files back there, or import them from where they are now: make import "
        "ARCHIVES=<their folder>."
    )


def table_of(rows: Iterable[Mapping[str, str]]) -> pd.DataFrame:
    """A participants table of rows that have a public ``name``."""
    import pandas as pd

    return pd.DataFrame([{"subject": bids_label(row["name"]), **row} for row in rows])


def demographics_file(layout: AnyLayout, root: str | Path) -> Path | None:
    """The table of subjects at the root of a raw tree; of several the first, None without."""
    ages = layout_of(layout).ages
    paths = (Path(root) / name for name in (PARTICIPANTS, *(ages.files if ages else ())))
    return next((path for path in paths if path.is_file()), None)


def listing_digest(root: str | Path) -> str:
    """What tells that a raw tree has changed, without opening a scan.

    A digest of the names, sizes and times of the NIfTI files below ``root`` (links are followed),
    and of the bytes of the tables of subjects at its root.

    Raises:
        DataError: files are dated in the future: Snakemake would throw away whatever is made from
            them, as older than its input.
    """
    ages = [layout.ages for layout in known_layouts().values() if layout.ages]
    tables = {PARTICIPANTS, *(name for table in ages for name in table.files)}
    ahead, now = [], time.time_ns() + CLOCKS
    rows = [[p.name, sha256(p)] for p in (Path(root) / n for n in tables) if p.is_file()]
    for folder, _, files in os.walk(root, followlinks=True):
        for name in files:
            if name.lower().endswith((".nii.gz", ".nii")):
                path = Path(folder) / name
                row: list[Any] = [os.path.relpath(path, root)]
                if path.exists():  # else a link to nowhere
                    state = path.stat()
                    row += [state.st_size, state.st_mtime_ns]
                    ahead += [str(path)] if state.st_mtime_ns > now else []
                rows.append(row)
    if ahead:
        raise DataError(
            f"{root}: {len(ahead)} file(s) are dated in the future, for example {min(ahead)}. What "
            "is made from them would count as out of date at once and be thrown away. Is the clock "
            "of this machine right? Then date them back:\n"
            f"  find -L {shlex.quote(str(root))} -name '*.nii*' -newermt now -exec touch {{}} +"
        )
    return text_digest(sorted(rows))


def missing_data(datasets: Mapping[str, Any]) -> str:
    """What is missing of the raw trees of a config's data sets, where it is expected and how to
    get it, as a message for one screen; empty if every folder is there.
    """
    lines = []
    for name, dataset in datasets.items():
        if dataset.source in ("folder", "preprocessed") and not Path(dataset.path).is_dir():
            lines += [
                f"  {name}: no folder '{dataset.path}' (looked at {Path(dataset.path).resolve()})",
                f"      {load_registry().of_layout(dataset.layout).how_to_get()}",
            ]
    return "\n".join(["Raw data are missing:", *lines, WAYS]) if lines else ""
