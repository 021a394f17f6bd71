"""A finished run as one file for others: results, code, description, lists (docs/sharing.md)."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

from uad.audit.crate_contents import Choice, File, collect
from uad.audit.crate_description import describe
from uad.audit.crate_verify import CHECKSUMS, COLUMNS, MANIFEST, METADATA
from uad.core.files import atomic_path
from uad.core.provenance import SUFFIX
from uad.core.records import load_records
from uad.data.sources import DataSet, load_registry
from uad.report.html import render_page

README = "README.md"
TITLE = "Medical anomaly detection in brain MRI, from raw scans to tables"
DESCRIPTION = (
    "A run of the workflow that reproduces 'Rethinking Medical Anomaly Detection in Brain MRI: An "
    "Image Quality Assessment Perspective' (https://arxiv.org/abs/2408.08228)"
)


def sources_of(datasets: dict[str, str], choice: Choice) -> dict[str, DataSet]:
    """The public data sets of a run by their name in the config, from the layout of each."""
    known = {} if choice.phantom else load_registry().datasets
    return {name: known[layout] for name, layout in datasets.items() if layout in known}


def pack(
    results: str | Path,
    out: str | Path,
    choice: Choice,
    repository: str | Path,
    datasets: dict[str, str],
    agent: str | None = None,
) -> list[File]:
    """Write the crate of a finished run as a zip file; packed again, it has the same bytes.

    Whether the tree is as its records say is for ``crate_verify.verify`` to find. ``datasets``:
    layouts of the run's data sets by their names; ``agent``: who ran it, if to be named.

    Returns:
        All files of the run and of the code in ``repository``, packed or left out.

    Raises:
        DataError: the tree has no records, a file of it is missing, or git does not say which
            files are of the code.
    """
    data = "a synthetic phantom" if choice.phantom else ", ".join(sorted(datasets))
    about = {
        "name": f"{'PHANTOM results: ' if choice.phantom else ''}{TITLE}",
        "description": f"{DESCRIPTION}, on {data}: tables, metrics, the record of every job, "
        "configuration, environment and code. Medical images: "
        f"{'included' if choice.images else 'not included'}. Weights of models: "
        f"{'included' if choice.models else 'not included'}.",
        "sources": sources_of(datasets, choice),
        "agent": agent,
    }
    records = load_records(results, repository)
    # an older crate is no part of the new one
    older = Path(f"{out}{SUFFIX}").resolve()
    kept = {k: r for k, r in records.all.items() if records.path(k).resolve() != older}
    records = replace(records, all=kept)
    files = collect(records, choice)
    left_out = sorted(Counter(file.left_out for file in files if file.left_out).items())
    texts = {
        METADATA: describe(records, files, about, [README, MANIFEST, CHECKSUMS]),
        README: render_page("crate.md", about=about, choice=choice, left_out=left_out),
    }
    own = [(name, str(len(text.encode())), _digest(text)) for name, text in texts.items()]
    rows = [(*row, "yes", "") for row in own] + [
        (
            file.place,
            "" if file.bytes is None else str(file.bytes),
            file.sha256 or "",
            "no" if file.left_out else "yes",
            file.left_out,
        )
        for file in files
    ]
    texts[MANIFEST] = "".join("\t".join(row) + "\n" for row in (COLUMNS, *rows))
    packed = [(place, digest) for place, _, digest, included, _ in rows if included == "yes"]
    packed.append((MANIFEST, _digest(texts[MANIFEST])))
    texts[CHECKSUMS] = "".join(f"{digest}  {place}\n" for place, digest in packed)
    _write_zip(Path(out), texts, [file for file in files if not file.left_out])
    return files


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _write_zip(path: Path, texts: dict[str, str], files: list[File]) -> None:
    """Write a zip file whose bytes depend on the content only."""

    def entry(place: str) -> zipfile.ZipInfo:
        # the earliest time that a zip file can name: the real ones would differ
        info = zipfile.ZipInfo(place, (1980, 1, 1, 0, 0, 0))
        info.create_system, info.external_attr = 3, 0o100644 << 16  # Unix, and its permissions
        info.compress_type = zipfile.ZIP_DEFLATED
        return info

    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for place, text in texts.items():
            archive.writestr(entry(place), text.encode())
        for file in files:
            info = entry(file.place)
            info.file_size = file.source.stat().st_size  # decides whether the entry is a large one
            with open(file.source, "rb") as read, archive.open(info, "w") as write:
                shutil.copyfileobj(read, write, 1 << 20)
