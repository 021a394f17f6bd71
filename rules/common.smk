"""Configuration, paths and input functions that several stages share."""

import json
import os
import sys
from collections import Counter
from functools import lru_cache, partial
from itertools import chain
from math import prod
from pathlib import Path

from snakemake.exceptions import WorkflowError

# the repository itself, also for a run that works on a copy of it (uad.run.launch): as an input, a
# path must not depend on where a run was started from
REPOSITORY = os.environ.get("UAD_REPOSITORY") or workflow.basedir
LIBRARY = Path(workflow.basedir) / "workflow_scripts"
sys.path.insert(0, str(LIBRARY))

import uad

# an environment may have been made for another copy of this folder
if Path(uad.__file__).parents[1].resolve() != LIBRARY.resolve():
    raise WorkflowError(
        f"The library is loaded from {Path(uad.__file__).parent}, not from this copy ({LIBRARY}). "
        f"Use make, which builds an environment here, or: export PYTHONPATH='{LIBRARY}'"
    )
# scripts run the library beside this file, too
others = filter(None, [os.environ.get("PYTHONPATH")])
os.environ.update(PYTHONPATH=os.pathsep.join([str(LIBRARY), *others]))

from uad import config as uad_config
from uad.config import params as rule_params
from uad.data.layouts import listing_digest, missing_data
from uad.core.errors import ConfigError, DataError
from uad.core.files import read_tsv
from uad.core.paths import MODALITY, SUFFIX, Tree
from uad.run import progress
from uad.run.room import check_one_kind
from uad.core.provenance import CODE_STATE, git_state
from uad.qc.decide import decisions_of_run, exclusions

try:
    cfg = uad_config.load(config)
    check_one_kind(cfg.results, cfg.phantom)
    decisions = decisions_of_run(
        cfg.qc.decisions, {name: d.modalities for name, d in cfg.datasets.items()}
    )
except (ConfigError, DataError) as error:
    raise WorkflowError(str(error)) from None

if workflow.is_main_process:  # asked once, not by every job
    os.environ[CODE_STATE] = json.dumps(git_state())

    @lru_cache(maxsize=1)
    def _count_jobs(of_run, of_targets):
        """Jobs by rule, counted again when there are others: those of this run, and all."""
        jobs = chain(workflow.dag.needrun_jobs(), workflow.dag.finished_jobs)
        return Counter(job.rule.name for job in jobs), of_targets

    # for the line that shows how far the run is (snakemake_logger_plugin_uad)
    progress.RUN.labels = {name: method.label or name for name, method in cfg.methods.items()}
    progress.RUN.counts = lambda: _count_jobs(len(workflow.dag), len(workflow.dag.jobs))

tree = Tree(cfg.results)
SCRIPTS = "../workflow_scripts"
TABLE_ENDINGS = ["csv", "md", "tex", "html"]
GPU_WANTED = 0 if cfg.train.accelerator == "cpu" else 1


def count_slots():
    """Without a scheduler: make slots of the run's GPUs (--resources gpu=N), several of each.

    Each job asks for gpu=1, because a scheduler gives out what it reads there. So where jobs share
    the GPUs of this machine, gpu_slots limits them. A wrong count is no danger: uad.run.devices waits.
    """
    gpus = workflow.global_resources.get("gpu")
    local = workflow.is_main_process and workflow.resource_settings.nodes is None
    if local and gpus is not None and cfg.run.jobs_per_gpu > 1:
        for name in ("gpu", "gpu_slots"):
            workflow.register_resource(name, gpus.value * cfg.run.jobs_per_gpu)


count_slots()


wildcard_constraints:
    dataset="|".join(cfg.datasets),
    batch="[0-9]+",
    test="|".join(cfg.datasets),
    subject="[A-Za-z0-9]+",
    suffix="|".join(MODALITY),
    modality="|".join(SUFFIX),
    experiment="|".join(cfg.experiments),
    method="|".join(cfg.methods),
    fold="[0-9]+",
    table="|".join(cfg.tables),
    figure="|".join(cfg.figures) or "none",
    study="|".join(cfg.studies) or "none",


@lru_cache
def _participants(path, modified):
    """A participants table, read once for all jobs of a run."""
    table = read_tsv(path).fillna("")
    return {(row.subject, row.modality): row for row in table.itertuples()}


def index_of(dataset):
    """A data set's participants table and when it was written; waits for its index."""
    path = checkpoints.index_dataset.get(dataset=dataset).output[0]
    return path, Path(path).stat().st_mtime_ns


def participants(dataset):
    """Rows of a data set's participants table by (subject, modality)."""
    return _participants(*index_of(dataset))


def settings(rule):
    """What a rule reads of the config, as params (uad.config.params)."""
    return {name: partial(value, cfg) for name, value in rule_params.PARAMS[rule].items()}


def plain(part):
    """A section of the validated config as plain data, for params."""
    return part.model_dump(mode="json")


def dataset_keys(wildcards, *keys):
    """Some keys of a data set's config: those that a rule reads, so that no other reruns it."""
    content = plain(cfg.datasets[wildcards.dataset])
    return {key: content[key] for key in keys}


def reviewed(wildcards):
    """Whom a reviewer excluded of a data set; nothing where he excluded nobody.

    A key, not a param of its own: a tree that was made before any review stays up to date.
    """
    modalities = cfg.datasets[wildcards.dataset].modalities
    found = exclusions(decisions, wildcards.dataset, modalities)
    return {"reviewed": found} if found else {}


def gpu_slots(wildcards):
    """Slots of a GPU, which has run.jobs_per_gpu: one for a model that shares it, else all."""
    slots = cfg.run.jobs_per_gpu // cfg.jobs_per_gpu_of(wildcards.method)
    return slots * reconstruction_gpu(wildcards)


