"""Configuration, paths and input functions that several stages share."""

import json
import os
import sys
from collections import Counter
from functools import lru_cache
from math import prod
from pathlib import Path

from snakemake.exceptions import WorkflowError

# the repository itself, also for a run that works on a copy of it (uad.run.launch): as an input, a
# path must not depend on where a run was started from
REPOSITORY = os.environ.get("UAD_REPOSITORY") or workflow.basedir
sys.path.insert(0, str(Path(workflow.basedir) / "workflow_scripts"))

from uad import config as uad_config
from uad.data.layouts import listing_digest, missing_data
from uad.splits import reference_files
from uad.core.errors import ConfigError, DataError
from uad.core.files import read_tsv
from uad.core.paths import MODALITY, SUFFIX, Tree
from uad.run.room import check_one_kind
from uad.preprocess import batches
from uad.core.provenance import CODE_STATE, git_state
from uad.qc.decide import decisions_of_run, exclusions
from uad.qc.sheets import sheets_of

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


def participant(wildcards):
    """The row of one scan."""
    key = (wildcards.subject, MODALITY[wildcards.suffix])
    return participants(wildcards.dataset)[key]


@lru_cache
def _places(path, modified):
    """Each scan's place among the scans of its modality."""
    count, places = Counter(), {}
    for subject, modality in _participants(path, modified):
        places[subject, modality] = count[modality]
        count[modality] += 1
    return places


def batch_of(stage):
    """Group function: so many scans of a data set and modality make one submission.

    Not ``group-components`` in a profile: Snakemake 9.27 merges the groups anew at each update of
    the graph, and ten become a hundred. It serves here to join the members of one name.
    """

    def name(wildcards):
        places = _places(*index_of(wildcards.dataset))
        place = places[wildcards.subject, MODALITY[wildcards.suffix]]
        batch = place // cfg.run.scans_per_submission
        group = f"{stage}_{wildcards.dataset}_{wildcards.suffix}_{batch}"
        workflow.parent_groupids[group] = stage
        return group

    return name


def raw_image(wildcards):
    """Raw image of a scan."""
    return participant(wildcards).image


def raw_lesion(wildcards):
    """Raw lesion mask of a scan, if the data set has one."""
    return participant(wildcards).lesion or []


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


def has_network(wildcards):
    """Whether a network strips the skulls of a data set."""
    return cfg.backend_of(wildcards.dataset) == "hdbet"


def is_predicted(wildcards):
    """Whether masks are predicted in batches: on a GPU, which should not wait for imports.

    Where the config says that there is none a scan is a job: a network takes minutes on a CPU, and
    more cores take more scans.
    """
    on_cpu = cfg.preprocessing.skullstrip.device == "cpu" or not GPU_WANTED
    return has_network(wildcards) and not on_cpu


def network_options(wildcards):
    """Options of the network of a data set's back end."""
    options = plain(cfg.preprocessing.skullstrip)
    return {key: options[key] for key in ("mode", "tta", "device")}


def skullstrip_options(wildcards):
    """Options that the back end of a data set reads in the job of a scan."""
    alone = has_network(wildcards) and not is_predicted(wildcards)
    return network_options(wildcards) if alone else {}


def batches_of(dataset):
    """How many batches of scans a data set has, from what the config expects of it."""
    return batches.count_for(scans_of(dataset))


def prediction(wildcards):
    """The file with the predicted mask of a scan, if it comes from one."""
    if not is_predicted(wildcards):
        return []
    batch = batches.number_of(wildcards.subject, batches_of(wildcards.dataset))
    return tree.brain_masks(wildcards.dataset, wildcards.suffix, batch)


@lru_cache
def _batches(path, modified, count):
    """Subjects and raw images of each batch, by modality and number."""
    found = {}
    for (subject, modality), row in _participants(path, modified).items():
        number = batches.number_of(subject, count)
        found.setdefault((modality, number), {})[subject] = row.image
    return found


def scans_of_batch(wildcards):
    """Raw images of a batch by subject."""
    found = _batches(*index_of(wildcards.dataset), batches_of(wildcards.dataset))
    return found[MODALITY[wildcards.suffix], int(wildcards.batch)]


def images_of_batch(wildcards):
    """Raw images of a batch."""
    return list(scans_of_batch(wildcards).values())


