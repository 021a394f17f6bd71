"""Training, one loop for all methods: seeded per step, resumable, whole or absent."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor

from uad.config import Train
from uad.core.errors import DataError
from uad.core.files import atomic_path, text_digest, write_json
from uad.core.seeds import derive_seed
from uad.methods.base import Method
from uad.networks.execution import (
    Compiled,
    autocast,
    device_of,
    numerics,
    one_graph,
    reuse_freed_memory,
)
from uad.train.batches import SliceBatches, TrainingSet
from uad.train.checkpoint import discard_foreign, load_checkpoint, save_checkpoint
from uad.train.stop import StoppedError, StopRequest

log = logging.getLogger(__name__)

#: Of the checkpoint; one of another format is discarded.
FORMAT = 3
#: Seconds between two progress lines.
PROGRESS_SECONDS = 10.0


class Trainer:
    """A method in training. All randomness of a batch derives from the seed and its number.

    The best weights stay on the device: early on every epoch is the best so far, and writing a
    network takes longer than such an epoch.
    """

    def __init__(
        self, method: Method, loop: Train, seed: int, batches: tuple[SliceBatches, SliceBatches]
    ) -> None:
        self.method, self.loop, self.seed = method, loop, seed
        self.training, self.validation = batches
        self.stop = StopRequest()
        self.epoch, self.steps = 0, 0
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Tensor] = {}
        self.best_loss, self.best_epoch = np.inf, 0

    def build(self) -> None:
        """Make network and optimisers."""
        device = device_of(self.loop.accelerator)
        torch.manual_seed(derive_seed(self.seed, "weights"))
        self.network = self.method.build().to(device)
        self.device = next(self.network.parameters()).device
        compiled = self.loop.compile != "off" and self.method.automatic  # no second derivatives
        on_gpu = "channels_last" if compiled and device == "cuda" else "contiguous"
        layout = on_gpu if self.loop.layout == "auto" else self.loop.layout
        if layout == "channels_last":
            self.network.to(memory_format=torch.channels_last)
        self.forward = self.network
        if compiled:
            self.forward = Compiled(self.network, self.loop.compile, self.loop.batch_size)
            self.method.quality_loss = one_graph(self.method.quality_loss, self.loop.compile)
        half = self.loop.precision == "16-mixed" and device == "cuda"
        self.scaler = torch.amp.GradScaler(device, enabled=half)
        self.optimizers = self.method.optimizers(self.network, self.loop.learning_rate)
        for optimizer in self.optimizers:
            optimizer.register_step_post_hook(self._count_step)

    def _count_step(self, *arguments: Any) -> None:
        self.steps += 1

    def _generator(self, *seed: object) -> torch.Generator:
        number = derive_seed(self.seed, *seed)
        torch.manual_seed(number)  # layers such as dropout draw from the global generator
        return torch.Generator(device=self.device).manual_seed(number)

    def update(self, loss: Tensor, optimizer: int = 0) -> None:
        """One step of an optimiser, unless a gradient has overflowed (in float16 alone)."""
        chosen = self.optimizers[optimizer]
        chosen.zero_grad()
        with torch.autocast(self.device.type, enabled=False):
            self.scaler.scale(loss).backward()
        self.scaler.step(chosen)
        self.scaler.update()

    def training_step(self, images: Tensor, masks: Tensor, number: int) -> dict[str, Tensor]:
        """Losses of batch ``number`` of the epoch, detached."""
        generator = self._generator("train", self.epoch * len(self.training) + number)
        progress = self.epoch / self.loop.epochs
        with autocast(self.loop.precision, self.device.type):
            return self.method.training_step(
                self.forward, images, masks, generator, self.update, progress
            )

    def validation_step(self, images: Tensor, masks: Tensor, number: int) -> dict[str, Tensor]:
        """Healthy validation loss of a batch, with the same corruption as training."""
        epoch = 0 if self.validation.fixed else self.epoch
        generator = self._generator("validation", epoch, number)
        with autocast(self.loop.precision, self.device.type), torch.inference_mode():
            loss = self.method.validation_loss(self.forward, images, masks, generator)
        return {"val_loss": loss}

    def validate(self) -> float:
        """Healthy validation loss."""
        self.network.eval()
        return self._mean(self.validation_step, self.validation)["val_loss"]

    def _mean(
        self, step: Callable[[Tensor, Tensor, int], dict[str, Tensor]], batches: SliceBatches
    ) -> dict[str, float]:
        """Mean over the samples of what a step gives for each batch, summed on the device."""
        batches.epoch = self.epoch
        sums: dict[str, Any] = {}
        samples = 0
        for number, (images, masks) in enumerate(batches):
            values = step(images.to(self.device), masks.to(self.device), number)
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value.float() * len(images)
            samples += len(images)
        return {name: float(total / samples) for name, total in sums.items()}

    def validate_untrained(self) -> None:
        """The first row of the history."""
        row = {"epoch": 0, "step": 0, "train_loss": None, "val_loss": self.validate()}
        self.history.append(row)

    def run_epoch(self) -> None:
        """Train, validate if it is time, and add a row to the history."""
        validates = (self.epoch + 1) % self.loop.validate_every == 0
        self.network.train()
        losses = self._mean(self.training_step, self.training)
        loss = self.validate() if validates else None
        if validates and self.method.selectable(self.epoch / self.loop.epochs):
            self._keep_if_best(loss)
        self.epoch += 1
        row = {"epoch": self.epoch, "step": self.steps, "train_loss": losses.pop("train_loss")}
        self.history.append({**row, "val_loss": loss, **dict(sorted(losses.items()))})

    def _keep_if_best(self, loss: float) -> None:
        """The first of equals; a loss that is not finite only for want of a better one."""
        if self.best and not loss < self.best_loss:
            return
        self.best_loss, self.best_epoch = loss if loss == loss else np.inf, self.epoch + 1
        self.best = {key: value.clone() for key, value in self.network.state_dict().items()}

    def run(self, checkpoint: Path) -> None:
        """Train from where this is to the last epoch, with checkpoints."""
        loop, total, first = self.loop, self.loop.epochs, self.epoch
        started = printed = written = time.monotonic()
        while self.epoch < total:
            if self.stop.received:
                raise StoppedError(
                    f"Stopped by a signal after epoch {self.epoch} of {total}; the same command "
                    "goes on from there."
                )
            self.run_epoch()
            epoch, row, now = self.epoch, self.history[-1], time.monotonic()
            if not np.isfinite(row["train_loss"]):
                raise DataError(
                    f"{checkpoint.parent.parent}: the training loss is not finite in epoch "
                    f"{epoch}; lower train.learning_rate or use train.precision 32-true."
                )
            if now - printed >= PROGRESS_SECONDS or epoch == total:
                printed = now
                left = timedelta(seconds=round((now - started) / (epoch - first) * (total - epoch)))
                losses = [
                    f"{k} {row[k]:.4g}" for k in ("train_loss", "val_loss") if row[k] is not None
                ]
                print(f"epoch {epoch} of {total}: {', '.join(losses)}; {left} left", flush=True)
            due = epoch % loop.checkpoint_every == 0 and now - written >= loop.checkpoint_seconds
            if due or self.stop.received:
                self.save(checkpoint)
                written = time.monotonic()

    def save(self, path: Path) -> None:
        """Write all that :meth:`load` needs to go on from here."""
        tensors = {f"network/{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"best/{name}": value for name, value in self.best.items()}
        for number, optimizer in enumerate(self.optimizers):
            for parameter, state in optimizer.state_dict()["state"].items():
                for name, value in state.items():
                    tensors[f"optimizer {number}/{parameter}/{name}"] = value
        facts = {
            "epoch": self.epoch,
            "steps": self.steps,
            "history": self.history,
            "best": [self.best_loss, self.best_epoch],
            "scaler": self.scaler.state_dict(),
        }
        save_checkpoint(path, tensors, facts)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint of the same training."""
        tensors, facts = load_checkpoint(path)

        def part(name: str) -> dict[str, Tensor]:
            start = f"{name}/"
            return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}

        self.network.load_state_dict(part("network"))
        for number, optimizer in enumerate(self.optimizers):
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in part(f"optimizer {number}").items():
                parameter, _, name = key.partition("/")
                state.setdefault(int(parameter), {})[name] = value
            groups = optimizer.state_dict()["param_groups"]  # of the config, as before
            optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.scaler.load_state_dict(facts["scaler"])
        self.epoch, self.steps, self.history = facts["epoch"], facts["steps"], facts["history"]
        self.best, (self.best_loss, self.best_epoch) = part("best"), facts["best"]

    def export(self, out: Path, keep: str, identity: dict[str, Any]) -> dict[str, Any]:
        """Write history, identity and weights; facts about them."""
        best = keep == "best"
        weights = self.best if best else self.network.state_dict()
        kept = self.best_epoch if best else self.epoch
        history = pd.DataFrame(self.history)
        history["weights"] = (history["epoch"] == kept).astype(int)  # 1: the epoch that gave them
        with atomic_path(out / "history.csv") as temporary:
            history.to_csv(temporary, index=False, lineterminator="\n", float_format="%.8g")
        write_json(out / "config.json", identity)
        with atomic_path(out / "model.safetensors") as temporary:
            save_file({k: v.cpu().contiguous() for k, v in weights.items()}, temporary)
        losses = history.set_index("epoch")["val_loss"]
        return {
            "seed": self.seed,
            "steps": self.steps,
            "weights_of_epoch": kept,
            "val_loss_before": float(losses.iloc[0]),
            "val_loss_of_weights": float(losses.ffill()[kept]),
            "parameters": sum(p.numel() for p in self.network.parameters()),
            "device": str(self.device),
        }


