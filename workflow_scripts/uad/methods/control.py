"""Controls: rows that need no training, beside which those of networks can be judged.

``oracle`` scores the annotated lesion itself: what it lacks of a Dice of 1 is the price of
post-processing. ``random`` draws a score for every voxel of the brain: chance level, a little
above where post-processing clears the rim of the brain, in which lesions are rare. ``intensity``
scores a voxel by its brightness alone, ``position`` by its axial slice alone.
"""

from __future__ import annotations

from typing import Literal

from uad.methods.base import MethodOptions, Untrained


class ControlOptions(MethodOptions):
    """Options of the family ``control``."""

    answer: Literal["oracle", "random", "intensity", "position"]


class Control(Untrained):
    """Knows everything, nothing, or one thing."""

    Options = ControlOptions
    options: ControlOptions

    @property
    def sees_lesions(self):
        """The oracle alone does."""
        return self.options.answer == "oracle"

    def reconstruct(self, network, images, masks, t_test, generator):
        """Within the brain: U(0, 1); the scan as it is; or 1 in the middle slice, falling evenly
        to 0 beyond the first and the last. The oracle is given the lesion in place of the scan.
        """
        import torch

        if self.options.answer in ("oracle", "intensity"):  # both are 0 where they should be
            return images
        if self.options.answer == "random":
            return masks * torch.rand(images.shape, generator=generator, device=images.device)
        slices = torch.arange(1, len(images) + 1, device=images.device)
        central = torch.minimum(slices, len(images) + 1 - slices) / ((len(images) + 1) / 2)
        return masks * central.to(images)[:, None, None, None]


METHOD = Control
