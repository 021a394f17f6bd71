"""The U-Net of the denoising autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _StandardisedConv2d(nn.Conv2d):
    """Convolution with weights standardised per output channel (Qiao et al. 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(self.weight, dim=(1, 2, 3), keepdim=True, correction=0)
        x = F.pad(x, (1, 1, 1, 1), mode="reflect")
        return F.conv2d(x, (self.weight - mean) / (deviation + 1e-5), self.bias, self.stride)


class _DoubleConv(nn.Sequential):
    def __init__(self, before: int, after: int, groups: int) -> None:
        layers: list[nn.Module] = []
        for width in (before, after):
            layers += [_StandardisedConv2d(width, after, 3), nn.SiLU(), nn.GroupNorm(groups, after)]
        super().__init__(*layers)


class DenoisingUNet(nn.Module):
    """U-Net of the denoising autoencoder (AntanasKascenas/DenoisingAE@8e5a9df)."""

    def __init__(
        self, channels: Sequence[int] = (64, 128, 256, 512), groups: int = 8, images: int = 1
    ) -> None:
        super().__init__()
        widths = [images, *channels]
        self.down = nn.ModuleList(_DoubleConv(a, b, groups) for a, b in pairwise(widths))
        pairs = list(pairwise(channels[::-1]))
        self.enlarge = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in pairs)
        self.up = nn.ModuleList(_DoubleConv(2 * b, b, groups) for _, b in pairs)
        self.out = nn.Conv2d(channels[0], images, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, images, H, W)`` to the same; sides divisible by 2^(levels - 1)."""
        skips = []
        for level, block in enumerate(self.down):
            x = block(F.avg_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for enlarge, block in zip(self.enlarge, self.up, strict=True):
            x = block(torch.cat([enlarge(x), skips.pop()], dim=1))
        return self.out(x)
