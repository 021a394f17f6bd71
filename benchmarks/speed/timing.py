"""Clocks, spreads, and what the numbers were measured on."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

PACKAGES = (
    "torch",
    "monai",
    "numpy",
    "scipy",
    "scikit-image",
    "scikit-learn",
    "opensimplex",
    "numba",
)


def spread(values: Sequence[float]) -> dict[str, float | int]:
    """Median, quartiles and number of repeated measurements."""
    low, median, high = (float(value) for value in np.quantile(values, (0.25, 0.5, 0.75)))
    return {"median": median, "low": low, "high": high, "runs": len(values)}


def ratio(reference: Sequence[float], ours: Sequence[float]) -> dict[str, float | int]:
    """How many times as long the reference takes: spread over the repetitions, pair by pair."""
    pairs = [a / b for a, b in zip(reference, ours, strict=True)]
    return spread(pairs) | {"median": float(np.median(reference) / np.median(ours))}


def alternate(
    reference: Callable[[], Any],
    ours: Callable[[], Any],
    repetitions: int,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[list[float], list[float]]:
    """Seconds of both, in turns, the first of a pair being once one and once the other.

    Each runs once before, which does not count.
    """
    times: tuple[list[float], list[float]] = ([], [])
    actions = (reference, ours)
    for action in actions:
        action()
    for repetition in range(repetitions):
        for side in (0, 1) if repetition % 2 == 0 else (1, 0):
            begin = clock()
            actions[side]()
            times[side].append(clock() - begin)
    return times


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread, so that a second is a second of one core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def synchronise(device: str) -> None:
    """Wait for the GPU, if that is the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def conditions(device: str) -> dict[str, Any]:
    """Date, commit, machine and versions."""
    from uad.core.provenance import git_state

    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        versions[name] = None
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    state = git_state()
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": state["commit"],
        "changed_since": state["diff_sha256"] is not None,
        "machine": machine(device),
        "versions": versions,
    }


def machine(device: str) -> dict[str, Any]:
    """CPU, cores that this process may use, memory, GPU, and how busy it is already."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(pages / 2**30),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "load_before": round(os.getloadavg()[0], 2),
    }


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
