"""A finished run as one file for others: a Workflow Run RO-Crate, and how to verify one.

A crate is a zip file with the results tree (``results/``, without medical images and weights unless
asked), the code (``code/``), a description in the RO-Crate format (``ro-crate-metadata.json``), a
page for readers (``README.md``), the list of all files (``manifest.tsv``, also of those left out,
with size and SHA-256), and the checksums of what is in it (``manifest.sha256``, for ``sha256sum``).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

from uad.core.provenance import SUFFIX
from uad.crate.archive import write_zip
from uad.crate.contents import Choice, File, collect
from uad.crate.metadata import About, Source, describe
from uad.crate.verification import (
    CHECKSUMS,
    COLUMNS,
    MANIFEST,
    METADATA,
    README,
    Verified,
    verify,
)
from uad.records import Records, load_records

__all__ = ["About", "Choice", "File", "Source", "Verified", "about_run", "pack", "verify"]

TITLE = "Medical anomaly detection in brain MRI, from raw scans to tables"
ABOUT = (
    "A run of the workflow that reproduces 'Rethinking Medical Anomaly Detection in Brain MRI: An "
    "Image Quality Assessment Perspective' (https://arxiv.org/abs/2408.08228)"
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
    out = Path(out)
    records = _without(load_records(results, repository), _key_below(Path(results), out))
    files = collect(records, choice)
    readme = _readme(about, files, choice)
    described, folders = describe(records, files, about, [README, MANIFEST, CHECKSUMS])
    texts = {METADATA: described, README: readme}
    texts[MANIFEST] = _manifest(files, texts)
    texts[CHECKSUMS] = _checksums(files, texts)
    packed = [(file.place, file.source) for file in files if not file.left_out and file.source]
    write_zip(out, texts, packed, folders)
    return files


def about_run(datasets: dict[str, str], choice: Choice, agent: str | None = None) -> About:
    """Name, description and sources of a run's crate.

    Args:
        datasets: layout of each public data set by its name in the config.
        choice: what is packed.
        agent: who ran it; None if that is not to be told.
    """
    from uad.data.sources import load_registry

    registry = load_registry()
    entries = {} if choice.phantom else {n: registry.of_layout(x) for n, x in datasets.items()}
    sources = {
        name: Source(entry.title, str(entry.home), entry.licence, entry.citation)
        for name, entry in entries.items()
    }
    data = "a synthetic phantom" if choice.phantom else ", ".join(sorted(sources))
    return About(
        name=f"{'PHANTOM results: ' if choice.phantom else ''}{TITLE}",
        description=f"{ABOUT}, on {data}: tables, metrics, the record of every job, configuration, "
        f"environment and code. Medical images: {'included' if choice.images else 'not included'}. "
        f"Weights of models: {'included' if choice.models else 'not included'}.",
        sources=sources,
        agent=agent,
    )


def _without(records: Records, own: str) -> Records:
    """The records without that of an older crate, which is no part of the new one."""
    key = own + SUFFIX
    return replace(
        records,
        all={name: record for name, record in records.all.items() if name != key},
        broken={name: why for name, why in records.broken.items() if name != key},
    )


def _key_below(results: Path, path: Path) -> str:
    below = path.resolve().is_relative_to(results.resolve())
    return path.resolve().relative_to(results.resolve()).as_posix() if below else ""


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
    lines = [f"# {about.name}", "", about.description, ""]
    if choice.phantom:
        lines += [
            "**These are phantom results**: generated scans, no patients. They show that the "
            "workflow runs; they cannot rank methods.",
            "",
        ]
    lines += [
        "| path | what |",
        "| --- | --- |",
        "| `results/` | tables, metrics, thresholds, splits, and a record (`*.prov.json`) of "
        "every job; `results/README.md` says what each file is |",
        "| `code/` | the workflow, its configuration, its tests, its documentation |",
        "| `code/uv.lock` | every package with its version |",
        f"| `{MANIFEST}` | all files with size and SHA-256, also those that are not here |",
        f"| `{CHECKSUMS}` | for `sha256sum --check {CHECKSUMS}` |",
        f"| `{METADATA}` | the same for machines: an RO-Crate (Provenance Run Crate 0.5) |",
        "",
        "To verify the tables from this crate alone, in a copy of the code with its environment "
        "(`cd code && make env`):",
        "",
        "    make verify-crate CRATE=/path/to/this/crate.zip",
        "",
        "Not included:",
        "",
        *(f"- {count} files: {why}" for why, count in sorted(left_out.items())),
    ]
    for name, source in sorted(about.sources.items()):
        lines += ["", f"{name}: {source.title}, {source.home}. Licence: {source.licence}. "
                  f"To be cited: {source.citation}."]  # fmt: skip
    return "\n".join(lines) + "\n"
