"""The file names of a data set as patterns, by which files are found, indexed and written.

A pattern is a path below the raw tree: ``{subject}`` and ``{modality}`` stand for names, ``[...]``
for a part that may be missing, ``*`` for any characters but ``/``, ``{session}`` and ``{site}`` for
themselves. ``.nii.gz`` at its end stands for ``.nii``, too, in upper or lower case.
"""

from __future__ import annotations

import fnmatch
import functools
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, ValidationError, model_validator

from uad.core.errors import ConfigError, unknown
from uad.core.files import read_yaml
from uad.core.strict import Strict

REGISTRY = Path(__file__).resolve().parents[3] / "resources" / "datasets.yaml"
#: What a file of a subject may be besides an image of a modality.
LESION, BRAIN = "lesion mask", "brain mask"

_PIECE = re.compile(r"\{(\w+)\}|[\[\]*]|[^\[\]*{}]+")
_SUFFIX = r"(?P<suffix>(?i:\.nii(?:\.gz)?))"
#: What a pattern may name besides the subject.
VISIT = {"session", "site"}
#: The modalities that there are.
Modality = Literal["T1", "T1CE", "T2", "FLAIR"]


def _compilable(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return value


Expression = Annotated[str, AfterValidator(_compilable)]


#: A layout by its name in the registry, or a user's own.
AnyLayout = "str | Mapping[str, Any] | Layout"


class Ages(Strict):
    """The published table of the subjects of a data set, which may lie in its raw tree."""

    files: list[str] = Field(min_length=1, description="Its names; the first that is there.")
    subject: str = Field(description="Column with the number of the subject.")
    age: str = Field(description="Column with the age in years.")
    prefix: str = Field(description="What the names of the subjects have before the number.")
    digits: int = Field(ge=1, description="Digits of the number in the names.")


class Layout(Strict):
    """How the files of a data set are named, and what they are like."""

    image: str | list[str] = Field(
        description="Pattern(s) with {subject}, {modality} (if several); perhaps {session}, {site}."
    )
    modalities: dict[Modality, str] = Field(
        min_length=1, description="What the files call each; * for any characters."
    )
    lesion: str | list[str] | None = Field(None, description="Pattern(s) of the lesion mask.")
    brain: str | None = Field(None, description="Pattern of a brain mask; imported, not needed.")
    subject: Expression = Field(r"[^/]+", description="Regular expression for a subject's name.")
    session: Expression = Field(r"[^/]+", description="Regular expression for a session.")
    site: Expression | None = Field(None, description="The site in a name: its first group.")
    sites: list[str] = Field(default_factory=list, description="The sites that there are.")
    healthy: bool = Field(False, description="No subject has a lesion mask.")
    incomplete: Literal["refuse", "skip"] = Field(
        "refuse",
        description="Subjects that lack a modality are left out; skip: silently, however many.",
    )
    optional: list[str] = Field(
        default_factory=list, description="Modalities that a complete subject need not have."
    )
    ignore: list[str] = Field(
        default_factory=list, description="Names of folders whose files are not of this data set."
    )
    unused: list[str] = Field(
        default_factory=list, description="What may stand for a modality and is not used."
    )
    head: Literal["whole", "stripped", "auto"] = Field(
        "auto", description="Whether the images have a skull; auto: to be found out."
    )
    labels: list[int] | None = Field(
        None, description="Values of a lesion mask other than 0; null: any."
    )
    lesion_labels: list[int] | None = Field(
        None, description="Those of them that count as lesion; null: any above 0."
    )
    grid: Literal["scan", "subject", "data set"] = Field(
        "subject", description="Whose images share one grid."
    )
    axes: str | None = Field(
        None, pattern="^[RLAPSI]{3}$", description="Where the axes of all images point to."
    )
    covers: list[float] | None = Field(
        None, min_length=3, max_length=3, description="What all grids cover, mm along these axes."
    )
    same_grid: bool = Field(
        False, description="At import, images must lie on the grid of the lesion mask."
    )
    ages: Ages | None = None

    @model_validator(mode="after")
    def _placeholders(self) -> Layout:
        for role, pattern in self.patterns:
            key = {LESION: "lesion", BRAIN: "brain"}.get(role, role)
            names = {"subject", "modality"} if role == "image" else {"subject"}
            if not pattern.endswith(".nii.gz"):
                raise ValueError(f"'{key}' must end with .nii.gz (which stands for .nii, too)")
            if role == "image" and len(self.modalities) == 1:
                names = names & _names(pattern) | {"subject"}  # one needs no name
            if (found := _names(pattern)) - VISIT != names:
                expected = " and ".join(f"{{{name}}}" for name in sorted(names))
                raise ValueError(f"'{key}' must have {expected}, not {', '.join(sorted(found))}")
            try:
                re.compile(self.expression(pattern))
            except re.error as error:
                raise ValueError(f"'{key}' is no pattern ({error}): {pattern}") from None
        if self.healthy == bool(self.lesion):
            raise ValueError("either 'healthy: true' or the pattern 'lesion' is needed")
        return self

    # pydantic leaves cached properties alone
    @functools.cached_property
    def patterns(self) -> list[tuple[str, str]]:
        """What each pattern is of (a mask or ``image``), and the pattern."""
        # a mask's name may look like an image's, but not the other way round
        named = [(LESION, self.lesion), (BRAIN, self.brain), ("image", self.image)]
        listed = [(role, [p] if isinstance(p, str) else p or []) for role, p in named]
        return [(role, pattern) for role, patterns in listed for pattern in patterns]

    @functools.cached_property
    def _exact(self) -> list[tuple[str, re.Pattern[str]]]:
        return [(role, re.compile(self.expression(p))) for role, p in self.patterns]

    @functools.cached_property
    def _anywhere(self) -> list[tuple[str, re.Pattern[str]]]:
        found = []
        for role, pattern in self.patterns:
            name = _base(pattern)
            # folders whose name says nothing that the file's does not may be missing
            whole = _names(re.sub(r"\[.*?\]", "", name)) == _names(pattern)
            whole &= not VISIT & _names(pattern) and "*" not in pattern
            expression = self.expression(name if whole else pattern)
            found.append((role, re.compile(f"(?:.*/)?(?P<tail>{expression})")))
        return found

    @functools.cached_property
    def _folders(self) -> list[re.Pattern[str]]:
        folders = [p.rpartition("/")[0] for role, p in self.patterns if role == "image"]
        # any folder may have a name that may be of any form
        told = self.subject != Layout.model_fields["subject"].default
        folders = [folder for folder in folders if told and _names(folder) == {"subject"}]
        return [re.compile(self.expression(f"{folder}.nii.gz", suffix="")) for folder in folders]

    def expression(self, pattern: str, suffix: str = _SUFFIX) -> str:
        """A pattern, or the beginning of one, as a regular expression."""
        tokens = "|".join(re.escape(t).replace(r"\*", "[^/]*?") for t in self.modalities.values())
        kinds = {"subject": self.subject, "modality": tokens, "session": self.session}
        kinds["site"] = "[^/]+"
        parts, seen, star = [], set(), False
        for piece in _PIECE.finditer(pattern.removesuffix(".nii.gz")):
            if name := piece[1]:
                parts.append(f"(?P={name})" if name in seen else f"(?P<{name}>{kinds[name]})")
                seen.add(name)
            else:
                # a star takes as little as it can, so that the rest may be a longer modality
                special = {"[": "(?:", "]": ")??" if star else ")?", "*": "([^/]*?)"}
                parts.append(special.get(piece[0]) or re.escape(piece[0]))
                star = piece[0] == "*" or (star and piece[0] not in "[]")
        return "".join(parts) + suffix

    def is_known(self, name: str) -> bool:
        """Whether a file of this path is one that the data set has, used or not."""
        if self._is_ignored(name):
            return True
        tokens = {**self.modalities, **dict(enumerate(self.unused))}
        every = self.model_copy(update={"modalities": tokens})
        for _, pattern in self.patterns:
            base = _base(pattern)
            # a wrong folder is not what is looked for; a file's name may say nothing, though
            part = base if "{subject}" in base else pattern
            if re.fullmatch(f"(?:.*/)?{every.expression(part)}", name):
                return True
        return False

    def _is_ignored(self, name: str) -> bool:
        folders = name.split("/")[:-1]
        return any(fnmatch.fnmatchcase(f, pattern) for f in folders for pattern in self.ignore)

    def _member(self, name: str, patterns: list[tuple[str, re.Pattern[str]]]) -> Member | None:
        for role, expression in patterns:
            if match := expression.fullmatch(name):
                parts = match.groupdict()
                if role == "image":
                    role = self.modality_of(parts.get("modality"))
                named = set(match.re.groupindex.values())
                stars = [part or "" for i, part in enumerate(match.groups(), 1) if i not in named]
                place = parts.get("tail") or name
                if not match.re.groups - len(named) and not VISIT & set(parts):
                    place = self.path(parts["subject"], role, parts["suffix"].lower())
                session, site = parts.get("session") or "", parts.get("site")
                return Member(parts["subject"], role, place, session, site, len("".join(stars)))
        return None

    def modality_of(self, token: str | None) -> str:
        """Ours for what the files call a modality (None: nothing, it is the only one)."""
        called = self.modalities.items()
        return next(n for n, own in called if token is None or fnmatch.fnmatchcase(token, own))

    def find(self, name: str) -> Member | None:
        """What a file is, by its path (with ``/``) in an archive or any folder; None: not ours."""
        if self._is_ignored(name):
            return None
        return self._member(name, self._anywhere)

    def path(self, subject: str, role: str, suffix: str = ".nii.gz") -> str:
        """Where a file of a subject belongs below the raw tree."""
        token, kind = self.modalities.get(role, ""), "image" if role in self.modalities else role
        pattern = next(p for r, p in self.patterns if r == kind)
        name = re.sub(r"[\[\]]", "", pattern).removesuffix(".nii.gz")
        return name.format(subject=subject, modality=token) + suffix

    def needs(self, modalities: Iterable[str] | None = None) -> list[str]:
        """What a complete subject has: modalities (default: all but the optional) and lesion."""
        if modalities is None:
            modalities = [m for m in self.modalities if m not in self.optional]
        return [m for m in modalities if m in self.modalities] + [LESION] * (not self.healthy)

    def scan(
        self, root: str | os.PathLike[str], modalities: Iterable[str] | None = None
    ) -> dict[str, Files]:
        """The files of each subject of a raw tree by what they are; no image is opened.

        Of several sessions the first one is taken that has the modalities (default: all) and the
        lesion mask, else the one that lacks least. Of several files the one is taken whose name
        has the least for ``*`` to stand for; then that with all ``[parts]``; then the first by
        name. A folder of a subject without any file that is known counts as a subject.
        """
        visits: dict[str, dict[str, Files]] = {}
        depth = 1 + max(pattern.count("/") for _, pattern in self.patterns)
        members: dict[Path, Member] = {}
        for path in visible_files(root, depth):
            relative = path.relative_to(root)
            if member := self._member(relative.as_posix(), self._exact):
                members[path] = member
            for pattern in self._folders:
                if folder := pattern.fullmatch(relative.parent.as_posix()):
                    visits.setdefault(folder["subject"], {})
        best_first = sorted(members, key=lambda p: (members[p].stars, -len(p.name), p))
        for path in best_first:
            member = members[path]
            files = visits.setdefault(member.subject, {}).setdefault(member.session, Files())
            first = files.setdefault(member.role, path)
            files.site = files.site or member.site
            exact = members[first].stars == member.stars == 0
            if first != path and (exact or _stem(first) == _stem(path)):
                files.twins.append((first, path))
        needs = set(self.needs(modalities))
        return {name: _visit(visits[name], needs) for name in sorted(visits)}

    def site_of(self, subject: str) -> str | None:
        """The site in a subject's name; None if names have none."""
        match = re.match(self.site, subject) if self.site else None
        return match[1] if match else None

    def is_public(self, subject: str) -> bool:
        """Whether the public data set can have a subject of this name."""
        return re.fullmatch(self.subject, subject) is not None and (
            not self.sites or self.site_of(subject) in self.sites
        )


@dataclass(frozen=True)
class Member:
    """A file of a data set: whose, what it is (a modality or a mask), its place in the raw tree,
    its session and site if the pattern has them, and how much the stars of the pattern stand for.
    """

    subject: str
    role: str
    place: str
    session: str = ""
    site: str | None = None
    stars: int = 0


class Files(dict[str, Path]):
    """The files of a subject by what they are, its site if its paths name it, and pairs of files
    that claim to be the same.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.site: str | None = None
        self.twins: list[tuple[Path, Path]] = []


def _visit(sessions: dict[str, Files], needs: set[str]) -> Files:
    """The session that is used, with the files that belong to no session in particular."""
    common = sessions.get("", Files())
    named = sorted(name for name in sessions if name)
    if not named:
        return common
    files = sessions[min(named, key=lambda name: len(needs - {*sessions[name], *common}))]
    for role, path in common.items():
        files.setdefault(role, path)
    files.twins += common.twins
    return files


def _base(pattern: str) -> str:
    """The name of the file in a pattern; before it there may be ``[folder/]``."""
    return pattern.rpartition("/")[2].removeprefix("]")


def _stem(path: Path) -> str:
    return re.sub(f"{_SUFFIX}$", "", str(path))


def _names(pattern: str) -> set[str]:
    return {piece[1] for piece in _PIECE.finditer(pattern) if piece[1]}


def visible_files(
    root: str | os.PathLike[str], depth: int, skip: Iterable[Path] = (), *, broken: bool = False
) -> Iterator[Path]:
    """Files of a folder and of ``depth`` - 1 levels below, without hidden ones; ``broken``: the
    links to nowhere in place of the files.

    Links are followed, each folder is visited once, and those of ``skip`` are not.
    """
    seen = {os.path.realpath(path) for path in skip}
    for folder, folders, names in os.walk(root, followlinks=True):
        level = len(Path(folder).relative_to(root).parts)
        seen.add(os.path.realpath(folder))
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and level + 1 < depth
            and os.path.realpath(Path(folder, name)) not in seen
        )
        for name in sorted(names):
            path = Path(folder, name)
            wanted = not path.exists() if broken else path.is_file()
            if wanted and not name.startswith("."):
                yield path


@functools.cache
def read_registry(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of a registry of data sets.

    Raises:
        ConfigError: it cannot be read, or is not YAML.
    """
    try:
        return read_yaml(path)
    except OSError as error:
        raise ConfigError(f"{path}: the registry of data sets cannot be read ({error}).") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error


def registry_path() -> str:
    """The registry: what the environment variable ``UAD_DATASETS`` names, else the project's."""
    return os.environ.get("UAD_DATASETS") or str(REGISTRY)


def registry_entry(layout: AnyLayout) -> Mapping[str, Any]:
    """The entry of a layout in the registry, as it stands there; empty for a user's own."""
    return read_registry(registry_path())["datasets"].get(layout_name(layout), {})


def known_layouts() -> dict[str, Layout]:
    """The layouts of the public data sets by name.

    Raises:
        ConfigError: as :func:`read_registry`; or one is not valid.
    """
    return _layouts(registry_path())


@functools.cache
def _layouts(path: str) -> dict[str, Layout]:
    entries = read_registry(path)["datasets"]
    try:
        return {n: Layout.model_validate(e["layout"]) for n, e in entries.items() if "layout" in e}
    except ValidationError as error:
        raise not_valid(path, error) from None


def not_valid(path: str | os.PathLike[str], error: ValidationError) -> ConfigError:
    """What is wrong with a registry, as one message."""
    lines = [
        f"  - {'.'.join(map(str, p['loc']))}: {p['msg'].removeprefix('Value error, ')}"
        for p in error.errors()
    ]
    return ConfigError("\n".join([f"{path}: not a valid registry:", *lines]))


def layout_name(layout: AnyLayout) -> str:
    """What a layout is called; a user's own has no name."""
    return layout if isinstance(layout, str) else "own"


def layout_of(layout: AnyLayout) -> Layout:
    """A layout by its name, or a user's own as the config has it.

    Raises:
        ConfigError: there is none of this name.
    """
    if isinstance(layout, Layout):
        return layout
    if not isinstance(layout, str):
        return Layout.model_validate(layout)
    if layout not in known_layouts():
        raise ConfigError(unknown("layout", layout, known_layouts()))
    return known_layouts()[layout]
