"""The figures of a GPU. They run on a CPU, too, at a tiny size: so the tests do."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import reference_path as reference
import torch
from speed_material import (
    QUALITY,
    SEED,
    Case,
    Sizes,
    alternate,
    arrays,
    held_out,
    make_cases,
    make_method,
    make_training_set,
    synchronise,
)
from speed_tables import Entry, limit, pair, value
from torch.utils.flop_counter import FlopCounterMode

from uad.config import Train
from uad.evaluate import evaluate_volume, postprocess, search_threshold
from uad.evaluate.reconstruct import reconstruct_volume
from uad.evaluate.score import score_volume
from uad.methods.base import Method
from uad.train.loop import train

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
#: Steps of one fold of the paper: 1600 epochs of 12.
FOLD = 19_200
ON_DEVICE: dict[str, Any] = {"accelerator": "gpu" if DEVICE == "cuda" else "cpu"}


def matmul_rate(sizes: Sizes, precision: str = "bf16-mixed", products: int = 50) -> float:
    """10^12 operations per second of large matrix products: the most that a step can reach."""
    kind = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
    a, b = (torch.randn(sizes.matmul, sizes.matmul, device=DEVICE, dtype=kind) for _ in range(2))

    def action() -> None:
        for _ in range(products):
            a @ b
        synchronise(DEVICE)

    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    seconds = float(np.median(alternate(action, repetitions=5)[0]))
    torch.backends.cuda.matmul.allow_tf32 = before
    return products * 2 * sizes.matmul**3 / seconds / 1e12


def sweep(
    method: Method, cases: list[Case], sizes: Sizes, found: dict[str, Any]
) -> Iterator[Entry]:
    """Seconds of a step with each setting of the loop.

    ``found`` gets the seconds of each precision, and the ``best`` settings of the rest.

    One setting after the other, each beside the best of those before it: all of them together
    would not fit into ten minutes. The last one, precision, is not chosen but compared.
    """
    steps = sizes.subjects // sizes.batch
    best: dict[str, object] = {"precision": "bf16-mixed"}
    for name, values in sizes.choices:
        times = {}
        for choice in values:
            settings = best | {name: choice}
            times[choice] = seconds_per_epoch(method, cases, sizes, settings) / steps
            words = ", ".join(f"{key} {setting}" for key, setting in settings.items())
            yield value(f"step with {words}", times[choice], "s")
        if name != "precision":
            best[name] = min(times, key=times.__getitem__)
        else:
            found |= times
    found["best"] = best


def training_step(sizes: Sizes) -> Iterator[Entry]:
    """The step of the real loop against the matmul ceiling and against the reference path.

    Two trainings of different length have everything in common but steps, so their difference
    is steps: of ``uad.train.loop.train`` as a job runs it, without what it does once.
    """
    cases, method = make_cases(sizes), make_method(sizes)
    steps = sizes.subjects // sizes.batch
    found: dict[str, Any] = {}
    yield from sweep(method, cases, sizes, found)
    best, step = found.pop("best"), found["bf16-mixed"]
    operations = count_operations(method, sizes) / 1e12
    for precision in ("bf16-mixed", "tf32"):
        ceiling = matmul_rate(sizes, precision)
        reached = operations / found[precision]
        yield value(f"{precision}: matmul ceiling", ceiling, "TFLOP/s")
        yield value(f"{precision}: reached by a step", reached, "TFLOP/s")
        if precision == "bf16-mixed":
            text = "training step: at least 50 % of the bf16 matmul ceiling"
            yield limit(text, reached / ceiling, 0.5)
    validated = seconds_per_epoch(method, cases, sizes, best, validate=True)
    minutes = validated * FOLD / steps / 60
    yield limit("a fold of 19,200 steps: at most 12 minutes", minutes, at_most=12)
    yield value("steps of a fold", step * FOLD / 60, "min")
    fusion, l1 = fusion_and_l1(sizes)
    text = "fusion-quality loss: at most 5 % of the step"
    yield limit(text, (fusion - l1) / step, at_most=0.05)
    yield value("fusion-quality loss", fusion, "s")
    yield value("l1 loss", l1, "s")
    if DEVICE == "cuda":
        yield value("memory at most", torch.cuda.max_memory_allocated() / 2**30, "GiB")
    theirs = np.array(reference_steps(method, cases, sizes))
    label = f"training step of {sizes.batch} slices"
    whole = pair(f"**{label}**", theirs.sum(axis=1), [step])
    yield limit("training step: at least 5 times as fast", whole[1]["ratio"], 5)
    yield whole
    yield pair(f"{label}, the reference without data and noise", theirs[:, 2], [step])


def precisions(sizes: Sizes) -> Iterator[Entry]:
    """Losses after some hundred steps in each precision, from the same seed."""
    cases, method = make_cases(sizes), make_method(sizes)
    training = make_training_set(cases, sizes.subjects)
    for precision in ("32-true", "tf32", "bf16-mixed"):
        epochs = sizes.epochs_of_curves
        loop = Train(epochs=epochs, batch_size=sizes.batch, precision=precision, **ON_DEVICE)
        with tempfile.TemporaryDirectory() as folder:
            facts = train(
                method, (training, held_out(training, 44)), folder, loop,
                keep="last", fixed_validation=True, seed=SEED, identity={},
            )  # fmt: skip
        steps = epochs * (sizes.subjects // sizes.batch)
        loss = facts["val_loss_of_weights"]
        yield value(f"healthy validation loss after {steps} steps, {precision}", loss, "")


def count_operations(method: Method, sizes: Sizes) -> int:
    """Multiplications and additions of forward and backward pass of a batch."""
    width, height, _ = sizes.shape
    images = torch.rand(sizes.batch, 1, height, width, device=DEVICE)
    network = method.build().to(DEVICE).train()
    generator = torch.Generator(DEVICE).manual_seed(SEED)
    with FlopCounterMode(display=False) as counter:
        method.training_loss(network, images, images > 0, generator).backward()
    return counter.get_total_flops()


def seconds_per_epoch(
    method: Method,
    cases: list[Case],
    sizes: Sizes,
    settings: dict[str, object],
    *,
    validate: bool = False,
) -> float:
    """From a short and a long training; with ``validate``, after every epoch, as the paper."""
    training = make_training_set(cases, sizes.subjects)

    def run(epochs: int) -> float:
        every = 1 if validate else epochs
        options = {"epochs": epochs, "batch_size": sizes.batch, "validate_every": every}
        loop = Train(**options, **ON_DEVICE, **settings)
        with tempfile.TemporaryDirectory() as folder:
            synchronise(DEVICE)
            begin = time.perf_counter()
            train(
                method, (training, held_out(training, 44)), folder, loop,
                keep="best", fixed_validation=False, seed=SEED, identity={},
            )  # fmt: skip
            synchronise(DEVICE)
            return time.perf_counter() - begin

    run(1)  # kernels are chosen and compiled
    return per_epoch([run(epochs) for epochs in sizes.short_and_long], sizes.short_and_long)


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


def reference_steps(method: Method, cases: list[Case], sizes: Sizes) -> list[list[float]]:
    """Seconds of data, noise and the rest of steps of the reference path."""
    network = reference.checkpointed(method.build().to(DEVICE)).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    schedule = reference.signal().to(DEVICE)
    times = []
    with contextlib.closing(reference.SharedVolumes(*arrays(cases, sizes.batch * 2))) as shared:
        endless = itertools.chain.from_iterable(
            reference.loader(shared, sizes.batch) for _ in itertools.count()
        )
        for number in range(sizes.steps + 2):
            clocks = [time.perf_counter()]
            images = next(endless)["image"].squeeze(-1).to(DEVICE)
            clocks.append(time.perf_counter())
            noise = reference.batch_noise(images.shape, number).to(DEVICE)
            clocks.append(time.perf_counter())
            reference.training_step(network, optimizer, images, noise, schedule)
            clocks.append(time.perf_counter())  # it has read the loss, so the GPU is done
            times.append([b - a for a, b in itertools.pairwise(clocks)])
    return times[2:]


def fusion_and_l1(sizes: Sizes) -> tuple[float, float]:
    """Seconds of the fusion-quality loss, forward and backward, and of l1 in its place."""
    width, height, _ = sizes.shape
    images, restored = (torch.rand(sizes.batch, 1, height, width, device=DEVICE) for _ in range(2))
    restored.requires_grad_()

    def run(method: Method) -> Callable[[], None]:
        def action() -> None:
            method.quality_loss(images, restored).backward()
            restored.grad = None
            synchronise(DEVICE)

        return action

    times = alternate(run(make_method(sizes)), run(make_method(sizes, "l1")), repetitions=30)
    return float(np.median(times[0])), float(np.median(times[1]))


def volumes(sizes: Sizes) -> Iterator[Entry]:
    """Reconstruct, score and evaluate as many volumes as BraTS has, one after the other."""
    method, cases = make_method(sizes), make_cases(sizes)
    network = method.build().eval().to(DEVICE)
    chosen = [cases[number % len(cases)] for number in range(sizes.restored)]
    clocks: list[float] = []

    def stamp() -> None:
        synchronise(DEVICE)
        clocks.append(time.perf_counter())

    def restore(case: Case) -> np.ndarray:
        return reconstruct_volume(
            method, network, case.volume, case.mask, t_test=500, batch=sizes.shape[2], seed=SEED,
            device=DEVICE, precision="bf16-mixed",
        ).astype(np.float16)  # fmt: skip

    def scored(case: Case, result: np.ndarray) -> np.ndarray:
        scores = score_volume("fusion", case.volume, result.astype(np.float32), **QUALITY)
        options = {"erosion": reference.EROSIONS, "median": reference.MEDIAN}
        return postprocess(scores, case.mask, **options)

    restore(cases[0])
    stamp()
    restored = [restore(case) for case in chosen]
    stamp()
    maps = [scored(case, result) for case, result in zip(chosen, restored, strict=True)]
    stamp()
    lesions = [case.lesion for case in chosen]
    threshold = search_threshold(maps[:100], lesions[:100]).threshold
    for case, scores in zip(chosen, maps, strict=True):
        evaluate_volume(scores, case.lesion, case.mask, threshold, reference.COMPONENT)
    stamp()
    text = f"reconstruction and scoring of {sizes.restored} volumes: at most 5 minutes"
    yield limit(text, (clocks[-1] - clocks[0]) / 60, at_most=5)
    stages = ("reconstruction", "anomaly maps", "threshold and metrics")
    for stage, (a, b) in zip(stages, itertools.pairwise(clocks), strict=True):
        yield value(f"{stage} of {sizes.restored} volumes", b - a, "s")


FIGURES: dict[str, Callable[[Sizes], Iterator[Entry]]] = {
    "training_step": training_step,
    "precisions": precisions,
    "volumes": volumes,
}
