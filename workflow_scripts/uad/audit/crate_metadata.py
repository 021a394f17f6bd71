"""The crate's description, ``ro-crate-metadata.json``: a Provenance Run Crate of RO-Crate 1.1.

What a run is made of becomes: the Snakefile the main entity, a step and a script (the tool) for
each rule, and an action for each job, with what it read and made. The jobs of single scans are one
action for all scans of a data set: a full run has thousands of them. Their records and files are in
the crate's folders, and each of them in its list of files.
"""

from __future__ import annotations

import datetime
import json
import mimetypes
from collections.abc import Iterable
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from rocrate.model import ContextEntity, Dataset
from rocrate.model import File as DataFile
from rocrate.rocrate import ROCrate

from uad.audit.crate import README, About
from uad.audit.crate_contents import CODE_FOLDER, RESULTS_FOLDER, File, place_of
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
#: Terms that the context of RO-Crate 1.1 lacks, written out: nothing to be fetched.
TERMS = {
    "sha256": "https://w3id.org/ro/terms/workflow-run#sha256",
    "buildInstructions": "https://codemeta.github.io/terms/buildInstructions",
}
BIOSCHEMAS = "https://bioschemas.org/profiles/ComputationalWorkflow/1.0-RELEASE"
LOCK_FORMAT = "https://docs.astral.sh/uv/concepts/projects/layout/"
COMPLETED = "http://schema.org/CompletedActionStatus"
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


def describe(
    records: Records, files: Iterable[File], about: About, names: Iterable[str]
) -> tuple[str, list[str]]:
    """Text of ``ro-crate-metadata.json``, and the folders that it describes.

    Args:
        records: of the run.
        files: what the crate holds and leaves out.
        about: what the records do not say.
        names: places of the crate's own lists and its README.
    """
    builder = _Builder(records, {file.place: file for file in files}, about)
    builder.root()
    for name in names:
        media = MEDIA.get(PurePosixPath(name).suffix, "text/plain")
        builder.data_file(name, {"encodingFormat": media})
    builder.entities[README]["about"] = builder.crate.root_dataset
    builder.folder(CODE_FOLDER, "The code that made the results, with its tests and documents.")
    workflow, actions = builder.workflow(), builder.actions()
    run = builder.run(workflow)
    builder.steps(workflow, actions, run)
    crate = builder.crate
    crate.root_dataset["mentions"] = [run, *actions.values()]
    text = json.dumps(crate.metadata.generate(), indent=1, ensure_ascii=False) + "\n"
    return text, sorted(entity.id for entity in crate.get_by_type("Dataset"))[1:]


def _of_scan(record: Record) -> bool:
    return "subject" in record.wildcards


def _start(record: Record) -> datetime.datetime:
    return datetime.datetime.fromisoformat(record.content["started"])


def _end(record: Record) -> datetime.datetime:
    return _start(record) + datetime.timedelta(seconds=round(record.content["seconds"]))


def _one_or_many(entities: Iterable[Any]) -> Any:
    """Entities without repetition; one instead of a list of one, as RO-Crate 1.1 recommends."""
    found = list({entity.id: entity for entity in entities}.values())
    return found[0] if len(found) == 1 else found


