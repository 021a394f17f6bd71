"""What a crate is, for machines: ``ro-crate-metadata.json``, a Provenance Run Crate.

The Snakefile is the main entity; each rule is a step, a script, and an action for all of its jobs:
a full run has thousands of these, and the record of each is in the crate.
"""

from __future__ import annotations

import datetime
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from rocrate.model import ContextEntity
from rocrate.model import File as DataFile
from rocrate.rocrate import ROCrate

from uad.audit.crate_contents import CODE_FOLDER, RESULTS_FOLDER, File, place_of
from uad.audit.tree import CONFIG
from uad.core.records import EXTERNAL, Record, Records

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


def describe(
    records: Records, files: Iterable[File], about: dict[str, Any], own: Iterable[str]
) -> str:
    """Text of ``ro-crate-metadata.json``.

    ``about`` has what the records do not say (``name``, ``description``, ``sources``, ``agent``);
    ``own`` are the crate's own lists and its README.
    """
    crate = _Description(records, {file.place: file for file in files}, about)
    for place in own:
        crate.add(DataFile(crate, dest_path=place, properties={"name": place}))
    workflow = crate.workflow()
    actions = [crate.jobs_of(rule) for rule in records.rule_order]
    crate.root_dataset["mentions"] = [crate.run(workflow), *actions]
    return json.dumps(crate.metadata.generate(), indent=1, ensure_ascii=False) + "\n"


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

    def __init__(self, records: Records, files: dict[str, File], about: dict[str, Any]) -> None:
        super().__init__(version="1.1")
        self.records, self.files, self.sources = records, files, about["sources"]
        self.outputs = Counter(record.rule for record in records.producers.values())
        #: data set by key of each of its raw files
        self.raw = {
            entry.key: record.wildcards["dataset"]
            for record in records.all.values()
            for entry in record.inputs
            if "dataset" in record.wildcards
            and entry.key.startswith(("raw/", EXTERNAL))
            and entry.key not in records.producers
        }
        self.name, self.description = about["name"], about["description"]
        # the end of the last job: packed again, a crate is the same
        self.datePublished = max(map(_end, records.all.values())).isoformat()
        self.root_dataset["conformsTo"] = [
            self.thing(uri, "CreativeWork", name=name, version=version)
            for uri, (name, version) in PROFILES.items()
        ]
        self.license = self.thing("#terms", "CreativeWork", name=LICENCE, description=TERMS)
        self.agent = {}
        if name := about["agent"]:
            person = self.thing(f"#{quote(name)}", "Person", name=name)
            self.agent, self.root_dataset["author"] = {"agent": person}, person

    # Files and data

    def thing(self, identifier: str, kind: str, **properties: Any) -> Any:
        known = {"@type": kind, **{k: v for k, v in properties.items() if v != []}}
        return self.get(identifier) or self.add(ContextEntity(self, identifier, known))

    def file(self, place: str) -> Any:
        name, left_out = PurePosixPath(place).name, self.files[place].left_out
        if left_out:
            text = f"Not included: {left_out}."
            return self.thing(f"#{quote(place)}", "CreativeWork", name=name, description=text)
        file = DataFile(self, dest_path=place, properties={"name": name})
        return self.get(place) or self.add(file)

    def made_by(self, rule: str) -> Any:
        outputs = [k for k, record in self.records.producers.items() if record.rule == rule]
        text = f"{len(outputs)} files, see manifest.tsv."
        return self.thing(
            f"#files/{rule}", "CreativeWork", name=f"Files of {rule}", description=text
        )

    def read_from(self, key: str) -> Any:
        """What stands for a file that a job read."""
        if key in self.raw:
            return self.raw_data(self.raw[key])
        made_by = self.records.producers.get(key)
        return self.made_by(made_by.rule) if made_by else self.file(place_of(key))

    def raw_data(self, dataset: str) -> Any:
        text = f"{list(self.raw.values()).count(dataset)} files, see manifest.tsv."
        known: dict[str, str] = {}
        if source := self.sources.get(dataset):
            known = {"alternateName": source.title, "url": str(source.home)}
            known |= {"license": source.licence, "citation": source.citation}
        else:
            text += " Generated scans of a phantom."
        known |= {"name": f"Raw scans of {dataset}", "description": text}
        return self.thing(f"#raw/{dataset}", "CreativeWork", **known)

    # The workflow, and what ran

    def workflow(self) -> Any:
        newest = max(self.records.all.values(), key=_start).content
        workflow = self.add_workflow(
            dest_path=f"{CODE_FOLDER}Snakefile",
            main=True,
            lang="snakemake",
            lang_version=newest["environment"].get("snakemake", "unknown"),
            properties={
                "name": "Snakemake workflow",
                "version": newest["code"].get("commit") or "unknown",
            },
        )
        workflow._jsonld["@type"] = [*workflow.type, "HowTo"]
        workflow["conformsTo"] = {"@id": BIOSCHEMAS}
        tools = {rule: self.tool(rule) for rule in self.records.rule_order}
        workflow["step"] = [
            self.thing(
                f"#step/{rule}", "HowToStep", name=rule, position=str(position), workExample=tool
            )
            for position, (rule, tool) in enumerate(tools.items(), start=1)
        ]
        workflow["hasPart"] = list({tool.id: tool for tool in tools.values()}.values())
        return workflow

    def tool(self, rule: str) -> Any:
        place = f"{CODE_FOLDER}workflow_scripts/{rule}.py"
        if place not in self.files:  # the rule is gone since
            return self.thing(f"#tool/{rule}", "SoftwareApplication", name=rule)
        entity = self.file(place)
        entity._jsonld["@type"] = ["File", "SoftwareSourceCode"]
        entity["version"] = str(self.files[place].sha256)
        return entity

    def jobs_of(self, rule: str) -> Any:
        jobs = [record for record in self.records.all.values() if record.rule == rule]
        return self.action(
            f"#jobs/{rule}",
            jobs,
            name=f"{rule}: {len(jobs)} jobs",
            description="Each has its record (*.prov.json) beside its first output.",
            instrument=self.tool(rule),
            object=_one_or_many(self.read_from(entry.key) for job in jobs for entry in job.inputs),
            result=self.made_by(rule),
        )

    def run(self, workflow: Any) -> Any:
        jobs, graph = list(self.records.all.values()), self.records.graph
        finals = [key for key in sorted(self.records.outputs) if not graph[key]]
        config = [place for place in [RESULTS_FOLDER + CONFIG] if place in self.files]
        read = [*map(self.file, config), *map(self.raw_data, sorted(set(self.raw.values())))]
        return self.action(
            "#run",
            jobs,
            name="Run of the workflow",
            description=f"{len(jobs)} jobs that made what is in this crate; not all need have "
            "run in one go.",
            instrument=workflow,
            object=_one_or_many(read),
            result=_one_or_many(self.file(place_of(key)) for key in finals),
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
