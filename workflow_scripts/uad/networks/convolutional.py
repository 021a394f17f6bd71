"""Autoencoders with a dense latent: the unified layout of Baur et al., and one over slices.

Layout from StefanDenn3r/Unsupervised_Anomaly_Detection_Brain_MRI (``models/customlayers.py``,
``autoencoder.py``, ``variational_autoencoder.py``): stages of convolution 5x5 with stride 2,
norm and LeakyReLU (slope 0.3, Keras' default), 1x1 convolution to an eighth of the channels,
dense latent; then dense, 1x1 convolution, norm, ReLU and the way back by transposed
convolutions 5x5, each half as wide as the one before but no less than the first stage, and
a last 1x1 convolution.

How many stages: the source takes ``int(log2(side / 8))``, which is four (32-64-128-128, to 8x8)
for its 128x128 slices and three (32-64-128, to 12x12) for slices of 96x96.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from uad.networks.parts import Convolution

Norm = str | tuple[str, dict[str, int]]


def _stage(before: int, after: int, norm: Norm, transposed: bool = False) -> nn.Module:
    return Convolution(
        spatial_dims=2,
        in_channels=before,
        out_channels=after,
        kernel_size=5,
        strides=2,
        is_transposed=transposed,
        adn_ordering="NA",
        norm=norm,
        act=("leakyrelu", {"negative_slope": 0.3}),
    )


def encoder_stages(channels: Sequence[int], norm: Norm = "batch") -> nn.Module:
    """Each stage halves the sides: ``(B, 1, H, W)`` to ``(B, channels[-1], h, w)``."""
    return nn.Sequential(*(_stage(a, b, norm) for a, b in pairwise([1, *channels])))


def bottleneck(image_size: tuple[int, int], channels: Sequence[int]) -> tuple[int, int, int]:
    """What the dense layers see: an eighth of the last channels, at the smallest size."""
    height, width = (side >> len(channels) for side in image_size)
    return channels[-1] // 8, height, width


class Encoder(nn.Module):
    """Slices to vectors: ``(B, 1, H, W)`` to ``(B, outputs)``."""

    def __init__(
        self, image_size: tuple[int, int], channels: Sequence[int], outputs: int, dropout: float
    ) -> None:
        super().__init__()
        shape = bottleneck(image_size, channels)
        self.stages = encoder_stages(channels)
        self.narrow = nn.Conv2d(channels[-1], shape[0], 1)
        self.dense = nn.Linear(math.prod(shape), outputs)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """One vector per slice, with dropout."""
        return self.dropout(self.dense(self.narrow(self.stages(x)).flatten(1)))


class Decoder(nn.Module):
    """Vectors to slices: ``(B, latent)`` to ``(B, 1, H, W)``; dropout behind the dense layer."""

    def __init__(
        self,
        image_size: tuple[int, int],
        channels: Sequence[int],
        latent: int,
        dropout: float,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        self.shape = bottleneck(image_size, channels)
        self.dense = nn.Linear(latent, math.prod(self.shape))
        self.dropout = nn.Dropout(dropout)
        self.widen = Convolution(
            spatial_dims=2,
            in_channels=self.shape[0],
            out_channels=channels[-1],
            kernel_size=1,
            adn_ordering="NA",
            norm=norm,
            act="relu",
        )
        widths = [max(channels[0], channels[-1] >> i) for i in range(len(channels))]
        steps = pairwise([channels[-1], *widths])
        self.stages = nn.Sequential(*(_stage(a, b, norm, transposed=True) for a, b in steps))
        self.out = nn.Conv2d(widths[-1], 1, 1)

    def forward(self, z: Tensor) -> Tensor:
        """One slice per vector."""
        x = self.dropout(self.dense(z)).unflatten(1, self.shape)
        return self.out(self.stages(self.widen(x)))


class Autoencoder(nn.Module):
    """AE, or VAE with ``variational``; called as ``network(x)`` it decodes the (mean) code.

    As in the source, dropout acts on the code, in the VAE also behind the decoder's dense layer.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        channels: Sequence[int] = (32, 64, 128),
        latent: int = 128,
        dropout: float = 0.2,
        variational: bool = False,
    ) -> None:
        super().__init__()
        self.variational = variational
        outputs = 2 * latent if variational else latent
        self.encoder = Encoder(image_size, channels, outputs, dropout)
        self.decode = Decoder(image_size, channels, latent, dropout if variational else 0.0)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The code of each slice; with ``variational`` the mean and the log standard deviation."""
        code = self.encoder(x)
        if not self.variational:
            return code, None
        mean, log_std = code.float().chunk(2, dim=1)
        return mean, log_std

    def forward(self, x: Tensor) -> Tensor:
        """``(B, 1, H, W)`` to the same."""
        return self.decode(self.encode(x)[0])


class SequenceAutoencoder(Autoencoder):
    """A VAE in which the codes of neighbouring slices see each other through a transformer.

    Batches are ``(B * sequence, 1, H, W)`` with the slices of a run next to each other. The
    transformer is as wide as a code, its feed-forward parts twice.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        sequence: int,
        channels: Sequence[int] = (32, 64, 128),
        latent: int = 128,
        dropout: float = 0.1,
        layers: int = 2,
        heads: int = 4,
    ) -> None:
        nn.Module.__init__(self)
        self.sequence = sequence
        self.encoder = Encoder(image_size, channels, latent, dropout)
        self.positions = nn.Parameter(0.02 * torch.randn(sequence, latent))
        layer = nn.TransformerEncoderLayer(
            latent, heads, 2 * latent, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.mixer = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.statistics = nn.Linear(latent, 2 * latent)
        self.decode = Decoder(image_size, channels, latent, dropout)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean and log standard deviation of each slice's code, informed by its run."""
        codes = self.encoder(x).unflatten(0, (-1, self.sequence))
        # the plain kernel: those that save memory are not deterministic backwards on a GPU
        with sdpa_kernel(SDPBackend.MATH):
            codes = self.mixer(codes + self.positions)
        mean, log_std = self.statistics(codes.flatten(0, 1)).float().chunk(2, dim=1)
        return mean, log_std


def kl_divergence(mean: Tensor, log_std: Tensor) -> Tensor:
    """From N(mean, std) to N(0, 1), summed over the code: ``(B, latent)`` to ``(B,)``."""
    return 0.5 * (mean.square() + (2 * log_std).exp() - 2 * log_std - 1).sum(dim=1)
