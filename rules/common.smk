"""Functions that several stages share."""

from functools import lru_cache, partial
from math import prod

from uad.config import params as rule_params
from uad.core.files import read_tsv
from uad.core.paths import MODALITY, SUFFIX
from uad.core.patterns import layout_name

SCRIPTS = "../workflow_scripts"
GPU_WANTED = 0 if cfg.train.accelerator == "cpu" else 1
#: float32 volume of a store, MB
VOLUME_MB = prod(cfg.preprocessing.shape) * 4 / 2**20


# what stands for a part of a path in the rules: "<results>/metrics/<cell>/{test}.tsv"
pathvars:
    results=cfg.results,
    logs=f"{cfg.results}/logs",
    cell="{experiment}/{method}/fold-{fold}",


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
    table = read_tsv(path).fillna("")
    return {(row.subject, row.modality): row for row in table.itertuples()}


def index_of(dataset):
    """A data set's participants table and when it was written; waits for its index."""
    path = planned_table(dataset) or checkpoints.index_dataset.get(dataset=dataset).output[0]
    return path, Path(path).stat().st_mtime_ns


def participants(dataset):
    """Rows of a data set's participants table by (subject, modality); read once for all jobs."""
    return _participants(*index_of(dataset))


def settings(rule):
    """What a rule reads of the config, as params (uad.config.params)."""
    return {name: partial(value, cfg) for name, value in rule_params.PARAMS[rule].items()}


#: Category of the report -> captions (report/<caption>.rst) of what it shows.
CATEGORIES = {
    "Tables": ["table"],
    "Figures": ["maps", "curves"],
    "AIR": ["air"],
    "Metrics": ["metrics", "ranks", "healthy"],
    "Studies": ["study"],
    "Cost": ["cost"],
    "Notebooks": ["notebook"],
    "Run": ["stages", "data", "config", "runtime"],
}
CATEGORY = {caption: name for name, captions in CATEGORIES.items() for caption in captions}


def shown(path, caption, **labels):
    """An output that the report shows, with the caption of report/<caption>.rst."""
    caption_file = f"../report/{caption}.rst"
    return report(path, caption=caption_file, category=CATEGORY[caption], labels=labels)


def plain(part):
    """A section of the validated config as plain data, for params."""
    return part.model_dump(mode="json")


def is_preprocessed(dataset):
    """Whether a data set enters after registration and N4."""
    return cfg.datasets[dataset].source == "preprocessed"


def experiment_of(wildcards):
    """The config entry of an experiment."""
    return cfg.experiments[wildcards.experiment]


def store_of(dataset, wildcards):
    """Slice store of a data set in the modality of an experiment."""
    return tree.slices(dataset, experiment_of(wildcards).modality)


def test_store(wildcards):
    """Slice store of one test set."""
    return store_of(wildcards.test, wildcards)


def air_if_used(wildcards):
    """The AIR decision, for methods that consume it."""
    used = cfg.methods[wildcards.method].air
    return tree.air(wildcards.experiment, wildcards.fold) if used else []


def gpu_slots(wildcards):
    """Slots of a GPU, which has run.jobs_per_gpu: one for a model that shares it, else all."""
    slots = cfg.run.jobs_per_gpu // cfg.jobs_per_gpu_of(wildcards.method)
    return slots * (GPU_WANTED if cfg.family_of(wildcards.method).trained else 0)


def scans_of(dataset):
    """How many scans of one modality a data set has, by the config; for what jobs request."""
    spec = cfg.datasets[dataset]
    count = spec.phantom.subjects if spec.source == "phantom" else spec.expected or 1000
    return min(count, spec.limit or count)


def by_attempt(amount):
    """Resource function: an amount, more with each attempt."""
    return lambda wildcards, attempt: amount * attempt


def request(base, per_scan, dataset):
    """Resource function: a base and a share per scan of a data set; more with each attempt."""
    return lambda wildcards, attempt: round(
        (base + per_scan * scans_of(dataset(wildcards))) * attempt
    )


def request_memory(base, copies, dataset):
    """MB: the interpreter with its libraries, and float32 copies of all volumes at once."""
    return request(base, copies * VOLUME_MB, dataset)


def of_wildcard(wildcards):
    """The data set that a job is named after."""
    return wildcards.dataset


def of_test(wildcards):
    """The data set that a job tests on."""
    return wildcards.test
