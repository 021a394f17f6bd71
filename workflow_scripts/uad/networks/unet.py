"""MONAI's diffusion U-Net, with or without scale-shift."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from uad.networks.parts import DiffusionModelUNet, DiffusionUNetResnetBlock
from uad.networks.pixel_blocks import PixelBlocks


class ScaleShiftResnetBlock(DiffusionUNetResnetBlock):
    """MONAI's residual block, conditioned by scale and shift after the second norm (FiLM).

    pDDPM sets ``use_scale_shift_norm``; MONAI's block only adds the time embedding.
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
    pixel_block: int = 1,
) -> nn.Module:
    """The time-conditioned U-Net of DDPM and, with ``scale_shift``, of pDDPM.

    At the default sizes it has 34.49 M and 37.51 M parameters: the figures of the authors'
    networks. Attention sits in the middle block only, as in the code that the authors ran.
    Called as ``network(x, timesteps)``: ``(B, 1, H, W)`` and ``(B,)`` to ``(B, 1, H, W)``; the
    last convolution starts at zero.
    """
    network = DiffusionModelUNet(
        spatial_dims=2,
        in_channels=pixel_block**2,
        out_channels=pixel_block**2,
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
    return PixelBlocks(network, pixel_block) if pixel_block > 1 else network
