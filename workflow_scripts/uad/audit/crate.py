"""A finished run as one file for others: results, code, description, lists (docs/sharing.md).

The description, ``ro-crate-metadata.json``, is a Provenance Run Crate of RO-Crate 1.1: the
Snakefile is the main entity; each rule is a step and a script, each job an action. The jobs of
single scans are one action for all scans of a data set: a full run has thousands of them.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import mimetypes
import shutil
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from rocrate.model import ContextEntity
from rocrate.model import File as DataFile
from rocrate.rocrate import ROCrate

from uad.audit.crate_contents import (
    CODE_FOLDER,
    RESULTS_FOLDER,
    Choice,
    File,
    collect,
    place_of,
)
from uad.audit.crate_verify import CHECKSUMS, COLUMNS, MANIFEST, METADATA
from uad.audit.tree import CONFIG
from uad.core.files import atomic_path
from uad.core.provenance import SUFFIX
from uad.core.records import REPOSITORY, Record, Records, load_records
from uad.data.sources import DataSet, load_registry
from uad.report.html import render_page

README = "README.md"
TITLE = "Medical anomaly detection in brain MRI, from raw scans to tables"
DESCRIPTION = (
    "A run of the workflow that reproduces 'Rethinking Medical Anomaly Detection in Brain MRI: An "
    "Image Quality Assessment Perspective' (https://arxiv.org/abs/2408.08228)"
)
#: https://www.researchobject.org/workflow-run-crate/profiles/
PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": ("Process Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/workflow/0.5": ("Workflow Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/provenance/0.5": ("Provenance Run Crate", "0.5"),
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": ("Workflow RO-Crate", "1.0"),
}
BIOSCHEMAS = "https://bioschemas.org/profiles/ComputationalWorkflow/1.0-RELEASE"
LICENCE = "MIT for the code; the terms of the data sets for what was made from scans"
TERMS = (
    f"The code's licence is {CODE_FOLDER}LICENSE. Tables and metrics are measurements. Who passes "
    "on images or weights is bound by the terms of the data sets, see "
    f"{CODE_FOLDER}docs/sharing.md."
)
IN_LIST = "by hash and size in the crate's list of files."
#: Media types by ending; none of this machine's own list, so that a crate has the same bytes.
MEDIA = mimetypes.MimeTypes().types_map[True] | {
    ".md": "text/markdown",
    ".yaml": "application/yaml",
    ".svg": "image/svg+xml",
    ".webp": "image/webp",
    ".ipynb": "application/x-ipynb+json",
    ".gz": "application/gzip",
    ".lock": "application/toml",
}


@dataclass(frozen=True)
class About:
    """What the records do not say; ``sources`` are public data sets by their name in the config."""

    name: str
    description: str
    sources: dict[str, DataSet] = field(default_factory=dict)
    agent: str | None = None


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
    """Write the crate of a finished run as a zip file; packed again, it has the same bytes.

    Returns:
        All files of the run and of the code in ``repository``, packed or left out.

    Raises:
        DataError: the tree has no records, or is not as its records say.
    """
    records = load_records(results, repository)
    # an older crate is no part of the new one
    older = Path(f"{out}{SUFFIX}").resolve()
    kept, broken = (
        {key: value for key, value in found.items() if records.path(key).resolve() != older}
        for found in (records.all, records.broken)
    )
    records = replace(records, all=kept, broken=broken)
    files = collect(records, choice)
    left_out = sorted(Counter(file.left_out for file in files if file.left_out).items())
    packed = [file for file in files if not file.left_out]
    texts = {
        METADATA: _describe(records, files, about, [README, MANIFEST, CHECKSUMS]),
        README: render_page("crate.md", about=about, choice=choice, left_out=left_out),
    }
    own = [File(name, len(text.encode()), _digest(text)) for name, text in texts.items()]
    rows = [
        (
            f.place,
            "" if f.bytes is None else str(f.bytes),
            f.sha256 or "",
            "no" if f.left_out else "yes",
            f.left_out,
        )
        for f in (*own, *files)
    ]
    texts[MANIFEST] = "".join("\t".join(row) + "\n" for row in (COLUMNS, *rows))
    own.append(File(MANIFEST, None, _digest(texts[MANIFEST])))
    texts[CHECKSUMS] = "".join(f"{file.sha256}  {file.place}\n" for file in [*own, *packed])
    _write_zip(Path(out), texts, packed)
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


# The description --------------------------------------------------------------------------------


def _describe(records: Records, files: Iterable[File], about: About, own: Iterable[str]) -> str:
    """Text of ``ro-crate-metadata.json``; ``own`` are the crate's own lists and its README."""
    crate = _Description(records, {file.place: file for file in files}, about)
    for place in own:
        crate.data(place, encodingFormat=MEDIA.get(PurePosixPath(place).suffix, "text/plain"))
    workflow, actions = crate.workflow(), crate.jobs()
    crate.root_dataset["mentions"] = [crate.run(workflow), *actions]
    crate.steps(workflow)
    return json.dumps(crate.metadata.generate(), indent=1, ensure_ascii=False) + "\n"


