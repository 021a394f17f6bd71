"""What is measured on: phantom volumes, training sets, methods and their sizes."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from uad import phantom
from uad.core.nifti import read_volume
from uad.methods import load
from uad.methods.base import Method, Setup
from uad.train.batches import TrainingSet

SEED = 3141
#: Options of the quality maps, as config.yaml has them for the reference protocol.
QUALITY = {"alpha": 0.84, "window": "gaussian", "clamp": True}


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        shape: voxels of a volume (x, y, z).
        spacing: of the phantom, in mm.
        batch: slices per step.
        network: options of the diffusion U-Net.
        epochs: of the measured training.
        steps: training steps per epoch.
        checkpoint_seconds: least time between two checkpoints of it; 0: one after every epoch,
            more often than any config asks for.
        volumes: test volumes that are scored.
        subjects: volumes in the reference's manager process.
        repetitions: of each pair of measurements.
    """

    shape: tuple[int, int, int] = (96, 96, 50)
    spacing: float = 2.0
    batch: int = 32
    network: dict[str, Any] | None = None
    epochs: int = 3
    steps: int = 12
    checkpoint_seconds: float = 0
    volumes: int = 6
    subjects: int = 64
    repetitions: int = 5


#: A network that takes one or two seconds per step of 32 slices of 96x96 on a CPU core.
NARROW = {
    "channels": [16, 32, 32],
    "num_res_blocks": 2,
    "num_head_channels": 32,
    "norm_num_groups": 8,
    "scale_shift": True,
}
PAPER_CPU = Sizes(network=NARROW)
PAPER_GPU = Sizes(volumes=16, subjects=385)
#: config.demo.yaml
DEMO = Sizes(
    shape=(48, 48, 25),
    spacing=3.0,
    batch=16,
    network={
        "channels": [16, 32, 32],
        "num_res_blocks": 1,
        "num_head_channels": 16,
        "norm_num_groups": 8,
        "scale_shift": True,
    },
    epochs=11,
    steps=3,
    checkpoint_seconds=60,
)
TINY = Sizes(
    shape=(24, 24, 12),
    spacing=6.0,
    batch=4,
    network={
        "channels": [8, 16],
        "num_res_blocks": 1,
        "num_head_channels": 8,
        "norm_num_groups": 4,
        "scale_shift": True,
    },
    epochs=2,
    steps=2,
    volumes=2,
    subjects=8,
    repetitions=2,
)


def make_method(sizes: Sizes, loss: str = "fusion", family: type[Method] | None = None) -> Method:
    """pDDPM with the network of these sizes (None: the paper's) and one field per batch."""
    options: dict[str, Any] = {"patch_grid": [2, 2]}
    options["network"] = sizes.network or {"scale_shift": True}
    width, height, _ = sizes.shape
    setup = Setup(loss, QUALITY, "per_batch", (height, width))
    return (family or load("diffusion"))(options, setup)


@dataclass(frozen=True)
class Case:
    """A test volume and what a model has made of it, all ``(x, y, z)``."""

    volume: np.ndarray
    mask: np.ndarray
    lesion: np.ndarray
    reconstruction: np.ndarray


def make_cases(sizes: Sizes, count: int | None = None) -> list[Case]:
    """Phantom scans with tumours on the grid of the networks, scaled to [0, 1] in the brain."""
    cases = []
    names = phantom.subject_names("brats21", count or sizes.volumes, SEED)
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            image, labels = (
                _cropped(read_volume(path)[0], sizes.shape)
                for path in phantom.write_subject(
                    folder, "brats21", name, ["T2"], sizes.spacing, SEED
                )
            )
            mask, lesion = image > 0, labels > 0
            low, high = np.percentile(image[mask], (1, 99))
            volume = np.clip((image - low) / (high - low), 0, 1) * mask
            cases.append(
                Case(volume.astype(np.float32), mask, lesion, _restored(volume, mask, lesion))
            )
    return cases


def _cropped(volume: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """The middle of a volume, with zeros where it is smaller than ``shape``."""
    for axis, size in enumerate(shape):
        missing = max(0, size - volume.shape[axis])
        padding = [(0, 0)] * 3
        padding[axis] = (missing // 2, missing - missing // 2)
        volume = np.pad(volume, padding)
        start = (volume.shape[axis] - size) // 2
        volume = np.take(volume, range(start, start + size), axis=axis)
    return volume


def _restored(volume: np.ndarray, mask: np.ndarray, lesion: np.ndarray) -> np.ndarray:
    """A blurred scan without its lesion, rounded as stored reconstructions are."""
    healthy = np.where(lesion, np.median(volume[mask & ~lesion]), volume)
    rng = np.random.default_rng(SEED)
    blurred = ndimage.gaussian_filter(healthy, (1, 1, 0)) + rng.normal(0, 0.02, volume.shape)
    return (blurred * mask).astype(np.float16).astype(np.float32)


def make_training_set(cases: list[Case], count: int) -> TrainingSet:
    """``count`` volumes, the cases over and over; any slice may be drawn."""
    volumes, masks = arrays(cases, count)
    return TrainingSet.from_volumes(volumes, masks, [np.arange(volumes.shape[-1])] * count)


def arrays(cases: list[Case], count: int) -> tuple[np.ndarray, np.ndarray]:
    """``count`` images and masks ``(N, x, y, z)``, the cases over and over."""
    chosen = [cases[number % len(cases)] for number in range(count)]
    return np.stack([case.volume for case in chosen]), np.stack([case.mask for case in chosen])
