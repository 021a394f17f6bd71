"""What a method is: the interface between a row of a table and the workflow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from uad.core.strict import Strict

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    #: Steps an optimiser, by its number, with the gradients of a loss.
    Update = Callable[[Tensor, int], None]


class MethodOptions(Strict):
    """Base of a family's options: unknown keys are refused."""


#: Of a U-Net.
PixelBlock = Annotated[
    int,
    Field(
        ge=1,
        description="Sides of the blocks of pixels that become channels before the network and "
        "pixels again behind it; 1: none do. On a CPU 2 makes training steps three times as fast.",
    ),
]


def unet_problems(
    channels: list[int], groups: int, image_size: tuple[int, int], pixel_block: int = 1
) -> list[str]:
    """Why a U-Net with these channels per level and norm groups cannot work on such slices."""
    found = [
        f"norm_num_groups {groups} does not divide {c} channels" for c in channels if c % groups
    ]
    factor = pixel_block * 2 ** (len(channels) - 1)
    if any(side % factor for side in image_size):
        blocks = f" on blocks of {pixel_block}x{pixel_block} pixels" if pixel_block > 1 else ""
        found.append(
            f"{len(channels)} levels{blocks} need slices divisible by {factor}, not {image_size}"
        )
    return found


@dataclass(frozen=True)
class Setup:
    """What a method is told about the run.

    Attributes:
        loss: name of the per-pixel quality map that training minimises.
        quality: options of that map (``alpha``, ``window``, ``clamp``).
        noise_field: ``per_batch`` (one field for all slices, as the authors) or ``per_sample``.
        image_size: rows and columns of a slice.
    """

    loss: str = "l1"
    quality: dict[str, Any] = field(default_factory=dict)
    noise_field: str = "per_batch"
    image_size: tuple[int, int] = (96, 96)


