"""What a crate holds, and what stays out of it: every file by its hash, each with the reason."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import networkx

from uad.audit.tree import MARKER
from uad.core.errors import DataError
from uad.core.files import sha256
from uad.core.records import EXTERNAL, REPOSITORY, Records
from uad.run.launch import CODE

#: Folders of a crate: the results tree, and the repository's code.
RESULTS_FOLDER, CODE_FOLDER = "results/", "code/"
#: What belongs to the code: what a run reads, and the rest of the project.
CODE_PARTS = {
    *CODE,
    *"docs tests benchmarks Makefile README.md CHANGELOG.md LICENSE CITATION.cff".split(),
    "pyproject.toml",
}
#: Words and numbers; an affine transform (``.mat``) holds twelve of these.
TEXT = set(".json .tsv .csv .md .tex .yaml .yml .txt .rst .mat".split())
#: May show a scan. Any other suffix is taken for a volume: nothing unknown gets into a crate.
PICTURE = set(".png .svg .jpg .jpeg .gif .webp .pdf .html .ipynb .js .css".split())
#: Pages, and how a bitmap is embedded in them.
PAGES, BITMAP = {".html", ".ipynb", ".svg"}, (b"data:image/", b'"image/png"', b'"image/jpeg"')
#: A bitmap in a file of the code, with content: code may name the same words.
EMBEDDED = re.compile(rb'data:image/[\w.+-]+;base64,[A-Za-z0-9+/]{32}|"image/(?:png|jpeg)"')
#: Images of medicine that may be plain text.
WRITTEN_VOLUMES = {".nrrd", ".nhdr", ".mha", ".mhd", ".vtk", ".vti"}
#: Why a file is not included.
VOLUME, SHOWS_SCANS = "medical image", "shows medical images"
WEIGHTS, RAW = "weights of a model", "raw data of their provider"
NOT_KEPT, ELSEWHERE = "not kept by the run", "outside the results and the code"
ABOUT_TREE = "says something about this tree, which a reader finds out anew"


@dataclass(frozen=True)
class File:
    """A file of a run by its path in the crate (from outside: its key), and why it is left out."""

    place: str
    bytes: int | None
    sha256: str | None
    left_out: str = ""
    source: Path | None = None


@dataclass(frozen=True)
class Choice:
    """What is packed beyond words and numbers; pictures of a phantom are no medical images."""

    phantom: bool
    images: bool = False
    models: bool = False


def place_of(key: str) -> str:
    """Path in the crate of a file of the results or of the code; the key itself of any other."""
    if key.startswith(REPOSITORY):
        return CODE_FOLDER + key.removeprefix(REPOSITORY)
    return key if key.startswith(EXTERNAL) else RESULTS_FOLDER + key


def collect(records: Records, choice: Choice) -> list[File]:
    """Every file that a crate holds or leaves out, by place.

    Raises:
        DataError: a file that belongs into the crate is missing.
    """
    root = records.root
    files = {file.place: file for file in code_files(records, choice)}
    # what no job declares; a results folder elsewhere may have no README of its own
    own = {key: root / key for key in (MARKER, *records.all)}
    readmes = [folder / "README.md" for folder in (root, records.repository / RESULTS_FOLDER)]
    own["README.md"] = next(filter(Path.is_file, readmes), readmes[0])
    for key, path in own.items():
        if path.is_file():
            files[place_of(key)] = _read(place_of(key), path)
    shown = _showing_scans(records)
    entries = {entry.key: entry for record in records.all.values() for entry in record.inputs}
    missing = []
    for key, entry in sorted({**entries, **records.outputs}.items()):
        why, path = _why_left_out(key, records, choice, shown), records.path(key)
        if not why and not path.is_file():
            missing.append(str(path))
        elif key not in records.all:
            file = File(place_of(key), entry.bytes, entry.sha256, why, None if why else path)
            files.setdefault(file.place, file)
    if missing:
        raise DataError(
            f"{root}: cannot be packed: {len(missing)} files are missing ({missing[0]}). "
            "'make audit' names all; make them again."
        )
    return [files[place] for place in sorted(files)]


def _read(place: str, path: Path, why: str = "") -> File:
    return File(place, path.stat().st_size, sha256(path), why, None if why else path)


# The code ------------------------------------------------------------------------------------


def code_files(records: Records, choice: Choice) -> Iterator[File]:
    """The repository's files: what a run reads, tests and documentation.

    Under version control only what is tracked, and what the records say that a job ran.
    """
    repository, names = records.repository, _git_files(records.repository)
    if "Snakefile" in names:
        for record in records.all.values():
            library = record.content["code"]["library_files"]
            names |= {f"workflow_scripts/uad/{name}" for name in library}
            names |= {e.key.removeprefix(REPOSITORY) for e in record.inputs if REPOSITORY in e.key}
            names.add(f"workflow_scripts/{record.rule}.py")
    else:  # a copy of the code without its history
        names = {path.relative_to(repository).as_posix() for path in repository.rglob("*")}
    for name in sorted(filter(_is_code, names)):
        path = repository / name
        if path.is_file():
            yield _read(CODE_FOLDER + name, path, _why_out_of_code(path, choice))


def _is_code(name: str) -> bool:
    """Whether a file belongs to the code; not what is hidden or left by Python."""
    parts = PurePosixPath(name).parts
    left = any(part.startswith(".") or part.endswith(".egg-info") for part in parts)
    return bool(parts) and parts[0] in CODE_PARTS and not left and "__pycache__" not in parts


def _git_files(repository: Path) -> set[str]:
    """Files of the repository that git tracks; none where there is no git repository."""
    command = ["git", "-C", str(repository), "ls-files", "-z"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        if (repository / ".git").exists():
            said = (getattr(error, "stderr", None) or str(error).encode()).decode(errors="replace")
            raise DataError(
                f"{repository}: git does not say which files belong to the code "
                f"({said.strip()}); without that, files of yours could get into the crate."
            ) from None
        return set()
    return {name for name in done.stdout.decode(errors="surrogateescape").split("\0") if name}


def _why_out_of_code(path: Path, choice: Choice) -> str:
    """Why a file stays out although it lies in the code: images; empty if it holds none.

    That the run's scans are a phantom says nothing of volumes that lie beside the code.
    """
    content, suffix = path.read_bytes(), path.suffix.lower()
    try:
        is_text = b"\0" not in content and content.decode() is not None
    except UnicodeDecodeError:
        is_text = False
    if suffix in WRITTEN_VOLUMES or (suffix not in PICTURE and not is_text):
        return "" if choice.images else VOLUME
    if choice.images or choice.phantom:
        return ""
    embedded = suffix in PICTURE | TEXT and EMBEDDED.search(content)
    return SHOWS_SCANS if embedded or not is_text else ""


# The results ---------------------------------------------------------------------------------


def _showing_scans(records: Records) -> set[str]:
    """Keys of pictures and pages that show scans.

    It is told by what a file was made from rather than by its name: a picture or page shows scans
    if its job read a volume, or something that shows scans. What no job made is taken to show them,
    and so is a page with bitmaps: a notebook can read more than its rule declares.
    """

    def has_bitmap(key: str) -> bool:
        path = records.path(key)
        page = path.read_bytes() if _suffix(key) in PAGES and path.is_file() else b""
        return any(sign in page for sign in BITMAP)

    keys = set(records.graph) - records.all.keys()
    volumes = set(filter(_is_volume, keys))
    pictures = {k for k in keys if _suffix(k) in PICTURE and not k.startswith(REPOSITORY)}
    first = {k for k in pictures if k not in records.producers or has_bitmap(k)} | volumes
    # words and numbers show nothing, whatever they were made from
    passed_on = records.graph.subgraph({*pictures, *volumes, *records.all})
    return set().union(*networkx.bfs_layers(passed_on, first)) - records.all.keys()


def _why_left_out(key: str, records: Records, choice: Choice, shown: set[str]) -> str:
    """Why the file of a key stays out of a crate; empty if it is packed."""
    path = records.path(key)
    if key.startswith(REPOSITORY) and _is_code(key.removeprefix(REPOSITORY)):
        return _why_out_of_code(path, choice) if path.is_file() else ""
    if key.startswith((REPOSITORY, EXTERNAL)):
        return RAW if _is_volume(key) else ELSEWHERE
    if key.startswith("audit/"):
        return ABOUT_TREE
    if _is_weights(key):
        return "" if choice.models else WEIGHTS
    if _is_volume(key) and not choice.images:
        return VOLUME
    if _is_volume(key):
        is_raw = key not in records.outputs and not choice.phantom
        return RAW if is_raw else "" if path.is_file() else NOT_KEPT
    hidden = not choice.images and not choice.phantom and key in shown
    return SHOWS_SCANS if hidden else ""


def _suffix(key: str) -> str:
    return PurePosixPath(key).suffix.lower()


def _is_weights(key: str) -> bool:
    return key.startswith("models/") and _suffix(key) not in TEXT | PICTURE


def _is_volume(key: str) -> bool:
    """Whether a file holds voxels (or anything that is not known to hold none)."""
    return _suffix(key) not in TEXT | PICTURE and not _is_weights(key)