class _Builder:
    """Makes the entities of a crate, each once."""

    def __init__(self, records: Records, files: dict[str, File], about: About) -> None:
        self.records, self.files, self.about = records, files, about
        self.jobs = list(records.all.values())
        newest = max(self.jobs, key=lambda record: record.content["started"]).content
        self.snakemake = newest["environment"].get("snakemake", "unknown")
        self.commit = newest["code"].get("commit") or "unknown"
        self.crate = ROCrate(version="1.1")
        self.crate.metadata.extra_terms.update(TERMS)
        self.entities: dict[str, Any] = {}

    # Entities

    def thing(self, identifier: str, kind: str, **properties: Any) -> Any:
        if identifier not in self.entities:
            whole = {"@type": kind, **{k: v for k, v in properties.items() if v != []}}
            entity = ContextEntity(self.crate, identifier, whole)
            self.entities[identifier] = self.crate.add(entity)
        return self.entities[identifier]

    def data_file(self, place: str, properties: dict[str, Any]) -> Any:
        if place not in self.entities:
            properties = {"name": PurePosixPath(place).name, **properties}
            entity = DataFile(self.crate, dest_path=place, properties=properties)
            self.entities[place] = self.crate.add(entity)
        return self.entities[place]

    def file(self, place: str, **more: Any) -> Any:
        file, media = self.files[place], MEDIA.get(PurePosixPath(place).suffix.lower())
        known = {"contentSize": str(file.bytes), "sha256": file.sha256} if file.sha256 else {}
        known |= {"encodingFormat": media} if media else {}
        if not file.left_out:
            return self.data_file(place, {**known, **more})
        known |= {"name": PurePosixPath(place).name}
        why = f"Not included: {file.left_out}."
        return self.thing(f"#{quote(place)}", "CreativeWork", **known, **more, description=why)

    def folder(self, place: str, description: str) -> Any:
        if found := self.entities.get(place) or self.entities.get(f"#{place}"):
            return found
        inside = [file for name, file in self.files.items() if name.startswith(place)]
        packed = sum(not file.left_out for file in inside)
        if not packed:
            text = f"{description} {len(inside)} files, not included."
            return self.thing(f"#{place}", "CreativeWork", name=place, description=text)
        text = f"{description} {packed} of {len(inside)} files are included."
        properties = {"name": place, "description": text}
        entity = Dataset(self.crate, dest_path=place, properties=properties)
        self.entities[place] = self.crate.add(entity)
        return self.entities[place]

    def of_keys(self, keys: Iterable[str]) -> Any:
        return _one_or_many(map(self.of_key, dict.fromkeys(keys)))

    def of_key(self, key: str) -> Any:
        made_by = self.records.producers.get(key)
        if made_by is None and (dataset := self.raw.get(key)):
            return self.raw_data(dataset)
        if made_by is None or not _of_scan(made_by):
            return self.file(place_of(key))
        parts, subject = PurePosixPath(key).parts, made_by.wildcards["subject"]
        depth = next((i for i, part in enumerate(parts) if subject in part), len(parts) - 1)
        place = RESULTS_FOLDER + "".join(f"{part}/" for part in parts[:depth])
        return self.folder(place, "One file or more for each scan; see the list of files.")

    @cached_property
    def raw(self) -> dict[str, str]:
        found = {}
        for record in self.jobs:
            dataset = record.wildcards.get("dataset")
            for entry in record.inputs if dataset else ():
                file = self.files.get(place_of(entry.key))
                code = entry.key.startswith(REPOSITORY) and file and not file.left_out
                if entry.key not in self.records.producers and not code:
                    found[entry.key] = dataset
        return found

    def raw_data(self, dataset: str) -> Any:
        names = [key for key, name in self.raw.items() if name == dataset]
        text = f"{len(names)} files, by hash and size in the crate's list of files."
        known = {}
        if source := self.about.sources.get(dataset):
            known = {"alternateName": source.title, "url": str(source.home)}
            known |= {"license": source.licence, "citation": source.citation}
        else:
            text += " Generated scans of a phantom."
        name = f"Raw scans of {dataset}"
        return self.thing(f"#raw/{dataset}", "CreativeWork", name=name, description=text, **known)

    def agent(self) -> dict[str, Any]:
        name = self.about.agent
        if name is None:
            return {}
        return {"agent": self.thing(f"#{quote(name)}", "Person", name=name)}

    # The crate and the workflow

    def root(self) -> None:
        crate, about = self.crate, self.about
        crate.name, crate.root_dataset["description"] = about.name, about.description
        # the end of the last job: packed again, a crate is the same
        crate.datePublished = max(map(_end, self.jobs)).isoformat()
        crate.root_dataset["conformsTo"] = [
            self.thing(uri, "CreativeWork", name=name, version=version)
            for uri, (name, version) in PROFILES.items()
        ]
        if about.agent is not None:
            crate.root_dataset["author"] = self.agent()["agent"]
        crate.license = self.thing(
            "#terms",
            "CreativeWork",
            name="MIT for the code; the terms of the data sets for what was made from scans",
            description=f"The code's licence is {CODE_FOLDER}LICENSE. Tables and metrics are "
            "measurements. Who passes on images or weights is bound by the terms of the data "
            f"sets, see {CODE_FOLDER}docs/sharing.md.",
        )

    def workflow(self) -> Any:
        place, lock = f"{CODE_FOLDER}Snakefile", f"{CODE_FOLDER}uv.lock"
        file = self.files[place]
        # by the library, which also describes the language
        workflow = self.entities[place] = self.crate.add_workflow(
            dest_path=place,
            main=True,
            lang="snakemake",
            lang_version=self.snakemake,
            properties={
                "name": "Snakemake workflow",
                "encodingFormat": "text/plain",
                "version": self.commit,
                "contentSize": str(file.bytes),
                "sha256": file.sha256,
            },
        )
        workflow._jsonld["@type"] = [*workflow.type, "HowTo"]
        workflow["conformsTo"] = {"@id": BIOSCHEMAS}
        if lock in self.files:
            text = "Every package of the environment, with version and hashes."
            conforms = {"@id": LOCK_FORMAT}
            workflow["buildInstructions"] = self.file(lock, description=text, conformsTo=conforms)
        tables = [n for n in self.files if n.startswith("results/tables/") and n.endswith(".csv")]
        if RESULTS_FOLDER + CONFIG in self.files:
            text = "The whole configuration of the run."
            workflow["input"] = self.parameter(RESULTS_FOLDER + CONFIG, text)
        if tables:
            workflow["output"] = _one_or_many(self.parameter(name, "A table.") for name in tables)
        return workflow

    def parameter(self, place: str, description: str) -> Any:
        entity = self.file(place)
        entity["exampleOfWork"] = self.thing(
            f"#parameter/{quote(place)}",
            "FormalParameter",
            name=PurePosixPath(place).name,
            description=description,
            additionalType="File",
            workExample=entity,
        )
        return entity["exampleOfWork"]

    def tool(self, rule: str) -> Any:
        place = f"{CODE_FOLDER}workflow_scripts/{rule}.py"
        if place not in self.files:  # the rule is gone since
            return self.thing(f"#tool/{rule}", "SoftwareApplication", name=rule)
        entity = self.file(place)
        entity._jsonld["@type"] = ["File", "SoftwareSourceCode"]
        entity["version"] = str(self.files[place].sha256)
        return entity

    # What ran

    def actions(self) -> dict[tuple[str, ...], Any]:
        groups: dict[tuple[str, ...], list[Record]] = {}
        for key, record in sorted(self.records.all.items()):
            rest = [v for k, v in sorted(record.wildcards.items()) if k != "subject"]
            group = (record.rule, *rest) if _of_scan(record) else (record.rule, key)
            groups.setdefault(group, []).append(record)
        return {group: self.action(group, jobs) for group, jobs in groups.items()}

    def action(self, group: tuple[str, ...], jobs: list[Record]) -> Any:
        first = jobs[0]
        name = ", ".join([first.rule, *(v for k, v in first.wildcards.items() if k != "subject")])
        if _of_scan(first):
            identifier, name = f"#jobs/{quote('/'.join(group))}", f"{name}: {len(jobs)} scans"
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
            actionStatus=COMPLETED,
            startTime=min(map(_start, jobs)).isoformat(),
            endTime=max(map(_end, jobs)).isoformat(),
            **self.agent(),
            **properties,
        )

    def run(self, workflow: Any) -> Any:
        read = [self.raw_data(dataset) for dataset in sorted(set(self.raw.values()))]
        if RESULTS_FOLDER + CONFIG in self.files:
            read.insert(0, self.file(RESULTS_FOLDER + CONFIG))
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

    def steps(self, workflow: Any, actions: dict[tuple[str, ...], Any], run: Any) -> None:
        order = self.records.rule_order
        steps = {}
        for position, rule in enumerate(order, start=1):
            what = {"name": rule, "position": str(position), "workExample": self.tool(rule)}
            steps[rule] = self.thing(f"#step/{rule}", "HowToStep", **what)
        workflow["step"] = list(steps.values())
        workflow["hasPart"] = list({t.id: t for t in map(self.tool, order)}.values())
        controls = [
            self.thing(
                f"#control/{action.id.removeprefix('#')}",
                "ControlAction",
                name=f"Control of {action['name']}",
                instrument=steps[group[0]],
                object=action,
            )
            for group, action in actions.items()
        ]
        address = f"https://pypi.org/project/snakemake/{self.snakemake}/"
        version = {"url": address, "softwareVersion": self.snakemake}
        engine = self.thing(address, "SoftwareApplication", name="Snakemake", **version)
        done = {"name": "Run of Snakemake", "instrument": engine, "result": run}
        self.thing("#engine-run", "OrganizeAction", object=controls, **done)
