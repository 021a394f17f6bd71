"""From weights to reconstructions: what a job needs that does not train."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from uad.core.errors import DataError
from uad.core.seeds import derive_seed
from uad.methods.base import Method
from uad.networks.execution import Compiled, autocast, from_slices, numerics, ready, to_slices

#: A volume ``(X, Y, Z)`` as the method shall see it, inverted if it inverts; its brain mask; the
#: seed of its noise.
Given = tuple[np.ndarray, np.ndarray, int]


def load_network(method: Method, weights: str | os.PathLike[str], device: str = "cpu") -> nn.Module:
    """The trained network of a method, ready to restore on a device.

    Raises:
        DataError: the weights do not belong to this network.
    """
    network = method.build()
    try:
        network.load_state_dict(load_file(weights))
    except (RuntimeError, OSError) as error:
        raise DataError(f"{weights}: not the weights of this network ({error}).") from error
    return ready(network, device)


@dataclass
class Reconstructor:
    """A method and its network (None if it is not trained), as they restore volumes.

    Attributes:
        t_test: noise level.
        batch: slices per pass; with ``noise_field: per_batch`` all passes over a volume share one
            field, because each starts from the same seed.
        precision, compile: of the network, as in ``train``.
    """

    method: Method
    network: nn.Module | Compiled | None
    t_test: int
    batch: int
    device: str = "cpu"
    precision: str = "32-true"
    compile: str = "off"

    def __post_init__(self) -> None:
        if self.compile != "off" and self.network is not None:
            self.network = Compiled(self.network, self.compile)

    def volumes_per_pass(self, depth: int) -> int:
        """Volumes of so many slices that share a pass; one on a CPU, where more are no faster."""
        alone = self.device == "cpu" or self.method.whole_volume
        return 1 if alone else max(1, self.batch // depth)

    @torch.inference_mode()
    def restore(self, given: Sequence[Given]) -> Tensor:
        """Restore some volumes, more than one in one pass: float32 ``(N, Z, Y, X)`` on the device.

        In [0, 1], or the anomaly scores of a method that scores directly. A volume does not depend
        on the others.
        """
        volumes, masks, seeds = zip(*given, strict=True)
        images, masks = (
            torch.cat([to_slices(part) for part in parts]).unsqueeze(1).to(self.device)
            for parts in (volumes, masks)
        )
        whole = len(given) > 1 or self.method.whole_volume
        shared = self.method.setup.noise_field == "per_batch"
        # on a CPU there is nothing to choose, and setting it imports Inductor, which takes a second
        on_cpu = self.device == "cpu"
        parts = []
        with contextlib.nullcontext() if on_cpu else numerics(self.precision):
            for start in range(0, len(images), len(images) if whole else self.batch):
                part = slice(start, None if whole else start + self.batch)
                generators = [
                    torch.Generator(self.device).manual_seed(
                        seed if shared else derive_seed(seed, start)
                    )
                    for seed in seeds
                ]
                generator = generators if len(given) > 1 else generators[0]
                with autocast(self.precision, self.device):
                    restored = self.method.reconstruct(
                        self.network, images[part], masks[part], self.t_test, generator
                    )
                parts.append(restored.float())
        return torch.cat(parts).unflatten(0, (len(given), -1)).squeeze(2)

    def volume(self, volume: np.ndarray, mask: np.ndarray, seed: int) -> np.ndarray:
        """Restore one volume: float32 ``(X, Y, Z)``."""
        return from_slices(self.restore([(volume, mask, seed)])[0])

    def run(
        self,
        names: Sequence[str],
        depth: int,
        read: Callable[[str], Given],
        write: Callable[[str, np.ndarray], None],
    ) -> None:
        """Restore volumes of so many slices, and hand each to ``write`` with its name.

        While a pass is computed, one thread reads the volumes of the next, and another writes those
        of the last. An error says in which volumes it came up.
        """
        size = self.volumes_per_pass(depth)
        passes = [names[start : start + size] for start in range(0, len(names), size)]

        def read_all(some: Sequence[str]) -> list[Given]:
            return [_naming(name, read, name) for name in some]

        def write_all(some: Sequence[str], restored: Tensor) -> None:
            for name, volume in zip(some, restored, strict=True):
                _naming(name, write, name, from_slices(volume))

        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
            coming = written = None
            for some, following in itertools.zip_longest(passes, passes[1:]):
                given = coming.result() if coming else read_all(some)
                coming = reader.submit(read_all, following) if following else None
                restored = _naming(", ".join(some), self.restore, given)
                if written:
                    written.result()
                written = writer.submit(write_all, some, restored)
            if written:
                written.result()


def _naming(names: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns; an error says in which volumes it came up."""
    try:
        return function(*arguments)
    except DataError as error:
        raise DataError(f"{names}: {error}") from error
    except Exception as error:
        error.add_note(f"in the reconstruction of {names}")
        raise
