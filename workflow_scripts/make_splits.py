"""Rule make_splits: the roles of all subjects in one fold of an experiment."""

from uad.datasets.splits import cross_dataset, intra_dataset
from uad.files import read_tsv, write_tsv
from uad.provenance import job

with job(snakemake) as context:
    experiment, sizes = snakemake.params.experiment, snakemake.params.splits
    names = list(dict.fromkeys([experiment["train"], *experiment["test"]]))
    tables = {name: read_tsv(path) for name, path in zip(names, snakemake.input, strict=True)}
    fold, train = int(snakemake.wildcards.fold), experiment["train"]
    if experiment["setting"] == "intra":
        split = intra_dataset(train, tables[train], fold, experiment["folds"], seed=sizes["seed"])
    else:
        split = cross_dataset(
            (train, tables[train]),
            {name: tables[name] for name in experiment["test"]},
            fold,
            experiment["folds"],
            **sizes,
        )
    context.facts |= {"seed": sizes["seed"], "sizes": split["role"].value_counts().to_dict()}
    write_tsv(snakemake.output[0], split)
