"""What is measured on: phantom volumes, training sets, a method, sizes; clocks and machine."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import itertools
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import ndimage

from uad import phantom
from uad.core.nifti import read_volume
from uad.core.provenance import git_state
from uad.methods import load
from uad.methods.base import Method, Setup
from uad.preprocess.intensity import crop_or_pad
from uad.train.batches import TrainingSet

SEED = 3141
#: Options of the quality maps, as config.yaml has them for the reference protocol.
QUALITY = {"alpha": 0.84, "window": "gaussian", "clamp": True}
#: Options of the noise, as pDDPM has them.
SIMPLEX = {"octaves": 6, "persistence": 0.8, "frequency": 64}
#: Device -> ``train.accelerator``.
ACCELERATORS = {"cpu": "cpu", "cuda": "gpu"}


@dataclass(frozen=True)
class Sizes:
    """How much is measured; defaults are those of a GPU."""

    device: str = "cuda"
    shape: tuple[int, int, int] = (96, 96, 50)
    spacing: float = 2.0  # of the phantom, in mm
    batch: int = 32
    network: dict[str, Any] = field(default_factory=lambda: {"scale_shift": True})
    short_and_long: tuple[int, int] = (5, 45)  # epochs of two trainings, whose difference is taken
    volumes: int = 16  # phantom scans
    subjects: int = 385  # training volumes
    repetitions: int = 5
    matmul: int = 8192  # side of the square matrices of the ceiling
    restored: int = 1151  # volumes
    slices_per_pass: tuple[int, ...] = (50, 200, 400)
    # of the training loop: each is tried in turn, beside the best of those before it
    choices: tuple[tuple[str, tuple[Any, ...]], ...] = (
        ("compile", ("off", "default", "max-autotune")),
        ("layout", ("contiguous", "channels_last")),
        ("deterministic", (True, False)),
        ("precision", ("bf16-mixed", "tf32", "32-true")),
    )
    epochs_of_curves: int = 42  # 500 steps

    @property
    def steps(self) -> int:
        """Training steps of an epoch."""
        return self.subjects // self.batch


def _network(*channels: int, **options: Any) -> dict[str, Any]:
    return {"channels": list(channels), "num_res_blocks": 1, "scale_shift": True, **options}


PAPER_GPU = Sizes()
#: With a network that takes one or two seconds per step of 32 slices of 96x96 on a CPU core.
PAPER_CPU = Sizes(
    device="cpu",
    network=_network(16, 32, 32, num_res_blocks=2, num_head_channels=32, norm_num_groups=8),
    short_and_long=(1, 3),
    volumes=6,
    subjects=192,
)
TINY = Sizes(
    device="cpu",
    shape=(24, 24, 12),
    spacing=6.0,
    batch=4,
    network=_network(8, 16, num_head_channels=8, norm_num_groups=4),
    short_and_long=(1, 3),
    volumes=2,
    subjects=8,
    repetitions=2,
    matmul=128,
    restored=3,
    slices_per_pass=(12, 24),
    choices=(("layout", ("contiguous", "channels_last")), ("precision", ("bf16-mixed", "tf32"))),
    epochs_of_curves=2,
)


def make_method(sizes: Sizes, loss: str = "fusion") -> Method:
    """pDDPM with the network of these sizes and one field of noise per batch."""
    options = {"patch_grid": [2, 2], "network": sizes.network}
    width, height, _ = sizes.shape
    return load("diffusion")(options, Setup(loss, QUALITY, "per_batch", (height, width)))


class Case(NamedTuple):
    """A test volume and what a model has made of it, all ``(x, y, z)``."""

    volume: np.ndarray
    mask: np.ndarray
    lesion: np.ndarray
    reconstruction: np.ndarray


def make_cases(sizes: Sizes) -> list[Case]:
    """Phantom scans with tumours on the grid of the networks, scaled to [0, 1] in the brain."""
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        for name in phantom.subject_names("brats21", sizes.volumes, SEED):
            written = phantom.write_subject(folder, "brats21", name, ["T2"], sizes.spacing, SEED)
            image, labels = (crop_or_pad(read_volume(path)[0], sizes.shape) for path in written)
            mask, lesion = image > 0, labels > 0
            low, high = np.percentile(image[mask], (1, 99))
            volume = (np.clip((image - low) / (high - low), 0, 1) * mask).astype(np.float32)
            cases.append(Case(volume, mask, lesion, _restored(volume, mask, lesion)))
    return cases


def _restored(volume: np.ndarray, mask: np.ndarray, lesion: np.ndarray) -> np.ndarray:
    """A blurred scan without its lesion, rounded as stored reconstructions are."""
    healthy = np.where(lesion, np.median(volume[mask & ~lesion]), volume)
    rng = np.random.default_rng(SEED)
    blurred = ndimage.gaussian_filter(healthy, (1, 1, 0)) + rng.normal(0, 0.02, volume.shape)
    return (blurred * mask).astype(np.float16).astype(np.float32)


def arrays(cases: list[Case], count: int) -> tuple[np.ndarray, np.ndarray]:
    """``count`` images and masks ``(N, x, y, z)``, the cases over and over."""
    chosen = list(itertools.islice(itertools.cycle(cases), count))
    return np.stack([case.volume for case in chosen]), np.stack([case.mask for case in chosen])


def make_training_set(cases: list[Case], count: int) -> TrainingSet:
    """``count`` volumes, the cases over and over; any slice may be drawn."""
    volumes, masks = arrays(cases, count)
    return TrainingSet.from_volumes(volumes, masks, [np.arange(volumes.shape[-1])] * count)


def alternate(
    *actions: Callable[[], Any], repetitions: int, clock: Callable[[], float] = time.perf_counter
) -> list[list[float]]:
    """Seconds of each action, in turns, each second time in reverse; a first run does not count."""
    times: list[list[float]] = [[] for _ in actions]
    for turn in range(repetitions + 1):
        order = list(range(len(actions)))
        for number in order if turn % 2 else order[::-1]:
            begin = clock()
            actions[number]()
            if turn:
                times[number].append(clock() - begin)
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
    """Date, commit, machine (and how busy it is already) and versions."""
    from uad.cost import machine_name

    names = ("torch", "monai", "numpy", "scipy", "scikit-image", "scikit-learn", "opensimplex")
    state, pages = git_state(), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": state["commit"],
        "changed_since": state["diff_sha256"] is not None,
        "machine": {
            "cpu": machine_name("cpu"),
            "cores": len(os.sched_getaffinity(0)),
            "memory_gib": round(pages / 2**30),
            "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
            "load_before": round(os.getloadavg()[0], 2),
        },
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in names},
    }