class Method:
    """A reconstruction method: what it trains on a batch, how it restores a volume.

    Images are float tensors ``(B, 1, H, W)`` with values in [0, 1] (after the AIR transform, if
    the method uses it) and background 0; masks have the same shape and mark the brain. All
    randomness comes from ``generator``; layers such as dropout draw from the global generator,
    which is seeded for each batch. The training loop, checkpoints, precision and devices are not
    a method's business. Families override what differs, with the types that are given here.
    """

    #: pydantic model of ``models.<name>.options`` in the config
    Options: ClassVar[type[MethodOptions]] = MethodOptions
    #: False: there is nothing to train, and ``network`` is None everywhere.
    trained: ClassVar[bool] = True
    #: True: :meth:`reconstruct` returns the anomaly score itself (``score: direct``).
    scores: ClassVar[bool] = False
    #: False: it has a :meth:`training_step` of its own (adversarial training).
    automatic: ClassVar[bool] = True
    #: The losses that a method can be trained with; None: any quality map; (): it is not trained.
    losses: ClassVar[tuple[str, ...] | None] = None
    #: True: it draws noise through :meth:`noise`, so that ``protocol.noise_field`` matters.
    noisy: ClassVar[bool] = False
    #: True: :meth:`reconstruct` always gets all slices of a volume in one call.
    whole_volume: ClassVar[bool] = False

    def __init__(self, options: dict[str, Any], setup: Setup) -> None:
        self.options = self.Options.model_validate(options)
        self.setup = setup

    @classmethod
    def problems(cls, options: MethodOptions, image_size: tuple[int, int]) -> list[str]:
        """What keeps these options from working on slices of this size (rows, columns)."""
        return []

    @property
    def sequence(self) -> int:
        """Neighbouring slices per training sample.

        With ``n`` above 1 a batch of ``B`` samples comes as ``(B * n, 1, H, W)``, the slices
        of a sample next to each other in axial order.
        """
        return 1

    @property
    def sees_lesions(self) -> bool:
        """Whether :meth:`reconstruct` gets the annotated lesion in place of the image."""
        return False

    def build(self) -> nn.Module:
        """The network, freshly initialised from the global torch seed."""
        raise NotImplementedError

    def training_loss(
        self, network: nn.Module, images: Tensor, masks: Tensor, generator: torch.Generator
    ) -> Tensor:
        """The scalar to minimise for one batch."""
        raise NotImplementedError

    def training_step(
        self,
        network: nn.Module,
        images: Tensor,
        masks: Tensor,
        generator: torch.Generator,
        update: Update,
        progress: float,
    ) -> dict[str, Tensor]:
        """Train the network, in training mode, on one batch; ``progress`` is that of the epochs.

        ``update(loss, i)`` steps the optimiser ``i`` of :meth:`optimizers`. Returns detached
        scalars to record: ``train_loss`` and any other ``train_<name>``.
        """
        loss = self.training_loss(network, images, masks, generator)
        update(loss, 0)
        return {"train_loss": loss.detach()}

    def validation_loss(
        self, network: nn.Module, images: Tensor, masks: Tensor, generator: torch.Generator
    ) -> Tensor:
        """What selects the best weights, on healthy validation slices."""
        return self.training_loss(network, images, masks, generator)

    def selectable(self, progress: float) -> bool:
        """Whether weights of this point of the training may be selected as the best."""
        return True

    def reconstruct(
        self,
        network: nn.Module,
        images: Tensor,
        masks: Tensor,
        t_test: int,
        generator: torch.Generator | list[torch.Generator],
    ) -> Tensor:
        """The healthy-looking version of neighbouring axial slices ``(D, 1, H, W)`` of a volume.

        Or of several volumes of equal size, one after the other, with a list of their generators
        (for :meth:`noise`); never with :attr:`whole_volume`. The network is in evaluation mode.
        ``t_test`` is the noise level, 1 to the number of time steps. The result is on the scale of
        ``images``, not clamped; with ``scores``, it is the anomaly score. Here: one pass of the
        network, whose background is set to 0.
        """
        return network(images) * masks

    def optimizers(
        self, network: nn.Module, learning_rate: float
    ) -> Sequence[torch.optim.Optimizer]:
        """The optimisers of the network; more than one only with ``automatic = False``."""
        return [self.optimizer(network.parameters(), learning_rate)]

    def optimizer(
        self, parameters: Iterable[Tensor], learning_rate: float, **options: Any
    ) -> torch.optim.Optimizer:
        """Adam, as all methods of the paper; on a GPU one kernel for all parameters."""
        import torch

        parameters = list(parameters)
        fused = any(parameter.is_cuda for parameter in parameters)
        return torch.optim.Adam(parameters, lr=learning_rate, fused=fused or None, **options)

    def quality(self, images: Tensor, reconstruction: Tensor) -> Tensor:
        """The training quality map (Eq. 1 with the method's loss)."""
        from uad.iqa import quality_map

        return quality_map(self.setup.loss, images, reconstruction, **self.setup.quality)

    def quality_loss(self, images: Tensor, reconstruction: Tensor) -> Tensor:
        """Mean of :meth:`quality`."""
        return self.quality(images, reconstruction).mean()

    def noise(
        self,
        images: Tensor,
        generator: torch.Generator | list[torch.Generator],
        name: str,
        **options: Any,
    ) -> Tensor:
        """Noise of the images' shape, by a function of :mod:`uad.noise`: one field per batch (of
        each volume) or one per sample.
        """
        import torch

        from uad import noise

        if isinstance(generator, list):
            pairs = zip(images.chunk(len(generator)), generator, strict=True)
            return torch.cat([self.noise(*pair, name, **options) for pair in pairs])
        shape = tuple(images.shape)
        if self.setup.noise_field == "per_batch":
            shape = (1, *shape[1:])
        draw = getattr(noise, name)
        drawn = draw(shape, generator=generator, device=images.device, **options)
        return drawn.to(images.dtype).expand_as(images)


class Untrained(Method):
    """A method that has nothing to train and scores whole volumes directly."""

    trained = False
    losses = ()
    scores = True
    whole_volume = True
