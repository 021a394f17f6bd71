"""What a method costs: parameters, operations, seconds per step and per volume, peak memory."""

from __future__ import annotations

import contextlib
import platform
import re
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from uad.evaluate.reconstruct import Reconstructor
from uad.iqa import QUALITY_MAPS
from uad.methods.base import Method
from uad.networks.execution import autocast, numerics, ready, reuse_freed_memory

#: Timed runs of a step or a volume, and the seconds after which no further one starts: a step of
#: the paper's networks takes many seconds on a CPU. One is always timed.
RUNS, SECONDS = 5, 60.0
#: Losses whose share of a training step is worth knowing: all that look at more than a pixel.
STRUCTURAL = frozenset(QUALITY_MAPS) - {"l1", "l2"}

#: What is measured of the network and its training, None where a method has no such thing:
#: multiplications and additions (counted apart, of convolutions, matrix products and attention,
#: all that PyTorch's counter knows) forward and backward; ``_l1``: with l1 in place of a loss of
#: :data:`STRUCTURAL`, for methods that take any; ``_late``: at the end of a training that may have
#: stages, the values without it are those of its start.
TRAINING = (
    "parameters",
    "gflops_per_slice_inference",
    "gflops_per_slice_training",
    "gflops_per_slice_training_late",
    "seconds_per_step",
    "seconds_per_step_late",
    "seconds_per_step_l1",
    "slices_per_step",
)


def measure(
    method: Method,
    shape: tuple[int, int, int],
    *,
    batch_size: int,
    inference_batch: int,
    t_test: int,
    precision: str,
    device: str,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure one method on this machine, on random volumes ``(X, Y, Z)`` of the run's size.

    Times are medians over up to :data:`RUNS` training steps (forward, backward, optimiser; the
    data are on the device) and restored volumes. A first run of each warms up and is counted.
    A noise level is at most the time steps that the method has; the scaling of the loss of
    ``16-mixed`` is left out.

    Returns:
        :data:`TRAINING` (None where it does not apply), ``seconds_per_volume``,
        ``peak_memory_mb`` (MiB; on a GPU what PyTorch allocated for all this, else the peak
        resident memory of the process so far), ``machine`` and the other conditions.
    """
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    torch.manual_seed(seed)
    reuse_freed_memory()
    network = method.build().to(device) if method.trained else None
    record: dict[str, Any] = dict.fromkeys(TRAINING)
    if network is not None:
        record |= _measure_training(method, network, shape[1::-1], batch_size, precision, seed)
        network.zero_grad(set_to_none=True)
        ready(network, device)
    volume = np.random.default_rng(seed).random(shape, dtype=np.float32)
    inside = np.ones(shape, bool)
    t_test = min(t_test, getattr(method.options, "timesteps", t_test))
    reconstructor = Reconstructor(method, network, t_test, inference_batch, device, precision)
    operations, record["seconds_per_volume"] = _observe(
        lambda: reconstructor.volume(volume, inside, seed), device
    )
    if network is not None:
        record["gflops_per_slice_inference"] = operations / 1e9 / shape[2]
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return record | {
        "peak_memory_mb": round(peak),
        "batch_size": batch_size,
        "inference_batch": inference_batch,
        "t_test": t_test,
        "image_size": [shape[1], shape[0]],
        "slices_per_volume": shape[2],
        "machine": machine_name(device),
        "device": "GPU" if device == "cuda" else "CPU",
        "threads": torch.get_num_threads(),
        "precision": precision,
        "seed": seed,
    }


def _measure_training(
    method: Method,
    network: nn.Module,
    size: tuple[int, int],
    batch_size: int,
    precision: str,
    seed: int,
) -> dict[str, Any]:
    """What :data:`TRAINING` lists, for images ``(Y, X)`` of a size."""
    device = next(network.parameters()).device.type
    slices = batch_size * method.sequence
    generator = torch.Generator(device=device).manual_seed(seed)
    images = torch.rand((slices, 1, *size), generator=generator, device=device)
    batch = images, torch.ones_like(images, dtype=torch.bool), generator
    parameters = sum(p.numel() for p in network.parameters())
    record: dict[str, Any] = {"parameters": parameters, "slices_per_step": slices}

    def step(method: Method, progress: float) -> tuple[int, float]:
        """One training step, as the training loop takes it."""
        optimizers = method.optimizers(network, 1e-4)
        network.train()

        def update(loss: Tensor, number: int) -> None:
            optimizers[number].zero_grad()
            with torch.autocast(device, enabled=False):
                loss.backward()
            optimizers[number].step()

        def take() -> None:
            with autocast(precision, device):
                method.training_step(network, *batch, update, progress)

        return _observe(take, device)

    with numerics(precision):
        for suffix, progress in {"": 0.0, "_late": 1 - 1e-6}.items():
            if suffix and method.automatic:
                continue  # no stages
            operations, seconds = step(method, progress)
            record[f"gflops_per_slice_training{suffix}"] = operations / 1e9 / slices
            record[f"seconds_per_step{suffix}"] = seconds
        if method.losses is None and method.setup.loss in STRUCTURAL:
            plain = replace(method.setup, loss="l1")
            variant = type(method)(method.options.model_dump(), plain)
            record["seconds_per_step_l1"] = step(variant, 0.0)[1]
    return record


def _observe(action: Callable[[], None], device: str) -> tuple[int, float]:
    """Operations of one run, and the median seconds of those after it.

    Where one run takes all of :data:`SECONDS`, it is the one that is timed, too: what the first
    has to set up does not matter to so slow a run.
    """

    def run() -> None:
        action()
        if device == "cuda":
            torch.cuda.synchronize()

    started = time.perf_counter()
    operations = _count(run)
    first = time.perf_counter() - started
    times = [first] if first >= SECONDS else []
    while not times or (len(times) < RUNS and time.perf_counter() - started < SECONDS):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return operations, statistics.median(times)


class _NoModules(contextlib.nullcontext):
    """In place of the counter's module tracker, whose hooks fail in a gradient penalty."""

    parents = frozenset({"Global"})


def _count(action: Callable[[], None]) -> int:
    """Multiplications and additions of one run."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the counter does not see into fused layers
    try:
        with counter:
            action()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return counter.get_total_flops()


def machine_name(device: str) -> str:
    """The model of the CPU, after that of the GPU if it is used."""
    facts = Path("/proc/cpuinfo")
    text = facts.read_text(encoding="utf-8") if facts.exists() else ""
    cpu = re.search(r"^model name\s*: (.+)$", text, re.M)
    name = cpu[1].strip() if cpu else platform.processor() or platform.machine()
    return f"{torch.cuda.get_device_name()} with {name}" if device == "cuda" else name
