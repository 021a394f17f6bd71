"""The U-Nets: MONAI's diffusion U-Net (with or without scale-shift) and the DAE's."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet, DiffusionUNetResnetBlock
from torch import Tensor, nn
from torch.nn import functional as F


class ScaleShiftResnetBlock(DiffusionUNetResnetBlock):
    """MONAI's residual block, conditioned by scale and shift after the second norm (FiLM).

    pDDPM sets ``use_scale_shift_norm``; MONAI's block only adds the time
    embedding. The projection is twice as wide: one half scales, one shifts.
    """

    def __init__(self, block: DiffusionUNetResnetBlock) -> None:
        super().__init__(
            spatial_dims=block.spatial_dims,
            in_channels=block.channels,
            temb_channels=block.emb_channels,
            out_channels=block.out_channels,
            up=block.upsample is not None,
            down=block.downsample is not None,
            norm_num_groups=block.norm1.num_groups,
            norm_eps=block.norm1.eps,
        )
        self.time_emb_proj = nn.Linear(self.emb_channels, 2 * self.out_channels)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """``x`` (B, C, H, W) and time embedding (B, E) to (B, C', H', W')."""
        h = self.nonlinearity(self.norm1(x))
        resample = self.upsample or self.downsample
        if resample is not None:
            x, h = resample(x), resample(h)
        h = self.conv1(h)
        scale, shift = self.time_emb_proj(self.nonlinearity(emb))[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(h) * (1 + scale) + shift
        return self.skip_connection(x) + self.conv2(self.nonlinearity(h))


def diffusion_unet(
    channels: Sequence[int] = (128, 256, 256),
    num_res_blocks: int = 3,
    num_head_channels: int = 64,
    norm_num_groups: int = 32,
    scale_shift: bool = False,
) -> nn.Module:
    """The time-conditioned U-Net of DDPM and pDDPM.

    At the default sizes it has 34.49 M parameters (DDPM), with ``scale_shift``
    37.51 M (pDDPM): the figures of the authors' networks. Attention sits in the
    middle block only, as in the code that the authors ran.

    Returns:
        A module called as ``network(x, timesteps)``: ``(B, 1, H, W)`` and ``(B,)`` to
        ``(B, 1, H, W)``; its last convolution starts at zero.
    """
    network = DiffusionModelUNet(
        spatial_dims=2,
        in_channels=1,
        out_channels=1,
        channels=tuple(channels),
        num_res_blocks=num_res_blocks,
        attention_levels=(False,) * len(channels),
        norm_num_groups=norm_num_groups,
        resblock_updown=True,
        num_head_channels=num_head_channels,
    )
    if scale_shift:
        for parent in list(network.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is DiffusionUNetResnetBlock:
                    setattr(parent, name, ScaleShiftResnetBlock(child))
    return network


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
    """U-Net of the denoising autoencoder (AntanasKascenas/DenoisingAE@8e5a9df).

    Args:
        channels: width of each level, from full resolution down.
        groups: groups of the group norms.
    """

    def __init__(self, channels: Sequence[int] = (64, 128, 256, 512), groups: int = 8) -> None:
        super().__init__()
        widths = [1, *channels]
        self.down = nn.ModuleList(_DoubleConv(a, b, groups) for a, b in pairwise(widths))
        pairs = list(pairwise(channels[::-1]))
        self.enlarge = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in pairs)
        self.up = nn.ModuleList(_DoubleConv(2 * b, b, groups) for _, b in pairs)
        self.out = nn.Conv2d(channels[0], 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, 1, H, W)`` to the same; sides divisible by 2 to the number of levels minus 1."""
        skips = []
        for level, block in enumerate(self.down):
            x = block(F.avg_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for enlarge, block in zip(self.enlarge, self.up, strict=True):
            x = block(torch.cat([enlarge(x), skips.pop()], dim=1))
        return self.out(x)
