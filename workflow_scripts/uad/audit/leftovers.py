"""What an earlier config or selection of scans left in the tree, and no result depends on."""

from __future__ import annotations

from collections import defaultdict

from uad.audit.tree import Audited
from uad.core.paths import MODALITY
from uad.qc.gallery import sheets_of
from uad.records import Record

#: Where results lie: what they were made from is never left over. The report lies at the top.
_RESULTS = ("tables/", "figures/", "notebooks/", "studies/", "significance/", "cost/", "qc/gallery")


def find(tree: Audited) -> dict[str, str]:
    """Records that are left over, by key, with what they are left over of.

    A record is one if its wildcards name something that this run does not have (see
    :func:`_cause`), and no result of this run was made from its files.
    """
    causes = {record.key: cause for record in tree.sound if (cause := _cause(tree, record))}
    if not causes:
        return {}
    finals = [
        entry.key
        for record in tree.sound
        if record.key not in causes
        for entry in record.outputs
        if entry.key.startswith(_RESULTS) or "/" not in entry.key
    ]
    used = set(tree.records.ancestors(finals))
    return {
        key: cause
        for key, cause in causes.items()
        if not any(entry.key in used for entry in tree.records.all[key].outputs)
    }


def note(tree: Audited) -> None:
    """One note for each cause: count and examples."""
    files: dict[str, list[str]] = defaultdict(list)
    for key, cause in tree.leftovers.items():
        files[cause] += [entry.key for entry in tree.records.all[key].outputs]
    for cause, names in files.items():
        here = sorted(name for name in names if tree.digest(name) is not None)
        if here:
            tree.notes.add(
                f"left over: {cause}, not part of this run ({len(here)} "
                f"{'file' if len(here) == 1 else 'files'}, such as {here[0]}); delete them "
                "together with their records if you do not want them."
            )


def _cause(tree: Audited, record: Record) -> str | None:
    """What a job's wildcards name that this run does not have; None if it has all."""
    return _of_config(tree, record) or _of_participants(tree, record)


def _of_config(tree: Audited, record: Record) -> str | None:
    cfg, names = tree.cfg, record.wildcards
    if cfg is None:
        return None
    known = {
        "dataset": cfg.datasets,
        "test": cfg.datasets,
        "experiment": cfg.experiments,
        "method": cfg.methods,
        "table": cfg.tables,
        "figure": cfg.figures,
        "study": cfg.studies,
    }
    for kind, there in known.items():
        if kind in names and names[kind] not in there:
            return f"{kind} {names[kind]}"
    if {"experiment", "fold"} <= set(names):
        experiment, fold = names["experiment"], names["fold"]
        if names.get("test", cfg.experiments[experiment].test[0]) not in (
            cfg.experiments[experiment].test
        ):
            return f"{names['test']} as a test set of {experiment}"
        if int(fold) not in cfg.folds_of(experiment):
            return f"fold {fold} of {experiment}"
    return None


def _of_participants(tree: Audited, record: Record) -> str | None:
    names = record.wildcards
    rows = tree.participants.get(names.get("dataset", ""))
    if rows is None:
        return None
    if {"subject", "suffix"} <= set(names):
        scan = names["subject"], MODALITY.get(names["suffix"])
        if scan not in tree.scans[names["dataset"]]:
            return f"scans of {names['dataset']} that its participants table does not list"
    if "modality" in names:
        scans = tree.scans[names["dataset"]]
        packed = [subject for subject, modality in scans if modality == names["modality"]]
        if not packed:
            return f"{names['modality']} of {names['dataset']}"
        if "sheet" in names and int(names["sheet"]) > len(sheets_of(packed)):
            return f"sheets of pictures of {names['dataset']} {names['modality']}"
    return None
