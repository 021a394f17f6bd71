"""What an audit found, and the collector that its checks report to."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Finding:
    """An artifact that fails.

    Attributes:
        artifact: its key (see ``uad.records``); of a record, where the record itself is wrong.
        check: which check it fails, in a word or two.
        why: what is wrong, in a sentence.
        advice: what to do about it.
    """

    artifact: str
    check: str
    why: str
    advice: str


@dataclass
class Stage:
    """Coverage of the artifacts of one rule, or of one kind of input.

    Attributes:
        name: the rule, or what the files are.
        jobs: its records.
        total: files that can be checked; those below are not among them.
        checked: files that were looked at, the missing ones among them.
        temporary: files that the workflow deletes after use.
        omitted: files that were left out on purpose.
        failed: files and records with a finding.
    """

    name: str
    jobs: int = 0
    total: int = 0
    checked: int = 0
    temporary: int = 0
    omitted: int = 0
    failed: int = 0


@dataclass
class Verdict:
    """The result of an audit.

    Attributes:
        phantom: whether the data are synthetic; None if the config does not tell.
        findings: the artifacts that fail, sorted by key, each once.
        notes: what a reader should know and what fails nothing.
        skipped: checks that could not be made, and why.
        stages: coverage, in the order in which files pass through the rules.
        checks: how many comparisons each check made.
        records: records that were read.
        bytes: that were hashed.
        code: git commits that the records name, with the number of records.
    """

    phantom: bool | None
    findings: list[Finding]
    notes: list[str]
    skipped: list[str]
    stages: list[Stage]
    checks: dict[str, int]
    records: int
    bytes: int
    code: dict[str, int] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether nothing fails."""
        return not self.findings

    @property
    def total(self) -> int:
        """Artifacts that can be checked."""
        return sum(stage.total for stage in self.stages)

    @property
    def checked(self) -> int:
        """Artifacts that were checked."""
        return sum(stage.checked for stage in self.stages)

    @property
    def coverage(self) -> float:
        """Share of the artifacts that were checked, in percent."""
        return 100 * self.checked / self.total if self.total else 0.0

    @property
    def temporary(self) -> int:
        """Files that the workflow deletes after use, and that are known by their records only."""
        return sum(stage.temporary for stage in self.stages)

    @property
    def omitted(self) -> int:
        """Files that were left out on purpose."""
        return sum(stage.omitted for stage in self.stages)

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        data = {True: "phantom data", False: "real data", None: "data of unknown kind"}
        what = f"{self.checked} of {self.total} artifacts checked ({data[self.phantom]})"
        if self.passed:
            return f"PASSED: {what}; every one is what its record says it is."
        count = len(self.findings)
        return f"FAILED: {what}; {count} {'does' if count == 1 else 'do'} not hold."

    def plain(self) -> dict[str, Any]:
        """As plain data for JSON: the same for the same tree, whenever it is audited."""
        return {
            "passed": self.passed,
            "verdict": self.sentence,
            "phantom": self.phantom,
            "artifacts": {
                "total": self.total,
                "checked": self.checked,
                "coverage_percent": round(self.coverage, 2),
                "temporary": self.temporary,
                "omitted": self.omitted,
                "bytes": self.bytes,
            },
            "records": self.records,
            "findings": [asdict(finding) for finding in self.findings],
            "checks": self.checks,
            "skipped": self.skipped,
            "notes": self.notes,
            "stages": [asdict(stage) for stage in self.stages],
            "code": self.code,
        }


class Findings:
    """Collects findings, one per artifact: the first check that fails names the cause."""

    def __init__(self) -> None:
        self._found: dict[str, Finding] = {}

    def add(self, artifact: str, check: str, why: str, advice: str) -> None:
        """Report an artifact; a second reason for the same one is added to the first."""
        first = self._found.get(artifact)
        if first is None:
            self._found[artifact] = Finding(artifact, check, why, advice)
        elif why not in first.why:
            also = f"{first.why} Also ({check}): {why}"
            self._found[artifact] = Finding(artifact, first.check, also, first.advice)

    def __contains__(self, artifact: str) -> bool:
        return artifact in self._found

    def __iter__(self):
        return iter(sorted(self._found.values(), key=lambda finding: finding.artifact))
