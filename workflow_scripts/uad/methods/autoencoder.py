"""AE and VAE: reconstruct a slice from a code of a hundred-odd numbers.

Sources of the constants: StefanDenn3r/Unsupervised_Anomaly_Detection_Brain_MRI@347c5d8
(``models/customlayers.py``: stages 32-64-128, as many as its rule gives for 96x96 slices;
``mains/main_VAE.py``, ``trainers/AEMODEL.py``: latent 128, dropout 0.2 for the AE, 0.1 for the
VAE; ``trainers/VAE.py``: error summed over an image, plus the KL divergence). Weight of the
divergence 0.001: the text of the line that the paper compares with (arXiv 2312.04215).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from uad.methods.base import Method, MethodOptions

Stages = Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]


class CodeOptions(MethodOptions):
    """Sizes that all methods with a dense code share."""

    channels: Stages = [32, 64, 128]
    latent: int = Field(128, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)


class CodeMethod(Method):
    """A method with a dense code behind stages of stride 2."""

    @classmethod
    def problems(cls, options, image_size):
        """Stages must divide the slice and leave something to encode."""
        found = []
        channels, factor = options.channels, 2 ** len(options.channels)
        if any(side % factor or side == factor for side in image_size):
            found.append(
                f"{len(channels)} stages need slices larger than {factor} and divisible by it, "
                f"not {image_size}"
            )
        if channels[-1] < 8:
            found.append("the last of the channels must be at least 8: an eighth feeds the code")
        return found


class AutoencoderOptions(CodeOptions):
    """Options of the family ``autoencoder``."""

    variational: bool = False
    dropout: float | None = Field(None, ge=0, lt=1, description="null: 0.2; variational: 0.1.")
    kl_weight: float = Field(0.001, ge=0, description="Variational only.")


class Autoencoder(CodeMethod):
    """Encode and decode, at test time the mean code; anomalies do not fit through it."""

    Options = AutoencoderOptions
    options: AutoencoderOptions

    def build(self):
        """The network for slices of the size of the setup."""
        from uad.networks.convolutional import Autoencoder as Network

        sizes = self.options.model_dump(exclude={"kl_weight"}, exclude_none=True)
        usual = 0.1 if self.options.variational else 0.2
        return Network(self.setup.image_size, **{"dropout": usual, **sizes})

    def training_loss(self, network, images, masks, generator):
        """Error summed over each image, plus the weighted divergence; mean over the batch."""
        import torch

        from uad.networks.convolutional import kl_divergence

        code, log_std = network.encode(images)
        divergence = 0.0
        if log_std is not None:
            divergence = self.options.kl_weight * kl_divergence(code, log_std)
            noise = torch.randn(code.shape, generator=generator, device=code.device)
            code = code + noise * log_std.exp()
        error = self.quality(images, network.decode(code))
        return (error.sum(dim=(1, 2, 3)) + divergence).mean()


METHOD = Autoencoder
