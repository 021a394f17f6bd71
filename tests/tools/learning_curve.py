"""How far training closes the gap between l1 and IQA on the phantom, point by point.

``cd tests; python -m tools.learning_curve FOLDER`` trains pDDPM with l1 and with IQA, measures
both at the same numbers of steps for every seed, and writes each point to
``FOLDER/learning-curve.csv`` as it is measured, with a picture of what is there; the same command
goes on after the last one. docs/learning-curve.md says what came out.

A training that is measured on its way is the same as one that ends there: the learning rate is
constant, and a point takes the last weights, not the best.
"""

from __future__ import annotations

import sys
import time
from functools import cache
from itertools import chain, count, islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from tools.positive_control import POSTPROCESSING, QUALITY, Case, phantom_case
from uad.air import invert_foreground, paper_rule
from uad.config import Train
from uad.core.seeds import derive_seed
from uad.evaluate import evaluate_volume, postprocess, search_threshold
from uad.evaluate.readiness import LIMIT, healthy_errors
from uad.evaluate.reconstruct import Reconstructor
from uad.evaluate.score import score_volume
from uad.methods import load
from uad.methods.base import Setup
from uad.networks.execution import reuse_freed_memory
from uad.preprocess.slices import eligible_slices
from uad.report import style
from uad.train.batches import SliceBatches, TrainingSet
from uad.train.loop import Trainer

SEEDS, STEPS = range(3), (150, 600, 1500, 3000, 6000)
#: Method -> quality map of loss and score, and whether it inverts by the paper's rule.
METHODS = {"pDDPM": ("l1", False), "pDDPM-IQA": ("fusion", True)}
#: What stands beside them: the intensity of the scan as the score.
INTENSITY = "intensity alone"

#: pDDPM with 0.50 million parameters, as small networks have it in the configs for CPUs.
NETWORK = {
    "channels": [32, 32, 32],
    "num_res_blocks": 1,
    "num_head_channels": 16,
    "norm_num_groups": 8,
    "scale_shift": True,
    "pixel_block": 2,
}
LOOP = Train(
    batch_size=8,
    samples_per_volume=4,
    learning_rate=1e-3,
    validate_every=10**6,
    accelerator="cpu",
)
#: Phantoms of a seed, in the order of their numbers; 20 give 10 steps in an epoch.
TRAINING, VALIDATION, TEST = 20, 4, 8
T_TEST, COMPONENT_MAX_SIZE, VOXEL_MM = 750, 1, (4.0, 4.0, 4.0)


@cache
def cases_of(seed: int) -> tuple[list[Case], list[Case], list[Case]]:
    """FLAIR phantoms with a glioma, for training, validation and test."""
    cases = [phantom_case(1000 * seed + n) for n in range(TRAINING + VALIDATION + TEST)]
    middle = TRAINING + VALIDATION
    # whose tumour reaches through all slices has none to train on; the next phantom takes its place
    more = (phantom_case(1000 * seed + n) for n in count(len(cases)))
    usable = (case for case in chain(cases[:TRAINING], more) if not case.lesion.any((0, 1)).all())
    return list(islice(usable, TRAINING)), cases[TRAINING:middle], cases[middle:]


def inverts(seed: int) -> bool:
    """Whether the paper's rule inverts these scans, by the validation phantoms."""
    healthy = [
        case.scan[(case.brain > 0) & (case.lesion == 0)].mean() for case in cases_of(seed)[1]
    ]
    return paper_rule(float(np.mean(healthy)))


def make_trainer(seed: int, name: str) -> Trainer:
    """An untrained method, with the tumour-free slices of the training phantoms."""
    loss, air = METHODS[name]
    training, _, _ = cases_of(seed)
    brains = np.stack([case.brain for case in training])
    scans = np.stack([case.scan for case in training])
    if air and inverts(seed):
        scans = invert_foreground(scans, brains)
    lesions = np.stack([case.lesion > 0 for case in training])
    slices = eligible_slices(lesions, tumour_free=True, central=True)
    data = TrainingSet.from_volumes(scans, brains, slices)
    options = {"network": NETWORK, "patch_grid": [2, 2]}
    method = load("diffusion")(options, Setup(loss, QUALITY, image_size=scans.shape[2:0:-1]))
    number = derive_seed(seed, name)
    batches = SliceBatches(data, LOOP.batch_size, LOOP.samples_per_volume, number, drop_last=True)
    trainer = Trainer(method, LOOP, number, (batches, batches))  # never validates
    trainer.build()
    return trainer


