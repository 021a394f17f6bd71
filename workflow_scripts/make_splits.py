"""Rule make_splits: the roles of all subjects in one fold of an experiment."""

from pathlib import Path

from uad.core.files import read_tsv, write_tsv
from uad.core.provenance import job
from uad.published_splits import reference_split
from uad.splits import cross_dataset, intra_dataset, stratification

with job(snakemake) as context:
    experiment, splits = snakemake.params.experiment, dict(snakemake.params.splits)
    names = list(dict.fromkeys([experiment["train"], *experiment["test"]]))
    files = snakemake.input.participants
    tables = {name: read_tsv(path) for name, path in zip(names, files, strict=True)}
    # a reviewer may have excluded a subject's scan of one modality
    tables = {n: t[t["modality"] == experiment["modality"]] for n, t in tables.items()}
    fold, folds = int(snakemake.wildcards.fold), experiment["folds"]
    healthy = experiment["train"], tables[experiment["train"]]
    tested = {name: tables[name] for name in experiment["test"]}
    kind = splits.pop("kind")
    context.facts["kind"] = kind
    # published splits are taken as they are
    balanced = tables if kind == "clean" else {}
    context.facts["stratified_by"] = {n: stratification(t) for n, t in balanced.items()}
    if experiment["setting"] == "intra":
        split = intra_dataset(*healthy, fold, folds, kind=kind, **splits)
    elif kind == "reference":
        options = splits["reference"]
        del options["folder"]
        split, context.facts["published"] = reference_split(
            Path(snakemake.input.lists[0]).parent,
            {healthy[0]: healthy[1], **tested},
            fold,
            layouts=experiment["layouts"],
            modality=experiment["modality"],
            **options,
        )
    else:
        split = cross_dataset(healthy, tested, fold, folds, **splits)
    context.facts["sizes"] = split["role"].value_counts().to_dict()
    write_tsv(snakemake.output[0], split)
