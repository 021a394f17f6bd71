"""Figures of training: those of a GPU run on a CPU, too, at a tiny size."""

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
    ACCELERATORS,
    SEED,
    SIMPLEX,
    Case,
    Sizes,
    alternate,
    arrays,
    make_cases,
    make_method,
    make_training_set,
    one_thread,
    synchronise,
)
from speed_tables import Entry, limit, pair, value
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from uad.config import Train
from uad.methods.base import Method
from uad.train.loop import train

#: Steps of one fold of the paper: 1600 epochs of 12.
FOLD = 19_200


def without_passes(method: Method) -> Method:
    """The method with the same batch and noise, and passes that cost next to nothing.

    What a training of it takes is what the loop costs beside forward and backward.
    """

    def training_loss(network: nn.Module, images: Tensor, masks: Tensor, generator: Any) -> Tensor:
        method.noise(images, generator, "simplex", **SIMPLEX)
        return torch.stack([parameter.sum() for parameter in network.parameters()]).sum()

    method.training_loss = training_loss  # type: ignore[method-assign]
    return method


def seconds_per_epoch(
    method: Method, cases: list[Case], sizes: Sizes, *, validate: bool = False, **settings: Any
) -> float:
    """Of ``uad.train.loop.train`` as a job runs it, without what it does once.

    Two trainings of different length have everything in common but steps: their difference is
    steps; with ``validate``, and a validation after every epoch, as the paper.
    """
    training = make_training_set(cases, sizes.subjects)
    held_out = make_training_set(cases, min(44, sizes.subjects))

    def run(epochs: int) -> float:
        options = {"epochs": epochs, "validate_every": 1 if validate else epochs, **settings}
        loop = Train(batch_size=sizes.batch, accelerator=ACCELERATORS[sizes.device], **options)
        with tempfile.TemporaryDirectory() as folder:
            synchronise(sizes.device)
            begin = time.perf_counter()
            train(
                method, (training, held_out), folder, loop,
                keep="best", fixed_validation=False, seed=SEED, identity={},
            )  # fmt: skip
            synchronise(sizes.device)
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


def reference_steps(method: Method, cases: list[Case], sizes: Sizes) -> np.ndarray:
    """Seconds of data, noise and the rest ``(steps, 3)`` of steps of the reference path."""
    device = sizes.device
    network = reference.checkpointed(method.build().to(device)).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    schedule = reference.signal().to(device)
    times = []
    with contextlib.closing(reference.SharedVolumes(*arrays(cases, sizes.batch * 2))) as shared:
        endless = itertools.chain.from_iterable(
            reference.loader(shared, sizes.batch) for _ in itertools.count()
        )
        for number in range(sizes.repetitions + 2):
            clocks = [time.perf_counter()]
            images = next(endless)["image"].squeeze(-1).to(device)
            clocks.append(time.perf_counter())
            noise = reference.batch_noise(images.shape, number).float().to(device)
            clocks.append(time.perf_counter())
            reference.training_step(network, optimizer, images, noise, schedule)
            clocks.append(time.perf_counter())  # it has read the loss, so the GPU is done
            times.append([b - a for a, b in itertools.pairwise(clocks)])
    return np.array(times[2:])


def bare_step(method: Method, sizes: Sizes) -> tuple[float, int]:
    """Seconds and operations of forward, loss and backward on inputs that are there already."""
    width, height, _ = sizes.shape
    images = torch.rand(sizes.batch, 1, height, width, device=sizes.device)
    network = method.build().to(sizes.device).train()

    def step() -> None:
        generator = torch.Generator(sizes.device).manual_seed(SEED)
        method.training_loss(network, images, images > 0, generator).backward()
        network.zero_grad()
        synchronise(sizes.device)

    with FlopCounterMode(display=False) as counter:
        step()
    times = alternate(step, repetitions=sizes.repetitions)[0]
    return float(np.median(times)), counter.get_total_flops()


def on_a_cpu(sizes: Sizes) -> Iterator[Entry]:
    """A step of the real loop against the reference path, and what the loop costs in it.

    A checkpoint is written after every epoch; validation is left out: it is forward passes.
    """
    cases, method, idle = make_cases(sizes), make_method(sizes), without_passes(make_method(sizes))
    with one_thread():
        theirs = reference_steps(method, cases, sizes).sum(axis=1)
        bare, _ = bare_step(method, sizes)
        step, rest = (
            seconds_per_epoch(each, cases, sizes, checkpoint_every=1, checkpoint_seconds=0)
            / sizes.steps
            for each in (method, idle)
        )
    text = "training loop beyond forward and backward: at most 5 % of them"
    yield limit(text, rest / bare, at_most=0.05)
    yield pair(f"**training step, {sizes.batch} slices, narrow network**", theirs, [step])
    yield value("forward, loss and backward of a training step", bare, "s")
    yield value("the rest: batch, noise, optimiser, share of the end of an epoch", rest, "s")


