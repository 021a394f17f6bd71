"""Controls: rows whose result is known beforehand, so that a broken metric shows at once.

``oracle`` scores the annotated lesion itself: what it lacks of a Dice of 1 is the price of
post-processing. ``random`` draws a score for every voxel of the brain: chance level, a little
above where post-processing clears the rim of the brain, in which lesions are rare.
"""

from __future__ import annotations

from typing import Literal

from uad.methods.base import MethodOptions, Untrained


class ControlOptions(MethodOptions):
    """Options of the family ``control``."""

    answer: Literal["oracle", "random"]


class Control(Untrained):
    """Knows everything, or nothing."""

    Options = ControlOptions
    options: ControlOptions

    @property
    def sees_lesions(self):
        """The oracle alone does."""
        return self.options.answer == "oracle"

    def reconstruct(self, network, images, masks, t_test, generator):
        """The lesion that is given in place of the image, or U(0, 1) within the brain."""
        import torch

        if self.sees_lesions:
            return images
        return masks * torch.rand(images.shape, generator=generator, device=images.device)


METHOD = Control