def subjects_of_batch(wildcards):
    """Their subjects, in the same order."""
    return list(scans_of_batch(wildcards))


def prediction_minutes(wildcards, input, attempt):
    """Time limit of a batch: its images, with reserve for slow GPUs and file systems."""
    return (10 + 2 * len(input)) * attempt


def stripping_memory(wildcards, attempt):
    """MB that skull stripping takes; little where the mask is there."""
    return (2000 if is_predicted(wildcards) else 6000) * attempt


def stripping_minutes(wildcards, attempt):
    """Time limit of skull stripping: of writing a mask, of a network on the CPU, of the others."""
    if is_predicted(wildcards):
        return 3 * attempt
    return (30 if has_network(wildcards) else 10) * attempt


def reconstruction_gpu(wildcards):
    """One GPU for the methods that have a network."""
    return GPU_WANTED if cfg.family_of(wildcards.method).trained else 0


def gpu_slots(wildcards):
    """Slots of a GPU, which has run.jobs_per_gpu: one for a model that shares it, else all."""
    slots = cfg.run.jobs_per_gpu // cfg.jobs_per_gpu_of(wildcards.method)
    return slots * reconstruction_gpu(wildcards)


def split_keys(wildcards):
    """The sizes that an experiment's splits depend on."""
    content, experiment = plain(cfg.splits), experiment_of(wildcards)
    if experiment.setting == "intra":
        return {key: content[key] for key in ("kind", "seed")}
    if content["kind"] == "reference":
        return {"kind": "reference", "reference": content["reference"]}
    del content["reference"]
    sizes = content["unhealthy_validation"]
    content["unhealthy_validation"] = {t: sizes[t] for t in experiment.test if t in sizes}
    return content


def split_experiment(wildcards):
    """What a split depends on of its experiment, and the layouts of its data sets."""
    content = plain(experiment_of(wildcards))
    names = [content["train"], *content["test"]]
    kept = {key: content[key] for key in ("setting", "modality", "train", "test", "folds")}
    return {**kept, "layouts": {name: cfg.datasets[name].layout for name in names}}


def split_lists(wildcards):
    """The published lists that a split is made from."""
    experiment = experiment_of(wildcards)
    if cfg.splits.kind != "reference" or experiment.setting == "intra":
        return []
    names = reference_files(
        [cfg.datasets[name].layout for name in (experiment.train, *experiment.test)],
        experiment.modality,
        int(wildcards.fold),
    )
    folder = cfg.splits.reference.folder
    return [f"{folder}/{name}" if folder else tree.published_split(name) for name in names]


def model_of(wildcards):
    """Family and options of a method's model."""
    model = plain(cfg.models[cfg.methods[wildcards.method].model])
    return {"family": model["family"], "options": model["options"]}


def loop_of(wildcards):
    """Training parameters that define the result; how a training is run is left out."""
    loop = cfg.train_of(wildcards.method)
    return loop.model_dump(mode="json", exclude=set(loop.HOW))


def training_data(wildcards):
    """What an experiment trains on."""
    experiment = experiment_of(wildcards)
    content = {"setting": experiment.setting, "train": experiment.train}
    if experiment.setting == "intra":
        content["intra_slices"] = cfg.protocol.intra_slices
    return content


def experiment_of(wildcards):
    """The config entry of an experiment."""
    return cfg.experiments[wildcards.experiment]


def store_of(dataset, wildcards):
    """Slice store of a data set in the modality of an experiment."""
    return tree.slices(dataset, experiment_of(wildcards).modality)


def training_store(wildcards):
    """Slice store that an experiment trains on."""
    return store_of(experiment_of(wildcards).train, wildcards)


def test_store(wildcards):
    """Slice store of one test set."""
    return store_of(wildcards.test, wildcards)


def air_of(wildcards):
    """Whether and by which rule a method inverts."""
    return cfg.methods[wildcards.method].air


def air_if_used(wildcards):
    """The AIR decision, for methods that consume it."""
    return tree.air(wildcards.experiment, wildcards.fold) if air_of(wildcards) else []


def weights_if_trained(wildcards):
    """The weights, for methods that have any."""
    if not cfg.family_of(wildcards.method).trained:
        return []
    return tree.model("model.safetensors", wildcards.experiment, wildcards.method, wildcards.fold)


