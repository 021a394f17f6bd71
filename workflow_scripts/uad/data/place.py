"""From the archives and folders that a user has to the raw trees that the workflow reads.

What belongs to a data set is recognised by the patterns of its layout, in a folder and in an
archive alike, and ends where :mod:`uad.data.layouts` looks for it. Files of a folder are linked,
those of an archive unpacked. What is in the raw tree already stays.
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
from pathlib import Path
from typing import Any

import numpy as np

from uad.core.errors import DataError
from uad.core.files import atomic_path
from uad.core.patterns import LESION, AnyLayout, Layout, Member, layout_name, visible_files
from uad.data.disk import lock, size_of, staging
from uad.data.fit import fits
from uad.data.layouts import about_dead_links, dead_links
from uad.data.progress_bar import say
from uad.data.sources import DataSet, load_registry
from uad.data.unpack import extract, names_in

ARCHIVES = re.compile(r".*\.(zip|tar|tar\.gz|tgz|tar\.bz2|tar\.xz)", re.IGNORECASE)
#: How deep below a folder images are looked for, and how many members of an archive are read
#: to see what it is.
DEPTH, PROBE = 8, 40
NOTHING = "no image of a known data set in it"
ATLAS = "for 'preprocessing.atlas: download', put it into data/archives"
#: What file systems without symbolic links answer.
NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)


@dataclass(frozen=True)
class Imported:
    """What there is in a raw tree after an import: files that were placed now or kept, complete
    subjects of those that the public data set has, what these need, and what others lack.
    """

    layout: str
    raw_root: Path
    placed: int
    kept: int
    subjects: int
    expected: int
    needs: list[str]
    incomplete: dict[str, list[str]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def find_archives(
    folder: str | Path, layouts: Mapping[str, AnyLayout], skip: Iterable[str | Path] = ()
) -> tuple[dict[str, list[Path]], dict[Path, str]]:
    """The sources of each layout (by any name) in a folder: archives in it, and the folder itself
    if there are loose images below it; and the archives that are of none, with the reason.

    Archives are known by the name that their home gives them, others by the names of
    their first members. Raw trees (``skip``) are not looked into.

    Raises:
        DataError: there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder. Name the folder that holds your archives.")
    entries = {name: load_registry().of_layout(layout) for name, layout in layouts.items()}
    homes = {file.name: name for name, entry in entries.items() for file in entry.files}
    sources: dict[str, list[Path]] = {name: [] for name in entries}
    unknown = {}
    for path in sorted(p for p in folder.iterdir() if p.is_file() and ARCHIVES.fullmatch(p.name)):
        try:
            if layout := homes.get(path.name) or _layout_of(names_in(path, PROBE), entries):
                sources[layout].append(path)
            else:
                unknown[path] = ATLAS if path.name.startswith("sri24_") else NOTHING
        except DataError as error:
            unknown[path] = str(error).removeprefix(f"{path}: ")
    wanted = dict(entries)
    for path in visible_files(folder, DEPTH, map(Path, skip)):
        for name in [n for n, entry in wanted.items() if _loose(entry.layout, folder, path)]:
            sources[name].insert(0, folder)
            del wanted[name]
        if not wanted:
            break
    return {name: paths for name, paths in sources.items() if paths}, unknown


def _layout_of(names: list[str], entries: Mapping[str, DataSet]) -> str | None:
    for name, entry in entries.items():
        inner = entry.nested and any(re.fullmatch(entry.nested, n) for n in names)
        if inner or any(map(entry.layout.find, names)):
            return name
    return None


def _loose(layout: Layout, folder: Path, path: Path) -> Member | None:
    """What a loose file is; the folder may be that of a single subject."""
    relative = path.relative_to(folder).as_posix()
    return layout.find(relative) or layout.find(f"{folder.resolve().name}/{relative}")


