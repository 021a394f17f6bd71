"""The figures of a GPU. They run on a CPU, too, at a tiny size: so the tests do."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from speed import cpu, reference
from speed.material import (
    QUALITY,
    SEED,
    Sizes,
    arrays,
    make_cases,
    make_method,
    make_training_set,
)
from speed.timing import alternate, spread, synchronise
from uad.config import Train
from uad.evaluate import evaluate_volume, postprocess, search_threshold
from uad.evaluate.reconstruct import reconstruct_volume
from uad.evaluate.score import score_volume
from uad.methods.base import Method
from uad.train.batches import TrainingSet
from uad.train.loop import train

#: Steps of one fold of the paper: 1600 epochs of 12.
FOLD = 19_200


@dataclass(frozen=True)
class Effort:
    """How long the figures of a GPU are measured.

    Attributes:
        matmul: side of the square matrices of the ceiling.
        products: products per measurement of it.
        epochs: of the shorter and of the longer of two trainings, whose difference is taken.
        steps: of the reference path.
        batches: passes over the training set for data and noise.
        volumes: to be reconstructed and scored.
        validation: of these, so many for the threshold.
        modes: of ``torch.compile``, each with its own trainings.
    """

    matmul: int = 8192
    products: int = 50
    epochs: tuple[int, int] = (5, 45)
    steps: int = 12
    batches: int = 10
    volumes: int = 1151
    validation: int = 100
    modes: tuple[str, ...] = ("off", "default")


FULL = Effort()
TINY = Effort(
    matmul=128,
    products=2,
    epochs=(1, 3),
    steps=2,
    batches=2,
    volumes=3,
    validation=2,
    modes=("off",),
)
FIGURES = ("matmul", "training_step", "data_and_noise", "fusion_loss", "volumes")


def measure(
    wanted: Sequence[str],
    sizes: Sizes,
    effort: Effort,
    device: str = "cuda",
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """The wanted of :data:`FIGURES`, by name; ``matmul`` is always measured.

    Args:
        wanted: names of figures.
        sizes: of slices, network and batch.
        effort: how long to measure.
        device: ``cuda``, or ``cpu`` to try the code.
        say: gets a line per figure.
    """
    cases = make_cases(sizes)
    method = make_method(sizes)
    training = make_training_set(cases, sizes.subjects)
    figures: dict[str, Any] = {}
    actions: dict[str, Callable[[], dict[str, Any]]] = {
        "matmul": lambda: matmul_ceiling(effort, device),
        "training_step": lambda: training_step(
            method, training, cases, sizes, effort, device, figures["matmul"]["tflops"]["median"]
        ),
        "data_and_noise": lambda: data_and_noise(method, training, cases, sizes, effort, device),
        "fusion_loss": lambda: fusion_loss(method, sizes, device),
        "volumes": lambda: volumes(method, cases, sizes, effort, device),
    }
    for name in FIGURES:
        if name not in (*wanted, "matmul"):
            continue
        begin = time.perf_counter()
        figures[name] = actions[name]()
        say(f"{name}: measured in {time.perf_counter() - begin:.0f} s")
    if {"fusion_loss", "training_step"} <= figures.keys():
        extra = figures["fusion_loss"]["fusion_s"] - figures["fusion_loss"]["l1_s"]
        figures["fusion_loss"]["share_of_step"] = extra / figures["training_step"]["step_s"]
    return figures


def matmul_ceiling(effort: Effort, device: str) -> dict[str, Any]:
    """What large bf16 matrix products reach: the most that a training step can."""
    side = effort.matmul
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    rates = []
    for turn in range(6):
        synchronise(device)
        begin = time.perf_counter()
        for _ in range(effort.products):
            a @ b
        synchronise(device)
        if turn:  # the first is to warm up
            rates.append(effort.products * 2 * side**3 / (time.perf_counter() - begin) / 1e12)
    return {"side": side, "tflops": spread(rates)}


def training_step(
    method: Method,
    training: TrainingSet,
    cases: list,
    sizes: Sizes,
    effort: Effort,
    device: str,
    ceiling: float,
) -> dict[str, Any]:
    """The step of the real loop against the matmul ceiling and against the reference path.

    Two trainings of different length have everything in common but steps, so their difference
    is steps: of ``uad.train.loop.train`` as a job runs it, without what it does once.

    Args:
        method: pDDPM.
        training: its data, in host memory.
        cases: volumes for the reference's manager process.
        sizes: of network and batch.
        effort: how long to measure.
        device: where.
        ceiling: TFLOP/s of large matrix products.
    """
    operations = count_operations(method, sizes, device)
    per_epoch = sizes.subjects // sizes.batch
    modes = {
        mode: seconds_per_epoch(method, training, sizes, effort, device, mode, validate=False)
        / per_epoch
        for mode in effort.modes
    }
    mode = min(modes, key=modes.__getitem__)
    with_validation = seconds_per_epoch(
        method, training, sizes, effort, device, mode, validate=True
    )
    theirs = reference_steps(method, cases, sizes, effort, device)
    step = modes[mode]
    whole = [sum(parts) for parts in theirs]
    compute = [parts[2] for parts in theirs]
    return {
        "batch": sizes.batch,
        "slice": [sizes.shape[1], sizes.shape[0]],
        "parameters": sum(p.numel() for p in method.build().parameters()),
        "precision": "bf16-mixed",
        "tflop_per_step": operations / 1e12,
        "seconds_by_compile_mode": modes,
        "compile": mode,
        "step_s": step,
        "tflops": operations / 1e12 / step,
        "fraction_of_ceiling": operations / 1e12 / step / ceiling,
        "minutes_of_steps": step * FOLD / 60,
        "minutes_of_fold": with_validation * FOLD / per_epoch / 60,
        "reference_s": {
            "data": spread([parts[0] for parts in theirs]),
            "noise": spread([parts[1] for parts in theirs]),
            "forward, backward, optimiser": spread(compute),
            "together": spread(whole),
        },
        "noise_compiled": reference.NUMBA,
        "ratio": float(np.median(whole)) / step,
        "ratio_without_data_and_noise": float(np.median(compute)) / step,
    }


def count_operations(method: Method, sizes: Sizes, device: str) -> int:
    """Multiplications and additions of forward and backward pass of a batch."""
    width, height, _ = sizes.shape
    images = torch.rand(sizes.batch, 1, height, width, device=device)
    network = method.build().to(device).train()
    generator = torch.Generator(device).manual_seed(SEED)
    counter = FlopCounterMode(display=False)
    with counter:
        method.training_loss(network, images, images > 0, generator).backward()
    return counter.get_total_flops()


def seconds_per_epoch(
    method: Method,
    training: TrainingSet,
    sizes: Sizes,
    effort: Effort,
    device: str,
    mode: str,
    *,
    validate: bool,
) -> float:
    """From a short and a long training; with ``validate``, after every epoch, as the paper."""

    def run(epochs: int) -> float:
        loop = Train(
            epochs=epochs,
            batch_size=sizes.batch,
            validate_every=1 if validate else epochs,
            precision="bf16-mixed",
            accelerator="gpu" if device == "cuda" else "cpu",
            compile=mode,
        )
        held_out = min(44, sizes.subjects)
        validation = TrainingSet(
            training.images[:held_out], training.masks[:held_out], training.slices[:held_out]
        )
        with tempfile.TemporaryDirectory() as folder:
            synchronise(device)
            begin = time.perf_counter()
            train(
                method,
                (training, validation),
                folder,
                loop,
                keep="best",
                fixed_validation=False,
                seed=SEED,
                identity={},
            )
            synchronise(device)
            return time.perf_counter() - begin

    run(1)  # kernels are chosen and compiled
    return per_epoch([run(epochs) for epochs in effort.epochs], effort.epochs)


def per_epoch(times: Sequence[float], epochs: tuple[int, int]) -> float:
    """Seconds of an epoch, from those of a shorter and a longer training.

    Raises:
        SystemExit: the longer one was not slower.
    """
    if times[1] <= times[0]:
        raise SystemExit(
            f"{epochs[1]} epochs took {times[1]:.2f} s and {epochs[0]} took {times[0]:.2f} s: the "
            "machine is too busy to measure a step. Run it again when it is idle."
        )
    return (times[1] - times[0]) / (epochs[1] - epochs[0])


def reference_steps(
    method: Method, cases: list, sizes: Sizes, effort: Effort, device: str
) -> list[tuple[float, float, float]]:
    """Seconds of data, noise and the rest of steps of the reference path."""
    network = reference.checkpointed(method.build().to(device)).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    schedule = reference.signal().to(device)
    shared = reference.SharedVolumes(*arrays(cases, sizes.batch * 2))
    times: list[tuple[float, float, float]] = []
    try:
        endless = itertools.chain.from_iterable(
            reference.loader(shared, sizes.batch) for _ in itertools.count()
        )
        for number in range(effort.steps + 2):
            clocks = [time.perf_counter()]
            images = next(endless)["image"].squeeze(-1).to(device)
            clocks.append(time.perf_counter())
            noise = reference.batch_noise(images.shape, number).to(device)
            clocks.append(time.perf_counter())
            reference.training_step(network, optimizer, images, noise, schedule)
            clocks.append(time.perf_counter())  # it has read the loss, so the GPU is done
            times.append(tuple(b - a for a, b in itertools.pairwise(clocks)))
    finally:
        shared.close()
    return times[2:]


def data_and_noise(
    method: Method,
    training: TrainingSet,
    cases: list,
    sizes: Sizes,
    effort: Effort,
    device: str,
) -> dict[str, Any]:
    """A batch and its noise on the device, against the reference path on the host."""
    placed = training.to(device)
    shared = reference.SharedVolumes(*arrays(cases, sizes.batch * 2))
    ours, theirs = [], []
    try:
        for turn in range(effort.batches + 1):
            synchronise(device)
            begin = time.perf_counter()
            count = sum(1 for _ in cpu.our_batches(method, placed, sizes.batch, device))
            synchronise(device)
            ours += [(time.perf_counter() - begin) / count] if turn else []
        theirs += [sum(pair) for pair in cpu.reference_batches(shared, sizes.batch)]
    finally:
        shared.close()
    return {
        "batch": sizes.batch,
        "reference_s": spread(theirs),
        "ours_s": spread(ours),
        "ratio": float(np.median(theirs) / np.median(ours)),
    }


def fusion_loss(method: Method, sizes: Sizes, device: str) -> dict[str, Any]:
    """The fusion-quality loss, forward and backward, and l1 in its place."""
    width, height, _ = sizes.shape
    images, restored = (torch.rand(sizes.batch, 1, height, width, device=device) for _ in range(2))
    restored.requires_grad_()

    def run(other: Method) -> Callable[[], None]:
        def action() -> None:
            other.quality_loss(images, restored).backward()
            restored.grad = None
            synchronise(device)

        return action

    fusion, l1 = alternate(run(method), run(make_method(sizes, "l1")), 30)
    return {
        "fusion_s": float(np.median(fusion)),
        "l1_s": float(np.median(l1)),
        "share_of_step": None,
    }


def volumes(
    method: Method, cases: list, sizes: Sizes, effort: Effort, device: str
) -> dict[str, Any]:
    """Reconstruct, score and evaluate as many volumes as BraTS has, one after the other."""
    network = method.build().eval().to(device)
    chosen = [cases[number % len(cases)] for number in range(effort.volumes)]
    clocks: list[float] = []

    def stamp() -> None:
        synchronise(device)
        clocks.append(time.perf_counter())

    def restore(case: Any) -> np.ndarray:
        return reconstruct_volume(
            method,
            network,
            case.volume,
            case.mask,
            t_test=500,
            batch=sizes.shape[2],
            seed=SEED,
            device=device,
            precision="bf16-mixed",
        ).astype(np.float16)

    restore(cases[0])
    stamp()
    restored = [restore(case) for case in chosen]
    stamp()
    maps = [
        postprocess(
            score_volume("fusion", case.volume, result.astype(np.float32), **QUALITY),
            case.mask,
            erosion=reference.EROSIONS,
            median=reference.MEDIAN,
        )
        for case, result in zip(chosen, restored, strict=True)
    ]
    stamp()
    validation = slice(effort.validation)
    threshold = search_threshold(
        maps[validation], [case.lesion for case in chosen[validation]]
    ).threshold
    for case, scores in zip(chosen, maps, strict=True):
        evaluate_volume(scores, case.lesion, case.mask, threshold, reference.COMPONENT)
    stamp()
    seconds = [b - a for a, b in itertools.pairwise(clocks)]
    return {
        "volumes": effort.volumes,
        "volume": list(sizes.shape),
        "precision": "bf16-mixed",
        "minutes": sum(seconds) / 60,
        "stages_s": dict(
            zip(("reconstruction", "anomaly maps", "threshold and metrics"), seconds, strict=True)
        ),
    }
