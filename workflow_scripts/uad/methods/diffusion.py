"""DDPM and pDDPM: one-step x0 prediction from a noised slice or a noised patch.

Sources of the constants: FinnBehrendt/patched-Diffusion-Models-UAD@da14cd0
(DDPM_2D.py and the patched variant): x0 prediction, cosine schedule, 1000
steps, simplex noise, U-Net 128-256-256 with three residual blocks; whole
slices for DDPM, four 48x48 patches with scale-shift time conditioning for
pDDPM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from uad.methods.base import Method, MethodOptions, unet_problems

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class UNetOptions(MethodOptions):
    """Sizes of the time-conditioned U-Net (defaults: the paper's)."""

    channels: list[int] = [128, 256, 256]
    num_res_blocks: int = Field(3, ge=1)
    num_head_channels: int = Field(64, ge=1)
    norm_num_groups: int = Field(32, ge=1)
    scale_shift: bool = False


class NoiseOptions(MethodOptions):
    """The corrupting noise; octaves, persistence and frequency belong to simplex."""

    name: Literal["simplex", "gaussian"] = "simplex"
    octaves: int = Field(6, ge=1)
    persistence: float = Field(0.8, gt=0)
    frequency: float = Field(64, gt=0)


class DiffusionOptions(MethodOptions):
    """Options of the family ``diffusion``."""

    network: UNetOptions = UNetOptions()
    noise: NoiseOptions = NoiseOptions()
    timesteps: int = Field(1000, ge=2)
    schedule: Literal["cosine", "linear"] = "cosine"
    patch_grid: tuple[int, int] | None = Field(
        None, description="Patches per row and column (pDDPM: 2x2); null: whole slices."
    )


class Diffusion(Method):
    """Denoise to x0 in one step; with ``patch_grid``, only inside one patch at a time."""

    Options = DiffusionOptions
    options: DiffusionOptions

    @classmethod
    def problems(cls, options: DiffusionOptions, image_size: tuple[int, int]) -> list[str]:
        """Grid and levels must divide the slice, groups and heads the channels."""
        found = unet_problems(options.network.channels, options.network.norm_num_groups, image_size)
        grid = options.patch_grid
        if grid and any(side % n for side, n in zip(image_size, grid, strict=True)):
            found.append(f"a patch_grid of {grid} does not divide slices of {image_size}")
        if options.network.channels[-1] % options.network.num_head_channels:
            found.append("num_head_channels does not divide the last of the channels")
        return found

    def build(self) -> nn.Module:
        """The U-Net."""
        from uad.networks.unet import diffusion_unet

        return diffusion_unet(**self.options.network.model_dump())

    def training_loss(
        self, network: nn.Module, images: Tensor, masks: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Loss of the one-step reconstruction at random noise levels, on [-1, 1] images."""
        import torch

        from uad.diffusion import patch_masks

        batch, device = images.shape[0], images.device
        levels = torch.randint(self.options.timesteps, (batch,), generator=generator, device=device)
        field = self._field(images, generator)
        region = None
        if self.options.patch_grid:
            patches = patch_masks(images.shape[-2:], self.options.patch_grid).to(device)
            choice = torch.randint(len(patches), (batch,), generator=generator, device=device)
            region = patches[choice].unsqueeze(1)
        x0 = images * 2 - 1
        return self.quality_loss(x0, self._restore(network, x0, levels, field, region))

    def reconstruct(
        self,
        network: nn.Module,
        images: Tensor,
        masks: Tensor,
        t_test: int,
        generator: torch.Generator,
    ) -> Tensor:
        """One step from level ``t_test``; patches are restored one by one and tiled."""
        import torch

        from uad.diffusion import patch_masks

        x0 = images * 2 - 1
        levels = torch.full((len(images),), t_test - 1, device=images.device)
        field = self._field(images, generator)
        if not self.options.patch_grid:
            return (self._restore(network, x0, levels, field, None) + 1) / 2
        tiled = torch.zeros_like(x0)
        for patch in patch_masks(images.shape[-2:], self.options.patch_grid).to(images.device):
            restored = self._restore(network, x0, levels, field, patch)
            tiled = torch.where(patch, restored, tiled)
        return (tiled + 1) / 2

    def _field(self, images: Tensor, generator: torch.Generator) -> Tensor:
        options: dict[str, Any] = self.options.noise.model_dump()
        name = options.pop("name")
        if name != "simplex":
            options = {}
        return self.noise(images, generator, name, **options)

    def _restore(
        self, network: nn.Module, x0: Tensor, levels: Tensor, field: Tensor, region: Tensor | None
    ) -> Tensor:
        """Noise ``x0`` (inside ``region`` only), predict x0, keep the clean rest outside."""
        import torch

        from uad.diffusion import alphas_cumprod, q_sample

        schedule = alphas_cumprod(self.options.timesteps, self.options.schedule).to(x0.device)
        noisy = q_sample(x0, levels, field, schedule)
        if region is None:
            return network(noisy, levels)
        prediction = network(torch.where(region, noisy, x0), levels)
        # in the precision of x0: rounding the pasted part would cost loss that nothing can earn
        return torch.where(region, prediction.to(x0.dtype), x0)


METHOD = Diffusion