def model_of(wildcards):
    """Family and options of a method's model."""
    model = plain(cfg.models[cfg.methods[wildcards.method].model])
    return {"family": model["family"], "options": model["options"]}


def experiment_of(wildcards):
    """The config entry of an experiment."""
    return cfg.experiments[wildcards.experiment]


def store_of(dataset, wildcards):
    """Slice store of a data set in the modality of an experiment."""
    return tree.slices(dataset, experiment_of(wildcards).modality)


def test_store(wildcards):
    """Slice store of one test set."""
    return store_of(wildcards.test, wildcards)


def air_of(wildcards):
    """Whether and by which rule a method inverts."""
    return cfg.methods[wildcards.method].air


def air_if_used(wildcards):
    """The AIR decision, for methods that consume it."""
    return tree.air(wildcards.experiment, wildcards.fold) if air_of(wildcards) else []


def loss_quality(wildcards):
    """Options that the loss of a method takes."""
    return cfg.quality_of(wildcards.method, cfg.methods[wildcards.method].loss)


def noise_field(wildcards):
    """How noise is shared, for methods that draw it."""
    return cfg.protocol.noise_field if cfg.family_of(wildcards.method).noisy else "per_batch"


def study_files(names):
    """What the reports of some studies consist of."""
    return [
        path
        for name in names
        for path in [
            *expand(tree.study("{ending}", name), ending=["csv", "md", "html"]),
            *([tree.study("png", name)] if cfg.studies[name].sweep else []),
        ]
    ]


def checks():
    """What every target asks for first: room on the disk, a verdict on the raw scans, the config."""
    return [
        f"{cfg.results}/preflight.json",
        f"{cfg.results}/config.resolved.yaml",
        *expand(tree.validation("html"), dataset=cfg.datasets_of_run()),
    ]


def part_files(part):
    """Tables, figures and studies of one part of the config."""
    tables = [name for name, table in cfg.tables.items() if table.part == part]
    figures = [name for name, figure in cfg.figures.items() if figure.part == part]
    studies = [name for name in cfg.studies_of_run() if cfg.studies[name].part == part]
    return [
        *expand(tree.table("{ending}", "{table}"), table=tables, ending=TABLE_ENDINGS),
        *expand(tree.figure("png", "{figure}"), figure=figures),
        *study_files(studies),
    ]


def labels():
    """How the methods are called in print."""
    return {name: method.label or name for name, method in cfg.methods.items()}


def cells(tables):
    """Metrics files behind some tables."""
    return list(
        dict.fromkeys(
            tree.per_test("metrics", "tsv", column.experiment, row, fold, column.test)
            for table in tables
            for row in cfg.tables[table].rows
            for column in cfg.tables[table].columns
            for fold in cfg.folds_of(column.experiment)
        )
    )


def datasets_at_hand():
    """Data sets of the config that are there."""
    return [
        name
        for name, dataset in cfg.datasets.items()
        if dataset.source == "phantom" or Path(dataset.path).is_dir()
    ]


def raw_root(wildcards):
    """Where the raw tree of a data set lies."""
    dataset = cfg.datasets[wildcards.dataset]
    return tree.raw(wildcards.dataset) if dataset.source == "phantom" else dataset.path


def raw_listing(content):
    """Param: a digest of a raw tree that is not ours, so that additions to it are seen."""

    def digest(wildcards):
        if cfg.datasets[wildcards.dataset].source == "phantom":
            return None  # its manifest is an input
        return listing_digest(raw_root(wildcards), content=content)

    return digest


def raw_tree(wildcards):
    """What the index of a data set waits for; a missing raw tree is explained at once."""
    dataset = cfg.datasets[wildcards.dataset]
    if dataset.source == "phantom":
        return tree.manifest(wildcards.dataset)
    if dataset.source == "download":
        return tree.downloaded(wildcards.dataset)
    needed = {name: cfg.datasets[name] for name in cfg.datasets_of_run()}
    problem = missing_data({wildcards.dataset: dataset}) and missing_data(
        {**needed, wildcards.dataset: dataset}
    )
    if problem:
        # not an exception that Snakemake would wrap: the message is for a person
        sys.exit(f"\n{problem}\n")
    return []


def is_preprocessed(dataset):
    """Whether a data set enters after registration and N4."""
    return cfg.datasets[dataset].source == "preprocessed"


def datasets_of_qc():
    """Data sets that quality control covers: those that this run works on."""
    return list(dict.fromkeys(name for name, _ in cfg.stores_of_run()))


def scans_of(dataset):
    """How many scans of one modality a data set has, by the config; for what jobs request."""
    spec = cfg.datasets[dataset]
    count = spec.phantom.subjects if spec.source == "phantom" else spec.expected or 1000
    return min(count, spec.limit or count)


#: float32 volume of a store, MB
VOLUME_MB = prod(cfg.preprocessing.shape) * 4 / 2**20


def by_attempt(amount):
    """Resource function: an amount, more with each attempt."""
    return lambda wildcards, attempt: amount * attempt


def request(base, per_scan, dataset):
    """Resource function: a base and a share per scan of a data set; more with each attempt."""

    def amount(wildcards, attempt):
        return round((base + per_scan * scans_of(dataset(wildcards))) * attempt)

    return amount


def request_memory(base, copies, dataset):
    """MB: the interpreter with its libraries, and float32 copies of all volumes at once."""
    return request(base, copies * VOLUME_MB, dataset)


def of_wildcard(wildcards):
    """The data set that a job is named after."""
    return wildcards.dataset


def of_test(wildcards):
    """The data set that a job tests on."""
    return wildcards.test
