"""Where and how precisely a network runs: device, precision, order of memory, slices."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from uad.core.errors import DataError


def to_slices(volume: np.ndarray) -> Tensor:
    """NIfTI order ``(..., X, Y, Z)`` to slices first ``(..., Z, Y, X)``."""
    return torch.from_numpy(np.ascontiguousarray(np.swapaxes(volume, -1, -3)))


def from_slices(slices: Tensor) -> np.ndarray:
    """Slices first ``(..., Z, Y, X)`` to NIfTI order ``(..., X, Y, Z)``."""
    return np.ascontiguousarray(np.swapaxes(slices.cpu().numpy(), -1, -3))


def device_of(accelerator: str) -> str:
    """The torch device of an accelerator setting of the config.

    Raises:
        DataError: a GPU is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if accelerator == "gpu" and not available:
        raise DataError(
            "train.accelerator is 'gpu', but torch sees no CUDA device on this machine; "
            "use 'auto' or 'cpu', or run where there is one."
        )
    return "cuda" if available and accelerator != "cpu" else "cpu"


def reuse_freed_memory() -> None:
    """Keep freed memory in the process, for the tensors of the next step.

    glibc hands large pieces back to the kernel as they are freed: 6 % of a training step on a CPU
    and a third of a reconstruction, at the demo's sizes. Other C libraries are left as they are.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of <malloc.h>
        if not library.mallopt(-3, 1 << 30):  # before glibc 2.35 not above 32 MiB
            library.mallopt(-3, 32 << 20)
        library.mallopt(-1, (1 << 31) - 1)


def ready(network: nn.Module, device: str) -> nn.Module:
    """The same network in evaluation mode, where and as it restores fastest.

    On a CPU its weights lie channels last, which is a third faster; on a GPU PyTorch's group norm
    would turn every map back.
    """
    network.eval().to(device)
    return network.to(memory_format=torch.channels_last) if device == "cpu" else network


def autocast(precision: str, device: str) -> contextlib.AbstractContextManager:
    """A region with the precision of a training (``train.precision``); a CPU has no float16.

    Casts of the weights are not kept: they go stale when an optimiser steps within the region.
    """
    if precision == "32-true":
        return contextlib.nullcontext()
    kind = torch.device(device).type
    half = torch.float16 if precision == "16-mixed" and kind == "cuda" else torch.bfloat16
    return torch.autocast(kind, half, cache_enabled=False)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """PyTorch's deterministic algorithms; an operation without one warns and goes on."""
    before = torch.get_deterministic_debug_mode()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as cuBLAS asks for
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)
