"""DDPM, pDDPM and mDDPM: one-step x0 prediction from a noised slice or a noised patch.

Sources of the constants: FinnBehrendt/patched-Diffusion-Models-UAD@da14cd0 (DDPM_2D.py and the
patched variant): x0 prediction, cosine schedule, 1000 steps, simplex noise, U-Net 128-256-256
with three residual blocks; whole slices for DDPM, four 48x48 patches with scale-shift time
conditioning for pDDPM. For mDDPM hasan1292/mDDPM@e76b948 (src/models/DDPM_2D_patched.py): pDDPM
whose training input is corrupted in rectangles before it is noised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from uad.methods.base import Method, MethodOptions, PixelBlock, unet_problems

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
    pixel_block: PixelBlock = 1


class NoiseOptions(MethodOptions):
    """The corrupting noise; octaves, persistence and frequency belong to simplex."""

    name: Literal["simplex", "gaussian"] = "simplex"
    octaves: int = Field(6, ge=1)
    persistence: float = Field(0.8, gt=0)
    frequency: float = Field(64, gt=0)


class MaskingOptions(MethodOptions):
    """Corruption of the training input (mDDPM; the defaults are its code's, for 96x96 slices).

    Up to ``rectangles`` per image show a high- or a low-pass version of it (one coin and one
    filter per image): a square of ``half_width`` around the zero frequency stays or goes. Sides
    are shares of the rows that the brain covers; rectangles keep ``margin`` pixels off the edges
    of the brain's box where it is large enough.
    """

    rectangles: int = Field(5, ge=1)
    sides: tuple[float, float] = (0.09, 0.18)
    half_width: tuple[int, int] = (2, 10)
    margin: int = Field(5, ge=0)


class DiffusionOptions(MethodOptions):
    """Options of the family ``diffusion``."""

    network: UNetOptions = UNetOptions()
    noise: NoiseOptions = NoiseOptions()
    timesteps: int = Field(1000, ge=2)
    schedule: Literal["cosine", "linear"] = "cosine"
    patch_grid: tuple[int, int] | None = Field(
        None, description="Patches per row and column (pDDPM: 2x2); null: whole slices."
    )
    masking: MaskingOptions | None = Field(
        None, description="Corrupt the training input (mDDPM); null: do not."
    )


class Diffusion(Method):
    """Denoise to x0 in one step; with ``patch_grid``, only inside one patch at a time."""

    Options = DiffusionOptions
    options: DiffusionOptions
    noisy = True

    @classmethod
    def problems(cls, options, image_size):
        """Grid and levels must divide the slice, groups and heads the channels."""
        network, grid = options.network, options.patch_grid
        sizes = network.channels, network.norm_num_groups, image_size, network.pixel_block
        found = unet_problems(*sizes)
        if grid and any(side % n for side, n in zip(image_size, grid, strict=True)):
            found.append(f"a patch_grid of {grid} does not divide slices of {image_size}")
        if network.channels[-1] % network.num_head_channels:
            found.append("num_head_channels does not divide the last of the channels")
        if options.masking:
            (short, long), (low, high) = options.masking.sides, options.masking.half_width
            if not 0 < short <= long <= 1:
                found.append(f"masking.sides must rise within 0 to 1, not {(short, long)}")
            limit = min(image_size) // 2
            if not 1 <= low <= high <= limit:
                found.append(f"masking.half_width must rise within 1 to {limit}, not {(low, high)}")
        return found

    def build(self):
        """The U-Net."""
        from uad.networks.unet import diffusion_unet

        return diffusion_unet(**self.options.network.model_dump())

    def training_loss(self, network, images, masks, generator):
        """Loss of the one-step reconstruction at random noise levels, on [-1, 1] images."""
        shown = images
        if self.options.masking:
            shown = corrupt(images, masks, self.options.masking, generator)
        return self._loss(network, images, shown, generator)

    def validation_loss(self, network, images, masks, generator):
        """The same without masking, as at test time."""
        return self._loss(network, images, images, generator)

    def _loss(
        self, network: nn.Module, images: Tensor, shown: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Quality of what the network makes of ``shown``, which is what lies outside the patch."""
        import torch

        batch, device = images.shape[0], images.device
        levels = torch.randint(self.options.timesteps, (batch,), generator=generator, device=device)
        field = self._field(images, generator)
        region = None
        if self.options.patch_grid:
            patches = self._patches(images)
            choice = torch.randint(len(patches), (batch,), generator=generator, device=device)
            region = patches[choice].unsqueeze(1)
        restored = self._restore(network, shown * 2 - 1, levels, field, region)
        return self.quality_loss(images * 2 - 1, restored)

    def reconstruct(self, network, images, masks, t_test, generator):
        """One step from level ``t_test``; patches are restored one by one and tiled."""
        import torch

        x0 = images * 2 - 1
        levels = torch.full((len(images),), t_test - 1, device=images.device)
        field = self._field(images, generator)
        if not self.options.patch_grid:
            return (self._restore(network, x0, levels, field, None) + 1) / 2
        tiled = torch.zeros_like(x0)
        for patch in self._patches(images):
            restored = self._restore(network, x0, levels, field, patch)
            tiled = torch.where(patch, restored, tiled)
        return (tiled + 1) / 2

    def _patches(self, images: Tensor) -> Tensor:
        """The patches of the grid, as masks on the images' device."""
        from uad.forward_diffusion import patch_masks

        return patch_masks(tuple(images.shape[-2:]), self.options.patch_grid, images.device)

    def _field(self, images: Tensor, generator: torch.Generator) -> Tensor:
        name, options = self.options.noise.name, self.options.noise.model_dump(exclude={"name"})
        return self.noise(images, generator, name, **(options if name == "simplex" else {}))

    def _restore(
        self, network: nn.Module, x0: Tensor, levels: Tensor, field: Tensor, region: Tensor | None
    ) -> Tensor:
        """Noise ``x0`` (inside ``region`` only), predict x0, keep the rest as it is."""
        import torch

        from uad.forward_diffusion import alphas_cumprod, q_sample

        schedule = alphas_cumprod(self.options.timesteps, self.options.schedule, x0.device)
        noisy = q_sample(x0, levels, field, schedule)
        if region is None:
            return network(noisy, levels)
        prediction = network(torch.where(region, noisy, x0), levels)
        # in the precision of x0: rounding the pasted part would cost loss that nothing can earn
        return torch.where(region, prediction.to(x0.dtype), x0)


def corrupt(
    images: Tensor, masks: Tensor, options: MaskingOptions, generator: torch.Generator
) -> Tensor:
    """The images ``(B, 1, H, W)`` with filtered rectangles inside the brain."""
    import torch

    device, batch = images.device, len(images)
    each = batch, options.rectangles

    def draw(low: Tensor | int, high: Tensor | int, shape: tuple[int, int]) -> Tensor:
        """Whole numbers from ``low`` to ``high``, both included."""
        share = torch.rand(shape, generator=generator, device=device)
        return low + (share * (high - low + 1)).long().clamp(max=high - low)

    brain = masks > 0
    rows, columns = brain.any(dim=3).squeeze(1), brain.any(dim=2).squeeze(1)
    extent = rows.sum(dim=1, keepdim=True)
    short, long = ((share * extent).long() for share in options.sides)

    def spans(covered: Tensor) -> Tensor:
        """The pixels of each rectangle along one axis: ``(B, rectangles, side)``."""
        pixels = torch.arange(covered.shape[1], device=device)
        first = covered.int().argmax(dim=1, keepdim=True)
        last = pixels[-1] - covered.flip(1).int().argmax(dim=1, keepdim=True)
        room = (last - first - long - 2 * options.margin).clamp(min=0)
        start = draw(first, first + room, each) + options.margin
        end = start + draw(short, long, each)
        return (pixels >= start[..., None]) & (pixels < end[..., None])

    boxes = spans(rows)[..., :, None] & spans(columns)[..., None, :]
    used = torch.arange(options.rectangles, device=device) < draw(0, options.rectangles, (batch, 1))
    inside = (boxes & used[..., None, None]).any(dim=1, keepdim=True) & brain

    half_width = draw(*options.half_width, (batch, 1))
    near_zero = [
        (frequencies >= -half_width) & (frequencies < half_width)
        for frequencies in (torch.fft.fftfreq(n, 1 / n, device=device) for n in images.shape[-2:])
    ]
    square = near_zero[0][:, None, :, None] & near_zero[1][:, None, None, :]
    low_pass = torch.fft.ifft2(torch.fft.fft2(images.float()) * square).real
    coin = draw(0, 1, (batch, 1))[..., None, None] == 1
    filtered = torch.where(coin, low_pass, images - low_pass)
    return torch.where(inside, filtered.to(images.dtype), images)


METHOD = Diffusion
