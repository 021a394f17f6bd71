"""The crate's description, ``ro-crate-metadata.json``: a Provenance Run Crate of RO-Crate 1.1.

What a run is made of becomes: the Snakefile the main entity, a step and a script (the tool) for
each rule, and an action for each job, with what it read and made. The jobs of single scans are one
action for all scans of a data set: a full run has thousands of them. Their records and files are in
the crate's folders, and each of them in its list of files.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from uad.core.provenance import SUFFIX
from uad.crate.contents import CODE_FOLDER, RESULTS_FOLDER, File, place_of
from uad.records import REPOSITORY, Record, Records

#: Version of RO-Crate that the profiles below build upon.
VERSION = "1.1"
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
COMPLETED = "http://schema.org/CompletedActionStatus"
MEDIA = {
    ".json": "application/json",
    ".tsv": "text/tab-separated-values",
    ".csv": "text/csv",
    ".md": "text/markdown",
    ".tex": "text/x-tex",
    ".yaml": "application/yaml",
    ".txt": "text/plain",
    ".html": "text/html",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".ipynb": "application/x-ipynb+json",
    ".py": "text/x-python",
    ".gz": "application/gzip",
}


@dataclass(frozen=True)
class Source:
    """A public data set that a run used.

    Attributes:
        title: its name.
        home: address.
        licence: terms of use, as a sentence.
        citation: whom to cite.
    """

    title: str
    home: str
    licence: str
    citation: str


@dataclass(frozen=True)
class About:
    """What the records do not say.

    Attributes:
        name: of the crate.
        description: one paragraph; says phantom of phantom results.
        sources: public data sets by their name in the config; none of a phantom.
        agent: who ran it; None if that is not to be told.
    """

    name: str
    description: str
    sources: dict[str, Source] = field(default_factory=dict)
    agent: str | None = None


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
    builder.build(list(names))
    text = json.dumps(builder.crate.metadata.generate(), indent=1, ensure_ascii=False) + "\n"
    return text, sorted(entity.id for entity in builder.crate.get_by_type("Dataset"))[1:]


def of_a_scan(record: Record) -> bool:
    """Whether a job works on one scan."""
    return "subject" in record.wildcards


def end_of(record: Record) -> datetime.datetime:
    """When a job ended."""
    return _start_of(record) + datetime.timedelta(seconds=round(record.content["seconds"]))


def _start_of(record: Record) -> datetime.datetime:
    return datetime.datetime.fromisoformat(record.content["started"])


def _plain(entities: list[Any]) -> Any:
    """One entity instead of a list of one, as RO-Crate 1.1 recommends."""
    return entities[0] if len(entities) == 1 else entities


def _filled(**properties: Any) -> dict[str, Any]:
    return {name: value for name, value in properties.items() if value != []}


class _Builder:
    """Makes the entities of a crate, each once."""

    def __init__(self, records: Records, files: dict[str, File], about: About) -> None:
        from rocrate.rocrate import ROCrate

        self.records, self.files, self.about = records, files, about
        self.crate = ROCrate(version=VERSION)
        self.crate.metadata.extra_terms.update(TERMS)
        self.entities: dict[str, Any] = {}

    def build(self, names: list[str]) -> None:
        """Everything: the root, the workflow, the files, the actions."""
        self._root()
        for name in names:
            self._own(name)
        self._folder(CODE_FOLDER, "The code that made the results, with its tests and documents.")
        workflow = self._workflow()
        actions = self._actions()
        run = self._run(workflow, list(actions.values()))
        self._steps(workflow, actions, run)
        self.crate.root_dataset["mentions"] = [run, *actions.values()]

    def _root(self) -> None:
        crate, about = self.crate, self.about
        crate.name, crate.root_dataset["description"] = about.name, about.description
        # the end of the last job: packed again, a crate is the same
        crate.datePublished = max(end_of(r) for r in self.records.all.values()).isoformat()
        crate.root_dataset["conformsTo"] = [
            self._context(uri, "CreativeWork", name=name, version=version)
            for uri, (name, version) in PROFILES.items()
        ]
        if about.agent is not None:
            crate.root_dataset["author"] = self._agent()["agent"]
        crate.license = self._context(
            "#terms",
            "CreativeWork",
            name="MIT for the code; the terms of the data sets for what was made from scans",
            description=f"The code's licence is {CODE_FOLDER}LICENSE. Tables and metrics are "
            "measurements. Who passes on images or weights is bound by the terms of the data "
            f"sets, see {CODE_FOLDER}docs/sharing.md.",
        )

    # -- entities -------------------------------------------------------------------------------

    def _once(self, identifier: str, make: Callable[[], Any]) -> Any:
        if identifier not in self.entities:
            self.entities[identifier] = self.crate.add(make())
        return self.entities[identifier]

    def _context(self, identifier: str, kind: str | list[str], **properties: Any) -> Any:
        from rocrate.model import ContextEntity

        whole = {"@type": kind, **properties}
        return self._once(identifier, lambda: ContextEntity(self.crate, identifier, whole))

    def _folder(self, place: str, description: str) -> Any:
        """A folder of the crate, if anything in it is included."""
        from rocrate.model import Dataset

        if found := self.entities.get(place) or self.entities.get(f"#{place}"):
            return found
        inside = [file for name, file in self.files.items() if name.startswith(place)]
        packed = sum(not file.left_out for file in inside)
        if not packed:
            text = f"{description} {len(inside)} files, not included."
            return self._context(f"#{place}", "CreativeWork", name=place, description=text)
        text = f"{description} {packed} of {len(inside)} files are included."
        properties = {"name": place, "description": text}
        return self._once(
            place, lambda: Dataset(self.crate, dest_path=place, properties=properties)
        )

    def _own(self, name: str) -> None:
        from rocrate.model import File as Entity

        suffix = PurePosixPath(name).suffix
        properties = {"name": name, "encodingFormat": MEDIA.get(suffix, "text/plain")}
        entity = self._once(name, lambda: Entity(self.crate, dest_path=name, properties=properties))
        if name == "README.md":
            entity["about"] = self.crate.root_dataset

    def _file(self, place: str, **more: Any) -> Any:
        """A file by its place: a data entity, or a mere description of what is left out."""
        from rocrate.model import File as Entity

        file = self.files[place]
        known = {"contentSize": str(file.bytes), "sha256": file.sha256} if file.sha256 else {}
        media = MEDIA.get(PurePosixPath(place).suffix.lower())
        properties = {
            "name": PurePosixPath(place).name,
            **({"encodingFormat": media} if media else {}),
            **known,
            **more,
        }
        if file.left_out:
            why = f"Not included: {file.left_out}."
            return self._context(f"#{quote(place)}", "CreativeWork", **properties, description=why)
        return self._once(place, lambda: Entity(self.crate, dest_path=place, properties=properties))

    def _of_key(self, key: str) -> Any:
        """The entity that stands for a file of the run."""
        made_by = self.records.producers.get(key)
        if made_by is not None and of_a_scan(made_by):
            return self._scans(key, made_by)
        if made_by is None and (dataset := self._raw.get(key)):
            return self._raw_data(dataset)
        return self._file(place_of(key))

    def _scans(self, key: str, record: Record) -> Any:
        """The folder of a data set that a scan's file lies in."""
        parts = PurePosixPath(key).parts
        subject = record.wildcards["subject"]
        depth = next((i for i, part in enumerate(parts) if subject in part), len(parts) - 1)
        folder = RESULTS_FOLDER + "".join(f"{part}/" for part in parts[:depth])
        return self._folder(folder, "One file or more for each scan; see the list of files.")

    @cached_property
    def _raw(self) -> dict[str, str]:
        """Data set of every raw scan: what no job made and a job of a data set read."""
        found = {}
        for record in self.records.all.values():
            if dataset := record.wildcards.get("dataset"):
                for entry in record.inputs:
                    made = entry.key in self.records.producers
                    code = entry.key.startswith(REPOSITORY) and not self._left_out(entry.key)
                    if not made and not code:
                        found[entry.key] = dataset
        return found

    def _left_out(self, key: str) -> bool:
        file = self.files.get(place_of(key))
        return file is None or bool(file.left_out)

    def _raw_data(self, dataset: str) -> Any:
        if found := self.entities.get(f"#raw/{dataset}"):
            return found
        names = [key for key, name in self._raw.items() if name == dataset]
        text = f"{len(names)} files, by hash and size in the crate's list of files."
        source = self.about.sources.get(dataset)
        known = (
            {
                "alternateName": source.title,
                "url": source.home,
                "license": source.licence,
                "citation": source.citation,
            }
            if source
            else {}
        )
        return self._context(
            f"#raw/{dataset}",
            "CreativeWork",
            name=f"Raw scans of {dataset}",
            description=text if source else f"{text} Generated scans of a phantom.",
            **known,
        )

    # -- the workflow ---------------------------------------------------------------------------

    def _workflow(self) -> Any:
        place = f"{CODE_FOLDER}Snakefile"
        file = self.files[place]
        # not through _once: the library also describes the language
        workflow = self.crate.add_workflow(
            dest_path=place,
            main=True,
            lang="snakemake",
            lang_version=self._version(),
            properties={
                "name": "Snakemake workflow",
                "encodingFormat": "text/plain",
                "version": self._newest["code"].get("commit") or "unknown",
                "contentSize": str(file.bytes),
                "sha256": file.sha256,
            },
        )
        workflow._jsonld["@type"] = [*workflow.type, "HowTo"]
        workflow["conformsTo"] = {"@id": BIOSCHEMAS}
        lock = f"{CODE_FOLDER}uv.lock"
        if lock in self.files:
            workflow["buildInstructions"] = self._file(
                lock,
                encodingFormat="application/toml",
                conformsTo={"@id": "https://docs.astral.sh/uv/concepts/projects/layout/"},
                description="Every package of the environment, with version and hashes.",
            )
        self.entities[place] = workflow
        self._parameters(workflow)
        return workflow

    def _parameters(self, workflow: Any) -> None:
        config = f"{RESULTS_FOLDER}config.resolved.yaml"
        tables = [
            name
            for name in self.files
            if name.startswith(f"{RESULTS_FOLDER}tables/") and name.endswith(".csv")
        ]
        if config in self.files:
            workflow["input"] = self._parameter(config, "The whole configuration of the run.")
        if tables:
            workflow["output"] = _plain([self._parameter(name, "A table.") for name in tables])

    def _parameter(self, place: str, description: str) -> Any:
        entity = self._file(place)
        parameter = self._context(
            f"#parameter/{quote(place)}",
            "FormalParameter",
            name=PurePosixPath(place).name,
            description=description,
            additionalType="File",
            workExample=entity,
        )
        entity["exampleOfWork"] = parameter
        return parameter

    def _tool(self, rule: str) -> Any:
        """The script of a rule."""
        place = f"{CODE_FOLDER}workflow_scripts/{rule}.py"
        if place not in self.files:  # the rule is gone since
            return self._context(f"#tool/{rule}", "SoftwareApplication", name=rule)
        entity = self._file(place)
        entity._jsonld["@type"] = ["File", "SoftwareSourceCode"]
        entity["version"] = str(self.files[place].sha256)
        return entity

    # -- the actions ----------------------------------------------------------------------------

    def _actions(self) -> dict[tuple[str, ...], Any]:
        """An action for each job, or for all jobs of a rule on the scans of a data set."""
        jobs: dict[tuple[str, ...], list[Record]] = {}
        for key, record in sorted(self.records.all.items()):
            if of_a_scan(record):
                rest = {k: v for k, v in sorted(record.wildcards.items()) if k != "subject"}
                group = (record.rule, *rest.values())
            else:
                group = (record.rule, key)
            jobs.setdefault(group, []).append(record)
        return {group: self._action(group, members) for group, members in jobs.items()}

    def _action(self, group: tuple[str, ...], records: list[Record]) -> Any:
        first = records[0]
        name = ", ".join([first.rule, *(v for k, v in first.wildcards.items() if k != "subject")])
        if of_a_scan(first):
            identifier = f"#jobs/{quote('/'.join(group))}"
            name = f"{name}: {len(records)} scans"
            more = {"description": f"{len(records)} jobs; each has its record beside its output."}
        else:
            identifier = f"#job/{quote(first.key.removesuffix(SUFFIX))}"
            record = self._file(place_of(first.key), description="Record of a job.")
            more = {"description": f"A job of the rule {first.rule}.", "subjectOf": record}
        return self._context(
            identifier,
            "CreateAction",
            name=name,
            instrument=self._tool(first.rule),
            actionStatus=COMPLETED,
            **_filled(
                object=self._entities_of(e.key for record in records for e in record.inputs),
                result=self._entities_of(e.key for record in records for e in record.outputs),
            ),
            startTime=min(map(_start_of, records)).isoformat(),
            endTime=max(map(end_of, records)).isoformat(),
            **self._agent(),
            **more,
        )

    def _entities_of(self, keys: Iterable[str]) -> Any:
        entities = (self._of_key(key) for key in dict.fromkeys(keys))
        return _plain(list({entity.id: entity for entity in entities}.values()))

    def _agent(self) -> dict[str, Any]:
        if self.about.agent is None:
            return {}
        identifier = f"#{quote(self.about.agent)}"
        return {"agent": self._context(identifier, "Person", name=self.about.agent)}

    def _run(self, workflow: Any, actions: list[Any]) -> Any:
        config = f"{RESULTS_FOLDER}config.resolved.yaml"
        read = [self._raw_data(dataset) for dataset in sorted(set(self._raw.values()))]
        if config in self.files:
            read.insert(0, self._file(config))
        last = (key for key in sorted(self.records.outputs) if key not in self.records.consumers)
        records = self.records.all.values()
        return self._context(
            "#run",
            "CreateAction",
            name="Run of the workflow",
            description=f"{len(records)} jobs that made what is in this crate; not all need have "
            "run in one go.",
            instrument=workflow,
            actionStatus=COMPLETED,
            **_filled(object=_plain(read), result=self._entities_of(last)),
            startTime=min(map(_start_of, records)).isoformat(),
            endTime=max(map(end_of, records)).isoformat(),
            **self._agent(),
        )

    def _steps(self, workflow: Any, actions: dict[tuple[str, ...], Any], run: Any) -> None:
        order = self.records.rule_order
        steps = {
            rule: self._context(
                f"#step/{rule}",
                "HowToStep",
                name=rule,
                position=str(position),
                workExample=self._tool(rule),
            )
            for position, rule in enumerate(order, start=1)
        }
        workflow["step"] = list(steps.values())
        tools = (self._tool(rule) for rule in order)
        workflow["hasPart"] = list({tool.id: tool for tool in tools}.values())
        controls = [
            self._context(
                f"#control/{action.id.removeprefix('#')}",
                "ControlAction",
                name=f"Control of {action['name']}",
                instrument=steps[group[0]],
                object=action,
            )
            for group, action in actions.items()
        ]
        address = f"https://pypi.org/project/snakemake/{self._version()}/"
        engine = self._context(
            address,
            "SoftwareApplication",
            name="Snakemake",
            url=address,
            softwareVersion=self._version(),
        )
        self._context(
            "#engine-run",
            "OrganizeAction",
            name="Run of Snakemake",
            instrument=engine,
            object=controls,
            result=run,
        )

    @cached_property
    def _newest(self) -> dict[str, Any]:
        records = self.records.all.values()
        return max(records, key=lambda record: record.content["started"]).content

    def _version(self) -> str:
        return self._newest["environment"].get("snakemake", "unknown")
