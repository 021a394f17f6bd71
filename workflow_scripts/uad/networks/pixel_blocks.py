"""Smaller images with more channels for a network: blocks of pixels become channels and back."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle


class PixelBlocks(nn.Module):
    """A network between the fold of pixels into channels and its inverse.

    The network maps ``(B, C * block**2, H / block, W / block)``, and whatever else it is given, to
    ``(B, C' * block**2, H / block, W / block)``.
    """

    def __init__(self, network: nn.Module, block: int) -> None:
        super().__init__()
        self.network, self.block = network, block

    def forward(self, x: Tensor, *others: Any) -> Tensor:
        """``(B, C, H, W)`` to ``(B, C', H, W)``; sides divisible by the block's."""
        return pixel_shuffle(self.network(pixel_unshuffle(x, self.block), *others), self.block)