def loss_quality(wildcards):
    """Options that the loss of a method takes."""
    return cfg.quality_of(wildcards.method, cfg.methods[wildcards.method].loss)


def score_quality(wildcards):
    """Options that the score of a method takes."""
    return cfg.quality_of(wildcards.method, cfg.methods[wildcards.method].score)


def seed_name(wildcards):
    """The method whose random numbers a method draws."""
    return cfg.seed_name_of(wildcards.method)


def noise_field(wildcards):
    """How noise is shared, for methods that draw it."""
    return cfg.protocol.noise_field if cfg.family_of(wildcards.method).noisy else "per_batch"


def batch_that_matters(wildcards):
    """Slices per pass, where the noise of a slice depends on its place in the pass."""
    one_field = noise_field(wildcards) == "per_batch"
    return None if one_field else cfg.train_of(wildcards.method).inference_batch


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


def study_cells(wildcards):
    """Rescored volumes behind one study."""
    spec = cfg.studies[wildcards.study]
    return [
        tree.per_test(
            f"studies/{wildcards.study}", "tsv", column.experiment, method, fold, column.test
        )
        for method in spec.methods
        for column in spec.columns
        for fold in cfg.folds_of(column.experiment)
    ]


def study_trained(wildcards):
    """Metrics of the methods that a sweep compares with: trained, not only scored, otherwise."""
    spec = cfg.studies[wildcards.study]
    return [
        tree.per_test("metrics", "tsv", column.experiment, method, fold, column.test)
        for base, others in spec.trained.items()
        for method in [base, *others]
        for column in spec.columns
        for fold in cfg.folds_of(column.experiment)
    ]


def study_spec(wildcards):
    """A study as its reports describe it."""
    spec = cfg.studies[wildcards.study]
    names = [variant["name"] for variant in cfg.variants_of(wildcards.study, spec.methods[0])]
    return {
        "name": wildcards.study,
        "title": spec.title,
        "baseline": names[0],
        "variants": names,
        "labels": {method: labels()[method] for method in spec.methods},
        "columns": [plain(column) for column in spec.columns],
        "sweep": next(iter(spec.sweep), None),
        "select_on": spec.select_on,
    }


def swept_values(study):
    """The number that a study sweeps, as each of its methods has it in the config."""
    spec = cfg.studies[study]
    key = next(iter(spec.sweep))
    names = [*spec.methods, *(name for others in spec.trained.values() for name in others)]
    return {name: cfg.variants_of(study, name)[0][key] for name in names}


def figures_of_kind(kind):
    """Names of the figures of one kind, as a wildcard pattern."""
    return "|".join(n for n, f in cfg.figures.items() if f.kind == kind) or "none"


def labels():
    """How the methods are called in print."""
    return {name: method.label or name for name, method in cfg.methods.items()}


def cost_methods():
    """Methods of this run, each once."""
    return list(dict.fromkeys(method for _, method in cfg.cells_of_run()))


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


def scans(wildcards):
    """All registered scans of one data set and modality."""
    if is_preprocessed(wildcards.dataset):
        rows = [
            r for (_, m), r in participants(wildcards.dataset).items() if m == wildcards.modality
        ]
        return {
            "images": [row.image for row in rows],
            "masks": [row.mask for row in rows],
            "lesions": [row.lesion for row in rows if row.lesion],
        }
    subjects = [s for s, m in participants(wildcards.dataset) if m == wildcards.modality]
    scan = dict(dataset=wildcards.dataset, suffix=SUFFIX[wildcards.modality], space="SRI24")
    return {
        "images": [tree.scan("nii.gz", subject=s, desc="preproc", **scan) for s in subjects],
        "masks": [
            tree.scan("nii.gz", subject=s, label="brain", desc="mask", **scan) for s in subjects
        ],
        "lesions": [
            tree.scan("nii.gz", subject=s, label="lesion", desc="mask", **scan) for s in subjects
        ],
    }


def modalities_of_run(dataset):
    """Modalities of a data set that this run works on."""
    return [modality for name, modality in cfg.stores_of_run() if name == dataset]


def datasets_of_qc():
    """Data sets that quality control covers: those that this run works on."""
    return list(dict.fromkeys(name for name, _ in cfg.stores_of_run()))