def trained_to(steps: int, seed: int, name: str, checkpoint: Path) -> Trainer:
    """The method after so many steps; goes on from the checkpoint and writes it."""
    trainer = make_trainer(seed, name)
    if checkpoint.exists():
        trainer.load(checkpoint)
    while trainer.steps < steps:
        trainer.run_epoch()
        if trainer.steps % 100 == 0 or trainer.steps >= steps:
            trainer.save(checkpoint)
    return trainer


def measured(seed: int, name: str, trainer: Trainer | None) -> dict[str, float]:
    """Mean AUPRC, Dice (percent) and healthy DSSIM of the test phantoms; without a network the
    scan is the score."""
    network = trainer and Reconstructor(
        trainer.method, trainer.network.eval(), T_TEST, LOOP.inference_batch
    )
    maps: dict[str, list[np.ndarray]] = {}
    dssim = []
    _, validation, test = cases_of(seed)
    for role, cases in (("validation", validation), ("test", test)):
        for number, case in enumerate(cases):
            scan, score = case.scan, case.scan
            if network:
                loss, air = METHODS[name]
                scan = invert_foreground(scan, case.brain) if air and inverts(seed) else scan
                restored = network.volume(scan, case.brain, derive_seed(seed, role, number))
                score = score_volume(loss, scan, restored, **QUALITY)
                if role == "test":
                    errors = healthy_errors(scan, restored, case.brain, case.lesion, QUALITY)
                    dssim.append(errors["dssim"])
            maps.setdefault(role, []).append(postprocess(score, case.brain, **POSTPROCESSING))
    found = search_threshold(maps["validation"], [case.lesion for case in validation])
    rows = [
        evaluate_volume(
            scores, case.lesion, case.brain, found.threshold, COMPONENT_MAX_SIZE, VOXEL_MM
        )
        for scores, case in zip(maps["test"], test, strict=True)
    ]
    means = pd.DataFrame(rows)[["auprc", "dice"]].mean() * 100
    return {**means.to_dict(), "healthy_dssim": float(np.mean(dssim)) if dssim else float("nan")}


def run(folder: Path, seeds: range = SEEDS, all_steps: tuple[int, ...] = STEPS) -> pd.DataFrame:
    """All points, of which those that are in the folder are not measured again."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "learning-curve.csv"
    points = pd.read_csv(path).to_dict("records") if path.exists() else []
    # few steps of all seeds first: whenever it is stopped, there is a curve up to some point
    wanted = [(steps, seed, name) for steps in all_steps for seed in seeds for name in METHODS]
    for steps, seed, name in [(0, seed, INTENSITY) for seed in seeds] + wanted:
        if any((p["steps"], p["seed"], p["method"]) == (steps, seed, name) for p in points):
            continue
        begun = time.process_time()
        checkpoint = folder / f"{name}-{seed}.safetensors"
        trainer = trained_to(steps, seed, name, checkpoint) if steps else None
        point = {"steps": steps, "seed": seed, "method": name, **measured(seed, name, trainer)}
        points.append(point | {"cpu_seconds": round(time.process_time() - begun)})
        pd.DataFrame(points).to_csv(path, index=False, float_format="%.4g")
        if steps:
            draw(pd.DataFrame(points), path.with_suffix(".png"))
        print(points[-1], flush=True)
    return pd.DataFrame(points)


def draw(points: pd.DataFrame, path: Path) -> None:
    """AUPRC, Dice and healthy DSSIM over steps: means as lines, seeds as dots."""
    panels = {"auprc": "AUPRC (%)", "dice": "Dice (%)", "healthy_dssim": "DSSIM of healthy tissue"}
    with style.drawing(path, 7.2, 2.6, colours=64) as figure:
        for axis, (column, title) in zip(
            figure.subplots(1, len(panels)), panels.items(), strict=True
        ):
            style.grid(axis)
            for name, look in zip(METHODS, style.CYCLE, strict=False):
                rows = points[points["method"] == name]
                means = rows.groupby("steps")[column].mean()
                axis.plot(means.index, means, label=name, **look)
                axis.plot(rows["steps"], rows[column], ".", ms=3, color=look["color"])
            level = points.loc[points["method"] == INTENSITY, column].mean()
            label, level = (INTENSITY, level) if level == level else ("limit for a ranking", LIMIT)
            axis.axhline(level, color=style.GREY, lw=0.8, ls=":", label=label)
            axis.set(xscale="log", xlabel="training steps", title=title, ylim=(0, None))
            axis.set_xticks(STEPS, map(str, STEPS))
            axis.set_xticks([], minor=True)
            axis.legend()
        figure.suptitle("phantom, FLAIR, 48x48: means and single seeds", fontsize=8)


if __name__ == "__main__":
    torch.set_num_threads(1)
    reuse_freed_memory()
    curve = run(Path(sys.argv[1]))
    print(curve.groupby(["method", "steps"]).mean().round(2).to_markdown())
