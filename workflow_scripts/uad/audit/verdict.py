"""The audit of a finished results tree: is every file what its record says, and do they agree?

It reads files and records only, and changes nothing. docs/auditing.md says what each check means.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from uad.audit import check, leaks, recompute, settings
from uad.audit.tree import AuditedTree, Finding, is_raw
from uad.core.errors import DataError, first_of
from uad.core.files import write_json, write_text
from uad.core.records import REPOSITORY, is_temporary, load_records
from uad.report.html import render_page
from uad.report.render import counted

#: In this order: what fails in an early check is not read by a later one.
CHECKS = (
    check.leftovers,
    check.records,
    check.outputs,
    check.inputs,
    check.files,
    settings.versions,
    settings.locked_versions,
    settings.config_settings,
    settings.neighbours,
    leaks.raw_of_own_subject,
    leaks.sets_of_a_fold,
    recompute.splits,
    leaks.tests_of_all_folds,
    leaks.order_of_stores,
    leaks.subjects_used,
    recompute.air,
    recompute.thresholds,
    recompute.metrics,
    recompute.tables,
    recompute.metrics_tables,
    recompute.air_table,
)


#: What is counted of each stage.
COUNTS = ("total", "checked", "temporary", "omitted", "failed")


@dataclass
class Verdict:
    """The result of an audit.

    Attributes:
        phantom: whether the data are synthetic; None if the config does not tell.
        stages: for each rule and kind of input its ``name``, how many files can be checked
            (``total``) and were (``checked``), are known by their records only, being deleted
            after use (``temporary``), were left out on purpose (``omitted``), or ``failed``.
        bytes: that were hashed.
    """

    phantom: bool | None
    findings: list[Finding]
    notes: list[str]
    skipped: list[str]
    stages: list[dict[str, Any]]
    checks: dict[str, int]
    records: int
    bytes: int
    code: dict[str, int]

    @property
    def passed(self) -> bool:
        """Whether nothing fails."""
        return not self.findings

    def count(self, what: str) -> int:
        """A column of the stages (``total``, ``checked``, ``temporary``, ...), summed."""
        return sum(stage[what] for stage in self.stages)

    @property
    def coverage(self) -> float:
        """Share of the artifacts that were checked, in percent."""
        return 100 * self.count("checked") / self.count("total") if self.count("total") else 0.0

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        data = {True: "phantom data", False: "real data", None: "data of unknown kind"}
        checked = f"{self.count('checked')} of {self.count('total')} artifacts checked"
        what = f"{checked} ({data[self.phantom]})"
        if self.passed:
            return f"PASSED: {what}; every one is what its record says it is."
        count = len(self.findings)
        return f"FAILED: {what}; {count} {'does' if count == 1 else 'do'} not hold."

    @property
    def counts(self) -> str:
        """What was looked at, in a sentence."""
        share = math.floor(10 * self.coverage) / 10  # rounded down: only all is 100 %
        parts = [
            f"{self.count('checked')} of {self.count('total')} artifacts ({share:g} %)",
            counted(self.records, "record"),
            f"{self.bytes / 1e6:.1f} MB hashed",
        ]
        if temporary := self.count("temporary"):
            parts.append(f"{temporary} temporary files known by their records only")
        if omitted := self.count("omitted"):
            parts.append(f"{omitted} files not here, left out on purpose")
        return "; ".join(parts) + "."

    def text(self) -> str:
        """The verdict as lines for a terminal: what was checked, what fails, how it ends."""
        lines = [self.counts]
        lines += [f"  {f.artifact}: {f.check}. {f.why}" for f in self.findings]
        if self.skipped:
            lines.append(f"{counted(len(self.skipped), 'check')} could not be made (see the page).")
        return "\n".join([*lines, self.sentence])

    def write(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``audit.json`` and ``audit.html``, the same for the same tree whenever it is
        audited; returns the page's path.
        """
        content = {"passed": self.passed, "verdict": self.sentence, **asdict(self)}
        content["coverage_percent"] = round(self.coverage, 2)
        write_json(Path(folder) / "audit.json", content)
        write_text(Path(folder) / "audit.html", render_page("audit.html", verdict=self))
        return Path(folder) / "audit.html"


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
    records = load_records(results, repository)
    if not records.all:
        name, why = next(iter(records.broken.items()))
        raise DataError(
            f"{results}: none of its {len(records.broken)} records can be used; {name} {why}. "
            "Run the workflow again with this version of the software, or audit the tree with the "
            "version that made it."
        )
    tree = AuditedTree(records, omitted if callable(omitted) else frozenset(omitted).__contains__)
    for look in CHECKS:
        look(tree)
    absent = [name for name in sorted(tree.known) if tree.digest(name) is None]
    if raw := [name for name in absent if is_raw(name) and tree.omitted(name)]:
        listed = first_of(raw, 3)
        tree.notes.add(f"{len(raw)} raw files are not here and were not looked at: {listed}")
    commits = Counter(r.content["code"].get("commit") or "none" for r in records.all.values())
    return Verdict(
        phantom=tree.phantom,
        findings=sorted(tree.findings.values(), key=lambda finding: finding.artifact),
        notes=sorted(tree.notes),
        skipped=sorted(tree.skipped),
        stages=_stages(tree),
        checks=dict(sorted(tree.checks.items())),
        records=len({*records.all, *records.broken}),
        bytes=sum(size for size, _ in filter(None, tree.digests.values())),
        code=dict(sorted(commits.items())),
    )


def _stages(tree: AuditedTree) -> list[dict[str, Any]]:
    records, read = tree.records, {*tree.records.all, *tree.records.broken}
    names = [*records.rule_order, "raw files", "repository", "other files", "records"]
    found = {name: dict.fromkeys(COUNTS, 0) for name in names}
    for key in {*tree.known, *read, *tree.findings}:
        if key in read:
            stage = found["records"]
        elif made_by := records.producers.get(key):
            stage = found[made_by.rule]
        elif key in tree.raw:
            stage = found["raw files"]
        else:
            stage = found["repository" if key.startswith(REPOSITORY) else "other files"]
        stage["failed"] += key in tree.findings
        absent = key not in read and tree.digest(key) is None
        if absent and tree.omitted(key):
            stage["omitted"] += 1
        elif absent and is_temporary(key):
            stage["temporary"] += 1
        else:
            stage["total"] += 1
            stage["checked"] += key in tree.compared or key in read
    return [{"name": name, **counts} for name, counts in found.items() if any(counts.values())]
