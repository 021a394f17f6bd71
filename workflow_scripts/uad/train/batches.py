"""The slices that a training draws: volumes in memory, and batches of random slices of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from uad.core.errors import DataError
from uad.core.seeds import derive_seed
from uad.networks.execution import to_slices


@dataclass(frozen=True)
class TrainingSet:
    """Volumes in memory, ready to be sliced.

    Attributes:
        images: ``(N, Z, Y, X)`` float32 in [0, 1].
        masks: bool, same shape and device.
        slices: for each volume the axial slices that may be drawn.
    """

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
        return replace(self, images=self.images.to(device), masks=self.masks.to(device))


class SliceBatches:
    """Random slices in batches: the same number from each volume, new ones each epoch.

    With ``sequence`` above 1 a sample is that many neighbours among the slices that may be
    drawn (the last one repeated where a volume has fewer).

    The draw follows from ``seed`` and the attribute ``epoch`` alone, so that a resumed run draws
    what an uninterrupted one would have drawn. A batch is an index operation on the device of
    the data, which gets the numbers of an epoch's slices once.
    """

    def __init__(
        self,
        data: TrainingSet,
        batch_size: int,
        per_volume: int,
        seed: int,
        *,
        drop_last: bool,
        fixed: bool = False,
        sequence: int = 1,
    ) -> None:
        self.sequence = sequence
        self.data, self.batch_size, self.per_volume = data, batch_size, per_volume
        self.seed, self.drop_last, self.fixed = seed, drop_last, fixed
        self.epoch = 0
        if drop_last and len(self) == 0:
            raise DataError(
                f"{len(data.images)} training volumes with {per_volume} slice(s) each do not fill "
                f"one batch of {batch_size}: raise train.samples_per_volume or lower "
                "train.batch_size."
            )

    def __len__(self) -> int:
        total = len(self.data.images) * self.per_volume
        return total // self.batch_size if self.drop_last else -(-total // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        epoch = 0 if self.fixed else self.epoch
        rng = np.random.default_rng(derive_seed(self.seed, "slices", epoch))
        volume = np.repeat(np.arange(len(self.data.images)), self.per_volume)
        number = np.concatenate([self._draw(slices, rng) for slices in self.data.slices])
        order = rng.permutation(len(volume)) if self.drop_last else np.arange(len(volume))
        order = order[: len(self) * self.batch_size]
        where = np.stack((np.repeat(volume[order], self.sequence), number[order].ravel()))
        where = torch.from_numpy(where).to(self.data.images.device)
        for part in where.split(self.batch_size * self.sequence, dim=1):
            yield {
                "images": self.data.images[tuple(part)].unsqueeze(1),
                "masks": self.data.masks[tuple(part)].unsqueeze(1),
            }

    def _draw(self, slices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Slice numbers ``(per_volume, sequence)`` of one volume for one epoch."""
        starts = np.arange(max(1, len(slices) - self.sequence + 1))
        chosen = rng.choice(starts, self.per_volume, replace=len(starts) < self.per_volume)
        return slices[np.minimum(chosen[:, None] + np.arange(self.sequence), len(slices) - 1)]
