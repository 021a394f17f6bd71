"""What a method costs: parameters, operations, seconds per step and per volume, peak memory."""

from __future__ import annotations

import contextlib
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from uad.inference import reconstruct_volume
from uad.methods.base import Method

#: Steps that are timed, after those that warm up caches and the allocator.
STEPS, WARM_UP = 5, 2


def measure(
    method: Method,
    shape: tuple[int, int, int],
    *,
    batch_size: int,
    precision: str,
    device: str,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure one method on this machine, on random images of the run's size.

    Times are medians over :data:`STEPS` training steps (forward, backward, optimiser; the
    data are on the device) and one reconstruction of a volume. The step is timed once with
    the method's own loss and once with l1, which tells what the structural term costs.

    Args:
        method: the method, with the options and the loss of the run.
        shape: of a volume ``(X, Y, Z)``.
        batch_size: samples per training step.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``.
        device: ``cpu`` or ``cuda``.
        seed: of weights, images and noise.

    Returns:
        ``parameters``; ``gflops_per_slice_inference`` and ``gflops_per_slice_training``
        (multiplications and additions counted apart, as by PyTorch's counter);
        ``seconds_per_step``, ``seconds_per_step_l1``, ``seconds_per_volume``;
        ``peak_memory_mb`` (on a GPU what PyTorch allocated, else the resident memory of the
        process, which includes the libraries); None where a method has no such thing.
    """
    torch.manual_seed(seed)
    width, height, depth = shape
    network = method.build().to(device) if method.trained else None
    generator = torch.Generator(device=device).manual_seed(seed)
    size = (batch_size * method.sequence, 1, height, width)
    images = torch.rand(size, generator=generator, device=device)
    masks = torch.ones(size, dtype=torch.bool, device=device)
    record: dict[str, Any] = dict.fromkeys(
        (
            "parameters",
            "gflops_per_slice_inference",
            "gflops_per_slice_training",
            "seconds_per_step",
            "seconds_per_step_l1",
        )
    )
    if network is not None:
        record["parameters"] = sum(p.numel() for p in network.parameters())
        with _flops() as operations:
            _step(method, network, images, masks, generator, precision, device)()
        record["gflops_per_slice_training"] = operations() / 1e9 / len(images)
        for key, loss in (("seconds_per_step", method.setup.loss), ("seconds_per_step_l1", "l1")):
            variant = type(method)(method.options.model_dump(), replace(method.setup, loss=loss))
            record[key] = _median_seconds(
                _step(variant, network, images, masks, generator, precision, device), device
            )
        network.eval()
    volume = np.random.default_rng(seed).random(shape, dtype=np.float32)

    def restore() -> None:
        with _autocast(precision, device):
            reconstruct_volume(
                method,
                network,
                volume,
                np.ones(shape, bool),
                t_test=500,
                batch=depth,
                seed=seed,
                device=device,
            )

    if network is not None:
        with _flops() as operations:
            restore()
        record["gflops_per_slice_inference"] = operations() / 1e9 / depth
    record["seconds_per_volume"] = _median_seconds(restore, device, steps=3)
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return record | {
        "peak_memory_mb": round(peak),
        "batch_size": batch_size,
        "image_size": [height, width],
        "slices_per_volume": depth,
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "threads": torch.get_num_threads(),
        "precision": precision,
    }


def _step(
    method: Method,
    network: nn.Module,
    images: Tensor,
    masks: Tensor,
    generator: torch.Generator,
    precision: str,
    device: str,
) -> Callable[[], None]:
    """One training step, as the training loop takes it."""
    optimizers = method.optimizers(network, 1e-4)
    network.train()

    def automatic() -> None:
        with _autocast(precision, device):
            loss = method.training_loss(network, images, masks, generator)
        optimizers[0].zero_grad()
        loss.backward()
        optimizers[0].step()

    def manual() -> None:
        with _autocast(precision, device):
            method.training_step(
                network, images, masks, generator, optimizers, torch.Tensor.backward, 0, 0.0
            )

    return automatic if method.automatic else manual


def _autocast(precision: str, device: str) -> contextlib.AbstractContextManager:
    if precision == "32-true":
        return contextlib.nullcontext()
    dtype = torch.bfloat16 if precision.startswith("bf16") else torch.float16
    return torch.autocast(device, dtype)


@contextlib.contextmanager
def _flops() -> Iterator[Callable[[], int]]:
    counter = FlopCounterMode(display=False)
    with counter:
        yield counter.get_total_flops


def _median_seconds(action: Callable[[], None], device: str, steps: int = STEPS) -> float:
    times = []
    for number in range(WARM_UP + steps):
        started = time.perf_counter()
        action()
        if device == "cuda":
            torch.cuda.synchronize()
        if number >= WARM_UP:
            times.append(time.perf_counter() - started)
    return statistics.median(times)
