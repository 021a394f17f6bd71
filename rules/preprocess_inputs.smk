"""Input functions of preprocess.smk: which scans, which batch, what a job requests."""

from collections import Counter
from functools import lru_cache

from uad.core.paths import MODALITY, SUFFIX
from uad.preprocess import prediction_batches


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


def raw_scan(wildcards):
    """The raw files of a scan: a row with image and lesion, which is empty without one."""
    return participants(wildcards.dataset)[wildcards.subject, MODALITY[wildcards.suffix]]


def is_predicted(wildcards):
    """Whether masks are predicted in batches."""
    return rule_params.predicts_in_batches(cfg, wildcards.dataset)


def batches_of(dataset):
    """How many batches of scans a data set has, from what the config expects of it."""
    return prediction_batches.count_for(scans_of(dataset))


def prediction(wildcards):
    """The file with the predicted mask of a scan, if it comes from one."""
    if not is_predicted(wildcards):
        return []
    batch = prediction_batches.number_of(wildcards.subject, batches_of(wildcards.dataset))
    return tree.brain_masks(wildcards.dataset, wildcards.suffix, batch)


@lru_cache
def _batches(path, modified, count):
    """Subjects and raw images of each batch, by modality and number."""
    found = {}
    for (subject, modality), row in _participants(path, modified).items():
        number = prediction_batches.number_of(subject, count)
        found.setdefault((modality, number), {})[subject] = row.image
    return found


def scans_of_batch(wildcards):
    """Raw images of a batch by subject."""
    found = _batches(*index_of(wildcards.dataset), batches_of(wildcards.dataset))
    return found[MODALITY[wildcards.suffix], int(wildcards.batch)]


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
    return (30 if rule_params.strips_by_network(cfg, wildcards.dataset) else 10) * attempt


def scans(wildcards):
    """All registered scans of one data set and modality, or those that somebody preprocessed."""
    rows = {
        s: r for (s, m), r in participants(wildcards.dataset).items() if m == wildcards.modality
    }
    if is_preprocessed(wildcards.dataset):
        return {
            "images": [row.image for row in rows.values()],
            "masks": [row.mask for row in rows.values()],
            "lesions": [row.lesion for row in rows.values() if row.lesion],
        }
    scan = partial(
        tree.scan, "nii.gz", dataset=wildcards.dataset, suffix=SUFFIX[wildcards.modality],
        space="SRI24",
    )  # fmt: skip
    return {
        "images": [scan(subject=s, desc="preproc") for s in rows],
        "masks": [scan(subject=s, label="brain", desc="mask") for s in rows],
        "lesions": [scan(subject=s, label="lesion", desc="mask") for s in rows],
    }
