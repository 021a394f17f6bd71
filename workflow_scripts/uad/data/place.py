"""From the archives and folders that a user has to the raw trees that the workflow reads.

What belongs to a data set is recognised by the patterns of its layout, in a folder and in an
archive alike, and ends where :mod:`uad.data.layouts` looks for it. Files of a folder are linked,
those of an archive unpacked. ``import.tsv`` in the raw tree, written last, says from which sources
each file is known; these need not be read again.
"""

from __future__ import annotations

import contextlib
import errno
import filecmp
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal

from uad.core.errors import DataError
from uad.core.files import atomic_path
from uad.core.patterns import LESION, Layout, Member, visible_files
from uad.data.disk import lock, size_of, staging
from uad.data.manifest import Manifest
from uad.data.progress_bar import Show, say
from uad.data.sources import load_registry
from uad.data.unpack import extract, names_in

ARCHIVES = re.compile(r".*\.(zip|tar|tar\.gz|tgz|tar\.bz2|tar\.xz)", re.IGNORECASE)
#: How deep below a folder images are looked for, and how many members of an archive are read
#: to see what it is.
DEPTH, PROBE = 6, 40
#: How far apart (in voxels) the corners of two images on one grid may lie.
GRID_TOLERANCE = 0.5
#: What file systems without symbolic links answer.
NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)


@dataclass(frozen=True)
class Source:
    """An archive, or a folder with loose images somewhere below, of one data set."""

    layout: str
    path: Path
    kind: Literal["archive", "folder"]


@dataclass(frozen=True)
class Found:
    """What is recognised in a folder; archives that are not, with the reason."""

    sources: list[Source]
    unknown: dict[Path, str]


@dataclass(frozen=True)
class Imported:
    """What there is in a raw tree after an import.

    Attributes:
        placed: files that were linked, copied or unpacked now.
        kept: files that were there already.
        subjects: complete subjects; of ``expected`` that the public data set has.
        needs: what a complete subject has.
        duplicates: files that two sources have, compared and found the same.
        incomplete: what other subjects lack, by subject.
    """

    layout: str
    raw_root: Path
    placed: int
    kept: int
    subjects: int
    expected: int
    needs: list[str]
    duplicates: int = 0
    incomplete: dict[str, list[str]] = field(default_factory=dict)


# --- recognise


def find_archives(
    folder: str | os.PathLike[str], skip: Iterable[str | os.PathLike[str]] = ()
) -> Found:
    """Recognise the data sets in a folder: archives in it, and loose images below it.

    Archives are known by the name that their home gives them, others by the names of
    their first members.

    Args:
        folder: the folder.
        skip: folders not to look into (raw trees).

    Raises:
        DataError: there is no such folder.
    """
    folder, registry = Path(folder), load_registry()
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder. Name the folder that holds your archives.")
    layouts = {name: e.layout for name, e in registry.datasets.items() if e.layout}
    homes = {f.name: name for name, e in registry.datasets.items() if e.layout for f in e.files}
    archives, unknown, loose = [], {}, set()
    for path in sorted(p for p in folder.iterdir() if p.is_file() and ARCHIVES.fullmatch(p.name)):
        try:
            layout = homes.get(path.name) or _layout_of(names_in(path, PROBE))
        except DataError as error:
            unknown[path] = str(error).removeprefix(f"{path}: ")
            continue
        if layout:
            archives.append(Source(layout, path, "archive"))
        else:
            unknown[path] = "no image of a known data set in it"
    for path in visible_files(folder, DEPTH, [Path(s) for s in skip]):
        loose |= {name for name, layout in layouts.items() if _loose(layout, folder, path)}
        if len(loose) == len(layouts):
            break
    folders = [Source(name, folder, "folder") for name in layouts if name in loose]
    return Found([*folders, *archives], unknown)


def _layout_of(names: list[str]) -> str | None:
    for name, entry in load_registry().datasets.items():
        inner = entry.nested and any(re.fullmatch(entry.nested, n) for n in names)
        if inner or (entry.layout and any(map(entry.layout.find, names))):
            return name
    return None


def _loose(layout: Layout, folder: Path, path: Path) -> Member | None:
    """What a loose file is; the folder may be that of a single subject."""
    relative = path.relative_to(folder).as_posix()
    return layout.find(relative) or layout.find(f"{folder.resolve().name}/{relative}")


# --- import


