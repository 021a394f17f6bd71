"""From a scan to its anomaly map, mask, picture and record."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from uad import __version__
from uad.air import invert_foreground, stored_decision
from uad.core.files import sha256, write_json
from uad.core.nifti import read_mask, read_scan, read_volume, write_volume
from uad.core.paths import SUFFIX
from uad.core.seeds import derive_seed
from uad.detect.scans import MAP, MASK
from uad.detect.trained_model import Subject, TrainedModel, stem_of
from uad.evaluate import postprocess, predict
from uad.evaluate.reconstruct import Reconstructor
from uad.evaluate.score import score_volume
from uad.networks.execution import reuse_freed_memory
from uad.preprocess.intensity import Packing, pack_volume
from uad.preprocess.native import packed_affine, to_own_grid
from uad.preprocess.register import RegisterOptions, RegisterOutputs, register_scan
from uad.preprocess.skullstrip import skull_strip

NOTICE = (
    "This is research code, not a medical device: nothing that it shows may be used for the "
    "diagnosis or treatment of a patient."
)


class Found(NamedTuple):
    """What a model makes of a packed scan, all ``(X, Y, Z)``: the scan as the network saw it,
    inverted if it was, and so on; ``facts`` say what was used.
    """

    volume: np.ndarray
    restored: np.ndarray
    scores: np.ndarray
    mask: np.ndarray
    facts: dict[str, Any]


def detect(
    model: TrainedModel, scan: Path, subject: Subject, stripped: bool, out: Path
) -> dict[str, Any]:
    """Write anomaly map and mask on the grid of a scan, a picture and a record (JSON), which is
    returned. They appear together at the end, the record last.
    """
    out.mkdir(parents=True, exist_ok=True)
    raw, stem = read_scan(scan), stem_of(scan)
    with tempfile.TemporaryDirectory(prefix=".tmp-uad-", dir=out) as name:
        work = Path(name)
        registered, facts = _register(model, scan, subject, stripped, work)
        image, affine = read_volume(registered.image)
        brain = read_mask(registered.brain_mask, image.shape, registered.image).data
        found = find_anomalies(model, image, brain, subject)
        packing = model.params("pack_slices")["preprocessing"]
        place = packed_affine(image.shape, affine, packing["field_of_view"], found.mask.shape)
        own = {MAP: found.scores, MASK: found.mask}
        own = {end: to_own_grid(v, place, raw, registered.transform) for end, v in own.items()}
        for ending, volume in own.items():
            write_volume(work / f"{stem}{ending}", volume, raw.raw_affine)
        _draw(work / f"{stem}_desc-anomaly.png", found, f"{stem}: {model.label}")
        record = {
            "notice": NOTICE,
            "uad": __version__,
            "scan": {"file": scan.name, "sha256": sha256(scan)},
            "taken_for": {"dataset": subject.dataset, "subject": subject.label},
            "role_in_the_run": subject.role,
            "model": {**model.names, "sha256": sha256(model.weights)},
            "modality": model.experiment.modality,
            **found.facts,
            **facts,
            "anomaly_ml": round(float(own[MASK].sum()) * raw.voxel_ml, 3),
            "largest_score": float(found.scores.max()),
        }
        write_json(work / f"{stem}_desc-anomaly.json", record)
        for path in sorted(work.glob(f"{stem}_desc-anomaly*"), key=lambda p: p.suffix == ".json"):
            os.replace(path, out / path.name)
    return record


def _register(
    model: TrainedModel, scan: Path, subject: Subject, stripped: bool, work: Path
) -> tuple[RegisterOutputs, dict[str, Any]]:
    """Strip the skull and register, as the rules skullstrip_scan and register_scan do."""
    names = subject.dataset, subject.label, SUFFIX[model.experiment.modality]
    params = model.params("register_scan", dataset=subject.dataset)
    if subject.role is not None:
        backend = model.cfg.backend_of(subject.dataset)
    else:
        common = model.cfg.preprocessing.skullstrip.backend
        backend = "foreground" if stripped else "hdbet" if common == "auto" else common
    predicted = None
    if backend.endswith("hdbet"):
        predicted = model.stripper.predict(read_scan(scan)), model.stripper.facts
    brain = skull_strip(
        scan,
        work / "brain.nii.gz",
        backend,
        model.atlas,
        seed=derive_seed(params["seed"], "skullstrip", *names),
        threads=model.scan_threads,
        predicted=predicted,
    )
    out = RegisterOutputs(
        image=work / "image.nii.gz",
        brain_mask=work / "mask.nii.gz",
        transform=work / "transform.mat",
        sidecar=work / "sidecar.json",
        lesion=work / "lesion.nii.gz",  # not written: there is none
    )
    seed = derive_seed(params["seed"], "register", *names)
    options = RegisterOptions.of(params, seed, model.scan_threads)
    sidecar = register_scan(scan, work / "brain.nii.gz", None, model.atlas, out, options)
    warnings = brain.pop("warnings") + sidecar["warnings"]
    facts = {key: sidecar[key] for key in ("parameters", "registration", "brain_ml", "antspyx")}
    return out, {"skullstrip": brain, "register": facts, "warnings": warnings}


def find_anomalies(
    model: TrainedModel, image: np.ndarray, brain: np.ndarray, subject: Subject
) -> Found:
    """Pack, invert, reconstruct, score and threshold a registered scan, as the rules do."""
    names = {"dataset": subject.dataset, "test": subject.test}
    packing = Packing.of(model.params("pack_slices", **names))
    volume, mask, _ = pack_volume(image, brain, None, packing, subject.label)
    volume, mask = volume.astype(np.float32), mask > 0
    params = model.params("reconstruct_volumes", **names)
    invert = stored_decision(model.air, params["air"])
    reference = invert_foreground(volume, mask) if invert else volume
    loop = model.cfg.train_of(model.names["method"])
    place = model.names["experiment"], params["seed_name"], model.names["fold"], subject.test
    torch.set_num_threads(model.train_threads)
    reuse_freed_memory()
    how = params["t_test"], loop.inference_batch, model.device, loop.precision
    reconstructor = Reconstructor(model.method, model.network, *how)
    seed = derive_seed(params["seed"], *place, subject.label)
    restored = reconstructor.volume(reference, mask, seed)
    restored = restored.astype(np.float16).astype(np.float32)  # as a run stores it
    scoring = model.params("score_volumes", **names)
    residual = score_volume(scoring["score"], reference, restored, **scoring["quality"])
    scores = postprocess(residual, mask, **scoring["postprocessing"])
    threshold = model.threshold(subject.test)
    largest = model.params("evaluate_volumes")["component_max_size"]
    facts = {
        "inverted": invert,
        "t_test": params["t_test"],
        "score": scoring["score"],
        "postprocessing": scoring["postprocessing"],
        "threshold": {"value": threshold, "of": subject.test, "component_max_size": largest},
        "device": model.device,
    }
    return Found(reference, restored, scores, predict(scores, threshold, largest), facts)


def _draw(path: Path, found: Found, title: str) -> None:
    """Scan, reconstruction and map with the outline of the mask, on three slices."""
    from matplotlib.figure import Figure

    depth = found.mask.shape[2]
    shown = found.mask if found.mask.any() else found.scores
    middle, step = int(shown.sum(axis=(0, 1)).argmax()), depth // 10
    slices = np.clip([middle - step, middle, middle + step], 0, depth - 1)
    figure = Figure(figsize=(7.5, 8), layout="constrained")
    figure.suptitle(f"{title}\n{NOTICE}", fontsize=8, wrap=True)
    top = max(float(found.scores.max()), 1e-6)
    for row, z in zip(figure.subplots(3, 3), slices, strict=True):
        panels = {
            f"as the network saw it, slice {z}": (found.volume, "gray", 1),
            "reconstruction": (found.restored, "gray", 1),
            "anomaly map, mask outlined": (found.scores, "inferno", top),
        }
        for axes, (name, (data, colours, limit)) in zip(row, panels.items(), strict=True):
            axes.imshow(np.rot90(data[..., z]), cmap=colours, vmin=0, vmax=limit)
            axes.set_title(name, fontsize=8)
            axes.set_axis_off()
        if (outline := np.rot90(found.mask[..., z])).any():
            for axes in row[::2]:
                axes.contour(outline, levels=[0.5], colors="cyan", linewidths=0.7)
    figure.savefig(path, dpi=100)
