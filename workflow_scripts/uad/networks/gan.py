"""The three networks of f-AnoGAN, from the stages of the autoencoders.

Layout from StefanDenn3r/Unsupervised_Anomaly_Detection_Brain_MRI (``models/fanogan.py``):
the encoder is the autoencoder's, with tanh on the code; generator and critic have a norm per
image in place of the batch norm (the gradient penalty is per image), the generator ends in a
sigmoid and the critic in a dense layer, whose input is what the encoder stage compares.

The norm: the source's runs over the pixels of each channel, which right behind the first
convolution removes the brightness of the image, so that its critic cannot judge it. Here it runs
over channels and pixels, the layer norm that WGAN-GP recommends (arXiv 1704.00028).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from uad.networks.convolutional import Decoder, Encoder, encoder_stages

_PER_IMAGE = ("group", {"num_groups": 1})


class Critic(nn.Module):
    """How real a slice looks: ``(B, 1, H, W)`` to ``(B, 1)``, unbounded."""

    def __init__(self, image_size: tuple[int, int], channels: Sequence[int]) -> None:
        super().__init__()
        pixels = math.prod(side >> len(channels) for side in image_size)
        self.features = encoder_stages(channels, _PER_IMAGE)
        self.out = nn.Linear(channels[-1] * pixels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The score of each slice."""
        return self.out(self.features(x).flatten(1))


class AnoGan(nn.Module):
    """Encoder, generator and critic; called as ``network(x)`` it generates the encoded slice."""

    def __init__(
        self,
        image_size: tuple[int, int],
        channels: Sequence[int] = (32, 64, 128),
        latent: int = 128,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.encoder = nn.Sequential(Encoder(image_size, channels, latent, dropout), nn.Tanh())
        self.generator = nn.Sequential(
            Decoder(image_size, channels, latent, dropout, norm=_PER_IMAGE), nn.Sigmoid()
        )
        self.critic = Critic(image_size, channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, 1, H, W)`` to the same."""
        return self.generator(self.encoder(x))


def gradient_penalty(
    critic: nn.Module, real: Tensor, fake: Tensor, generator: torch.Generator
) -> Tensor:
    """Mean of (norm of the critic's gradient - 1)^2 between real and fake images (WGAN-GP).

    In float32 under autocast too: half precision loses the differences of the norms to 1.
    """
    with torch.autocast(real.device.type, enabled=False):
        real, fake = real.float(), fake.float()
        share = torch.rand((len(real), 1, 1, 1), generator=generator, device=real.device)
        between = (real + share * (fake - real)).detach().requires_grad_()
        (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        # the root has no slope at 0
        norms = (slope.flatten(1).square().sum(dim=1) + 1e-12).sqrt()
        return (norms - 1).square().mean()
