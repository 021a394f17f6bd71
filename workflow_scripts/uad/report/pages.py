"""Pages of the report about the run itself: its configuration, and how many volumes it has."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uad.core.errors import DataError
from uad.core.files import read_tsv
from uad.report.render import (
    Cell,
    Document,
    PathLike,
    Row,
    counted,
    html_frame,
    html_page,
    write_all,
)

__all__ = ["report_style", "write_config_page", "write_data_page"]

#: Roles of a split, as columns.
_ROLES = {
    "train": "train",
    "val_healthy": "healthy validation",
    "val_unhealthy": "unhealthy validation",
    "test": "test",
}

_STYLE = """\
pre { margin: .3rem 0 1rem; padding: .6rem .8rem; overflow-x: auto; background: #f5f6f8;
  font: 12px/1.45 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
summary { cursor: pointer; font-weight: 600; }
"""


def write_config_page(path: PathLike, config: Mapping[str, Any], *, phantom: bool) -> None:
    """Write the merged configuration of a run as a page, a section per key.

    Args:
        path: of the page.
        config: as it was resolved from ``config.yaml`` and the overlays.
        phantom: the run works on phantoms: the title says so.
    """
    import yaml

    class Plain(yaml.SafeDumper):
        """Without anchors: what two models share is written out for both."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    title = "Configuration of this run" + (" (phantom data)" if phantom else "")
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        '<p class="caption">config.yaml and the overlays of this run, merged: everything that '
        "was not given has the default of the schema.</p>",
    ]
    simple = {k: v for k, v in config.items() if not isinstance(v, dict | list)}
    sections = {"general": simple} if simple else {}
    sections |= {k: v for k, v in config.items() if k not in simple}
    for name, content in sections.items():
        # lists of numbers on one line, as people write them
        text = html.escape(
            yaml.dump(content, Dumper=Plain, sort_keys=False, width=100, default_flow_style=None)
        )
        summary = f"<summary>{html.escape(str(name))}</summary>"
        parts.append(f"<details open>{summary}<pre>{text}</pre></details>")
    page = html_frame(title, "\n".join(parts), _STYLE)
    write_all([path], {".html": lambda: page})


def write_data_page(
    path: PathLike,
    splits: Sequence[PathLike],
    participants: Mapping[str, PathLike],
    sources: Mapping[str, str],
    *,
    phantom: bool,
) -> None:
    """Write how many volumes stand behind the numbers, by experiment and data set.

    Args:
        path: of the page.
        splits: ``splits/<experiment>/fold-<k>.tsv``.
        participants: data set -> its table of subjects and raw files.
        sources: data set -> phantom, folder, download or preprocessed.
        phantom: a data set is a phantom: title and caption say so.

    Raises:
        DataError: there is no split.
    """
    document = Document(
        name="data",
        title="Data sets and volumes" + (" (phantom data)" if phantom else ""),
        caption=[
            *(_dataset(name, read_tsv(participants[name]), sources[name]) for name in participants),
            "Below: how many volumes have which role in a fold, by experiment and data set.",
        ],
        warning=(
            "The scans are a synthetic phantom: the numbers of this report show that the workflow "
            "runs, and cannot rank methods for real scans."
            if phantom
            else ""
        ),
        corner="Experiment, data set",
        heads=[("", "folds"), *(("", head) for head in _ROLES.values())],
        rows=_roles(splits),
        footnotes=[
            "A range where folds differ. Thresholds and AIR come from the unhealthy validation "
            "set alone; tables are means over the test volumes of a fold, then over folds.",
        ],
    )
    write_all([path], {".html": lambda: html_page(document)})


def report_style(style: PathLike, picture: PathLike) -> str:
    """The style sheet of the report, with a picture for its first page.

    Args:
        style: the style sheet; ``#rulegraph`` is where the picture goes.
        picture: SVG with a ``viewBox``, as matplotlib writes it.

    Raises:
        DataError: the picture does not say how large it is.
    """
    content = Path(picture).read_bytes()
    size = re.search(rb'viewBox="0 0 ([\d.]+) ([\d.]+)"', content)
    if not size:
        raise DataError(f"{picture}: is not an SVG with a viewBox. Make it again.")
    width, height = (float(number) for number in size.groups())
    data = base64.b64encode(content).decode()
    rule = f'background-image: url("data:image/svg+xml;base64,{data}"); '
    rule += f"aspect-ratio: {width:g} / {height:g};"
    return f"{Path(style).read_text(encoding='utf-8')}\n#rulegraph {{ {rule} }}\n"


def _dataset(name: str, table: Any, source: str) -> str:
    """``brats21 (phantom): 20 subjects; scans: 20 FLAIR, 20 T2.``"""
    counts = table.groupby("modality").size()
    scans = ", ".join(f"{number} {modality}" for modality, number in counts.items())
    kind = {"phantom": "synthetic phantom", "folder": "as provided by the user"}.get(source, source)
    return f"{name} ({kind}): {counted(table['subject'].nunique(), 'subject')}; scans: {scans}."


def _roles(splits: Sequence[PathLike]) -> list[Row]:
    """A row per experiment and data set: how many volumes have a role."""
    by_experiment: dict[str, list[Any]] = {}
    for path in sorted(map(Path, splits)):
        by_experiment.setdefault(path.parent.name, []).append(read_tsv(path))
    if not by_experiment:
        raise DataError("No splits were given, so there are no volumes to count.")
    rows = []
    for experiment, folds in by_experiment.items():
        rows.append(Row(experiment, []))
        for dataset in dict.fromkeys(name for fold in folds for name in fold["dataset"]):
            cells = [Cell(str(len(folds)))]
            for role in _ROLES:
                numbers = [_volumes(fold, dataset, role) for fold in folds]
                low, high = min(numbers), max(numbers)
                text = str(low) if low == high else f"{low} to {high}"
                cells.append(Cell("–" if high == 0 else text))
            rows.append(Row(dataset, cells))
    return rows


def _volumes(fold: Any, dataset: str, role: str) -> int:
    return int(((fold["dataset"] == dataset) & (fold["role"] == role)).sum())
