"""SVAE: a VAE whose codes see those of the neighbouring slices.

Source: Behrendt et al., MIDL 2022 (openreview db8wDgKH4p4): self-attention across the slices'
codes, about as many parameters as without. It publishes neither sizes nor code. Encoder,
decoder and loss are those of the VAE (see :mod:`uad.methods.autoencoder`); run length, layers
and heads are choices made here.
"""

from __future__ import annotations

from pydantic import Field

from uad.methods.autoencoder import Autoencoder, CodeOptions


class SequentialOptions(CodeOptions):
    """Options of the family ``sequential``."""

    kl_weight: float = Field(0.001, ge=0)
    sequence: int = Field(8, ge=2, description="Neighbouring slices that see each other.")
    layers: int = Field(2, ge=1)
    heads: int = Field(4, ge=1)


class Sequential(Autoencoder):
    """Encode and decode runs of slices."""

    Options = SequentialOptions
    options: SequentialOptions
    whole_volume = True

    @classmethod
    def problems(cls, options, image_size):
        """As the autoencoder, and heads must divide the code."""
        found = super().problems(options, image_size)
        if options.latent % options.heads:
            found.append(f"{options.heads} heads do not divide a latent of {options.latent}")
        return found

    @property
    def sequence(self):
        """Slices of a run."""
        return self.options.sequence

    def build(self):
        """The network for slices of the size of the setup."""
        from uad.networks.convolutional import SequenceAutoencoder

        sizes = self.options.model_dump(exclude={"kl_weight"})
        return SequenceAutoencoder(self.setup.image_size, **sizes)

    def reconstruct(self, network, images, masks, t_test, generator):
        """Windows tile the volume; the last one is shifted back to end with it.

        A volume shorter than a window is continued with copies of its last slice, as in
        training.
        """
        import torch

        missing = max(0, self.sequence - len(images))
        padded = torch.cat([images, images[-1:].expand(missing, *images.shape[1:])])
        end = len(padded) - self.sequence
        starts = [*range(0, end, self.sequence), end]
        windows = torch.cat([padded[s : s + self.sequence] for s in starts])
        restored = network(windows).split(self.sequence)
        result = torch.empty_like(padded)
        for start, window in zip(starts, restored, strict=True):
            result[start : start + self.sequence] = window
        return result[: len(images)] * masks


METHOD = Sequential
