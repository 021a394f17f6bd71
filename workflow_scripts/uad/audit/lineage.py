"""Lineage of a table's cell: the files that it depends on, as ``uad.audit.trace`` finds them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from uad.audit.cells import Cell, Value

#: Version of the layout of the JSON.
FORMAT = 1
SAME, NOT_KEPT, CHANGED, MISSING, UNCHECKED = (
    "as recorded",
    "not kept",
    "changed",
    "missing",
    "not checked",
)


@dataclass(frozen=True)
class Fold:
    """One fold's value.

    Attributes:
        value: mean over its test volumes in percent, computed here; None if it cannot be.
        subjects: the test volumes with a value.
        metrics: key of the file that it was computed from.
    """

    fold: int
    value: float | None
    subjects: list[str]
    metrics: str


@dataclass
class Node:
    """A file that a cell depends on.

    Attributes:
        stage: one of ``uad.audit.trace_facts.STAGES``.
        rule: that made it; None for raw files, and for what has no record.
        place: wildcards of its job (experiment, method, fold, dataset, subject, ...).
        sha256: of its content, as recorded; None if no record has it.
        inputs: keys of the nodes that it was made from.
        facts: what is worth telling, by stage.
        status: ``as recorded``, ``not kept`` (deleted after use), ``changed``, ``missing`` or
            ``not checked``.
    """

    key: str
    stage: str
    rule: str | None = None
    place: dict[str, str] = field(default_factory=dict)
    sha256: str | None = None
    bytes: int | None = None
    inputs: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    status: str = UNCHECKED
    problems: list[str] = field(default_factory=list)

    @property
    def short(self) -> str:
        """The first 12 characters of the SHA-256."""
        return self.sha256[:12] if self.sha256 else "no hash"

    def note(self, problem: str) -> None:
        """Add a problem, once."""
        if problem not in self.problems:
            self.problems.append(problem)


@dataclass(frozen=True)
class Lineage:
    """Everything that a cell depends on.

    Attributes:
        nodes: the files, in order from the cell to the raw data.
        subjects: which subjects matter, by key of the slice store, role and subject: the folds.
        code: commits of the jobs and how many jobs ran from each.
    """

    cell: Cell
    value: Value
    folds: list[Fold]
    nodes: list[Node]
    subjects: dict[str, dict[str, dict[str, list[int]]]]
    code: list[dict[str, Any]]
    checked: bool

    @property
    def name(self) -> str:
        """Name of its files: table, row, experiment, test data set and metric."""
        cell = self.cell
        return "_".join((cell.table, cell.row, cell.experiment, cell.test, cell.metric))

    @property
    def problems(self) -> list[str]:
        """What does not match, each with the name of its file; empty if all is as recorded."""
        return [f"{node.key}: {text}" for node in self.nodes for text in node.problems]

    def node(self, key: str) -> Node:
        """The node of a file; a ``KeyError`` if the cell does not depend on it."""
        return {node.key: node for node in self.nodes}[key]

    def of(self, stage: str) -> list[Node]:
        """The nodes of one of ``uad.audit.trace_facts.STAGES``."""
        return [node for node in self.nodes if node.stage == stage]

    def text(self, full: bool = False) -> str:
        """The tree, for a terminal of 100 columns.

        Args:
            full: all siblings; else the first two where there are more than four.
        """
        from uad.audit.trace_text import text_of

        return text_of(self, full)

    def as_json(self) -> dict[str, Any]:
        """All of it as plain data, without NaN."""
        value = {k: None if v != v else v for k, v in asdict(self.value).items()}
        return {
            "format": FORMAT,
            "cell": asdict(self.cell),
            "value": value,
            "folds": [asdict(fold) for fold in self.folds],
            "checked": self.checked,
            "problems": self.problems,
            "code": self.code,
            "subjects": self.subjects,
            "nodes": [asdict(node) for node in self.nodes],
        }
