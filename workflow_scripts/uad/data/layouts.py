"""The public raw layouts of the data sets, and how to find the subjects in them.

Layouts: IXI as unpacked from ``IXI-T1.tar`` and ``IXI-T2.tar``
(brain-development.org), BraTS 2021 training data, MSLUB cross-sectional data
(lit.fe.uni-lj.si, or muschellij2/open_ms_data).
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uad.core.errors import DataError
from uad.core.files import sha256, text_digest
from uad.data.modalities import LAYOUT_MODALITIES

if TYPE_CHECKING:
    import pandas as pd

#: How to get each data set, shown when its raw tree is missing.
HOW_TO_GET = {
    "ixi": (
        "IXI (CC BY-SA 3.0): unpack IXI-T1.tar and IXI-T2.tar from "
        "https://brain-development.org/ixi-dataset/ into IXI-T1/ and IXI-T2/"
    ),
    "brats21": (
        "BraTS 2021 training data (register and accept the terms): Synapse syn25829067, or "
        "Kaggle dschettler8845/brats-2021-task1; unpack BraTS2021_Training_Data.tar"
    ),
    "mslub": (
        "MSLUB (CC BY): https://lit.fe.uni-lj.si/en/research/resources/3D-MR-MS/ ; "
        "one folder patientXX per patient, co-registered images"
    ),
}

#: The table of subjects of BIDS, which any raw tree may have at its root.
PARTICIPANTS = "participants.tsv"
#: Published tables of subjects, by layout: the file as it is, or saved as text.
DEMOGRAPHICS = {"ixi": ("IXI.xls", "IXI.csv", "IXI.tsv")}

_SUFFIXES = (".nii.gz", ".nii")


def bids_label(name: str) -> str:
    """The public subject name as a BIDS label (letters and digits only)."""
    return re.sub(r"[^A-Za-z0-9]", "", name)


def _first(candidates: Iterator[Path]) -> str:
    return next((str(path) for path in candidates if path.exists()), "")


def _ixi(root: Path, modality: str) -> Iterator[tuple[str, str, str]]:
    folder = root / f"IXI-{modality}"
    pattern = re.compile(rf"(IXI\d{{3}}-[A-Za-z]+-\d{{4}})-{modality}\.nii(\.gz)?")
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if match := pattern.fullmatch(path.name):
            yield match[1], str(path), ""


def _per_subject(pattern: str, lesions: tuple[str, ...]) -> Callable:
    def scan(root: Path, token: str) -> Iterator[tuple[str, str, str]]:
        folders = root.iterdir() if root.is_dir() else []
        for folder in sorted(f for f in folders if re.fullmatch(pattern, f.name) and f.is_dir()):
            name = folder.name
            stems = (f"{name}_{token}", token)
            image = _first(folder / f"{stem}{s}" for stem in stems for s in _SUFFIXES)
            lesion = _first(
                folder / f"{stem.format(name)}{s}" for stem in lesions for s in _SUFFIXES
            )
            yield name, image, lesion

    return scan


_SCANNERS = {
    "ixi": _ixi,
    "brats21": _per_subject(r"BraTS2021_\d{5}", ("{}_seg",)),
    "mslub": _per_subject(r"patient\d{2}", ("{}_consensus_gt", "consensus_gt")),
}


def excluded_names(
    exclude: Iterable[str], names: Iterable[str], root: str | Path
) -> dict[str, str]:
    """Public names of the subjects that are left out.

    Args:
        exclude: public names or BIDS labels.
        names: public names of all subjects of the tree.
        root: the tree, for the message.

    Returns:
        Public name by the name as it was given.

    Raises:
        DataError: there is no such subject.
    """
    known = {name: name for name in names}
    known |= {bids_label(name): name for name in known}
    for name in exclude:
        if name not in known:
            match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f" (did you mean '{match[0]}'?)" if match else ""
            raise DataError(
                f"{root}: excluded subject '{name}' is not there{hint}; check its name in the "
                "config (datasets.<name>.exclude) or in the decision file (qc.decisions)."
            )
    return {name: known[name] for name in exclude}


def index_dataset(
    layout: str,
    root: str | Path,
    modalities: list[str],
    exclude: dict[str, str] | None = None,
    limit: int | None = None,
) -> pd.DataFrame:
    """List the subjects of a raw tree, without opening an image.

    Args:
        layout: ``ixi``, ``brats21`` or ``mslub``.
        root: the raw tree.
        modalities: our modality names; a subject needs a file for each.
        exclude: subjects to leave out, by public name or BIDS label, with the reason.
        limit: keep the first that many subjects by name.

    Returns:
        One row per subject and modality, sorted: ``subject`` (BIDS label), ``name``
        (public name), ``site``, ``modality``, ``image``, ``lesion`` (empty for healthy).

    Raises:
        DataError: no subject, an incomplete subject, an unknown excluded name.
    """
    import pandas as pd

    root = Path(root)
    exclude = exclude or {}
    table: dict[str, dict[str, tuple[str, str]]] = {}
    for modality in modalities:
        token = LAYOUT_MODALITIES[layout].get(modality)
        if token is None:
            raise DataError(f"{root}: the {layout} data set has no {modality} images.")
        for name, image, lesion in _SCANNERS[layout](root, token):
            table.setdefault(name, {})[modality] = (image, lesion)
    if not table:
        raise DataError(f"{root}: no subject in the {layout} layout. {HOW_TO_GET[layout]}.")
    left_out = set(excluded_names(exclude, table, root).values())
    # IXI lists T1 and T2 in two folders and some subjects have only one of them: the
    # public set is used as it is, by those with all modalities. Elsewhere a gap is a fault.
    names = [n for n in sorted(table) if n not in left_out]
    gaps = [
        f"{name} ({modality})"
        for name in names
        for modality in modalities
        if not table[name].get(modality, ("", ""))[0]
    ]
    if gaps and layout != "ixi":
        raise DataError(
            f"{root}: {len(gaps)} missing image(s): {', '.join(gaps[:5])}"
            f"{' ...' if len(gaps) > 5 else ''}. Complete the raw tree, or exclude the "
            "subject(s) in the config with a reason."
        )
    names = [n for n in names if all(table[n].get(m, ("",))[0] for m in modalities)][:limit]
    lesionless = [n for n in names if layout != "ixi" and not table[n][modalities[0]][1]]
    if lesionless:
        raise DataError(
            f"{root}: no lesion mask for {', '.join(lesionless[:5])}. Complete the raw tree, or "
            "exclude the subject(s) in the config with a reason."
        )
    if not names:
        raise DataError(
            f"{root}: no subject has all of {', '.join(modalities)}. Import the rest (make "
            "datasets says what), or list what you have in the config: datasets.<name>.modalities."
        )
    rows = [
        {
            "subject": bids_label(name),
            "name": name,
            "site": name.split("-")[1] if layout == "ixi" else layout,
            "modality": modality,
            "image": table[name][modality][0],
            "lesion": table[name][modality][1],
        }
        for name in names
        for modality in modalities
    ]
    return pd.DataFrame(rows)


def demographics_file(layout: str, root: str | Path) -> Path | None:
    """The table of subjects at the root of a raw tree; of several the first, None without.

    Args:
        layout: ``ixi``, ``brats21`` or ``mslub``.
        root: the raw tree.
    """
    paths = (Path(root) / name for name in (PARTICIPANTS, *DEMOGRAPHICS.get(layout, ())))
    return next((path for path in paths if path.is_file()), None)


def listing_digest(root: str | Path, *, content: bool = False) -> str:
    """What tells that a raw tree has changed, without opening a file.

    Args:
        root: the raw tree.
        content: also sizes and times of the files, not only their names.

    Returns:
        A digest of the NIfTI files' names below ``root`` (links are followed), and of the bytes
        of the tables of subjects at its root.
    """
    tables = {PARTICIPANTS, *(name for names in DEMOGRAPHICS.values() for name in names)}
    rows = [[p.name, sha256(p)] for p in (Path(root) / n for n in tables) if p.is_file()]
    for folder, _, files in os.walk(root, followlinks=True):
        for name in files:
            if name.endswith(_SUFFIXES):
                path = Path(folder) / name
                row: list[Any] = [os.path.relpath(path, root)]
                if content:
                    state = path.stat()
                    row += [state.st_size, state.st_mtime_ns]
                rows.append(row)
    return text_digest(sorted(rows))


def missing_data(datasets: Mapping[str, Any]) -> str:
    """What is missing of the raw trees, where it is expected and how to get it.

    Args:
        datasets: the data sets of the config (attributes ``source``, ``path``, ``layout``).

    Returns:
        A message for one screen; empty if every folder is there.
    """
    lines = []
    for name, dataset in datasets.items():
        if dataset.source in ("folder", "preprocessed") and not Path(dataset.path).is_dir():
            lines += [
                f"  {name}: no folder '{dataset.path}' (looked at {Path(dataset.path).resolve()})",
                f"      {HOW_TO_GET[dataset.layout]}.",
            ]
    if not lines:
        return ""
    return "\n".join(
        [
            "Raw data are missing:",
            *lines,
            "With the archives in one folder: make import ARCHIVES=/that/folder (docs/data.md). Or",
            "put or link each tree there, or name another: datasets.<name>.path in the config.",
            "What is there and what is missing: make datasets. To try the workflow without any",
            "data: make demo (a synthetic phantom).",
        ]
    )
