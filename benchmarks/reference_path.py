"""The reference path of training and evaluation, written for the benchmark.

What it does is what FinnBehrendt/patched-Diffusion-Models-UAD@da14cd0 and
zx-pan/MedAnomalyDetection-IQA@bff55b5 do; no line is theirs (they carry no licence):

- volumes in the dictionary of a manager process, which gives a whole subject for every slice;
- noise on the CPU for every batch, point by point, one field for all of its images;
- float32, gradient checkpointing in every residual block, plain Adam, the loss read every step;
- SSIM by five convolutions with the full 5x5 window (torchgeometry 0.1.2);
- slices scored one by one, SciPy's median filter, Dice over all voxels at every threshold, a loop
  over the components, scikit-learn's average precision.

Their noise is compiled by numba. The PyPI package `opensimplex` is the same generator, compiled
only where numba is installed, too; it is not among the pinned packages.
"""

from __future__ import annotations

import functools
import math
import multiprocessing
from collections.abc import Iterable, Sequence

import numpy as np
import opensimplex
import torch
from scipy import ndimage
from skimage import measure
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

OCTAVES, PERSISTENCE, FREQUENCY = 6, 0.8, 64
ALPHA = 0.84
GRID = 2  # patches down and across
EROSIONS, MEDIAN, COMPONENT = 3, 5, 7


class SharedVolumes(Dataset):
    """Volumes in the dictionary of a manager process, one random slice per request.

    Torch hands the memory of its tensors to the other process: voxels are not copied.
    """

    def __init__(self, images: np.ndarray, masks: np.ndarray) -> None:
        self._manager = multiprocessing.Manager()
        self._subjects = self._manager.dict()
        for number, pair in enumerate(zip(images, masks, strict=True)):
            image, mask = (torch.tensor(volume[None].astype(np.float32)) for volume in pair)
            self._subjects[str(number)] = {"image": image, "mask": mask, "id": str(number)}
        self._length = len(images)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if str(index) not in self._subjects:
            raise IndexError(index)
        subject = self._subjects[str(index)]
        number = torch.randint(0, subject["image"].shape[-1], (1,))
        return {key: subject[key][..., number] for key in ("image", "mask")} | {"slice": number}

    def close(self) -> None:
        self._manager.shutdown()


def loader(volumes: SharedVolumes, batch_size: int) -> DataLoader:
    """Batches of slices ``(B, 1, X, Y, 1)``, one of each volume and epoch, in a new order."""
    return DataLoader(volumes, batch_size=batch_size, shuffle=True, drop_last=True)


def simplex_field(source: opensimplex.OpenSimplex, height: int, width: int) -> np.ndarray:
    """Six octaves of 2D noise, every point of every octave evaluated anew."""
    field = np.zeros((height, width))
    amplitude, scale = 1.0, float(FREQUENCY)
    for _ in range(OCTAVES):
        field += amplitude * source.noise2array(np.arange(width) / scale, np.arange(height) / scale)
        amplitude, scale = amplitude * PERSISTENCE, scale / 2
    return field


def batch_noise(shape: Sequence[int], seed: int) -> Tensor:
    """One field in half precision for all images of a batch ``(B, 1, H, W)``."""
    field = simplex_field(opensimplex.OpenSimplex(seed), *shape[-2:])
    return torch.from_numpy(field).half().repeat(shape[0], 1, 1, 1)


def checkpointed(network: nn.Module) -> nn.Module:
    """Let the residual and attention blocks of a U-Net compute their inside twice, as theirs do."""
    for module in list(network.modules()):
        if type(module).__name__.endswith(("ResnetBlock", "AttentionBlock")):
            module.forward = functools.partial(checkpoint, module.forward, use_reentrant=False)
    return network


def ssim_loss_map(x: Tensor, y: Tensor) -> Tensor:
    """``clamp(1 - SSIM, 0, 1) / 2`` of images ``(B, 1, H, W)`` in [0, 1]; zeros around them."""
    offsets = torch.arange(5, dtype=x.dtype, device=x.device) - 2
    taps = torch.exp(-(offsets**2) / (2 * 1.5**2))
    taps = taps / taps.sum()
    window = (taps[:, None] * taps)[None, None]

    def blurred(z: Tensor) -> Tensor:
        return F.conv2d(z, window, padding=2)

    mean_x, mean_y = blurred(x), blurred(y)
    variance_x = blurred(x * x) - mean_x**2
    variance_y = blurred(y * y) - mean_y**2
    covariance = blurred(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similarity = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    )
    return torch.clamp(1 - similarity, 0, 1) / 2


def fusion_map(x: Tensor, y: Tensor) -> Tensor:
    """Fusion quality per pixel."""
    return ALPHA * ssim_loss_map(x, y) + (1 - ALPHA) * (x - y).abs()


def signal(timesteps: int = 1000) -> Tensor:
    """Cumulative signal fraction of the cosine schedule, ``(timesteps,)``."""
    steps = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
    level = torch.cos((steps + 0.008) / 1.008 * math.pi / 2) ** 2
    return torch.cumprod(1 - (1 - level[1:] / level[:-1]).clamp(max=0.999), 0).float()