def import_all(
    datasets: Mapping[str, tuple[AnyLayout, str | Path]],
    archives: str | Path,
    progress: bool = True,
) -> tuple[dict[str, Imported], dict[Path, str]]:
    """Bring everything that a folder holds into raw trees (layout and root, by name).

    Returns what was imported, by name, and the archives that were not used, with the reason.

    Raises:
        DataError: as :func:`import_sources`; or the folder holds nothing that is known.
    """
    layouts = {name: layout for name, (layout, _) in datasets.items()}
    roots = [root for _, root in datasets.values()]
    sources, unknown = find_archives(archives, layouts, roots)
    if dead := dead_links(archives, skip=roots):
        unknown[Path(archives)] = about_dead_links(dead)
    done = {
        name: import_sources(layouts[name], paths, Path(datasets[name][1]), progress)
        for name, paths in sources.items()
    }
    if not done:
        lines = [f"{archives}: nothing of {', '.join(datasets)} is in this folder. Expected are"]
        for name, (layout, _) in datasets.items():
            lines.append(f"  {name}: {load_registry().of_layout(layout).names_of()}")
        lines += [
            "or folders with the unpacked images. What is in it (for datasets.<name>.layout):",
            *fits(archives),
        ]
        lines += [f"Not used: {path.name}: {why}" for path, why in unknown.items()]
        raise DataError("\n".join(lines))
    return done, unknown


def import_sources(
    layout: AnyLayout, sources: Iterable[Path], raw_root: Path, progress: bool = True
) -> Imported:
    """Bring what some archives and folders have of a data set into its raw tree.

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
                if source.is_dir():
                    work.take_folder(source)
                else:
                    work.take_archive(source, progress)
            work.leave_out()
            work.check_grids()
            work.place()
    finally:
        with contextlib.suppress(OSError):
            if made:
                raw_root.rmdir()  # if nothing came
    did = {"placed": len(work.new), "kept": len(work.kept), "left_out": work.left_out}
    return state_of(layout, raw_root, **did)


def state_of(
    layout: AnyLayout, raw_root: Path, needs: list[str] | None = None, **did: Any
) -> Imported:
    """How complete a raw tree, which may be missing, is by its names; ``did``: an import's work."""
    entry = load_registry().of_layout(layout)
    needs = needs or entry.layout.needs()
    found = entry.layout.scan(raw_root)
    lacks = {name: [n for n in needs if n not in has] for name, has in found.items()}
    lacks = {name: missing for name, missing in lacks.items() if missing}
    did = {"placed": 0, "kept": sum(map(len, found.values()))} | did
    complete, expected = len(found) - len(lacks), entry.expected_for(needs)
    return Imported(
        layout_name(layout),
        raw_root,
        **did,
        subjects=complete,
        expected=expected,
        needs=needs,
        incomplete=lacks,
    )


def describe(name: str, imported: Imported) -> str:
    """What an import did, as lines for a person."""
    of = f" of {imported.expected}" if imported.expected else ""
    text = (
        f"{name}: {imported.subjects}{of} subjects with "
        f"{', '.join(imported.needs)} in {imported.raw_root} "
        f"({imported.placed} files new, {imported.kept} kept)"
    )
    holes: dict[str, list[str]] = {}
    for subject, missing in imported.incomplete.items():
        holes.setdefault(", ".join(missing), []).append(subject)
    for missing, subjects in holes.items():
        more = " ..." if len(subjects) > 3 else ""
        text += f"\n  {len(subjects)} subject(s) lack {missing}: {', '.join(subjects[:3])}{more}"
    if out := imported.left_out:
        more = " ..." if len(out) > 3 else ""
        text += (
            f"\n  {len(out)} subject(s) without a lesion mask left out: {', '.join(out[:3])}{more}"
        )
    return text