def import_all(
    datasets: Mapping[str, tuple[str, str | os.PathLike[str]]],
    archives: str | os.PathLike[str],
    *,
    progress: Show = True,
    need: bool = True,
) -> tuple[dict[str, Imported], Found]:
    """Bring everything that a folder holds into the raw trees.

    Args:
        datasets: layout and raw tree of each data set of the config, by name.
        archives: the user's folder.
        progress: see :data:`uad.data.progress_bar.Show`.
        need: whether a folder without any of them is an error.

    Returns:
        What was imported, by name, and what was found in the folder.

    Raises:
        DataError: as :func:`import_sources`; or the folder holds nothing that is known.
    """
    registry = load_registry()
    found = find_archives(archives, skip=[root for _, root in datasets.values()])
    done = {}
    for name, (layout, root) in datasets.items():
        if sources := [s for s in found.sources if s.layout == layout]:
            done[name] = import_sources(layout, sources, Path(root), progress)
    if need and not done:
        expected = {name: registry.of_layout(layout) for name, (layout, _) in datasets.items()}
        lines = [f"{archives}: nothing of {', '.join(datasets)} is in this folder. Expected are"]
        lines += [f"  {name}: {entry.names_of()}" for name, entry in expected.items()]
        lines += ["or folders with the unpacked images."]
        lines += [f"Not used: {path.name}: {why}" for path, why in found.unknown.items()]
        raise DataError("\n".join(lines))
    return done, found


def import_sources(
    layout: str, sources: Iterable[Source], raw_root: Path, progress: Show = True
) -> Imported:
    """Bring what some sources have of a data set into its raw tree.

    Raises:
        DataError: an archive is damaged or of something else, a file of the raw tree or of another
            source differs, images are on another grid, or the disk is full.
    """
    made = not raw_root.exists()
    raw_root.mkdir(parents=True, exist_ok=True)
    try:
        with lock(raw_root, progress), staging(raw_root, "import") as temporary:
            work = _Import(layout, raw_root, temporary)
            for source in sources:
                if source.kind == "folder":
                    work.folder(source.path)
                else:
                    work.archive(source.path, progress)
            work.check_grids()
            work.place()
    finally:
        with contextlib.suppress(OSError):
            if made:
                raw_root.rmdir()  # if nothing came
    kept = len(work.kept - set(work.new))
    return state_of(layout, raw_root, placed=len(work.new), kept=kept, duplicates=work.duplicates)


def state_of(layout: str, raw_root: Path, needs: list[str] | None = None, **did: int) -> Imported:
    """How complete a raw tree is by its names.

    Args:
        layout: of which data set.
        raw_root: the raw tree; may be missing.
        needs: what a complete subject has; default: :meth:`Layout.needs`.
        did: ``placed``, ``kept`` and ``duplicates`` of an import.
    """
    entry = load_registry().of_layout(layout)
    needs = needs or entry.layout.needs()
    found = entry.layout.scan(raw_root)
    lacks = {name: [n for n in needs if n not in has] for name, has in found.items()}
    lacks = {name: missing for name, missing in lacks.items() if missing}
    return Imported(
        layout=layout,
        raw_root=raw_root,
        subjects=len(found) - len(lacks),
        expected=entry.expected_for(needs),
        needs=needs,
        incomplete=lacks,
        **({"placed": 0, "kept": sum(map(len, found.values()))} | did),
    )


class _Import:
    """One import into one raw tree.

    Attributes:
        new: where the content of each file is that has to be placed, and its source, by place.
        kept: places of the files that are in the raw tree already.
        duplicates: how many files were compared and found the same.
    """

    def __init__(self, layout: str, raw_root: Path, temporary: Path) -> None:
        self.name, self.entry = layout, load_registry().of_layout(layout)
        self.layout: Layout = self.entry.layout
        self.raw_root, self.temporary = raw_root, temporary
        self.manifest = Manifest(raw_root)
        self.new: dict[str, tuple[Path, Path]] = {}
        self.kept: set[str] = set()
        self.duplicates = 0
        self.links = True

    def folder(self, folder: Path) -> None:
        """Take the images below a folder."""
        for path in visible_files(folder, DEPTH, [self.raw_root]):
            if member := _loose(self.layout, folder, path):
                self.add(self.layout.path_of(member), path.resolve(), path.resolve())

    def archive(self, archive: Path, progress: Show) -> None:
        """Unpack the images of an archive that are not known to be in the raw tree."""
        archive = archive.resolve()
        known = self.manifest.known_from(archive) if archive.exists() else {}
        self.kept |= {relative for relative, there in known.items() if there}
        if known and all(known.values()):
            return
        seen: list[str] = []

        def select(name: str) -> str | None:
            seen.append(name)
            if (member := self.layout.find(name)) is None:
                return None
            relative = self.layout.path_of(member)
            return None if known.get(relative) else relative

        folder = self.temporary / str(len(list(self.temporary.iterdir())))
        nested = self.entry.nested
        files = extract(archive, folder, select, nested=nested, progress=progress)
        for relative, path in files.items():
            self.add(relative, path, archive)
        if not files and not known:
            raise DataError(
                f"{archive}: no image of the {self.name} data set is in it (it begins with "
                f"{', '.join(seen[:3]) or 'nothing'}). Is it the right archive?"
            )

    def add(self, relative: str, path: Path, source: Path) -> None:
        """Take a file, unless another source or the raw tree has it.

        Raises:
            DataError: they have another file in its place.
        """
        size, there = size_of(path), self.raw_root / relative
        if relative in self.new:
            other, origin = self.new[relative]
        elif there.exists():
            other = origin = there
            self.kept.add(relative)
        else:
            self.new[relative] = path, source
            self.manifest.add(relative, size, source)
            return
        known = other == there and self.manifest.knows(relative, source)
        if not known and not other.samefile(path):
            if not _same(other, path):
                raise DataError(
                    f"{relative} is in {source} ({size} bytes), but {origin} is another file "
                    f"({size_of(other)} bytes). Nothing was imported. Remove one of the two, then "
                    "import again."
                )
            self.duplicates += 1
        self.manifest.add(relative, size, source)

    def check_grids(self) -> None:
        """Check that new images, or those with a new lesion mask, are on the grid of the mask.

        Raises:
            DataError: one is not, or cannot be read.
        """
        if not self.layout.same_grid:
            return
        subjects = self.layout.scan(self.raw_root)
        for relative, (path, _) in self.new.items():
            member = self.layout.find(relative)
            subjects.setdefault(member.subject, {})[member.role] = path
        changed = {self.layout.find(relative).subject for relative in self.new}
        for subject in sorted(changed):
            mask = subjects[subject].get(LESION)
            for role, path in sorted(subjects[subject].items()) if mask else ():
                if (apart := _apart(path, mask)) is not None:
                    raise DataError(
                        f"{subject}: {role} is not on the grid of its lesion mask ({apart}). These "
                        "are probably raw images. Import the co-registered ones (docs/data.md). "
                        "Nothing was imported."
                    )

    def place(self) -> None:
        """Put every new file in its place, then write the manifest.

        Raises:
            DataError: a file cannot be written.
        """
        for relative, (path, _) in self.new.items():
            target = self.raw_root / relative
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.unlink(missing_ok=True)  # a link to nowhere, for there is no file
                self._put(path, target)
            except OSError as error:
                raise DataError(
                    f"{target}: cannot be written ({error.strerror or error}). Import again when "
                    "this is repaired; what is there is kept."
                ) from error
        self.manifest.write()

    def _put(self, path: Path, target: Path) -> None:
        unpacked = self.temporary in path.parents
        try:
            if unpacked:
                os.replace(path, target)
                return
            if self.links:
                target.symlink_to(path)
                return
        except OSError as error:
            # a folder of the raw tree may be on another disk
            if error.errno not in ((errno.EXDEV,) if unpacked else NO_LINKS):
                raise
            if not unpacked:
                say(f"{self.raw_root}: links do not work here; the images are copied")
                self.links = False
        copy(path, target)


