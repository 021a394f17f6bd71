"""Input functions of data.smk: where raw trees lie, and what is in them."""

from uad.core.errors import DataError
from uad.data.layouts import listing_digest, missing_data
from uad.qc.decide import exclusions


def dataset_keys(*keys):
    """Param: some keys of a data set's config (those that a rule reads), and who is left out.

    Whom a reviewer excluded is a key only where there is somebody: a tree that was made before any
    review stays up to date.
    """

    def content(wildcards):
        dataset = cfg.datasets[wildcards.dataset]
        found = {key: plain(dataset)[key] for key in keys}
        reviewed = exclusions(decisions, wildcards.dataset, dataset.modalities)
        return found | ({"reviewed": reviewed} if reviewed and "exclude" in keys else {})

    return content


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


def raw_listing(wildcards):
    """Param: a digest of a raw tree that is not ours, so that changes in it are seen."""
    if cfg.datasets[wildcards.dataset].source == "phantom" or planned_table(wildcards.dataset):
        return None  # a phantom's manifest is an input
    try:
        return listing_digest(raw_root(wildcards))
    except DataError as error:
        # not an exception that Snakemake would wrap: the message is for a person
        sys.exit(f"\n{error}\n")


def raw_tree(wildcards):
    """What the index of a data set waits for; a missing raw tree is explained at once."""
    dataset = cfg.datasets[wildcards.dataset]
    if dataset.source == "phantom":
        return tree.manifest(wildcards.dataset)
    if dataset.source == "download":
        return tree.downloaded(wildcards.dataset)
    if planned_table(wildcards.dataset):
        return []
    needed = {name: cfg.datasets[name] for name in cfg.datasets_of_run()}
    problem = missing_data({wildcards.dataset: dataset}) and missing_data(
        {**needed, wildcards.dataset: dataset}
    )
    if problem:
        # not an exception that Snakemake would wrap: the message is for a person
        sys.exit(f"\n{problem}\n")
    return []


def planned_table(dataset):
    """The participants table that a plan has in place of an index that is to be made, if any."""
    folder = os.environ.get("UAD_PLANNED_TABLES")
    path = Path(folder or "") / f"{dataset}.tsv"
    return path if folder and path.exists() else None
