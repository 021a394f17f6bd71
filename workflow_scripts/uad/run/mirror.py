"""A folder in which a dry run sees a working directory, and stand-ins for missing data."""

from __future__ import annotations

import base64
import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from uad.config import Config, Dataset
from uad.core.errors import DataError
from uad.core.files import read_tsv
from uad.core.paths import Tree
from uad.core.patterns import layout_name
from uad.data.sources import load_registry
from uad.phantom import subject_names
from uad.phantom.anatomy import LAYOUTS
from uad.qc.decide import exclusions, index_used, read_decisions
from uad.run.jobs import Job


class Mirror:
    """A folder that looks to Snakemake like a working directory, which is only read.

    Attributes:
        root: the folder that stands for the working directory.
        results: the results in it.
        notes: what was stood in for, as sentences.
        upstream: jobs that the stand-ins replace, hence to do.
        raw: bytes of raw data that are not there, by data set; None: not known.
        overlay: config file that leads to the stand-ins, where a path cannot be mirrored.
    """

    def __init__(self, folder: Path, directory: Path, cfg: Config) -> None:
        paths = [cfg.results, cfg.qc.decisions]
        paths += [spec.path for spec in cfg.datasets.values() if spec.path]
        # a config may lead out of the working directory: ../data
        up = ["up"] * max(Path(path).parts.count("..") for path in paths)
        self.root = folder.resolve().joinpath(*up, "work")
        self.cfg, self.directory = cfg, directory.resolve()
        self.notes: list[str] = []
        self.upstream: list[Job] = []
        self.raw: dict[str, int | None] = {}
        self.overlay: Path | None = None
        self._moved: dict[str, Any] = {}
        self.root.mkdir(parents=True)
        for name in dict.fromkeys([*paths[1:], cfg.splits.reference.folder]):
            if name and not Path(name).is_absolute() and (self.directory / name).exists():
                _link(self.directory / name, self._place(name))
        for name in ("metadata", "incomplete"):
            _link_files(self.directory / ".snakemake" / name, self.root / ".snakemake" / name)
        self.results = Path(cfg.results)
        if not self.results.is_absolute():
            self._mirror_results()

    def _place(self, name: str | Path) -> Path:
        return Path(os.path.normpath(self.root / name))

    def _mirror_results(self) -> None:
        source, target = self.directory / self.cfg.results, self._place(self.results)
        target.mkdir(parents=True)
        for path in sorted(source.glob("*")):
            inside = path.name in ("participants", "raw")  # stand-ins may go here
            for linked in sorted(path.glob("*")) if inside else [path]:
                _link(linked, target / linked.relative_to(source))

    def unindexed(self) -> list[str]:
        """Data sets without an index, or whose raw data are gone."""
        tree = Tree(str(self.results))
        found = []
        for name, spec in self.cfg.datasets.items():
            root = spec.path if spec.source in ("folder", "preprocessed") else "."
            there = self._place(root).is_dir() and self._place(tree.participants(name)).exists()
            found += [] if there else [name]
        return found

    def index(self, names: Iterable[str], remade: Iterable[str] = ()) -> None:
        """Index data sets as the workflow would; those that are not there by stand-ins.

        Args:
            names: data sets.
            remade: those of them whose raw tree the workflow would make or fetch again.

        Raises:
            DataError: a raw tree that is there cannot be used.
        """
        names = list(names)
        if names and self.results.is_absolute():
            # what is there is then judged by the times of files alone
            self.results = Path("results")
            self._moved["results"] = "results"
            self._mirror_results()
        self.upstream = [job for job in self.upstream if job.wildcards["dataset"] not in names]
        for name in names:
            self._index(name, self.cfg.datasets[name], name in remade)
        if self._moved:
            self.overlay = self.root / "plan.yaml"
            self.overlay.write_text(yaml.safe_dump(self._moved), encoding="utf-8")

    def _index(self, name: str, spec: Dataset, remade: bool) -> None:
        tree = Tree(str(self.results))
        markers = {"phantom": tree.manifest(name), "download": tree.downloaded(name)}
        marker = markers.get(spec.source)
        root = Path(tree.raw(name) if spec.source == "phantom" else spec.path or "")
        table = None
        there = self._place(root).is_dir() and (not marker or self._place(marker).exists())
        if there and not remade:
            try:
                reviewed = self._reviewed(name, spec)
                table = self._table(spec, root, opened=True, reviewed=reviewed)
            except DataError:
                if not marker:
                    raise  # else an older tree, which the workflow replaces
        if table is None:
            count = self._count(name, spec, root)
            root = self._stand_in(name, spec, root, count)
            table = self._table(spec, root, exclude={}, limit=min(count, spec.limit or count))
            if marker:
                self._replace(self._place(marker), b"")
                rule = "make_phantom" if spec.source == "phantom" else "download_dataset"
                self.upstream.append(Job(rule, {"dataset": name}, outputs=(marker,)))
        path = tree.participants(name)
        self._write_table(self._place(path), table)
        self.upstream.append(Job("index_dataset", {"dataset": name}, outputs=(path,)))

    def _reviewed(self, name: str, spec: Dataset) -> list[dict[str, str]]:
        """Whom a reviewer excluded."""
        modalities = {key: dataset.modalities for key, dataset in self.cfg.datasets.items()}
        decisions = read_decisions(self.directory / self.cfg.qc.decisions, modalities)
        return exclusions(decisions, name, spec.modalities)

    def _table(
        self, spec: Dataset, root: Path, opened: bool = False, **changed: Any
    ) -> pd.DataFrame:
        with contextlib.chdir(self.root):
            return index_used({**spec.model_dump(), **changed}, root, opened).table

    def _replace(self, path: Path, content: bytes) -> None:
        """A new file in place of a link; no record of it, so that Snakemake takes it as it is."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        key = base64.urlsafe_b64encode(os.path.relpath(path, self.root).encode()).decode()
        (self.root / ".snakemake/metadata" / key).unlink(missing_ok=True)

    def _count(self, name: str, spec: Dataset, root: Path) -> int:
        """Subjects of a data set that is not there."""
        if spec.source == "phantom":
            return spec.phantom.subjects
        if layout_name(spec.layout) not in LAYOUTS:
            raise DataError(
                f"{name}: no folder '{spec.path}' (looked at {self.directory / root}); put or "
                "link the scans there, or name another: only the paper's data sets can be stood in "
                "for."
            )
        if spec.source == "preprocessed":
            raise DataError(
                f"{name}: no folder '{spec.path}' (looked at {self.directory / root}), and a "
                "shared preprocessed tree cannot be stood in for. Set "
                f"datasets.{name}.source to folder to plan with raw scans."
            )
        expected = spec.expected or load_registry().of_layout(spec.layout).subjects
        count, by = expected - len(spec.exclude), "config" if spec.expected else "registry"
        self.raw[name] = _raw_bytes(spec)
        used = f"; the first {spec.limit} are used" if spec.limit else ""
        self.notes.append(
            f"{name} is not there: planned with the {count} subjects that the {by} expects{used}."
        )
        return count

    def _stand_in(self, name: str, spec: Dataset, root: Path, count: int) -> Path:
        """Empty files in a data set's own layout; their root."""
        if self._place(root).is_symlink():
            self._place(root).unlink()
        if root.is_absolute() or not self._place(root).resolve().is_relative_to(self.root):
            root = Path("stand-ins") / name
            self._moved.setdefault("datasets", {})[name] = {"path": str(root)}
        layout = load_registry().of_layout(spec.layout).layout
        for subject in subject_names(spec.layout, count, self.cfg.seed):
            for role in layout.needs(spec.modalities):
                path = self._place(root / layout.path(subject, role))
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
        return root

    def _write_table(self, path: Path, table: pd.DataFrame) -> None:
        """Put an index in place; where it says what it said before, its very bytes."""
        content = table.to_csv(sep="\t", index=False).encode()
        if path.exists():
            before = read_tsv(path).fillna("")
            columns = [column for column in table if column in before]
            if before[columns].equals(table.reset_index(drop=True)[columns]):
                content = path.read_bytes()  # what depends on it is then up to date
        self._replace(path, content)

    def tables(self) -> dict[str, pd.DataFrame]:
        """The participants tables that are there or stood in for, by data set."""
        tree = Tree(str(self.results))
        paths = {name: self._place(tree.participants(name)) for name in self.cfg.datasets}
        return {name: read_tsv(path).fillna("") for name, path in paths.items() if path.exists()}


def _raw_bytes(spec: Dataset) -> int | None:
    """Bytes of a raw tree as the registry knows them; of a download, its archives, too."""
    known = load_registry().of_layout(spec.layout)
    files = known.files_for(known.layout.needs(spec.modalities))[: 1 if known.any_file else None]
    archives = [file.bytes for file in files]
    if None in archives:
        return None
    unpacked = sum(file.unpacked_bytes or file.bytes for file in files)
    return unpacked + (sum(archives) if spec.source == "download" else 0)


def _link(source: Path, target: Path) -> None:
    """A link that has the time of what it leads to, which Snakemake looks at, too."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        return  # inside something that is linked already
    target.symlink_to(source.resolve())
    time = source.stat().st_mtime_ns
    os.utime(target, ns=(time, time), follow_symlinks=False)


def _link_files(source: Path, target: Path) -> None:
    """Real folders, linked files: to remove one here leaves the other where it is."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.glob("*")):
        if path.is_dir():
            _link_files(path, target / path.name)
        else:
            (target / path.name).symlink_to(path.absolute())
