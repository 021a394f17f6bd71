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

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from uad.methods.autoencoder import CodeOptions, stage_problems
from uad.methods.base import Method

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class AdversarialOptions(CodeOptions):
    """Options of the family ``adversarial``."""

    gan_share: float = Field(
        0.6, gt=0, lt=1, description="Share of the epochs for the GAN; the rest is the encoder's."
    )
    critic_steps: int = Field(5, ge=1)
    penalty_weight: float = Field(10.0, ge=0)
    kappa: float = Field(1.0, ge=0)
    betas: tuple[float, float] = (0.5, 0.9)


class Adversarial(Method):
    """Generate the healthy slice whose code the encoder finds."""

    Options = AdversarialOptions
    options: AdversarialOptions
    automatic = False
    losses = ("l2",)

    @classmethod
    def problems(cls, options: AdversarialOptions, image_size: tuple[int, int]) -> list[str]:
        """Stages must divide the slice and leave something to encode."""
        return stage_problems(options.channels, image_size)

    def build(self) -> nn.Module:
        """Encoder, generator and critic."""
        from uad.networks.gan import AnoGan

        sizes = self.options.model_dump(include=set(CodeOptions.model_fields))
        return AnoGan(self.setup.image_size, **sizes)

    def optimizers(
        self, network: nn.Module, learning_rate: float
    ) -> Sequence[torch.optim.Optimizer]:
        """Adam for the encoder, the generator and the critic."""
        parts = network.encoder, network.generator, network.critic
        return [
            self.optimizer(part.parameters(), learning_rate, betas=self.options.betas)
            for part in parts
        ]

    def selectable(self, progress: float) -> bool:
        """Not before the encoder's turn."""
        return progress >= self.options.gan_share

    def training_step(
        self,
        network: nn.Module,
        images: Tensor,
        masks: Tensor,
        generator: torch.Generator,
        optimizers: Sequence[torch.optim.Optimizer],
        backward: Callable[[Tensor], None],
        step: int,
        progress: float,
    ) -> dict[str, Tensor]:
        """A step of the GAN in the first epochs, one of the encoder in the others."""
        encoder, generative, critical = optimizers
        if self.selectable(progress):
            return self._encoder_step(network, images, encoder, backward)
        found = {}
        for _ in range(self.options.critic_steps):
            found = self._critic_step(network, images, generator, critical, backward)
        return found | self._generator_step(network, images, generator, generative, backward)

    def validation_loss(
        self, network: nn.Module, images: Tensor, masks: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Squared error of the image that is generated from the encoded one."""
        from torch.nn.functional import mse_loss

        return mse_loss(network(images), images)

    def reconstruct(
        self,
        network: nn.Module,
        images: Tensor,
        masks: Tensor,
        t_test: int,
        generator: torch.Generator,
    ) -> Tensor:
        """Encode and generate; the background stays 0."""
        return network(images) * masks

    def _critic_step(
        self,
        network: nn.Module,
        images: Tensor,
        generator: torch.Generator,
        optimizer: torch.optim.Optimizer,
        backward: Callable[[Tensor], None],
    ) -> dict[str, Tensor]:
        import torch

        from uad.networks.gan import gradient_penalty

        _only(network, "critic", frozen_in_training_mode=True)
        with torch.no_grad():
            fake = network.generator(self._codes(images, generator)).to(images.dtype)
        distance = network.critic(images).mean() - network.critic(fake).mean()
        penalty = gradient_penalty(network.critic, images, fake, generator)
        loss = self.options.penalty_weight * penalty - distance
        _update(optimizer, loss, backward)
        values = {"loss": loss, "distance": distance, "penalty": penalty}
        return {f"train_{name}": value.detach().float() for name, value in values.items()}

    def _generator_step(
        self,
        network: nn.Module,
        images: Tensor,
        generator: torch.Generator,
        optimizer: torch.optim.Optimizer,
        backward: Callable[[Tensor], None],
    ) -> dict[str, Tensor]:
        _only(network, "generator", frozen_in_training_mode=True)
        loss = -network.critic(network.generator(self._codes(images, generator))).mean()
        _update(optimizer, loss, backward)
        return {"train_generator": loss.detach().float()}

    def _encoder_step(
        self,
        network: nn.Module,
        images: Tensor,
        optimizer: torch.optim.Optimizer,
        backward: Callable[[Tensor], None],
    ) -> dict[str, Tensor]:
        from torch.nn.functional import mse_loss

        _only(network, "encoder", frozen_in_training_mode=False)
        restored = network(images)
        features = mse_loss(network.critic.features(restored), network.critic.features(images))
        image = mse_loss(restored, images)
        loss = image + self.options.kappa * features
        _update(optimizer, loss, backward)
        values = {"loss": loss, "image": image, "features": features}
        return {f"train_{name}": value.detach().float() for name, value in values.items()}

    def _codes(self, images: Tensor, generator: torch.Generator) -> Tensor:
        import torch

        shape = len(images), self.options.latent
        return torch.randn(shape, generator=generator, device=images.device)


def _only(network: nn.Module, part: str, *, frozen_in_training_mode: bool) -> None:
    """Gradients for one of the three networks; set anew for each step, so that none is state."""
    for name, module in network.named_children():
        chosen = name == part
        module.requires_grad_(chosen).train(chosen or frozen_in_training_mode)


def _update(
    optimizer: torch.optim.Optimizer, loss: Tensor, backward: Callable[[Tensor], None]
) -> None:
    """One step of one optimiser."""
    optimizer.zero_grad()
    backward(loss)
    optimizer.step()


METHOD = Adversarial