class _Import:
    """One import into one raw tree.

    Attributes:
        new: the content of each file that has to be placed, by its place.
        kept: places of the files that are in the raw tree already.
        left_out: subjects without a lesion mask.
    """

    def __init__(self, layout: AnyLayout, raw_root: Path, temporary: Path) -> None:
        self.name, self.entry = layout_name(layout), load_registry().of_layout(layout)
        self.layout: Layout = self.entry.layout
        self.raw_root, self.temporary = raw_root, temporary
        self.new: dict[str, Path] = {}
        self.kept: set[str] = set()
        self.left_out: list[str] = []

    def there(self, relative: str) -> Path | None:
        """The file that has a place already, of the raw tree or of an earlier source."""
        place = self.new.get(relative, self.raw_root / relative)
        if place.exists() and relative not in self.new:
            self.kept.add(relative)
        return place if place.exists() else None

    def take_folder(self, folder: Path) -> None:
        """Take the images below a folder; where there is one already, it must be the same."""
        for path in visible_files(folder, DEPTH, [self.raw_root]):
            if member := _loose(self.layout, folder, path):
                relative, path = member.place, path.resolve()
                if (there := self.there(relative)) is None:
                    self.new[relative] = path
                elif not there.samefile(path) and not _same(there, path):
                    raise self.differs(relative, path, size_of(path))

    def take_archive(self, archive: Path, progress: bool) -> None:
        """Unpack images of an archive; where there is one already, it must have the same size."""
        seen: list[str] = []

        def select(name: str, size: int) -> str | None:
            seen.append(name)
            if (member := self.layout.find(name)) is None:
                return None
            known.append(relative := member.place)
            if (there := self.there(relative)) is None:
                return relative
            if size_of(there) != size:
                raise self.differs(relative, archive, size)
            return None

        known: list[str] = []
        folder = self.temporary / str(len(list(self.temporary.iterdir())))
        self.new |= extract(archive, folder, select, self.entry.nested, progress)
        if not known:
            raise DataError(
                f"{archive}: no image of the {self.name} data set is in it (it begins with "
                f"{', '.join(seen[:3]) or 'nothing'}). Is it the right archive?"
            )

    def differs(self, relative: str, source: Path, size: int) -> DataError:
        """The error for a file whose place another one has."""
        there = self.new.get(relative, self.raw_root / relative)
        return DataError(
            f"{relative} is in {source} ({size} bytes), but {there} is another file "
            f"({size_of(there)} bytes). Nothing was imported. Remove one of the two, then "
            "import again."
        )

    def leave_out(self) -> None:
        """Leave out new subjects that have no lesion mask, as in a challenge's validation data."""
        if self.layout.healthy:
            return
        whose = {relative: self.layout.find(relative) for relative in self.new}
        masked = {name for name, has in self.layout.scan(self.raw_root).items() if LESION in has}
        masked |= {member.subject for member in whose.values() if member.role == LESION}
        self.left_out = sorted({member.subject for member in whose.values()} - masked)
        for relative, member in whose.items():
            if member.subject in self.left_out:
                del self.new[relative]

    def check_grids(self) -> None:
        """Check that new images, or those with a new lesion mask, are on the grid of the mask."""
        if not self.layout.same_grid:
            return
        subjects, changed = self.layout.scan(self.raw_root), set()
        for relative, path in self.new.items():
            member = self.layout.find(relative)
            subjects.setdefault(member.subject, {})[member.role] = path
            changed.add(member.subject)
        for subject in sorted(changed):
            files = subjects[subject]
            for role in sorted(files) if LESION in files else ():
                if why := _apart(files[role], files[LESION]):
                    raise DataError(
                        f"{subject}: {role} is not on the grid of its lesion mask ({why}). These "
                        "are probably raw images. Import the co-registered ones (docs/data.md). "
                        "Nothing was imported."
                    )

    def place(self) -> None:
        """Put every new file in its place: unpacked ones are moved, others linked."""
        linking = True
        for relative, path in self.new.items():
            target, unpacked = self.raw_root / relative, self.temporary in path.parents
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.unlink(missing_ok=True)  # a link to nowhere, for there is no file
                try:
                    os.replace(path, target) if unpacked else target.symlink_to(path)
                except OSError as error:
                    # a folder of the raw tree may be on another disk
                    if error.errno not in ((errno.EXDEV,) if unpacked else NO_LINKS):
                        raise
                    if not unpacked and linking:
                        say(f"{self.raw_root}: links do not work here; the images are copied")
                        linking = False
                    copy(path, target)
            except OSError as error:
                raise DataError(
                    f"{target}: cannot be written ({error.strerror or error}). Import again when "
                    "this is repaired; what is there is kept."
                ) from error


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
    from uad.core.nifti import GRID_TOLERANCE, corner_distance, read_grid

    (shape, affine), (wanted, reference) = read_grid(path), read_grid(mask)
    if shape != wanted:
        return f"{'x'.join(map(str, shape))} voxels instead of {'x'.join(map(str, wanted))}"
    distance = corner_distance(affine, reference, shape)
    near = distance <= GRID_TOLERANCE * float(np.linalg.norm(reference[:3, :3], axis=0).min())
    return None if near else f"{distance:.1f} mm apart"
