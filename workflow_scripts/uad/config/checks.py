"""What the sections of a config must agree on: names that exist, options that fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from pydantic import ValidationError

from uad import methods as method_registry
from uad.config.inputs import BACKENDS
from uad.config.training import PAPER_PROTOCOL, Train
from uad.core.errors import near
from uad.core.patterns import layout_name, layout_of

if TYPE_CHECKING:
    from uad.config.model import Config
    from uad.config.outputs import Column
    from uad.config.training import Model


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


def find_problems(config: Config) -> Iterator[str]:
    """Every contradiction in a config, one sentence each."""
    for where, name, kind, known in _references(config):
        if name not in known:
            yield f"{where}: unknown {kind} '{name}'{near(name, known)}"
    for name in config.methods:
        yield from _method(config, name)
    for name, model in config.models.items():
        yield from _model(config, name, model)
    yield from _phantoms(config)
    for name, experiment in config.experiments.items():
        where = f"experiments.{name}"
        if experiment.setting == "intra" and experiment.test != [experiment.train]:
            yield f"{where}: setting 'intra' tests on the data set it trains on, and on no other"
        if experiment.setting == "cross" and experiment.train in experiment.test:
            yield f"{where}: setting 'cross' needs test sets other than the training set"
        patients = {d for d, spec in config.datasets.items() if not layout_of(spec.layout).healthy}
        if experiment.setting == "cross" and experiment.train in patients:
            yield (
                f"{where}.train: '{experiment.train}' has lesion masks, and setting 'cross' trains "
                "on healthy subjects; setting 'intra' trains on slices without a lesion"
            )
        for test in {*experiment.test} & {*config.datasets} - patients:
            yield f"{where}.test: '{test}' is healthy: there is nothing to find in it"
    yield from _rows(config)
    for name in experiments_in_use(config):
        yield from _experiment_in_use(config, name)


def _references(config: Config) -> Iterator[tuple[str, str, str, Iterable[str]]]:
    """Every name that must exist: where it is, the name, of what, and the names that there are."""
    sets, methods, experiments = config.datasets, config.methods, config.experiments
    for name, method in methods.items():
        yield f"methods.{name}.model", method.model, "model", config.models
        if method.seeded_as:
            yield f"methods.{name}.seeded_as", method.seeded_as, "method", methods
    for name in sets:
        backend = config.backend_of(name).removeprefix("auto-")
        yield f"datasets.{name}.skullstrip", backend, "back end", BACKENDS
    for name in config.splits.unhealthy_validation:
        yield "splits.unhealthy_validation", name, "data set", sets
    for name, experiment in experiments.items():
        yield f"experiments.{name}.train", experiment.train, "data set", sets
        for test in experiment.test:
            yield f"experiments.{name}.test", test, "data set", sets
        if reference := experiment.air_reference:
            yield f"experiments.{name}.air_reference", reference, "test set", experiment.test
    for name, table in config.tables.items():
        for row in {row for pair in table.claims for row in pair}:
            yield f"tables.{name}.claims", row, "method", methods
    for name, study in config.studies.items():
        for row, others in study.trained.items():
            yield f"studies.{name}.trained", row, "method of it", study.methods
            for other in others:
                yield f"studies.{name}.trained", other, "method", methods
    for where, rows, columns, built in _uses(config):
        for row in rows:
            yield where, row, "method", methods
        for column in columns:
            yield where, column.experiment, "experiment", experiments
            # an overlay may shrink an experiment without rewriting tables that it does not build
            own = built and column.experiment in experiments
            yield (
                where,
                column.test,
                "test set",
                experiments[column.experiment].test if own else sets,
            )
    run = config.run
    for key, kind, names, known in (
        ("tables", "table", run.tables, config.tables),
        ("studies", "study", run.studies, config.studies),
        ("figures", "figure", run.figures, config.figures),
        ("air_experiments", "experiment", run.air_experiments, experiments),
        ("healthy_methods", "method", run.healthy_methods, methods),
    ):
        for name in names or []:
            yield f"run.{key}", name, kind, known
    # the preset names the paper's experiments, which a config need not have
    preset = PAPER_PROTOCOL["t_test"] if config.protocol.preset == "paper" else {}
    for key in sorted({*config.protocol.t_test} - {*preset, "default"}):
        name, _, test = key.partition("/")
        yield "protocol.t_test", name, "experiment", experiments
        if test and name in experiments:
            yield "protocol.t_test", test, "test set", experiments[name].test


def _uses(config: Config) -> Iterator[tuple[str, list[str], list[Column], bool]]:
    """Where methods and test sets are named: place, methods, columns, and whether it is built."""
    for name, table in config.tables.items():
        yield f"tables.{name}", table.rows, table.columns, name in config.tables_of_run()
    for name, figure in config.figures.items():
        yield f"figures.{name}", figure.methods, [figure], name in config.figures_of_run()
    for name, study in config.studies.items():
        yield f"studies.{name}", study.methods, study.columns, name in config.studies_of_run()


def _method(config: Config, name: str) -> Iterator[str]:
    method, where = config.methods[name], f"methods.{name}"
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


def _phantoms(config: Config) -> Iterator[str]:
    for name, dataset in config.datasets.items():
        if dataset.source != "phantom":
            continue
        from uad.phantom.anatomy import LAYOUTS

        where, layout = f"datasets.{name}", dataset.layout
        if layout_name(layout) not in LAYOUTS:
            yield f"{where}.layout: no phantom has this layout{near(layout_name(layout), LAYOUTS)}"
        elif dataset.phantom.subjects > (limit := LAYOUTS[layout].subject_limit):
            yield f"{where}.phantom.subjects: the {layout} layout has names for {limit} subjects"


def _rows(config: Config) -> Iterator[str]:
    for where, rows, columns, _ in _uses(config):
        tests = [f"{column.experiment}/{column.test}" for column in columns]
        for kind, names in (("row", rows), ("column", tests)):
            for name in {name for name in names if names.count(name) > 1}:
                yield f"{where}: {kind} '{name}' is listed twice"
    for name, study in config.studies.items():
        for method in set(study.methods) & set(config.methods):
            if config.methods[method].score == "direct":
                yield f"studies.{name}.methods: '{method}' has no reconstructions to score again"


def _experiment_in_use(config: Config, name: str) -> Iterator[str]:
    experiment = config.experiments[name]
    used = {experiment.train, *experiment.test}
    for dataset in used & set(config.datasets):
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
    if config.splits.kind == "reference" and experiment.setting == "cross":
        from uad.published_splits import read_registry  # loads pandas

        published = read_registry()
        layouts = {d: layout_name(config.datasets[d].layout) for d in used & set(config.datasets)}
        stems = list(published["stems"])
        fits = layouts.get(experiment.train) == stems[0] and {*layouts.values()} <= {*stems}
        if not fits or experiment.folds > published["folds"]:
            yield (
                f"experiments.{name}: the published splits (splits.kind: reference) have "
                f"{published['folds']} folds, train on {stems[0]} and know {', '.join(stems)}"
            )
