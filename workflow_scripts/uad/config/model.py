"""The whole of ``config.yaml``, and what the workflow asks of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from uad import methods as method_registry
from uad.config.checks import experiments_in_use, find_problems
from uad.config.inputs import Dataset, Preprocessing, QualityControl, Splits
from uad.config.outputs import AS_CONFIGURED, Figure, Rescoring, Run, Study, Table
from uad.config.training import QUALITY_OPTIONS, Experiment, Method, Model, Protocol, Train
from uad.core.patterns import layout_of
from uad.core.strict import Strict

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]*$")]
ExperimentName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


class Config(Strict):
    """The whole of ``config.yaml``."""

    results: str = "results"
    archives: str = Field("data/archives", description="Where downloads go and are looked for.")
    seed: int = Field(3141, ge=0)
    datasets: dict[Name, Dataset]
    preprocessing: Preprocessing = Preprocessing()
    protocol: Protocol = Protocol()
    splits: Splits = Splits()
    train: Train = Train()
    models: dict[Name, Model]
    methods: dict[Name, Method]
    experiments: dict[ExperimentName, Experiment]
    tables: dict[ExperimentName, Table]
    figures: dict[ExperimentName, Figure] = Field(default_factory=dict)
    studies: dict[ExperimentName, Study] = Field(default_factory=dict)
    qc: QualityControl = QualityControl()
    run: Run = Run()

    @model_validator(mode="after")
    def _references(self) -> Config:
        problems = list(find_problems(self))
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def phantom(self) -> bool:
        """Whether any data set is synthetic: then all that comes out is marked as phantom."""
        return any(dataset.source == "phantom" for dataset in self.datasets.values())

    @property
    def labels(self) -> dict[str, str]:
        """How the methods are called in print."""
        return {name: method.label or name for name, method in self.methods.items()}

    def datasets_of_run(self) -> list[str]:
        """Data sets that the tables, figures and AIR reports of this run need."""
        used = [self.experiments[name] for name in sorted(experiments_in_use(self))]
        needed = {dataset for e in used for dataset in (e.train, *e.test)}
        return [name for name in self.datasets if name in needed]

    def folds_of(self, experiment: str) -> list[int]:
        """The folds of an experiment that this run covers."""
        wanted = self.run.folds
        return [
            k for k in range(self.experiments[experiment].folds) if wanted is None or k in wanted
        ]

    def air_reference_of(self, experiment: str) -> str:
        """The data set whose unhealthy validation set decides on inversion."""
        spec = self.experiments[experiment]
        return spec.air_reference or spec.test[0]

    def train_of(self, method: str) -> Train:
        """Training parameters of a method: the common ones and its model's overrides."""
        overrides = self.models[self.methods[method].model].train
        return Train.model_validate({**self.train.model_dump(), **overrides})

    def backend_of(self, dataset: str) -> str:
        """Skull-stripping back end of a data set: of one that is stripped, its foreground.

        Where each scan is taken for a head or a brain it is ``auto-`` and the one for heads.
        """
        spec, common = self.datasets[dataset], self.preprocessing.skullstrip.backend
        stripped = layout_of(spec.layout).head == "stripped"
        chosen = spec.skullstrip or ("foreground" if stripped else common)
        return f"auto-{'hdbet' if common == 'auto' else common}" if chosen == "auto" else chosen

    def quality_of(self, method: str, name: str | None = None) -> dict[str, Any]:
        """Options of the quality maps of a method; with ``name`` those that this map takes."""
        alpha = self.methods[method].alpha
        options = self.protocol.quality | ({} if alpha is None else {"alpha": alpha})
        taken = options if name is None else QUALITY_OPTIONS.get(name, ())
        return {key: value for key, value in options.items() if key in taken}

    def seed_name_of(self, method: str) -> str:
        """The method whose random numbers a method draws: its own, as a rule."""
        return self.methods[method].seeded_as or method

    def jobs_per_gpu_of(self, method: str) -> int:
        """How many jobs of a method's kind may be on one GPU: one if its model fills it."""
        shares = self.models[self.methods[method].model].share_gpu
        return self.run.jobs_per_gpu if shares else 1

    def family_of(self, method: str) -> type[method_registry.Method]:
        """The class behind a method."""
        return method_registry.load(self.models[self.methods[method].model].family)

    def cells_of_run(self) -> list[tuple[str, str]]:
        """(experiment, method) of every cell of this run, once."""
        cells = {
            (column.experiment, row)
            for table in map(self.tables.__getitem__, self.tables_of_run())
            for row in table.rows
            for column in table.columns
        }
        return sorted(cells)

    def trained_rows(self) -> list[str]:
        """The method of every trained cell of this run, once per experiment."""
        return [row for _, row in self.cells_of_run() if self.family_of(row).trained]

    def tables_of_run(self) -> list[str]:
        """Tables that this run builds."""
        if self.run.tables is not None:
            return self.run.tables
        return [name for name, table in self.tables.items() if table.part == "paper"]

    def figures_of_run(self) -> list[str]:
        """Figures that this run builds."""
        if self.run.figures is not None:
            return self.run.figures
        paper = {name: [f] for name, f in self.figures.items() if f.part == "paper"}
        return self._of_built_tables(paper)

    def studies_of_run(self) -> list[str]:
        """Studies that this run builds."""
        if self.run.studies is not None:
            return self.run.studies
        return self._of_built_tables({name: s.columns for name, s in self.studies.items()})

    def _of_built_tables(self, columns: Mapping[str, list[Any]]) -> list[str]:
        """Where only some tables are asked for: what shows nothing but test sets of these."""
        if self.run.tables is None:
            return list(columns)
        listed = [self.tables[name] for name in self.run.tables if name in self.tables]
        shown = {(c.experiment, c.test) for table in listed for c in table.columns}
        return [n for n, own in columns.items() if {(c.experiment, c.test) for c in own} <= shown]

    def variants_of(self, study: str, method: str) -> list[dict[str, Any]]:
        """The variants of a study, complete, for one method; the first changes nothing."""
        spec, protocol = self.studies[study], self.protocol
        default = {
            "score": self.methods[method].score,
            "alpha": self.quality_of(method)["alpha"],
            **{
                key: getattr(protocol, key)
                for key in Rescoring.model_fields
                if key not in ("score", "alpha")
            },
        }
        changes: dict[str, dict[str, Any]] = {AS_CONFIGURED: {}}
        for key, values in spec.sweep.items():
            for value in values:
                valid = Rescoring.model_validate({key: value})
                changes[f"{value:g}"] = valid.model_dump(exclude_none=True)
        for name, change in spec.variants.items():
            changes[name] = change.model_dump(exclude_none=True)
        return [{"name": name, **default, **change} for name, change in changes.items()]

    def stores_of_run(self) -> list[tuple[str, str]]:
        """(data set, modality) of the scans that this run, with its parts, works on."""
        parts = {"paper", *self.run.parts}
        listed = [self.tables[name] for name in self.tables_of_run()]
        listed += [table for table in self.tables.values() if table.part in parts - {"paper"}]
        columns = [column for table in listed for column in table.columns]
        columns += [self.figures[name] for name in self.figures_of_run()]
        columns += [f for f in self.figures.values() if f.part in parts - {"paper"}]
        used = dict.fromkeys(column.experiment for column in columns)
        specs = [self.experiments[name] for name in used]
        found = {(name, spec.modality) for spec in specs for name in (spec.train, *spec.test)}
        for experiment in self.air_experiments_of_run():
            spec = self.experiments[experiment]
            found |= {(name, spec.modality) for name in spec.test}
        order = [(name, m) for name, dataset in self.datasets.items() for m in dataset.modalities]
        return [pair for pair in order if pair in found]

    def air_experiments_of_run(self) -> list[str]:
        """Experiments whose AIR is reported: those asked for, else those of the tables."""
        if self.run.air_experiments is not None:
            return self.run.air_experiments
        used = [c.experiment for t in self.tables_of_run() for c in self.tables[t].columns]
        return list(dict.fromkeys(used))
