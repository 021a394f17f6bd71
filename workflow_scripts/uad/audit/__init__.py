"""The audit of a finished results tree: is every file what its record says, and do they agree?

It reads files and records only, needs no Snakemake, and changes nothing. ``docs/auditing.md``
says what each check means.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path

from uad.audit import integrity, leaks, leftovers, neighbours, recomputation, sources
from uad.audit.evidence import Evidence
from uad.audit.page import page, terminal, write_verdict
from uad.audit.tree import RAW, Audited, open_tree
from uad.audit.verdict import Finding, Stage, Verdict
from uad.records import EXTERNAL, KEPT_ON_DEMAND, REPOSITORY, is_temporary

__all__ = ["Finding", "Stage", "Verdict", "audit", "is_raw", "page", "terminal", "write_verdict"]


def audit(
    results: str | os.PathLike[str],
    *,
    repository: str | os.PathLike[str] | None = None,
    omitted: Collection[str] | Callable[[str], bool] = frozenset(),
) -> Verdict:
    """Check a whole results tree.

    Args:
        results: the folder; it may have been moved since the run.
        repository: of the code, where inputs such as notebooks are looked up; default: the one
            that this library lies in.
        omitted: keys of files that were left out on purpose (images in a crate), or a function
            that tells whether a key was. They never fail; checks that need them are listed as
            skipped.

    Raises:
        DataError: there is no such folder, no record in it, or none that this version reads.
    """
    tree = open_tree(Path(results), repository, omitted)
    tree.leftovers = leftovers.find(tree)
    leftovers.note(tree)
    integrity.check_records(tree)
    integrity.check_outputs(tree)
    integrity.check_raw(tree)
    integrity.check_inputs(tree)
    integrity.check_files(tree)
    neighbours.check_code(tree)
    neighbours.check_config(tree)
    neighbours.check_params(tree)
    neighbours.note_decisions(tree)
    evidence = Evidence(tree)
    sources.check_sources(tree, evidence)
    leaks.check_splits(tree)
    recomputation.check_splits(tree, evidence)
    leaks.check_folds(tree)
    leaks.check_stores(tree)
    leaks.check_roles(tree, evidence)
    recomputation.check_air(tree, evidence)
    recomputation.check_thresholds(tree)
    recomputation.check_metrics(tree, evidence)
    evidence.judge()
    recomputation.check_tables(tree)
    recomputation.check_air_table(tree)
    _note_absent(tree)
    return _verdict(tree)


def is_raw(name: str) -> bool:
    """Whether a key is of a raw scan: outside of the tree, or in a raw tree in it."""
    return name.startswith(EXTERNAL) or (name.startswith(RAW) and name.count("/") > 1)


def _note_absent(tree: Audited) -> None:
    """Temporary files that the config would keep, and raw files that were not looked for."""
    if tree.cfg and tree.cfg.run.keep_reconstructions:
        gone = [n for n in tree.known if n.startswith(KEPT_ON_DEMAND) and tree.digest(n) is None]
        if gone:
            tree.notes.add(
                f"{len(gone)} reconstructions and anomaly maps are not here, though "
                "run.keep_reconstructions is set: a run before it was set deleted them."
            )
    absent = sorted(
        n for n in tree.known if is_raw(n) and tree.digest(n) is None and tree.is_omitted(n)
    )
    if absent:
        more = ", ..." if len(absent) > 3 else ""
        tree.notes.add(
            f"{len(absent)} raw files are not here and were not looked at: "
            f"{', '.join(absent[:3])}{more}"
        )


def _verdict(tree: Audited) -> Verdict:
    records = tree.records
    stages = {rule: Stage(rule) for rule in records.rule_order}
    stages |= {name: Stage(name) for name in ("raw files", "repository", "other files", "records")}

    def stage_of(key: str) -> Stage:
        if made_by := records.producers.get(key):
            return stages[made_by.rule]
        if key in tree.raw:
            return stages["raw files"]
        return stages["repository" if key.startswith(REPOSITORY) else "other files"]

    for record in records.all.values():
        stages[record.rule].jobs += 1
    for key in tree.known:
        stage = stage_of(key)
        if tree.digest(key) is None and tree.is_omitted(key):
            stage.omitted += 1
        elif tree.digest(key) is None and is_temporary(key):
            stage.temporary += 1
        else:
            stage.total += 1
            stage.checked += key in tree.compared
    stages["records"].total = stages["records"].checked = len(records.all) + sum(
        key not in records.all for key in records.broken
    )
    for finding in tree.findings:
        if finding.artifact in records.all or finding.artifact in records.broken:
            stages["records"].failed += 1
        else:
            stage_of(finding.artifact).failed += 1
    commits = [record.content["code"].get("commit") or "none" for record in records.all.values()]
    return Verdict(
        phantom=tree.phantom,
        findings=list(tree.findings),
        notes=sorted(tree.notes),
        skipped=sorted(tree.skipped),
        stages=[
            stage
            for stage in stages.values()
            if stage.total or stage.jobs or stage.omitted or stage.failed
        ],
        checks=dict(sorted(tree.checks.items())),
        records=stages["records"].total,
        bytes=sum(size for size, _ in filter(None, tree.digests.values())),
        code={commit: commits.count(commit) for commit in sorted(set(commits))},
    )