def subjects_of(dataset, modality):
    """Subjects that have a scan of a modality."""
    return [subject for subject, found in participants(dataset) if found == modality]


def sidecars(wildcards):
    """Sidecars of a data set's scans, modality by modality; none where others preprocessed them."""
    if is_preprocessed(wildcards.dataset):
        return {}
    found = [
        dict(dataset=wildcards.dataset, subject=subject, suffix=SUFFIX[modality])
        for modality in modalities_of_run(wildcards.dataset)
        for subject in subjects_of(wildcards.dataset, modality)
    ]
    return {
        "masks": [tree.scan("json", space="orig", label="brain", desc="mask", **s) for s in found],
        "registrations": [tree.scan("json", space="SRI24", desc="preproc", **s) for s in found],
    }


def subjects_of_sheet(wildcards):
    """Who is on a sheet of pictures."""
    subjects = subjects_of(wildcards.dataset, wildcards.modality)
    return sheets_of(subjects)[int(wildcards.sheet)]


def packed_sheets(wildcards):
    """The sheets of pictures of all packed volumes of this run."""
    return {
        "sheets": [
            tree.packed_sheet(dataset, modality, number)
            for dataset, modality in cfg.stores_of_run()
            for number, _ in enumerate(sheets_of(subjects_of(dataset, modality)))
        ]
    }


def picture_links(dataset):
    """Links from the gallery to a data set's pictures, with {subject} and {suffix} to fill in."""
    page = os.path.dirname(tree.gallery())
    paths = {"packed": tree.packed_sheet(dataset)}
    if not is_preprocessed(dataset):
        for stage in ("skullstrip", "register"):
            paths[stage] = tree.scan("png", dataset=dataset, folder="figures", desc=stage)
    return {stage: Path(os.path.relpath(path, page)).as_posix() for stage, path in paths.items()}


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


def of_training(wildcards):
    """The data set that a job trains on."""
    return experiment_of(wildcards).train


def of_test(wildcards):
    """The data set that a job tests on."""
    return wildcards.test