def matmul_rate(sizes: Sizes, precision: str, products: int = 50) -> float:
    """10^12 operations per second of large matrix products: the most that a step can reach."""
    kind = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
    a, b = (
        torch.randn(sizes.matmul, sizes.matmul, device=sizes.device, dtype=kind) for _ in range(2)
    )

    def action() -> None:
        for _ in range(products):
            a @ b
        synchronise(sizes.device)

    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    seconds = float(np.median(alternate(action, repetitions=5)[0]))
    torch.backends.cuda.matmul.allow_tf32 = before
    return products * 2 * sizes.matmul**3 / seconds / 1e12


def on_a_gpu(sizes: Sizes) -> Iterator[Entry]:
    """The step against the matmul ceiling and against the reference path.

    The settings of the loop are tried one after the other, each beside the best of those before it:
    all of them together would not fit into ten minutes. Precision is not chosen but compared.
    """
    cases, method = make_cases(sizes), make_method(sizes)
    best: dict[str, Any] = {"precision": "bf16-mixed"}
    for name, choices in sizes.choices:
        found = {}
        for choice in choices:
            settings = best | {name: choice}
            found[choice] = seconds_per_epoch(method, cases, sizes, **settings) / sizes.steps
            words = ", ".join(f"{key} {setting}" for key, setting in settings.items())
            yield value(f"step with {words}", found[choice], "s")
        if name != "precision":
            best[name] = min(found, key=found.__getitem__)
    step = found["bf16-mixed"]
    operations = bare_step(method, sizes)[1] / 1e12
    for precision in ("bf16-mixed", "tf32"):
        ceiling, reached = matmul_rate(sizes, precision), operations / found[precision]
        yield value(f"{precision}: matmul ceiling", ceiling, "TFLOP/s")
        yield value(f"{precision}: reached by a step", reached, "TFLOP/s")
        if precision == "bf16-mixed":
            text = "training step: at least 50 % of the bf16 matmul ceiling"
            yield limit(text, reached / ceiling, 0.5)
    epoch = seconds_per_epoch(method, cases, sizes, validate=True, **best)
    minutes = epoch * FOLD / sizes.steps / 60
    yield limit("a fold of 19,200 steps: at most 12 minutes", minutes, at_most=12)
    yield value("steps of a fold", step * FOLD / 60, "min")
    fusion, l1 = fusion_and_l1(sizes)
    text = "fusion-quality loss: at most 5 % of the step"
    yield limit(text, (fusion - l1) / step, at_most=0.05)
    yield value("fusion-quality loss", fusion, "s")
    yield value("l1 loss", l1, "s")
    if sizes.device == "cuda":
        yield value("memory at most", torch.cuda.max_memory_allocated() / 2**30, "GiB")
    theirs = reference_steps(method, cases, sizes)
    label = f"training step of {sizes.batch} slices"
    whole = pair(f"**{label}**", theirs.sum(axis=1), [step])
    yield limit("training step: at least 5 times as fast", whole[1]["ratio"], 5)
    yield whole
    yield pair(f"{label}, the reference without data and noise", theirs[:, 2], [step])


def fusion_and_l1(sizes: Sizes) -> tuple[float, float]:
    """Seconds of the fusion-quality loss, forward and backward, and of l1 in its place."""
    width, height, _ = sizes.shape
    images, restored = torch.rand(2, sizes.batch, 1, height, width, device=sizes.device)
    restored.requires_grad_()

    def loss_of(method: Method) -> Callable[[], None]:
        def action() -> None:
            method.quality_loss(images, restored).backward()
            restored.grad = None
            synchronise(sizes.device)

        return action

    methods = make_method(sizes), make_method(sizes, "l1")
    fusion, l1 = alternate(*map(loss_of, methods), repetitions=30)
    return float(np.median(fusion)), float(np.median(l1))


def precisions(sizes: Sizes) -> Iterator[Entry]:
    """Losses after some hundred steps in each precision, from the same seed."""
    cases, method = make_cases(sizes), make_method(sizes)
    training = make_training_set(cases, sizes.subjects)
    held_out = make_training_set(cases, min(44, sizes.subjects))
    for precision in ("32-true", "tf32", "bf16-mixed"):
        options = {"epochs": sizes.epochs_of_curves, "batch_size": sizes.batch}
        loop = Train(**options, precision=precision, accelerator=ACCELERATORS[sizes.device])
        with tempfile.TemporaryDirectory() as folder:
            facts = train(
                method, (training, held_out), folder, loop,
                keep="last", fixed_validation=True, seed=SEED, identity={},
            )  # fmt: skip
        what = f"healthy validation loss after {facts['steps']} steps, {precision}"
        yield value(what, facts["val_loss_of_weights"], "")
