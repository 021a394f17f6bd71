"""Pages of a run: its configuration, its volumes, and the quality control of its scans."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uad.core.files import read_tsv, write_text
from uad.qc.gallery import gallery_data
from uad.qc.measure import MEASURES, MIN_SCANS
from uad.report.html import render_page
from uad.report.render import (
    NOTHING,
    Cell,
    Document,
    PathLike,
    Row,
    counted,
    html,
    titled,
    write_document,
)

if TYPE_CHECKING:
    import pandas as pd

#: Role of a split -> its heading.
_ROLES = {
    "train": "train",
    "val_healthy": "healthy validation",
    "val_unhealthy": "unhealthy validation",
    "test": "test",
}
_KINDS = {"phantom": "synthetic phantom", "folder": "as provided by the user"}


def write_config_page(path: PathLike, config: PathLike, *, phantom: bool) -> None:
    """Write the file with the merged configuration of a run as a page."""
    title = titled("Configuration of this run", phantom)
    text = Path(config).read_text(encoding="utf-8")
    write_text(path, render_page("config.html", title=title, text=text))


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
    datasets = []
    for (name, table), verdict in zip(participants.items(), verdicts, strict=True):
        scans, judged = read_tsv(table), read_tsv(verdict)
        by_modality = scans.groupby("modality").size()
        away = judged[judged["verdict"] == "excluded"].fillna({"why": ""})
        datasets.append(
            {
                "name": name,
                "kind": _KINDS.get(sources[name], sources[name]),
                "subjects": counted(scans["subject"].nunique(), "subject"),
                "scans": ", ".join(f"{number} {m}" for m, number in by_modality.items()),
                "left_out": [f"{who.name} ({who.why})" for who in away.itertuples(index=False)],
            }
        )
    experiments: dict[str, list[pd.DataFrame]] = {}
    for split in sorted(map(Path, splits)):
        experiments.setdefault(split.parent.name, []).append(read_tsv(split))
    rows: list[Row] = []
    for experiment, folds in experiments.items():
        rows += [Row(experiment), *_volumes(folds)]
    heads = [("", head) for head in ("folds", *_ROLES.values())]
    table = {"corner": "Experiment, data set", "heads": heads, "rows": rows}
    document = Document.of("data", phantom=phantom, table=table, datasets=datasets)
    write_document([path], document, None)


def _volumes(folds: Sequence[pd.DataFrame]) -> Iterator[Row]:
    """By data set: how many folds, and how many volumes have each role in them."""
    for dataset in dict.fromkeys(name for fold in folds for name in fold["dataset"]):
        counts = [fold.loc[fold["dataset"] == dataset, "role"].value_counts() for fold in folds]
        texts = [str(len(folds))]
        for role in _ROLES:
            low, high = (extreme(count.get(role, 0) for count in counts) for extreme in (min, max))
            texts.append(NOTHING if not high else str(low) if low == high else f"{low} to {high}")
        yield Row(dataset, list(map(Cell, texts)))


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
    labels = {measure.name: measure.label for measure in MEASURES}
    rows = []
    for row in counts:
        by_measure = sorted(row["by_measure"].items(), key=lambda item: (-item[1], item[0]))
        texts = [
            row["scans"],
            row["flagged"] if row["judged"] else "too few to judge",
            *(row[verdict] for verdict in ("warned", "keep", "unsure")),
            "; ".join(f"{labels[name]}: {count}" for name, count in by_measure),
        ]
        rows.append(Row(f"{row['dataset']} {row['modality']}", [Cell(str(x)) for x in texts]))
    heads = ("n", "flagged", "warnings", "keep", "unsure", "flags by measure")
    document = Document.of(
        "quality",
        phantom=phantom,
        table={"corner": "Scans", "heads": [("", head) for head in heads], "rows": rows},
        scans=sum(row["scans"] for row in counts),
        excluded=excluded,
        threshold=threshold,
        least=MIN_SCANS,
    )
    return html(document)
