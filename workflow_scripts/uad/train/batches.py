"""The slices that a training draws: volumes in memory, and batches of random slices of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from uad.core.errors import DataError
from uad.core.seeds import derive_seed
from uad.networks.execution import to_slices


@dataclass(frozen=True)
class TrainingSet:
    """Images ``(N, Z, Y, X)`` in [0, 1], their masks, and the slices of each to draw from."""

    images: Tensor
    masks: Tensor
    slices: list[np.ndarray]

    @classmethod
    def from_volumes(
        cls, volumes: np.ndarray, masks: np.ndarray, slices: Sequence[np.ndarray]
    ) -> TrainingSet:
        """From arrays in NIfTI order ``(N, X, Y, Z)``."""
        return cls(to_slices(volumes), to_slices(masks), list(slices))

    @property
    def nbytes(self) -> int:
        """Memory of images and masks."""
        return self.images.nbytes + self.masks.nbytes

    def to(self, device: torch.device | str) -> TrainingSet:
        """The same slices on a device."""
        return TrainingSet(self.images.to(device), self.masks.to(device), self.slices)


@dataclass
class SliceBatches:
    """Random slices in batches: ``per_volume`` samples of each volume, new ones each epoch.

    A sample is ``sequence`` neighbours among the slices that may be drawn (the last one repeated
    where a volume has fewer). The draw follows from ``seed`` and ``epoch`` alone (``fixed``: from
    ``seed``), so that a resumed run draws the same. The device of the data gets an epoch's numbers
    once.
    """

    data: TrainingSet
    batch_size: int
    per_volume: int
    seed: int
    drop_last: bool
    fixed: bool = False
    sequence: int = 1
    epoch: int = 0

    def __post_init__(self) -> None:
        if self.drop_last and len(self) == 0:
            raise DataError(
                f"{len(self.data.images)} training volumes with {self.per_volume} slice(s) each do "
                f"not fill one batch of {self.batch_size}: raise train.samples_per_volume or lower "
                "train.batch_size."
            )

    def __len__(self) -> int:
        total = len(self.data.images) * self.per_volume
        return total // self.batch_size if self.drop_last else -(-total // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and masks, ``(B, 1, Y, X)``."""
        epoch = 0 if self.fixed else self.epoch
        rng = np.random.default_rng(derive_seed(self.seed, "slices", epoch))
        volume = np.repeat(np.arange(len(self.data.images)), self.per_volume)
        number = np.concatenate([self._draw(slices, rng) for slices in self.data.slices])
        order = rng.permutation(len(volume)) if self.drop_last else np.arange(len(volume))
        order = order[: len(self) * self.batch_size]
        where = np.stack((np.repeat(volume[order], self.sequence), number[order].ravel()))
        where = torch.from_numpy(where).to(self.data.images.device)
        for part in where.split(self.batch_size * self.sequence, dim=1):
            index = tuple(part)
            yield self.data.images[index].unsqueeze(1), self.data.masks[index].unsqueeze(1)

    def _draw(self, slices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Slice numbers ``(per_volume, sequence)`` of one volume."""
        starts = np.arange(max(1, len(slices) - self.sequence + 1))
        chosen = rng.choice(starts, self.per_volume, replace=len(starts) < self.per_volume)
        return slices[np.minimum(chosen[:, None] + np.arange(self.sequence), len(slices) - 1)]
