"""Where and how precisely a network runs: device, precision, order of memory, slices."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator

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
    and a third of a reconstruction, at the demo's sizes.
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


def one_graph(function: Callable[..., Tensor], mode: str) -> Callable[..., Tensor]:
    """A network or function compiled for each shape it meets; a break of its graph is an error."""
    # Inductor keeps channels last in a training only if told to: otherwise it gives up where
    # a convolution narrows to half or less (torch/_inductor/graph.py, decide_layout_opt)
    os.environ.setdefault("TORCHINDUCTOR_FORCE_LAYOUT_OPT", "1")
    return torch.compile(function, mode=mode, dynamic=False, fullgraph=True)


class Compiled:
    """A network that is called as one graph of one shape; all else is the network's own.

    Batches smaller than ``batch_size``, or than a batch before, are padded with their last row and
    cut again, so that a last batch does not make Inductor compile for any size.
    """

    def __init__(self, network: nn.Module, mode: str, batch_size: int = 0) -> None:
        self._network, self._batch_size = network, batch_size
        self._call = one_graph(network, mode)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The network's output for ``inputs``, which share their first axis."""
        rows = len(inputs[0])
        self._batch_size = max(self._batch_size, rows)
        missing = self._batch_size - rows
        if missing > 0:
            inputs = tuple(torch.cat((x, x[-1:].expand(missing, *x.shape[1:]))) for x in inputs)
        return self._call(*inputs)[:rows]

    def __getattr__(self, name: str) -> object:
        return getattr(self._network, name)


def autocast(precision: str, device: str) -> contextlib.AbstractContextManager:
    """A region with the precision of a training (``train.precision``); a CPU has no float16.

    Casts of the weights are not kept: they go stale when an optimiser steps within the region.
    """
    if precision in ("32-true", "tf32"):
        return contextlib.nullcontext()
    kind = torch.device(device).type
    half = torch.float16 if precision == "16-mixed" and kind == "cuda" else torch.bfloat16
    return torch.autocast(kind, half, cache_enabled=False)


@contextlib.contextmanager
def numerics(precision: str, deterministic: bool = True) -> Iterator[None]:
    """How a GPU computes in float32, and whether always in the same order.

    Convolutions use TF32 unless the precision is ``32-true``, as PyTorch 1.13 did by default;
    products of matrices are float32. With ``deterministic`` an operation that has no such
    algorithm warns and goes on; without it cuDNN tries algorithms and keeps the fastest.
    """
    mode, filled = torch.get_deterministic_debug_mode(), torch.utils.deterministic
    before = filled.fill_uninitialized_memory, torch.backends.cudnn.benchmark
    tf32 = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as cuBLAS asks for
    torch.backends.cudnn.allow_tf32 = precision != "32-true"
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = not deterministic
    filled.fill_uninitialized_memory = deterministic
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        filled.fill_uninitialized_memory, torch.backends.cudnn.benchmark = before
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = tf32