def _title(record: Record) -> list[str]:
    """Rule and wildcards of a job, without the subject of a scan."""
    names = sorted(record.wildcards.items())
    return [record.rule, *(value for name, value in names if name != "subject")]


def _start(record: Record) -> datetime.datetime:
    return datetime.datetime.fromisoformat(record.content["started"])


def _end(record: Record) -> datetime.datetime:
    return _start(record) + datetime.timedelta(seconds=round(record.content["seconds"]))


def _one_or_many(entities: Iterable[Any]) -> Any:
    """Entities without repetition; one instead of a list of one, as RO-Crate 1.1 recommends."""
    found = list({entity.id: entity for entity in entities}.values())
    return found[0] if len(found) == 1 else found


class _Description(ROCrate):
    """A crate whose entities are made from records and files, each once."""

    def __init__(self, records: Records, files: dict[str, File], about: About) -> None:
        super().__init__(version="1.1")
        # a term that the context of RO-Crate 1.1 lacks, written out: nothing to be fetched
        term = "https://w3id.org/ro/terms/workflow-run#sha256"
        self.metadata.extra_terms["sha256"] = term
        self.records, self.files, self.about = records, files, about
        self.all = list(records.all.values())
        #: data set by key of each file that no job made and that is not code
        self.raw = {
            entry.key: record.wildcards["dataset"]
            for record in self.all
            for entry in record.inputs
            if "dataset" in record.wildcards and self._is_raw(entry.key)
        }
        self.name, self.description = about.name, about.description
        # the end of the last job: packed again, a crate is the same
        self.datePublished = max(map(_end, self.all)).isoformat()
        self.root_dataset["conformsTo"] = [
            self.thing(uri, "CreativeWork", name=name, version=version)
            for uri, (name, version) in PROFILES.items()
        ]
        self.license = self.thing("#terms", "CreativeWork", name=LICENCE, description=TERMS)
        self.agent = {}
        if about.agent:
            person = self.thing(f"#{quote(about.agent)}", "Person", name=about.agent)
            self.agent, self.root_dataset["author"] = {"agent": person}, person

    def _is_raw(self, key: str) -> bool:
        file = self.files.get(place_of(key))
        code = key.startswith(REPOSITORY) and file and not file.left_out
        return key not in self.records.producers and not code

    # Entities

    def thing(self, identifier: str, kind: str, **properties: Any) -> Any:
        known = {"@type": kind, **{k: v for k, v in properties.items() if v != []}}
        return self.get(identifier) or self.add(ContextEntity(self, identifier, known))

    def data(self, place: str, **properties: Any) -> Any:
        known = {"name": PurePosixPath(place).name, **properties}
        return self.get(place) or self.add(DataFile(self, dest_path=place, properties=known))

    def file(self, place: str, **more: Any) -> Any:
        file, path = self.files[place], PurePosixPath(place)
        known = {"contentSize": str(file.bytes), "sha256": file.sha256} if file.sha256 else {}
        if media := MEDIA.get(path.suffix.lower()):
            known["encodingFormat"] = media
        if not file.left_out:
            return self.data(place, **known, **more)
        known |= {"name": path.name, "description": f"Not included: {file.left_out}."}
        return self.thing(f"#{quote(place)}", "CreativeWork", **known)

    def of_keys(self, keys: Iterable[str]) -> Any:
        return _one_or_many(map(self.of_key, dict.fromkeys(keys)))

    def of_key(self, key: str) -> Any:
        made_by = self.records.producers.get(key)
        if made_by is None and key in self.raw:
            return self.raw_data(self.raw[key])
        if made_by is None or "subject" not in made_by.wildcards:
            return self.file(place_of(key))
        name, text = "/".join(_title(made_by)), f"One file or more for each scan, {IN_LIST}"
        return self.thing(f"#scans/{quote(name)}", "CreativeWork", name=name, description=text)

    def raw_data(self, dataset: str) -> Any:
        text = f"{list(self.raw.values()).count(dataset)} files, {IN_LIST}"
        known: dict[str, str] = {}
        if source := self.about.sources.get(dataset):
            known = {"alternateName": source.title, "url": str(source.home)}
            known |= {"license": source.licence, "citation": source.citation}
        else:
            text += " Generated scans of a phantom."
        known |= {"name": f"Raw scans of {dataset}", "description": text}
        return self.thing(f"#raw/{dataset}", "CreativeWork", **known)

    # The workflow, and what ran

    def workflow(self) -> Any:
        place, newest = f"{CODE_FOLDER}Snakefile", max(self.all, key=_start).content
        workflow = self.add_workflow(
            dest_path=place,
            main=True,
            lang="snakemake",
            lang_version=newest["environment"].get("snakemake", "unknown"),
            properties={
                "name": "Snakemake workflow",
                "encodingFormat": "text/plain",
                "version": newest["code"].get("commit") or "unknown",
                "contentSize": str(self.files[place].bytes),
                "sha256": self.files[place].sha256,
            },
        )
        workflow._jsonld["@type"] = [*workflow.type, "HowTo"]
        workflow["conformsTo"] = {"@id": BIOSCHEMAS}
        return workflow

    def tool(self, rule: str) -> Any:
        place = f"{CODE_FOLDER}workflow_scripts/{rule}.py"
        if place not in self.files:  # the rule is gone since
            return self.thing(f"#tool/{rule}", "SoftwareApplication", name=rule)
        entity = self.file(place)
        entity._jsonld["@type"] = ["File", "SoftwareSourceCode"]
        entity["version"] = str(self.files[place].sha256)
        return entity

    def steps(self, workflow: Any) -> None:
        tools = {rule: self.tool(rule) for rule in self.records.rule_order}
        workflow["step"] = [
            self.thing(
                f"#step/{rule}", "HowToStep", name=rule, position=str(position), workExample=tool
            )
            for position, (rule, tool) in enumerate(tools.items(), start=1)
        ]
        workflow["hasPart"] = list({tool.id: tool for tool in tools.values()}.values())

    def jobs(self) -> list[Any]:
        """An action per job, and per rule and data set for the jobs of single scans."""
        groups: dict[str, list[Record]] = {}
        for key, record in sorted(self.records.all.items()):
            is_scan = "subject" in record.wildcards
            name = f"jobs/{'/'.join(_title(record))}" if is_scan else f"job/{key}"
            groups.setdefault(f"#{quote(name.removesuffix(SUFFIX))}", []).append(record)
        return [self.job(identifier, jobs) for identifier, jobs in groups.items()]

    def job(self, identifier: str, jobs: list[Record]) -> Any:
        first, name = jobs[0], ", ".join(_title(jobs[0]))
        if "subject" in first.wildcards:
            name = f"{name}: {len(jobs)} scans"
            more = {"description": f"{len(jobs)} jobs; each has its record beside its output."}
        else:
            record = self.file(place_of(first.key), description="Record of a job.")
            more = {"description": f"A job of the rule {first.rule}.", "subjectOf": record}
        return self.action(
            identifier,
            jobs,
            name=name,
            instrument=self.tool(first.rule),
            object=self.of_keys(entry.key for job in jobs for entry in job.inputs),
            result=self.of_keys(entry.key for job in jobs for entry in job.outputs),
            **more,
        )

    def action(self, identifier: str, jobs: list[Record], **properties: Any) -> Any:
        return self.thing(
            identifier,
            "CreateAction",
            actionStatus="http://schema.org/CompletedActionStatus",
            startTime=min(map(_start, jobs)).isoformat(),
            endTime=max(map(_end, jobs)).isoformat(),
            **self.agent,
            **properties,
        )

    def run(self, workflow: Any) -> Any:
        config = [place for place in [RESULTS_FOLDER + CONFIG] if place in self.files]
        read = [*map(self.file, config), *map(self.raw_data, sorted(set(self.raw.values())))]
        graph = self.records.graph
        return self.action(
            "#run",
            self.all,
            name="Run of the workflow",
            description=f"{len(self.all)} jobs that made what is in this crate; not all need have "
            "run in one go.",
            instrument=workflow,
            object=_one_or_many(read),
            result=self.of_keys(key for key in sorted(self.records.outputs) if not graph[key]),
        )
