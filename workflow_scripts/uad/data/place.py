"""From the archives and folders that a user has to the raw trees that the workflow reads.

What belongs to a data set is recognised by the patterns of its layout, in a folder and in an
archive alike, and ends where :mod:`uad.data.layouts` looks for it. Files of a folder are linked,
those of an archive unpacked. What is in the raw tree already stays.
"""

from __future__ import annotations

import contextlib
import filecmp
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from uad.core.errors import DataError, first_of
from uad.core.files import atomic_path
from uad.core.patterns import LESION, AnyLayout, Layout, Member, layout_name, visible_files
from uad.data.disk import cannot_use, lock, size_of, staging
from uad.data.fit import fits
from uad.data.layouts import about_dead_links, dead_links
from uad.data.progress_lines import say
from uad.data.sources import DataSet, load_registry
from uad.data.unpack import extract, names_in

ARCHIVES = re.compile(r".*\.(zip|tar|tar\.gz|tgz|tar\.bz2|tar\.xz)", re.IGNORECASE)
#: How deep below a folder images are looked for, and how many members of an archive are read
#: to see what it is.
DEPTH, PROBE = 8, 40
NOTHING = "no image of a known data set in it"
ATLAS = "for 'preprocessing.atlas: download', put it into data/archives"


class Imported(NamedTuple):
    """What there is in a raw tree after an import: files that were placed now or kept, complete
    subjects of those that the public data set has, what these need, what others lack, and whom the
    import left out for want of a lesion mask.
    """

    layout: str
    raw_root: Path
    placed: int
    kept: int
    subjects: int
    expected: int
    needs: list[str]
    incomplete: dict[str, list[str]]
    left_out: list[str]


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
            if name := homes.get(path.name) or _layout_of(names_in(path, PROBE), entries):
                sources[name].append(path)
            else:
                unknown[path] = ATLAS if path.name.startswith("sri24_") else NOTHING
        except DataError as error:
            unknown[path] = str(error).removeprefix(f"{path}: ")
    paths = list(visible_files(folder, DEPTH, map(Path, skip)))
    for name, entry in entries.items():
        if any(_loose(entry.layout, folder, path) for path in paths):
            sources[name].insert(0, folder)
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
    datasets: Mapping[str, tuple[AnyLayout, str | Path]], archives: str | Path
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
    if not sources:
        lines = [f"{archives}: nothing of {', '.join(datasets)} is in this folder. Expected are"]
        for name, layout in layouts.items():
            lines.append(f"  {name}: {load_registry().of_layout(layout).names_of()}")
        lines.append(
            "or folders with the unpacked images. What is in it (for datasets.<name>.layout):"
        )
        unused = [f"Not used: {path.name}: {why}" for path, why in unknown.items()]
        raise DataError("\n".join([*lines, *fits(archives), *unused]))
    done = {
        name: import_sources(layouts[name], paths, Path(datasets[name][1]))
        for name, paths in sources.items()
    }
    return done, unknown


def import_sources(layout: AnyLayout, sources: Iterable[Path], raw_root: Path) -> Imported:
    """Bring what some archives and folders have of a data set into its raw tree.

    Raises:
        DataError: an archive is damaged or of something else, a file of the raw tree or of another
            source differs, images are on another grid, or the disk is full.
    """
    made = not raw_root.exists()
    raw_root.mkdir(parents=True, exist_ok=True)
    try:
        with lock(raw_root), staging(raw_root, "import") as temporary:
            work = _Import(layout, raw_root, temporary)
            for source in sources:
                work.take_folder(source) if source.is_dir() else work.take_archive(source)
            left_out = work.leave_out()
            work.check_grids()
            work.place()
    finally:
        with contextlib.suppress(OSError):
            if made:
                raw_root.rmdir()  # if nothing came
    return state_of(layout, raw_root, placed=len(work.new), kept=len(work.kept), left_out=left_out)


def state_of(
    layout: AnyLayout, raw_root: Path, needs: list[str] | None = None, **did: Any
) -> Imported:
    """How complete a raw tree, which may be missing, is by its names; ``did``: an import's work."""
    entry = load_registry().of_layout(layout)
    needs = needs or entry.layout.needs()
    found = entry.layout.scan(raw_root)
    lacks = {name: [n for n in needs if n not in has] for name, has in found.items()}
    lacks = {name: missing for name, missing in lacks.items() if missing}
    return Imported(
        **({"placed": 0, "kept": sum(map(len, found.values())), "left_out": []} | did),
        layout=layout_name(layout),
        raw_root=raw_root,
        subjects=len(found) - len(lacks),
        expected=entry.expected_for(needs),
        needs=needs,
        incomplete=lacks,
    )


