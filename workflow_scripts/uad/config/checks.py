"""What the sections of a config must agree on: names that exist, options that fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from pydantic import ValidationError

from uad import methods as method_registry
from uad.config.inputs import BACKENDS
from uad.config.training import PAPER_PROTOCOL, Train
from uad.core.errors import near

if TYPE_CHECKING:
    from uad.config.model import Config
    from uad.config.outputs import Column
    from uad.config.training import Experiment, Model


def find_problems(config: Config) -> Iterator[str]:
    """Every contradiction in a config, one sentence each."""
    for name in config.methods:
        yield from _method(config, name)
    for name, model in config.models.items():
        yield from _model(config, name, model)
    yield from _datasets(config)
    for name, experiment in config.experiments.items():
        yield from _experiment(config, name, experiment)
    yield from _claims_and_studies(config)
    for where, rows, columns in _uses(config):
        yield from _rows_and_columns(config, where, rows, columns)
    yield from _run(config)
    for name in experiments_in_use(config):
        yield from _experiment_in_use(config, name)
    yield from _noise_levels(config)


def experiments_in_use(config: Config) -> set[str]:
    """Experiments of the tables, figures and AIR reports of this run, as far as they exist."""
    tables = [config.tables[t] for t in config.tables_of_run() if t in config.tables]
    figures = [config.figures[f] for f in config.figures_of_run() if f in config.figures]
    names = {column.experiment for table in tables for column in table.columns}
    names |= {figure.experiment for figure in figures} | set(config.run.air_experiments or [])
    return names & set(config.experiments)


def error_lines(error: ValidationError, prefix: str = "") -> list[str]:
    """A validation error as lines: where, what, near match."""
    lines = []
    for problem in error.errors():
        place = ".".join(part for part in (prefix, *map(str, problem["loc"])) if part)
        message = problem["msg"].removeprefix("Value error, ")
        lines += [f"{place}: {line}" if place else line for line in message.splitlines()]
    return lines


def _unknown(where: str, name: str, kind: str, known: Iterable[str]) -> Iterator[str]:
    if name not in known:
        yield f"{where}: unknown {kind} '{name}'{near(name, known)}"


def _method(config: Config, name: str) -> Iterator[str]:
    method, where = config.methods[name], f"methods.{name}"
    yield from _unknown(f"{where}.model", method.model, "model", config.models)
    if method.seeded_as:
        yield from _unknown(f"{where}.seeded_as", method.seeded_as, "method", config.methods)
    if method.model not in config.models:
        return
    family = config.family_of(name)
    if family.losses is not None and "loss" in method.model_fields_set:
        if not family.losses:
            yield f"{where}.loss: this method is not trained; leave it out"
        elif method.loss not in family.losses:
            own = " or ".join(family.losses)
            yield f"{where}.loss: this method trains with a loss of its own: {own}"
    if family.scores != (method.score == "direct"):
        yield (
            f"{where}.score: 'direct' is for methods that score without a reconstruction, and "
            "the only one for them"
        )


def _model(config: Config, name: str, model: Model) -> Iterator[str]:
    family = method_registry.load(model.family)
    try:
        options = family.Options.model_validate(model.options)
    except ValidationError as error:
        yield from error_lines(error, f"models.{name}.options")
    else:
        model.options = options.model_dump()
        width, height, _ = config.preprocessing.shape
        for problem in family.problems(options, (height, width)):
            yield f"models.{name}.options: {problem}"
    try:
        Train.model_validate({**config.train.model_dump(), **model.train})
    except ValidationError as error:
        yield from error_lines(error, f"models.{name}.train")


def _datasets(config: Config) -> Iterator[str]:
    for name, dataset in config.datasets.items():
        where = f"datasets.{name}"
        backend = config.backend_of(name)
        yield from _unknown(f"{where}.skullstrip", backend, "back end", BACKENDS)
        many = dataset.source == "phantom" and dataset.phantom.subjects > 99
        if many and dataset.layout == "mslub":
            yield f"{where}.phantom.subjects: the mslub layout has names for 99 patients"
    for name in config.splits.unhealthy_validation:
        yield from _unknown("splits.unhealthy_validation", name, "data set", config.datasets)


def _experiment(config: Config, name: str, experiment: Experiment) -> Iterator[str]:
    where = f"experiments.{name}"
    yield from _unknown(f"{where}.train", experiment.train, "data set", config.datasets)
    for test in experiment.test:
        yield from _unknown(f"{where}.test", test, "data set", config.datasets)
    if reference := experiment.air_reference:
        yield from _unknown(f"{where}.air_reference", reference, "test set", experiment.test)
    if experiment.setting == "intra" and experiment.test != [experiment.train]:
        yield f"{where}: setting 'intra' tests on the data set it trains on, and on no other"
    if experiment.setting == "cross" and experiment.train in experiment.test:
        yield f"{where}: setting 'cross' needs test sets other than the training set"


def _claims_and_studies(config: Config) -> Iterator[str]:
    for name, table in config.tables.items():
        for row in {row for pair in table.claims for row in pair}:
            yield from _unknown(f"tables.{name}.claims", row, "method", config.methods)
    for name, study in config.studies.items():
        for method in set(study.methods) & set(config.methods):
            if config.methods[method].score == "direct":
                yield f"studies.{name}.methods: '{method}' has no reconstructions to score again"
        for row, others in study.trained.items():
            yield from _unknown(f"studies.{name}.trained", row, "method of it", study.methods)
            for other in others:
                yield from _unknown(f"studies.{name}.trained", other, "method", config.methods)


def _uses(config: Config) -> Iterator[tuple[str, list[str], list[Column]]]:
    """Where methods and test sets are named: (place, methods, columns)."""
    for name, table in config.tables.items():
        yield f"tables.{name}", table.rows, table.columns
    for name, figure in config.figures.items():
        yield f"figures.{name}", figure.methods, [figure]
    for name, study in config.studies.items():
        yield f"studies.{name}", study.methods, study.columns


def _rows_and_columns(
    config: Config, where: str, rows: list[str], columns: list[Column]
) -> Iterator[str]:
    for row in rows:
        yield from _unknown(where, row, "method", config.methods)
        if rows.count(row) > 1:
            yield f"{where}: row '{row}' is listed twice"
    # an overlay may shrink an experiment without rewriting every table that it does not build
    built = {f"tables.{name}" for name in config.tables_of_run()}
    built |= {f"figures.{name}" for name in config.figures_of_run()}
    built |= {f"studies.{name}" for name in config.studies_of_run()}
    for column in columns:
        yield from _unknown(where, column.experiment, "experiment", config.experiments)
        tests: Iterable[str] = config.datasets
        if column.experiment in config.experiments and where in built:
            tests = config.experiments[column.experiment].test
        yield from _unknown(where, column.test, "test set", tests)


def _run(config: Config) -> Iterator[str]:
    run = config.run
    for key, kind, names, known in (
        ("tables", "table", run.tables, config.tables),
        ("studies", "study", run.studies, config.studies),
        ("figures", "figure", run.figures, config.figures),
        ("air_experiments", "experiment", run.air_experiments, config.experiments),
    ):
        for name in names or []:
            yield from _unknown(f"run.{key}", name, kind, known)


def _experiment_in_use(config: Config, name: str) -> Iterator[str]:
    experiment = config.experiments[name]
    for dataset in {experiment.train, *experiment.test} & set(config.datasets):
        modalities = config.datasets[dataset].modalities
        if experiment.modality not in modalities:
            yield (
                f"experiments.{name}.modality: data set '{dataset}' has no "
                f"{experiment.modality} (it lists {', '.join(modalities)})"
            )
    for fold in config.run.folds or []:
        if fold >= experiment.folds:
            last = experiment.folds - 1
            yield f"run.folds: there is no fold {fold}; '{name}' has 0 to {last}"
    if config.splits.kind != "reference" or experiment.setting != "cross":
        return
    if experiment.train in config.datasets:
        layout = config.datasets[experiment.train].layout
        if layout != "ixi" or experiment.folds > 5:
            yield (
                f"experiments.{name}: the published splits (splits.kind: reference) have five "
                "folds and train on IXI"
            )


def _noise_levels(config: Config) -> Iterator[str]:
    for key in config.protocol.t_test:
        if config.protocol.preset == "paper" and key in PAPER_PROTOCOL["t_test"]:
            continue  # the preset names the paper's experiments, which a config need not have
        experiment, _, test = key.partition("/")
        if key != "default":
            yield from _unknown("protocol.t_test", experiment, "experiment", config.experiments)
        if test and experiment in config.experiments:
            tests = config.experiments[experiment].test
            yield from _unknown("protocol.t_test", test, "test set", tests)
