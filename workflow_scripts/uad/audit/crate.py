"""A finished run as one file for others: results, code, description, lists (docs/sharing.md)."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from uad.audit.crate_contents import About, Choice, File, collect
from uad.audit.crate_verify import CHECKSUMS, COLUMNS, MANIFEST, METADATA
from uad.core.files import atomic_path
from uad.core.provenance import SUFFIX
from uad.core.records import Records, load_records
from uad.data.sources import load_registry
from uad.report.html import render_page

README = "README.md"
TITLE = "Medical anomaly detection in brain MRI, from raw scans to tables"
DESCRIPTION = (
    "A run of the workflow that reproduces 'Rethinking Medical Anomaly Detection in Brain MRI: An "
    "Image Quality Assessment Perspective' (https://arxiv.org/abs/2408.08228)"
)


def about_run(datasets: dict[str, str], choice: Choice, agent: str | None = None) -> About:
    """Name, description and sources of a crate, from the layout of each data set by its name."""
    known = {} if choice.phantom else load_registry().datasets
    sources = {name: known[layout] for name, layout in datasets.items() if layout in known}
    data = "a synthetic phantom" if choice.phantom else ", ".join(sorted(datasets))
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
        repository: the code to be packed.

    Raises:
        DataError: the tree has no records, or is not as its records say.
    """
    from uad.audit.crate_metadata import describe  # loads requests

    records = _without_older_crate(load_records(results, repository), Path(out))
    files = collect(records, choice)
    described = describe(records, files, about, [README, MANIFEST, CHECKSUMS])
    left_out = Counter(file.left_out for file in files if file.left_out)
    readme = render_page("crate.md", about=about, choice=choice, left_out=sorted(left_out.items()))
    texts = {METADATA: described, README: readme}
    own = [File(name, len(text.encode()), _digest(text)) for name, text in texts.items()]
    texts[MANIFEST] = _manifest([*own, *files])
    own.append(File(MANIFEST, 0, _digest(texts[MANIFEST])))
    packed = [file for file in files if not file.left_out]
    texts[CHECKSUMS] = "".join(f"{file.sha256}  {file.place}\n" for file in [*own, *packed])
    write_zip(Path(out), texts, [(f.place, f.source) for f in packed if f.source])
    return files


def _without_older_crate(records: Records, out: Path) -> Records:
    """The records without that of an older crate, which is no part of the new one."""
    older = Path(f"{out}{SUFFIX}").resolve()
    kept, broken = (
        {key: value for key, value in found.items() if records.path(key).resolve() != older}
        for found in (records.all, records.broken)
    )
    return replace(records, all=kept, broken=broken)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _manifest(files: list[File]) -> str:
    rows = [COLUMNS]
    for file in files:
        size = "" if file.bytes is None else str(file.bytes)
        included = "no" if file.left_out else "yes"
        rows.append((file.place, size, file.sha256 or "", included, file.left_out))
    return "".join("\t".join(row) + "\n" for row in rows)


def write_zip(path: Path, texts: dict[str, str], files: Iterable[tuple[str, Path]]) -> None:
    """Write a zip file of texts and files by place, whose bytes depend on the content only."""

    def entry(place: str) -> zipfile.ZipInfo:
        # the earliest time that a zip file can name: the real ones would differ
        info = zipfile.ZipInfo(place, (1980, 1, 1, 0, 0, 0))
        info.create_system, info.external_attr = 3, 0o100644 << 16  # Unix, and its permissions
        info.compress_type = zipfile.ZIP_DEFLATED
        return info

    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for place, text in texts.items():
            archive.writestr(entry(place), text.encode())
        for place, source in sorted(files):
            info = entry(place)
            info.file_size = source.stat().st_size  # decides whether the entry is a large one
            with open(source, "rb") as read, archive.open(info, "w") as write:
                shutil.copyfileobj(read, write, 1 << 20)
