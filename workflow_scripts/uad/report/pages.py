"""Pages of a run: its configuration, its volumes, and the quality control of its scans."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uad.core.files import read_tsv, write_text
from uad.qc.gallery import gallery_data
from uad.qc.measure import MEASURES, MIN_SCANS
from uad.report.html import render_page
from uad.report.render import PathLike, counted, titled

if TYPE_CHECKING:
    import pandas as pd

#: Roles of a split, in the order of the columns.
_ROLES = ("train", "val_healthy", "val_unhealthy", "test")
_KINDS = {"phantom": "synthetic phantom", "folder": "as provided by the user"}


def write_config_page(path: PathLike, config: Mapping[str, Any], *, phantom: bool) -> None:
    """Write the merged configuration of a run as a page, a section per key."""
    import yaml

    class Plain(yaml.SafeDumper):
        """Without anchors: what two models share is written out for both."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    simple = {k: v for k, v in config.items() if not isinstance(v, dict | list)}
    sections = {"general": simple} if simple else {}
    sections |= {k: v for k, v in config.items() if k not in simple}
    # lists of numbers on one line, as people write them
    look = {"Dumper": Plain, "sort_keys": False, "width": 100, "default_flow_style": None}
    texts = {name: yaml.dump(content, **look) for name, content in sections.items()}
    title = titled("Configuration of this run", phantom)
    write_text(path, render_page("config.html", title=title, sections=texts))


def write_data_page(
    path: PathLike,
    splits: Sequence[PathLike],
    participants: Mapping[str, PathLike],
    verdicts: Sequence[PathLike],
    sources: Mapping[str, str],
    *,
    phantom: bool,
) -> None:
    """Write how many volumes stand behind the numbers, by experiment and data set.

    From splits ``<experiment>/fold-<k>.tsv``, and by data set its table of participants, its
    validation (who is not used, and why) and its source (phantom, folder, ...).
    """
    experiments: dict[str, list[Any]] = {}
    for split in sorted(map(Path, splits)):
        experiments.setdefault(split.parent.name, []).append(read_tsv(split))
    datasets = []
    tables = map(read_tsv, participants.values()), map(read_tsv, verdicts)
    for name, table, judged in zip(participants, *tables, strict=True):
        subjects = counted(table["subject"].nunique(), "subject")
        scans = table.groupby("modality").size().to_dict()
        kind = _KINDS.get(sources[name], sources[name])
        away = judged[judged["verdict"] == "excluded"]
        left_out = dict(zip(away["name"], away["why"].fillna(""), strict=True))
        about = {"subjects": subjects, "scans": scans, "left_out": left_out}
        datasets.append({"name": name, "kind": kind, **about})
    page = render_page(
        "data.html",
        title=titled("Data sets and volumes", phantom),
        phantom=phantom,
        datasets=datasets,
        experiments={name: _volumes(folds) for name, folds in experiments.items()},
    )
    write_text(path, page)


def _volumes(folds: Sequence[Any]) -> dict[str, list[str]]:
    """By data set: how many folds, and how many volumes have each role in them."""
    found = {}
    for dataset in dict.fromkeys(name for fold in folds for name in fold["dataset"]):
        found[dataset] = [str(len(folds))]
        for role in _ROLES:
            of = [((fold["dataset"] == dataset) & (fold["role"] == role)).sum() for fold in folds]
            text = str(min(of)) if min(of) == max(of) else f"{min(of)} to {max(of)}"
            found[dataset].append("–" if max(of) == 0 else text)
    return found


def report_style(style: PathLike, picture: PathLike) -> str:
    """The style sheet of the report, with a picture (SVG) in place of its ``#rulegraph``."""
    content = Path(picture).read_bytes()
    width, height = map(float, re.search(rb'viewBox="0 0 ([\d.]+) ([\d.]+)"', content).groups())
    data = base64.b64encode(content).decode()
    rule = f'background-image: url("data:image/svg+xml;base64,{data}"); '
    rule += f"aspect-ratio: {width:g} / {height:g};"
    return f"{Path(style).read_text(encoding='utf-8')}\n#rulegraph {{ {rule} }}\n"


def gallery_page(
    tables: Mapping[str, pd.DataFrame],
    *,
    pictures: Mapping[str, Mapping[str, str]],
    shape: Sequence[int],
    decisions: Iterable[Mapping[str, str]],
    **shown: Any,
) -> str:
    """The page on which a person goes through all scans: one file, no server, no network.

    The named arguments are those of :func:`uad.qc.gallery.gallery_data`; the others are
    ``decisions_file`` (name of a saved decision file), ``threshold`` of the flags and ``phantom``.
    """
    return render_page(
        "gallery.html",
        title="Quality control of the scans",
        data=gallery_data(tables, pictures, shape, decisions),
        datasets=list(tables),
        scans=sum(map(len, tables.values())),
        subjects=sum(table["subject"].nunique() for table in tables.values()),
        modalities=list(dict.fromkeys(m for table in tables.values() for m in table["modality"])),
        measures=MEASURES,
        least=MIN_SCANS,
        **shown,
    )


def summary_page(
    counts: Sequence[Mapping[str, Any]],
    excluded: Sequence[Mapping[str, str]],
    threshold: float,
    phantom: bool,
) -> str:
    """The counts of :func:`uad.qc.measure.summarise`, and whom a reviewer left out."""
    return render_page(
        "quality_summary.html",
        title=titled("Quality control of the scans", phantom),
        rows=counts,
        excluded=excluded,
        labels={measure.name: measure.label for measure in MEASURES},
        threshold=threshold,
        least=MIN_SCANS,
        phantom=phantom,
    )
