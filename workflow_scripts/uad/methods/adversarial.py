"""f-AnoGAN: a GAN learns healthy slices, then an encoder learns to find a slice in it.

Sources of the constants: StefanDenn3r/Unsupervised_Anomaly_Detection_Brain_MRI@347c5d8
(``trainers/fAnoGAN.py``: WGAN with gradient penalty of weight 10, five critic steps per
generator step on the same batch, Adam with betas 0.5 and 0.9 for all three networks; encoder by
izi_f, squared error of the image plus kappa = 1 times that of the critic's features;
``mains/main_fAnoGAN.py``: code 128, dropout 0.1). Stages as for 128x128 slices there
(32-64-128); the learning rate is the common one, 1e-4 in the line that the paper compares
with (arXiv 2312.04215). That penalty takes the norm along one axis of the image; here, as in
WGAN-GP, over all pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from uad.methods.autoencoder import CodeMethod, CodeOptions

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

#: The networks, in the order of their optimisers.
PARTS = ("encoder", "generator", "critic")


class AdversarialOptions(CodeOptions):
    """Options of the family ``adversarial``."""

    gan_share: float = Field(
        0.6, gt=0, lt=1, description="Share of the epochs for the GAN; the rest is the encoder's."
    )
    critic_steps: int = Field(5, ge=1)
    penalty_weight: float = Field(10.0, ge=0)
    kappa: float = Field(1.0, ge=0)
    betas: tuple[float, float] = (0.5, 0.9)


class Adversarial(CodeMethod):
    """Generate the healthy slice whose code the encoder finds."""

    Options = AdversarialOptions
    options: AdversarialOptions
    automatic = False
    losses = ("l2",)

    def build(self):
        """Encoder, generator and critic."""
        from uad.networks.gan import AnoGan

        sizes = self.options.model_dump(include=set(CodeOptions.model_fields))
        return AnoGan(self.setup.image_size, **sizes)

    def optimizers(self, network, learning_rate):
        """Adam for each of :data:`PARTS`."""
        parts = [network.get_submodule(name).parameters() for name in PARTS]
        return [self.optimizer(part, learning_rate, betas=self.options.betas) for part in parts]

    def selectable(self, progress):
        """Not before the encoder's turn."""
        return progress >= self.options.gan_share

    def training_step(self, network, images, masks, generator, update, progress):
        """A step of the GAN in the first epochs, one of the encoder in the others."""
        found: dict[str, Tensor] = {}

        def train(part: str, **values: Tensor) -> None:
            update(next(iter(values.values())), PARTS.index(part))
            found.update({f"train_{k}": value.detach().float() for k, value in values.items()})

        if self.selectable(progress):
            _only(network, "encoder", frozen_in_training_mode=False)
            train("encoder", **self._encoder_losses(network, images))
            return found
        for _ in range(self.options.critic_steps):
            _only(network, "critic")
            train("critic", **self._critic_losses(network, images, generator))
        _only(network, "generator")
        fake = network.generator(self._codes(images, generator))
        train("generator", generator=-network.critic(fake).mean())
        return found

    def validation_loss(self, network, images, masks, generator):
        """Squared error of the image that is generated from the encoded one."""
        from torch.nn.functional import mse_loss

        return mse_loss(network(images), images)

    def _critic_losses(
        self, network: nn.Module, images: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        import torch

        from uad.networks.gan import gradient_penalty

        with torch.no_grad():
            fake = network.generator(self._codes(images, generator)).to(images.dtype)
        distance = network.critic(images).mean() - network.critic(fake).mean()
        penalty = gradient_penalty(network.critic, images, fake, generator)
        loss = self.options.penalty_weight * penalty - distance
        return {"loss": loss, "distance": distance, "penalty": penalty}

    def _encoder_losses(self, network: nn.Module, images: Tensor) -> dict[str, Tensor]:
        from torch.nn.functional import mse_loss

        restored = network(images)
        features = mse_loss(network.critic.features(restored), network.critic.features(images))
        image = mse_loss(restored, images)
        return {"loss": image + self.options.kappa * features, "image": image, "features": features}

    def _codes(self, images: Tensor, generator: torch.Generator) -> Tensor:
        import torch

        shape = len(images), self.options.latent
        return torch.randn(shape, generator=generator, device=images.device)


def _only(network: nn.Module, part: str, *, frozen_in_training_mode: bool = True) -> None:
    """Gradients for one of the three networks; set anew for each step, so that none is state."""
    for name, module in network.named_children():
        chosen = name == part
        module.requires_grad_(chosen).train(chosen or frozen_in_training_mode)


METHOD = Adversarial