def describe(name: str, imported: Imported) -> str:
    """What an import did, as lines for a person."""
    of = f" of {imported.expected}" if imported.expected else ""
    lines = [
        f"{name}: {imported.subjects}{of} subjects with {', '.join(imported.needs)} in "
        f"{imported.raw_root} ({imported.placed} files new, {imported.kept} kept)"
    ]
    holes: dict[str, list[str]] = {}
    for subject, missing in imported.incomplete.items():
        holes.setdefault(f"lack {', '.join(missing)}", []).append(subject)
    if imported.left_out:
        holes["without a lesion mask left out"] = imported.left_out
    for what, subjects in holes.items():
        lines.append(f"  {len(subjects)} subject(s) {what}: {first_of(subjects, 3)}")
    return "\n".join(lines)


class _Import:
    """One import into one raw tree.

    Attributes:
        new: the content of each file that has to be placed, by its place.
        kept: places of the files that are in the raw tree already.
    """

    def __init__(self, layout: AnyLayout, raw_root: Path, temporary: Path) -> None:
        self.name, self.entry = layout_name(layout), load_registry().of_layout(layout)
        self.layout: Layout = self.entry.layout
        self.raw_root, self.temporary = raw_root, temporary
        self.new: dict[str, Path] = {}
        self.kept: set[str] = set()

    def there(self, relative: str) -> Path | None:
        """The file that has a place already, of the raw tree or of an earlier source."""
        if relative in self.new:
            return self.new[relative]
        if (place := self.raw_root / relative).exists():
            self.kept.add(relative)
            return place
        return None

    def take_folder(self, folder: Path) -> None:
        """Take the images below a folder; where there is one already, it must be the same."""
        for path in visible_files(folder, DEPTH, [self.raw_root]):
            if member := _loose(self.layout, folder, path):
                relative, path = member.place, path.resolve()
                if (there := self.there(relative)) is None:
                    self.new[relative] = path
                elif not there.samefile(path) and not _same(there, path):
                    raise _differs(relative, path, size_of(path), there)

    def take_archive(self, archive: Path) -> None:
        """Unpack images of an archive; where there is one already, it must have the same size."""
        seen, known = [], []

        def select(name: str, size: int) -> str | None:
            seen.append(name)
            if (member := self.layout.find(name)) is None:
                return None
            known.append(name)
            if (there := self.there(member.place)) is None:
                return member.place
            if size_of(there) != size:
                raise _differs(member.place, archive, size, there)
            return None

        folder = self.temporary / str(len(list(self.temporary.iterdir())))
        self.new |= extract(archive, folder, select, self.entry.nested)
        if not known:
            raise DataError(
                f"{archive}: no image of the {self.name} data set is in it (it begins with "
                f"{', '.join(seen[:3]) or 'nothing'}). Is it the right archive?"
            )

    def leave_out(self) -> list[str]:
        """Leave out new subjects that have no lesion mask, as in a challenge's validation data."""
        if self.layout.healthy:
            return []
        whose = {relative: self.layout.find(relative) for relative in self.new}
        masked = {name for name, has in self.layout.scan(self.raw_root).items() if LESION in has}
        masked |= {member.subject for member in whose.values() if member.role == LESION}
        self.new = {
            place: path for place, path in self.new.items() if whose[place].subject in masked
        }
        return sorted({member.subject for member in whose.values()} - masked)

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
        copied = 0
        for relative, path in self.new.items():
            target, unpacked = self.raw_root / relative, self.temporary in path.parents
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.unlink(missing_ok=True)  # a link to nowhere, for there is no file
                try:
                    os.replace(path, target) if unpacked else target.symlink_to(path)
                except OSError:  # no links here, or a folder of the raw tree is on another disk
                    copy(path, target)
                    copied += not unpacked
            except OSError as error:
                raise cannot_use(target, error, relative) from error
        if copied:
            say(f"{self.raw_root}: links do not work here; {copied} images were copied")


def _differs(relative: str, source: Path, size: int, there: Path) -> DataError:
    """The error for a file whose place another one has."""
    return DataError(
        f"{relative} is in {source} ({size} bytes), but {there} is another file "
        f"({size_of(there)} bytes). Nothing was imported. Remove one of the two, then import again."
    )


def copy(source: Path, target: Path) -> None:
    """Copy a file, whole or not at all."""
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def _same(one: Path, other: Path) -> bool:
    try:
        return filecmp.cmp(one, other, shallow=False)
    except OSError as error:
        raise cannot_use(Path(error.filename), error, "") from error


def _apart(path: Path, mask: Path) -> str | None:
    """How two images differ in their grid; None if they do not."""
    from uad.core.nifti import GRID_TOLERANCE, corner_distance, read_grid

    (shape, affine), (wanted, reference) = read_grid(path), read_grid(mask)
    if shape != wanted:
        return f"{'x'.join(map(str, shape))} voxels instead of {'x'.join(map(str, wanted))}"
    distance = corner_distance(affine, reference, shape)
    near = distance <= GRID_TOLERANCE * float(np.linalg.norm(reference[:3, :3], axis=0).min())
    return None if near else f"{distance:.1f} mm apart"
