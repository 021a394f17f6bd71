"""A finished run as one file for others: a Workflow Run RO-Crate.

A crate is a zip file with the results tree (``results/``, without medical images and weights unless
asked), the code (``code/``), a description in the RO-Crate format (``ro-crate-metadata.json``), a
page for readers (``README.md``), the list of all files (``manifest.tsv``, also of those left out,
with size and SHA-256), and the checksums of what is in it (``manifest.sha256``, for ``sha256sum``).
"""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from uad.audit.crate_contents import Choice, File, collect
from uad.core.files import atomic_path
from uad.core.provenance import SUFFIX
from uad.core.records import Records, load_records

if TYPE_CHECKING:
    from uad.data.sources import DataSet

METADATA, README = "ro-crate-metadata.json", "README.md"
MANIFEST, CHECKSUMS = "manifest.tsv", "manifest.sha256"
COLUMNS = ("path", "bytes", "sha256", "included", "why_not")
TITLE = "Medical anomaly detection in brain MRI, from raw scans to tables"
DESCRIPTION = (
    "A run of the workflow that reproduces 'Rethinking Medical Anomaly Detection in Brain MRI: An "
    "Image Quality Assessment Perspective' (https://arxiv.org/abs/2408.08228)"
)
#: The earliest time that a zip file can name: the real ones would differ from run to run.
TIME = (1980, 1, 1, 0, 0, 0)
#: Unix permissions; the low byte marks a folder for MS-DOS.
PLAIN_FILE, FOLDER = 0o100644 << 16, (0o40755 << 16) | 0x10


@dataclass(frozen=True)
class About:
    """What the records do not say.

    Attributes:
        sources: public data sets by their name in the config; none of a phantom.
        agent: who ran it; None if that is not to be told.
    """

    name: str
    description: str
    sources: dict[str, DataSet] = field(default_factory=dict)
    agent: str | None = None


def about_run(datasets: dict[str, str], choice: Choice, agent: str | None = None) -> About:
    """Name, description and sources of a run's crate.

    Args:
        datasets: layout of each public data set by its name in the config.
        choice: what is packed.
        agent: who ran it; None if that is not to be told.
    """
    from uad.data.sources import load_registry

    registry = load_registry()
    sources = {} if choice.phantom else {n: registry.of_layout(x) for n, x in datasets.items()}
    data = "a synthetic phantom" if choice.phantom else ", ".join(sorted(sources))
    return About(
        name=f"{'PHANTOM results: ' if choice.phantom else ''}{TITLE}",
        description=f"{DESCRIPTION}, on {data}: tables, metrics, the record of every job, "
        "configuration, environment and code. Medical images: "
        f"{'included' if choice.images else 'not included'}. Weights of models: "
        f"{'included' if choice.models else 'not included'}.",
        sources=sources,
        agent=agent,
    )


def pack(
    results: str | Path, out: str | Path, choice: Choice, about: About, repository: str | Path
) -> list[File]:
    """Write the crate of a finished run; packed again, it has the same bytes.

    Args:
        results: folder of the run.
        out: zip file to be written; below ``results`` or elsewhere.
        choice: what is packed beyond words and numbers.
        about: what the records do not say.
        repository: the code to be packed, of which the run's scripts are.

    Returns:
        What is in the crate, and what was left out.

    Raises:
        DataError: the tree has no records, or is not as its records say.
    """
    from uad.audit.crate_metadata import describe

    records = _without_older_crate(load_records(results, repository), Path(out))
    files = collect(records, choice)
    described, folders = describe(records, files, about, [README, MANIFEST, CHECKSUMS])
    texts = {METADATA: described, README: _readme(about, files, choice)}
    texts[MANIFEST] = _manifest(files, texts)
    texts[CHECKSUMS] = _checksums(files, texts)
    packed = [(file.place, file.source) for file in files if not file.left_out and file.source]
    write_zip(Path(out), texts, packed, folders)
    return files


def _without_older_crate(records: Records, out: Path) -> Records:
    """The records without that of an older crate, which is no part of the new one."""
    root, out = records.root.resolve(), out.resolve()
    key = f"{out.relative_to(root).as_posix()}{SUFFIX}" if out.is_relative_to(root) else ""
    return replace(
        records,
        all={name: record for name, record in records.all.items() if name != key},
        broken={name: why for name, why in records.broken.items() if name != key},
    )


def write_zip(
    path: Path, texts: dict[str, str], files: Iterable[tuple[str, Path]], folders: Iterable[str]
) -> None:
    """Write a zip file whose bytes depend on the content only.

    Args:
        path: of the zip file; written under a temporary name and renamed.
        texts: content by place, these first and in this order.
        files: place and source of all others.
        folders: places, with ``/`` at the end, that get an entry of their own.
    """

    def entry(place: str) -> zipfile.ZipInfo:
        info, is_folder = zipfile.ZipInfo(place, TIME), place.endswith("/")
        info.create_system, info.external_attr = 3, FOLDER if is_folder else PLAIN_FILE
        info.compress_type = zipfile.ZIP_STORED if is_folder else zipfile.ZIP_DEFLATED
        return info

    with (
        atomic_path(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for place, text in [*texts.items(), *((place, "") for place in folders)]:
            archive.writestr(entry(place), text.encode())
        for place, source in sorted(files):
            info = entry(place)
            info.file_size = source.stat().st_size  # decides whether the entry is a large one
            with open(source, "rb") as read, archive.open(info, "w") as write:
                shutil.copyfileobj(read, write, 1 << 20)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _manifest(files: list[File], texts: dict[str, str]) -> str:
    rows = [(name, len(text.encode()), _digest(text), "yes", "") for name, text in texts.items()]
    for file in files:
        size = "" if file.bytes is None else file.bytes
        included = "no" if file.left_out else "yes"
        rows.append((file.place, size, file.sha256 or "", included, file.left_out))
    return "".join("\t".join(map(str, row)) + "\n" for row in (COLUMNS, *rows))


def _checksums(files: list[File], texts: dict[str, str]) -> str:
    known = {name: _digest(text) for name, text in texts.items()}
    known |= {file.place: str(file.sha256) for file in files if not file.left_out}
    return "".join(f"{digest}  {name}\n" for name, digest in known.items())


def _readme(about: About, files: list[File], choice: Choice) -> str:
    left_out = Counter(file.left_out for file in files if file.left_out)
    phantom = """\

**These are phantom results**: generated scans, no patients. They show that the workflow runs; \
they cannot rank methods.
"""
    missing = "\n".join(f"- {count} files: {why}" for why, count in sorted(left_out.items()))
    sources = "".join(
        f"\n{name}: {source.title}, {source.home}. Licence: {source.licence}. To be cited: "
        f"{source.citation}.\n"
        for name, source in sorted(about.sources.items())
    )
    return f"""\
# {about.name}

{about.description}
{phantom if choice.phantom else ""}
| path | what |
| --- | --- |
| `results/` | tables, metrics, thresholds, splits, and a record (`*.prov.json`) of every job; \
`results/README.md` says what each file is |
| `code/` | the workflow, its configuration, its tests, its documentation |
| `code/uv.lock` | every package with its version |
| `{MANIFEST}` | all files with size and SHA-256, also those that are not here |
| `{CHECKSUMS}` | for `sha256sum --check {CHECKSUMS}` |
| `{METADATA}` | the same for machines: an RO-Crate (Provenance Run Crate 0.5) |

To verify the tables from this crate alone, in a copy of the code with its environment \
(`cd code && make env`):

    make verify-crate CRATE=/path/to/this/crate.zip

Not included:

{missing}
{sources}"""