def training_minutes(wildcards):
    """Time limit of a training: half a second a step, an hour at least.

    Not more with each attempt: it goes on where it was, and partitions have limits.
    """
    loop = cfg.train_of(wildcards.method)
    slices = scans_of(of_training(wildcards)) * loop.samples_per_volume
    steps = loop.epochs * max(1, slices // loop.batch_size)
    return max(60, round(steps * 0.5 / 60))


def kept(path):
    """Large intermediate files go when they have been used, unless the config keeps them."""
    return path if cfg.run.keep_reconstructions else temp(path)


def figure_input(stage, ending, folds=slice(1)):
    """Input function: a file per method of a figure, in its first fold (or in others)."""

    def paths(wildcards):
        spec = cfg.figures[wildcards.figure]
        return [
            tree.per_test(stage, ending, spec.experiment, method, fold, spec.test)
            for method in spec.methods
            for fold in cfg.folds_of(spec.experiment)[folds]
        ]

    return paths


def figure_store(wildcards):
    """Slice store of the test set that a figure shows."""
    spec = cfg.figures[wildcards.figure]
    return tree.slices(spec.test, cfg.experiments[spec.experiment].modality)


def figure_air(wildcards):
    """The AIR decision, if a method of the figure uses it."""
    spec = cfg.figures[wildcards.figure]
    fold = cfg.folds_of(spec.experiment)[0]
    used = any(cfg.methods[method].air for method in spec.methods)
    return tree.air(spec.experiment, fold) if used else []


def figure_split(wildcards):
    """Who is tested in the fold that a figure shows."""
    spec = cfg.figures[wildcards.figure]
    return tree.split(spec.experiment, cfg.folds_of(spec.experiment)[0])


def figure_methods(wildcards):
    """What a figure needs to know of its methods."""
    return {
        name: {
            "label": cfg.methods[name].label or name,
            "score": cfg.methods[name].score,
            "air": cfg.methods[name].air,
            "quality": cfg.quality_of(name),
        }
        for name in cfg.figures[wildcards.figure].methods
    }


def browsed():
    """The cell that a notebook browses: that of the first figure of images, else of the tables."""
    figures = [cfg.figures[name] for name in cfg.figures_of_run()]
    found = [(f.experiment, f.methods[-1], f.test) for f in figures if f.kind != "curves"]
    tables = [cfg.tables[name] for name in cfg.tables_of_run()]
    found += [(c.experiment, t.rows[-1], c.test) for t in tables for c in t.columns]
    return found[0] if found else None


def air_notebook():
    """Inputs and parameters of ``air_statistics``."""
    experiments = cfg.air_experiments_of_run()
    stores = {
        tree.slices(test, cfg.experiments[name].modality)
        for name in experiments
        for test in cfg.experiments[name].test
    }
    return {"air": list(rules.make_air_table.input), "stores": sorted(stores)}, {}


def qualitative_notebook():
    """Inputs and parameters of ``qualitative``: figures of images, and a volume to browse."""
    experiment, method, test = browsed()
    fold = cfg.folds_of(experiment)[0]
    pictures = [name for name in cfg.figures_of_run() if cfg.figures[name].kind != "curves"]
    inputs = {
        "figures": expand(tree.figure("png"), figure=pictures),
        "store": tree.slices(test, cfg.experiments[experiment].modality),
        **{
            # reconstructions and maps may be temporary: as inputs they wait for this
            name: tree.per_test(stage, ending, experiment, method, fold, test)
            for name, stage, ending in [
                ("reconstructions", "reconstructions", "safetensors"),
                ("maps", "maps", "safetensors"),
                ("threshold", "thresholds", "json"),
                ("metrics", "metrics", "tsv"),
            ]
        },
        **({"air": tree.air(experiment, fold)} if cfg.methods[method].air else {}),
    }
    return inputs, {
        "experiment": experiment,
        "method": method,
        "method_label": labels()[method],
        "test": test,
        "fold": fold,
        "air_rule": cfg.methods[method].air,
        "component_max_size": cfg.protocol.component_max_size,
    }


def results_notebook():
    """Inputs and parameters of ``results``."""
    names = cfg.tables_of_run()
    methods = {row for name in names for row in cfg.tables[name].rows}
    return {
        "tables": expand(tree.table("csv"), table=names),
        "significance": expand(tree.significance(), table=names),
    }, {
        "titles": {name: cfg.tables[name].title for name in names},
        "labels": {name: labels()[name] for name in sorted(methods)},
    }


def audit_notebook():
    """Inputs and parameters of ``audit``: what the records are followed from, and the cell."""
    inputs = {
        "tables": expand(tree.table("csv"), table=cfg.tables_of_run()),
        "air_table": rules.make_air_table.output.csv,
        "quality": expand(tree.quality("tsv"), dataset=datasets_of_qc()),
    }
    name = cfg.tables_of_run()[0]
    table = cfg.tables[name]
    column = table.columns[0]
    return inputs, {
        "table": name,
        "row": table.rows[-1],
        "experiment": column.experiment,
        "test": column.test,
        "metric": "dice",
    }


#: Notebook -> its inputs and its parameters.
NOTEBOOKS = {
    "air_statistics": air_notebook,
    "qualitative": qualitative_notebook,
    "results": results_notebook,
    "audit": audit_notebook,
}


def notebooks_of_run():
    """Notebooks that have something to show: without tables there are no results."""
    shown = {"air_statistics": True, "qualitative": browsed()}
    return [name for name in NOTEBOOKS if shown.get(name, cfg.tables_of_run())]


def stages():
    """Stage -> its rules: those of one file."""
    found = {}
    for each in workflow.rules:
        if each.script:
            found.setdefault(Path(each.snakefile).stem, []).append(each.name)
    return found


def what_is_reported():
    """Everything that the report shows, apart from the pages about the run itself."""
    parts = [part_files(part) for part in cfg.run.parts if part != "paper"]
    return [
        *rules.tables.input,
        *rules.air.input,
        *rules.figures.input,
        *(path for files in parts for path in files),
        *([tree.table("html", "cost")] if "extras" in cfg.run.parts else []),
        *checks(),
        tree.quality_summary("html"),
    ]


def asked(name):
    """What 'make crate NAME=...' asked for; None if nothing."""
    value = os.environ.get(f"UAD_CRATE_{name}")
    return None if value in (None, "", "0") else value
