"""The crate's description, ``ro-crate-metadata.json``: a Provenance Run Crate of RO-Crate 1.1.

The Snakefile is the main entity; each rule is a step and a script, each job an action. The jobs of
single scans are one action for all scans of a data set: a full run has thousands of them.
"""

from __future__ import annotations

import datetime
import json
import mimetypes
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from rocrate.model import ContextEntity
from rocrate.model import File as DataFile
from rocrate.rocrate import ROCrate

from uad.audit.crate_contents import CODE_FOLDER, RESULTS_FOLDER, About, File, place_of
from uad.audit.tree import CONFIG
from uad.core.provenance import SUFFIX
from uad.core.records import REPOSITORY, Record, Records

#: https://www.researchobject.org/workflow-run-crate/profiles/
PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": ("Process Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/workflow/0.5": ("Workflow Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/provenance/0.5": ("Provenance Run Crate", "0.5"),
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": ("Workflow RO-Crate", "1.0"),
}
BIOSCHEMAS = "https://bioschemas.org/profiles/ComputationalWorkflow/1.0-RELEASE"
TERMS = (
    f"The code's licence is {CODE_FOLDER}LICENSE. Tables and metrics are measurements. Who passes "
    "on images or weights is bound by the terms of the data sets, see "
    f"{CODE_FOLDER}docs/sharing.md."
)
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


def describe(records: Records, files: Iterable[File], about: About, own: Iterable[str]) -> str:
    """Text of ``ro-crate-metadata.json``; ``own`` are the crate's own lists and its README."""
    crate = _Description(records, {file.place: file for file in files}, about)
    crate.root()
    for place in own:
        crate.data(place, encodingFormat=MEDIA.get(PurePosixPath(place).suffix, "text/plain"))
    workflow, actions = crate.workflow(), crate.actions()
    crate.root_dataset["mentions"] = [crate.run(workflow), *actions]
    crate.steps(workflow)
    return json.dumps(crate.metadata.generate(), indent=1, ensure_ascii=False) + "\n"


def _but_subject(record: Record) -> list[str]:
    return [value for name, value in sorted(record.wildcards.items()) if name != "subject"]


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
        self.jobs = list(records.all.values())
        self.newest = max(self.jobs, key=_start).content
        who = {"name": about.agent}
        agent = about.agent and self.thing(f"#{quote(about.agent)}", "Person", **who)
        self.agent = {"agent": agent} if agent else {}
        #: data set by key of each file that no job made and that is not code
        self.raw = {
            entry.key: record.wildcards["dataset"]
            for record in self.jobs
            for entry in record.inputs
            if "dataset" in record.wildcards and self._is_raw(entry.key)
        }

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
        file, media = self.files[place], MEDIA.get(PurePosixPath(place).suffix.lower())
        known = {"contentSize": str(file.bytes), "sha256": file.sha256} if file.sha256 else {}
        known |= {"encodingFormat": media} if media else {}
        if not file.left_out:
            return self.data(place, **known, **more)
        known |= {
            "name": PurePosixPath(place).name,
            "description": f"Not included: {file.left_out}.",
        }
        return self.thing(f"#{quote(place)}", "CreativeWork", **known)

    def of_keys(self, keys: Iterable[str]) -> Any:
        return _one_or_many(map(self.of_key, dict.fromkeys(keys)))

    def of_key(self, key: str) -> Any:
        made_by = self.records.producers.get(key)
        if made_by is None and key in self.raw:
            return self.raw_data(self.raw[key])
        if made_by is None or "subject" not in made_by.wildcards:
            return self.file(place_of(key))
        name = "/".join([made_by.rule, *_but_subject(made_by)])
        text = "One file or more for each scan, by hash and size in the crate's list of files."
        return self.thing(f"#scans/{quote(name)}", "CreativeWork", name=name, description=text)

    def raw_data(self, dataset: str) -> Any:
        number = sum(name == dataset for name in self.raw.values())
        text = f"{number} files, by hash and size in the crate's list of files."
        known: dict[str, str] = {}
        if source := self.about.sources.get(dataset):
            known = {"alternateName": source.title, "url": str(source.home)}
            known |= {"license": source.licence, "citation": source.citation}
        else:
            text += " Generated scans of a phantom."
        known |= {"name": f"Raw scans of {dataset}", "description": text}
        return self.thing(f"#raw/{dataset}", "CreativeWork", **known)

    # The crate and the workflow

    def root(self) -> None:
        self.name, self.description = self.about.name, self.about.description
        # the end of the last job: packed again, a crate is the same
        self.datePublished = max(map(_end, self.jobs)).isoformat()
        self.root_dataset["conformsTo"] = [
            self.thing(uri, "CreativeWork", name=name, version=version)
            for uri, (name, version) in PROFILES.items()
        ]
        if self.agent:
            self.root_dataset["author"] = self.agent["agent"]
        name = "MIT for the code; the terms of the data sets for what was made from scans"
        self.license = self.thing("#terms", "CreativeWork", name=name, description=TERMS)

    def workflow(self) -> Any:
        place = f"{CODE_FOLDER}Snakefile"
        workflow = self.add_workflow(
            dest_path=place,
            main=True,
            lang="snakemake",
            lang_version=self.newest["environment"].get("snakemake", "unknown"),
            properties={
                "name": "Snakemake workflow",
                "encodingFormat": "text/plain",
                "version": self.newest["code"].get("commit") or "unknown",
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

    # What ran

    def actions(self) -> list[Any]:
        groups: dict[str, list[Record]] = {}
        for key, record in sorted(self.records.all.items()):
            group = "/".join([record.rule, *_but_subject(record)])
            is_scan = "subject" in record.wildcards
            groups.setdefault(group if is_scan else key, []).append(record)
        return [self.action(group, jobs) for group, jobs in groups.items()]

    def action(self, group: str, jobs: list[Record]) -> Any:
        first = jobs[0]
        name = ", ".join([first.rule, *_but_subject(first)])
        if "subject" in first.wildcards:
            identifier, name = f"#jobs/{quote(group)}", f"{name}: {len(jobs)} scans"
            more = {"description": f"{len(jobs)} jobs; each has its record beside its output."}
        else:
            identifier = f"#job/{quote(first.key.removesuffix(SUFFIX))}"
            record = self.file(place_of(first.key), description="Record of a job.")
            more = {"description": f"A job of the rule {first.rule}.", "subjectOf": record}
        return self.create_action(
            identifier,
            jobs,
            name=name,
            instrument=self.tool(first.rule),
            object=self.of_keys(entry.key for job in jobs for entry in job.inputs),
            result=self.of_keys(entry.key for job in jobs for entry in job.outputs),
            **more,
        )

    def create_action(self, identifier: str, jobs: list[Record], **properties: Any) -> Any:
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
        return self.create_action(
            "#run",
            self.jobs,
            name="Run of the workflow",
            description=f"{len(self.jobs)} jobs that made what is in this crate; not all need have "
            "run in one go.",
            instrument=workflow,
            object=_one_or_many(read),
            result=self.of_keys(key for key in sorted(self.records.outputs) if not graph[key]),
        )

    def steps(self, workflow: Any) -> None:
        order = self.records.rule_order
        workflow["step"] = [
            self.thing(
                f"#step/{rule}",
                "HowToStep",
                name=rule,
                position=str(position),
                workExample=self.tool(rule),
            )
            for position, rule in enumerate(order, start=1)
        ]
        workflow["hasPart"] = list({t.id: t for t in map(self.tool, order)}.values())
