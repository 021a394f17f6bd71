"""Volumes of a cell as files that people can open: NIfTI in two spaces, and a page to scroll."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from uad.air import invert_foreground, stored_decision
from uad.config import Config
from uad.core.errors import DataError, near
from uad.core.files import read_json, read_tsv, write_json, write_text
from uad.core.nifti import read_scan, read_volume, write_volume
from uad.core.paths import MODALITY, SUFFIX, Tree
from uad.evaluate import predict
from uad.preprocess.native import packed_affine, to_own_grid
from uad.preprocess.slices import read_store, read_volumes
from uad.report.html import render_page
from uad.report.map_figures import choose_slices

#: What is written of a volume: part of the file name -> what it is.
LAYERS = {
    "input": "the scan as the network saw it",
    "reconstruction": "its healthy-looking version (of a method that scores directly: the score)",
    "anomaly": "post-processed anomaly map",
    "prediction": "above the threshold, without small components",
    "truth": "annotated lesion",
}


class Cell(NamedTuple):
    """A method on a test set in one fold."""

    experiment: str
    method: str
    fold: int
    test: str


def export(
    cfg: Config, results: Path, cell: Cell, subjects: Sequence[str] | None, out: Path
) -> Path:
    """Write the volumes of some test subjects (by default as in Figure 3) below ``out``; its page.

    A file is ``sub-<subject>_space-<SRI24|orig>_desc-<layer>_<suffix>.nii.gz`` with a JSON beside
    it; scans that somebody else preprocessed are on the page only.

    Raises:
        DataError: maps or reconstructions were deleted after use; a subject is not tested.
    """
    tree = Tree(str(results))
    modality, method = cfg.experiments[cell.experiment].modality, cfg.methods[cell.method]
    paths = {s: tree.per_test(s, "safetensors", *cell) for s in ("reconstructions", "maps")}
    if missing := [path for path in paths.values() if not Path(path).exists()]:
        own = Tree(cfg.results)  # as the workflow calls them
        again = [own.per_test(stage, "safetensors", *cell) for stage in paths]
        raise DataError(
            f"{missing[0]}: no such file. Reconstructions and maps are deleted after use: make "
            f"them again with `snakemake --configfile {own.root}/config.resolved.yaml --notemp "
            f"{' '.join(again)}`, or set run.keep_reconstructions."
        )
    store = tree.slices(cell.test, modality)
    threshold = read_json(tree.per_test("thresholds", "json", *cell))["threshold"]
    invert = stored_decision(tree.air(cell.experiment, cell.fold), method.air)
    restored, maps = (read_volumes(path) for path in paths.values())
    folder = out / cell.experiment / cell.method / f"fold-{cell.fold}" / cell.test
    facts = {**cell._asdict(), "threshold": threshold, "inverted": invert}
    shown = []
    for subject in _chosen(store, maps, subjects, cell):
        part, scores = read_store(store, [subject]), maps[f"test/{subject}"]
        volume, mask = part.volumes[0].astype(np.float32), part.masks[0] > 0
        layers = {
            "input": invert_foreground(volume, mask) if invert else volume,
            "reconstruction": restored[f"test/{subject}"],
            "anomaly": scores,
            "prediction": predict(scores, threshold, cfg.protocol.component_max_size),
            "truth": part.lesions[0] > 0,
        }
        if cfg.datasets[cell.test].source != "preprocessed":
            scan = {"dataset": cell.test, "subject": subject, "suffix": SUFFIX[modality]}
            _write(tree, cfg, scan, layers, folder, facts)
        strips = {name: _strip(layer) for name, layer in layers.items()}
        shown.append({"subject": subject, "layers": strips})
    size = dict(zip(("width", "height", "depth"), cfg.preprocessing.shape, strict=True))
    data = " (phantom data)" if cfg.phantom else ""
    title = f"{cfg.labels[cell.method]}, {cell.experiment}, {cell.test}, fold {cell.fold}{data}"
    page = render_page("volumes.html", title=title, layers=LAYERS, volumes=shown, **size)
    write_text(folder / "index.html", page)
    return folder / "index.html"


def _chosen(
    store: str, maps: Mapping[str, np.ndarray], subjects: Sequence[str] | None, cell: Cell
) -> Sequence[str]:
    tested = [name.removeprefix("test/") for name in maps if name.startswith("test/")]
    for subject in subjects or []:
        if subject not in tested:
            raise DataError(
                f"{subject}: not a test subject of {cell.test} in fold {cell.fold}"
                f"{near(subject, tested)}."
            )
    return subjects or choose_slices({s: int(read_store(store, [s]).lesions.sum()) for s in tested})


def _write(
    tree: Tree,
    cfg: Config,
    scan: dict[str, str],
    layers: Mapping[str, np.ndarray],
    folder: Path,
    facts: dict[str, Any],
) -> None:
    """The layers of one scan in both spaces, each with its sidecar."""
    table = read_tsv(tree.participants(scan["dataset"])).set_index(["subject", "modality"])
    raw = read_scan(table.loc[(scan["subject"], MODALITY[scan["suffix"]]), "image"])
    registered = tree.scan("nii.gz", space="SRI24", desc="preproc", **scan)
    xfm = {"from": "orig", "to": "SRI24", "mode": "image", "desc": "xfm"}
    transform = tree.scan("mat", **xfm, **scan)
    data, affine = read_volume(registered)
    affine = packed_affine(
        data.shape, affine, cfg.preprocessing.field_of_view, cfg.preprocessing.shape
    )
    for layer, volume in layers.items():
        volume = volume if volume.dtype == bool else volume.astype(np.float32)
        own = to_own_grid(volume, affine, raw, transform)
        spaces = {"SRI24": (volume, affine), "orig": (own, raw.raw_affine)}
        for space, content in spaces.items():
            name = f"sub-{scan['subject']}_space-{space}_desc-{layer}_{scan['suffix']}"
            write_volume(folder / f"{name}.nii.gz", *content)
            sources = [registered, *([transform, str(raw.path)] if space == "orig" else [])]
            about = {"Description": LAYERS[layer], "SpatialReference": space, **facts}
            write_json(folder / f"{name}.json", {**about, "Sources": sources})


def _strip(volume: np.ndarray) -> str:
    """All axial slices side by side, as displayed, a PNG of 8 bits for a page."""
    from PIL import Image

    volume = volume.astype(np.float32)
    top = float(np.percentile(volume[volume > 0], 99.9)) if (volume > 0).any() else 1.0
    grey = np.clip(volume / max(top, 1e-6), 0, 1) * 255
    slices = [np.rot90(grey[:, :, z]) for z in range(grey.shape[2])]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(slices, axis=1).astype(np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