def train(
    method: Method,
    sets: tuple[TrainingSet, TrainingSet],
    out_dir: str | os.PathLike[str],
    loop: Train,
    *,
    keep: str,
    fixed_validation: bool,
    seed: int,
    identity: dict[str, Any],
) -> dict[str, Any]:
    """Train and validate on two sets of healthy slices; write ``model.safetensors``,
    ``config.json`` and ``history.csv``. Returns facts for the provenance record.

    The weights are those of the ``best`` epoch (lowest validation loss) or of the ``last``. With
    ``fixed_validation`` every validation has the same slices, noise and levels. A checkpoint in
    ``out_dir/checkpoint`` is written as ``loop`` says, and on SIGTERM or SIGUSR1 (see
    :class:`StopRequest`). If the process dies, the next call continues from there and ends with
    the same weights as an uninterrupted one (same device and threads); a checkpoint of another
    ``identity`` (options and data hashes) is discarded.

    Raises:
        DataError: fewer slices than one batch, a loss that is not finite, or no GPU where one
            is asked for.
        StoppedError: a signal has ended the training.
    """
    device = device_of(loop.accelerator)
    _require_a_choice(method, loop)
    reuse_freed_memory()
    out = Path(out_dir)
    checkpoint = out / "checkpoint" / "last.safetensors"
    discard_foreign(checkpoint.parent, text_digest({**identity, "checkpoint_format": FORMAT}))
    healthy, held_out = _placed(*sets, loop, device)
    size, run = loop.batch_size, method.sequence
    draw = derive_seed(seed, "validation")
    batches = (
        SliceBatches(healthy, size, loop.samples_per_volume, seed, True, sequence=run),
        SliceBatches(
            held_out, size, loop.validation_samples_per_volume, draw, False, fixed_validation, run
        ),
    )
    trainer = Trainer(method, loop, seed, batches)
    with trainer.stop.listening(), numerics(loop.precision, loop.deterministic):
        trainer.build()
        resumed = checkpoint.exists()
        if resumed:
            log.info("continuing from %s", checkpoint)
            trainer.load(checkpoint)
        else:
            trainer.validate_untrained()
        trainer.run(checkpoint)
        facts = trainer.export(out, keep, identity)
        shutil.rmtree(checkpoint.parent)
    return {"resumed": resumed, "data_device": str(healthy.images.device), **facts}


def _placed(
    training: TrainingSet, validation: TrainingSet, loop: Train, device: str
) -> tuple[TrainingSet, TrainingSet]:
    """Both sets beside the network, or in host memory (``train.data_device``)."""
    if device == "cpu" or loop.data_device == "host":
        return training, validation
    needed, free = training.nbytes + validation.nbytes, torch.cuda.mem_get_info()[0]
    if loop.data_device == "auto" and needed > free / 2:
        log.info("%.0f MB of slices stay on the host: %.0f MB are free", needed / 1e6, free / 1e6)
        return training, validation
    return training.to(device), validation.to(device)


def _require_a_choice(method: Method, loop: Train) -> None:
    """Some validation must fall where the method lets its weights be chosen."""
    epochs = range(loop.validate_every - 1, loop.epochs, loop.validate_every)
    if not any(method.selectable(epoch / loop.epochs) for epoch in epochs):
        raise DataError(
            f"{loop.epochs} epochs with a validation every {loop.validate_every} have none in the "
            "stage whose weights may be used; raise train.epochs or lower train.validate_every."
        )
