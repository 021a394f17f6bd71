"""DAE: a denoising autoencoder with skip connections and coarse noise.

Source of the constants: AntanasKascenas/DenoisingAE@8e5a9df (Kascenas et al.,
MIDL 2022): noise N(0, 0.2) at 16x16, enlarged bilinearly, rolled at random,
added to the foreground only; no noise at test time; squared error on the
foreground; U-Net 64-128-256-512 with weight-standardised convolutions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pydantic import Field

from uad.methods.base import Method, MethodOptions, unet_problems

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class DenoisingOptions(MethodOptions):
    """Options of the family ``denoising``."""

    channels: list[int] = [64, 128, 256, 512]
    norm_num_groups: int = Field(8, ge=1)
    pixel_block: int = Field(
        1,
        ge=1,
        description="Sides of the blocks of pixels that become channels before the network and "
        "pixels again behind it; 1: none do. On a CPU 2 makes training steps three times as fast.",
    )
    noise_resolution: int = Field(16, ge=2)
    noise_std: float = Field(0.2, gt=0)
    foreground_loss: bool = True
    amsgrad: bool = True
    weight_decay: float = Field(1e-5, ge=0)


class Denoising(Method):
    """Remove coarse noise from the brain; at test time the scan goes through as it is."""

    Options = DenoisingOptions
    options: DenoisingOptions

    @classmethod
    def problems(cls, options: DenoisingOptions, image_size: tuple[int, int]) -> list[str]:
        """Levels must divide the slice, groups the channels."""
        return unet_problems(
            options.channels, options.norm_num_groups, image_size, options.pixel_block
        )

    def build(self) -> nn.Module:
        """The U-Net."""
        from uad.networks.denoising_unet import DenoisingUNet
        from uad.networks.pixel_blocks import PixelBlocks

        channels, groups, block = (
            self.options.channels,
            self.options.norm_num_groups,
            self.options.pixel_block,
        )
        network = DenoisingUNet(channels, groups, block**2)
        return network if block == 1 else PixelBlocks(network, block)

    def training_loss(
        self, network: nn.Module, images: Tensor, masks: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Loss between the clean slices and the restored noisy ones."""
        from uad.iqa import quality_map
        from uad.noise import make_noise

        field = make_noise(
            "coarse",
            tuple(images.shape),
            generator=generator,
            device=images.device,
            resolution=self.options.noise_resolution,
            std=self.options.noise_std,
        )
        restored = network(images + field.to(images.dtype) * masks)
        loss = quality_map(self.setup.loss, images, restored, **self.setup.quality)
        if not self.options.foreground_loss:
            return loss.mean()
        return (loss * masks).sum() / masks.sum().clamp(min=1)

    def reconstruct(
        self,
        network: nn.Module,
        images: Tensor,
        masks: Tensor,
        t_test: int,
        generator: torch.Generator,
    ) -> Tensor:
        """One pass without noise; the background stays 0."""
        return network(images) * masks

    def optimizer(
        self, parameters: Iterable[Tensor], learning_rate: float, **options: Any
    ) -> torch.optim.Optimizer:
        """Adam with AMSGrad and weight decay, as in the original."""
        own = {"amsgrad": self.options.amsgrad, "weight_decay": self.options.weight_decay}
        return super().optimizer(parameters, learning_rate, **own, **options)


METHOD = Denoising
