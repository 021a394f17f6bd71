"""DAE: a denoising autoencoder with skip connections and coarse noise.

Source of the constants: AntanasKascenas/DenoisingAE@8e5a9df (Kascenas et al., MIDL 2022): noise
N(0, 0.2) at 16x16, enlarged bilinearly, rolled at random, added to the foreground only; no noise
at test time; squared error on the foreground; U-Net 64-128-256-512 with weight-standardised
convolutions.
"""

from __future__ import annotations

from pydantic import Field

from uad.methods.base import Method, MethodOptions, PixelBlock, unet_problems


class DenoisingOptions(MethodOptions):
    """Options of the family ``denoising``."""

    channels: list[int] = [64, 128, 256, 512]
    norm_num_groups: int = Field(8, ge=1)
    pixel_block: PixelBlock = 1
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
    def problems(cls, options, image_size):
        """Levels must divide the slice, groups the channels."""
        sizes = options.channels, options.norm_num_groups, image_size, options.pixel_block
        return unet_problems(*sizes)

    def build(self):
        """The U-Net."""
        from uad.networks.denoising_unet import DenoisingUNet
        from uad.networks.pixel_blocks import PixelBlocks

        block = self.options.pixel_block
        network = DenoisingUNet(self.options.channels, self.options.norm_num_groups, block**2)
        return PixelBlocks(network, block) if block > 1 else network

    def training_loss(self, network, images, masks, generator):
        """Loss between the clean slices and the restored noisy ones."""
        from uad.noise import coarse

        options = {"resolution": self.options.noise_resolution, "std": self.options.noise_std}
        field = coarse(images.shape, generator=generator, device=images.device, **options)
        loss = self.quality(images, network(images + field.to(images.dtype) * masks))
        if not self.options.foreground_loss:
            return loss.mean()
        return (loss * masks).sum() / masks.sum().clamp(min=1)

    def optimizer(self, parameters, learning_rate, **options):
        """Adam with AMSGrad and weight decay, as in the original."""
        own = {"amsgrad": self.options.amsgrad, "weight_decay": self.options.weight_decay}
        return super().optimizer(parameters, learning_rate, **own, **options)


METHOD = Denoising