def boxes(height: int, width: int) -> list[tuple[slice, slice]]:
    """The patches of the grid, rows first."""
    down, across = height // GRID, width // GRID
    return [
        (slice(i * down, (i + 1) * down), slice(j * across, (j + 1) * across))
        for i in range(GRID)
        for j in range(GRID)
    ]


def restore(
    network: nn.Module,
    images: Tensor,
    levels: Tensor,
    noise: Tensor,
    chosen: Sequence[tuple[slice, slice]],
    schedule: Tensor,
) -> Tensor:
    """Noise the chosen patch of every image in [-1, 1], predict the image, keep the rest."""
    share = schedule[levels].view(-1, 1, 1, 1)
    noised = share.sqrt() * images + (1 - share).sqrt() * noise
    shown = images.clone()
    for number, (rows, columns) in enumerate(chosen):
        shown[number, :, rows, columns] = noised[number, :, rows, columns]
    prediction = network(shown, levels)
    result = images.clone()
    for number, (rows, columns) in enumerate(chosen):
        result[number, :, rows, columns] = prediction[number, :, rows, columns]
    return result


def training_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    noise: Tensor,
    schedule: Tensor,
) -> float:
    """One step on images ``(B, 1, H, W)`` in [0, 1]; all tensors on the network's device."""
    images = images * 2 - 1
    levels = torch.randint(0, len(schedule), (len(images),)).to(images.device)
    patches = boxes(*images.shape[-2:])
    chosen = [patches[int(torch.randint(0, len(patches), (1,)))] for _ in images]
    restored = restore(network, images, levels, noise, chosen, schedule)
    loss = fusion_map(images, restored).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


@torch.no_grad()
def reconstruct(
    network: nn.Module, images: Tensor, noise: Tensor, t_test: int, schedule: Tensor
) -> Tensor:
    """All slices ``(D, 1, H, W)`` in [0, 1] at once, as the authors; a pass per patch."""
    images = images * 2 - 1
    levels = torch.full((len(images),), t_test - 1, device=images.device)
    result = torch.zeros_like(images)
    for rows, columns in boxes(*images.shape[-2:]):
        chosen = [(rows, columns)] * len(images)
        restored = restore(network, images, levels, noise, chosen, schedule)
        for number in range(len(images)):
            result[number, :, rows, columns] = restored[number, :, rows, columns]
    return (result + 1) / 2


def score_volume(volume: np.ndarray, reconstruction: np.ndarray) -> np.ndarray:
    """Fusion quality of two volumes ``(x, y, z)``, one axial slice after the other."""
    scores = np.zeros(volume.shape, dtype=np.float32)
    for number in range(volume.shape[2]):
        x, y = (
            torch.from_numpy(np.ascontiguousarray(array[:, :, number]))
            for array in (volume, reconstruction)
        )
        scores[:, :, number] = fusion_map(x[None, None], y[None, None])[0, 0].numpy()
    return scores


def postprocess(scores: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Erode the brain slice by slice, drop what is outside, take the median of 5x5x5 voxels."""
    cross = ndimage.generate_binary_structure(2, 1)
    inside = np.zeros(mask.shape, dtype=bool)
    for number in range(mask.shape[2]):
        inside[:, :, number] = ndimage.binary_erosion(
            mask[:, :, number], structure=cross, iterations=EROSIONS
        )
    return ndimage.median_filter(scores * inside, size=(MEDIAN,) * 3)


def dice(prediction: np.ndarray, lesion: np.ndarray) -> float:
    """Dice of two bool arrays; NaN if both are empty."""
    total = int(prediction.sum()) + int(lesion.sum())
    return 2 * int((prediction * lesion).sum()) / total if total else math.nan


def search_threshold(
    maps: Iterable[np.ndarray], lesions: Iterable[np.ndarray], steps: int = 10
) -> float:
    """The best of the thresholds at the quarters of an interval that is halved each time, by the
    Dice of all voxels.
    """
    scores = np.concatenate([part.ravel() for part in maps])
    truth = np.concatenate([part.ravel() for part in lesions])
    bottom, top = 0.0, float(scores.max())
    best, found = 0.0, 0.0
    for _ in range(steps):
        width = top - bottom
        low, high = bottom + 0.25 * width, bottom + 0.75 * width
        at_low, at_high = dice(scores > low, truth), dice(scores > high, truth)
        if at_low >= at_high:
            candidate, value, top = low, at_low, bottom + 0.5 * width
        else:
            candidate, value, bottom = high, at_high, bottom + 0.5 * width
        if value >= found:
            best, found = candidate, value
    return best


def drop_small_components(prediction: np.ndarray) -> np.ndarray:
    """Without the components of at most 7 voxels, holes included, one after the other."""
    kept = prediction.copy()
    for region in measure.regionprops(measure.label(prediction, connectivity=prediction.ndim)):
        if region.area_filled <= COMPONENT:
            kept[tuple(region.coords.T)] = False
    return kept


def average_precision(scores: np.ndarray, lesion: np.ndarray) -> float:
    """Area under the precision-recall curve over all voxels."""
    return float(average_precision_score(lesion.ravel(), scores.ravel()))