def copy(source: Path, target: Path) -> None:
    """Copy a file, whole or not at all."""
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def _same(one: Path, other: Path) -> bool:
    try:
        return filecmp.cmp(one, other, shallow=False)
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}).") from error


def _apart(path: Path, mask: Path) -> str | None:
    """How two images differ in their grid; None if they do not."""
    import numpy as np

    (shape, affine), (wanted, reference) = _grid(path), _grid(mask)
    if shape != wanted:
        return f"{'x'.join(map(str, shape))} voxels instead of {'x'.join(map(str, wanted))}"
    corners = np.array([[*corner, 1] for corner in product(*((0, n - 1) for n in shape))]).T
    distance = float(np.linalg.norm(((affine - reference) @ corners)[:3], axis=0).max())
    voxel = float(np.linalg.norm(reference[:3, :3], axis=0).min())
    return f"{distance:.1f} mm apart" if distance > GRID_TOLERANCE * voxel else None


def _grid(path: Path) -> tuple[tuple[int, ...], Any]:
    """Shape and affine of an image."""
    import nibabel as nib

    try:
        image = nib.load(path)
        return image.shape[:3], image.affine
    except (nib.filebasedimages.ImageFileError, OSError, EOFError, ValueError) as error:
        raise DataError(
            f"{path.name}: cannot be read as a NIfTI volume ({error}). Get it again."
        ) from error


def is_imported(source: Source, raw_root: Path) -> bool:
    """Whether all images of an archive or a folder, as they are now, are in a raw tree."""
    manifest, path = Manifest(raw_root), source.path.resolve()
    if source.kind == "archive":
        known = manifest.known_from(path)
        return bool(known) and all(known.values())
    layout = load_registry().of_layout(source.layout).layout
    members = ((f, _loose(layout, path, f)) for f in visible_files(path, DEPTH, [raw_root]))
    return all(manifest.knows(layout.path_of(m), f.resolve()) for f, m in members if m)


def describe(name: str, imported: Imported) -> str:
    """What an import did, as lines for a person."""
    same = f", {imported.duplicates} compared: the same" if imported.duplicates else ""
    text = (
        f"{name}: {imported.subjects} of {imported.expected} subjects with "
        f"{', '.join(imported.needs)} in {imported.raw_root} "
        f"({imported.placed} files new, {imported.kept} kept{same})"
    )
    holes: dict[str, list[str]] = {}
    for subject, missing in imported.incomplete.items():
        holes.setdefault(", ".join(missing), []).append(subject)
    for missing, subjects in holes.items():
        more = " ..." if len(subjects) > 3 else ""
        text += f"\n  {len(subjects)} subject(s) lack {missing}: {', '.join(subjects[:3])}{more}"
    return text
