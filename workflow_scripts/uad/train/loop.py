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
from uad.networks.execution import autocast, deterministic, device_of, reuse_freed_memory
from uad.train.batches import SliceBatches, TrainingSet
from uad.train.checkpoint import discard_foreign, load_checkpoint, save_checkpoint
from uad.train.stop import StoppedError, StopRequest

log = logging.getLogger(__name__)

#: Of the checkpoint; one of another format is discarded.
FORMAT = 3
#: Seconds between two progress lines.
PROGRESS_SECONDS = 10.0


class ScaledOptimizer:
    """An optimiser that steps through a gradient scaler (enabled for float16 alone)."""

    def __init__(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
        self.optimizer, self.scaler = optimizer, scaler
        self.zero_grad = optimizer.zero_grad

    def step(self) -> None:
        """One step, unless a gradient has overflowed."""
        self.scaler.step(self.optimizer)
        self.scaler.update()


class Trainer:
    """A method in training: its network, optimisers, history and best weights.

    All randomness of a batch derives from the seed and the number of the batch.

    Attributes:
        epoch: epochs that are done.
        steps: steps that the optimisers have taken.
        history: per epoch its number, steps, training losses and, where validated, ``val_loss``.
        best: weights of the validation with the lowest loss, which stay on the device: early on
            every epoch is the best so far, and writing a network takes longer than such an epoch.
    """

    def __init__(self, method: Method, loop: Train, seed: int, fixed_validation: bool) -> None:
        self.method, self.loop, self.seed, self.fixed = method, loop, seed, fixed_validation
        device = device_of(loop.accelerator)
        torch.manual_seed(derive_seed(seed, "weights"))
        self.network = method.build().to(device)
        self.device = next(self.network.parameters()).device
        if loop.compile != "off" and method.automatic:  # others may need second derivatives
            self.network.compile(mode=loop.compile)
        half = loop.precision == "16-mixed" and device == "cuda"
        self.scaler = torch.amp.GradScaler(device, enabled=half)
        optimizers = method.optimizers(self.network, loop.learning_rate)
        self.optimizers = [ScaledOptimizer(optimizer, self.scaler) for optimizer in optimizers]
        for optimizer in optimizers:
            optimizer.register_step_post_hook(self._count_step)
        self.epoch, self.steps = 0, 0
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Tensor] = {}
        self.best_loss, self.best_epoch = np.inf, 0

    def _count_step(self, *arguments: Any) -> None:
        self.steps += 1

    @property
    def progress(self) -> float:
        """Share of the epochs that are done."""
        return self.epoch / self.loop.epochs

    def _generator(self, *parts: object) -> torch.Generator:
        seed = derive_seed(self.seed, *parts)
        torch.manual_seed(seed)  # layers such as dropout draw from the global generator
        return torch.Generator(device=self.device).manual_seed(seed)

    def _backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def training_step(self, batch: dict[str, Tensor], number: int) -> dict[str, Tensor]:
        """Losses of one batch, detached; ``number`` counts from the start of the training."""
        data = self.network, batch["images"], batch["masks"], self._generator("train", number)
        with autocast(self.loop.precision, self.device.type):
            if not self.method.automatic:
                return self.method.training_step(
                    *data, self.optimizers, self._backward, number, self.progress
                )
            loss = self.method.training_loss(*data)
        (optimizer,) = self.optimizers
        optimizer.zero_grad()
        self._backward(loss)
        optimizer.step()
        return {"train_loss": loss.detach()}

    def validation_step(self, batch: dict[str, Tensor], number: int) -> dict[str, Tensor]:
        """Healthy validation loss of one batch, with the same corruption as training."""
        epoch = 0 if self.fixed else self.epoch
        data = batch["images"], batch["masks"], self._generator("validation", epoch, number)
        with autocast(self.loop.precision, self.device.type), torch.inference_mode():
            return {"val_loss": self.method.validation_loss(self.network, *data)}

    def train(self, batches: SliceBatches, stop: StopRequest) -> dict[str, float] | None:
        """Losses of the running epoch; None if it was left because of a signal."""
        self.network.train()
        batches.epoch = self.epoch
        first = self.epoch * len(batches)
        return self._mean(lambda b, i: self.training_step(b, first + i), batches, stop)

    def validate(self, batches: SliceBatches, stop: StopRequest) -> dict[str, float] | None:
        """Healthy validation loss; None if it was left because of a signal."""
        self.network.eval()
        batches.epoch = self.epoch
        return self._mean(self.validation_step, batches, stop)

    def _mean(
        self,
        step: Callable[[dict[str, Tensor], int], dict[str, Tensor]],
        batches: SliceBatches,
        stop: StopRequest,
    ) -> dict[str, float] | None:
        """Mean over the samples of what a step gives for each batch, summed on the device."""
        sums: dict[str, Any] = {}
        samples = 0
        for number, batch in enumerate(batches):
            size = len(batch["images"])
            values = step({key: value.to(self.device) for key, value in batch.items()}, number)
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value.float() * size
            samples += size
            if stop.too_late():
                return None
        return {name: float(total / samples) for name, total in sums.items()}

    def run_epoch(
        self, training: SliceBatches, validation: SliceBatches, stop: StopRequest
    ) -> bool:
        """Train, validate if it is time, and add a row to the history.

        Returns:
            False if it was left because of a signal: then nothing counts.
        """
        validates = (self.epoch + 1) % self.loop.validate_every == 0
        stop.start_epoch(len(training) + validates * len(validation))
        losses = None if stop.received else self.train(training, stop)
        held_out = self.validate(validation, stop) if losses and validates else {}
        if losses is None or held_out is None:
            return False
        loss = held_out.get("val_loss")
        if loss is not None and self.method.selectable(self.progress):
            self._keep_if_best(loss)
        self.epoch += 1
        row = {"train_loss": losses.pop("train_loss"), "val_loss": loss}
        row |= dict(sorted(losses.items()))
        self.history.append({"epoch": self.epoch, "step": self.steps, **row})
        return True

    def _keep_if_best(self, loss: float) -> None:
        """The first of equals; a loss that is not finite only for want of a better one."""
        if self.best and not loss < self.best_loss:
            return
        self.best_loss, self.best_epoch = loss if loss == loss else np.inf, self.epoch + 1
        weights = self.network.state_dict()
        self.best = {key: value.detach().clone() for key, value in weights.items()}

    def save(self, path: Path) -> None:
        """Write all that :meth:`load` needs to go on from here."""
        states = [each.optimizer.state_dict()["state"] for each in self.optimizers]
        tensors = {"network": self.network.state_dict(), "best": self.best}
        tensors |= {f"optimizer {i}": state for i, state in enumerate(states)}
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
        self.network.load_state_dict(tensors["network"])
        for number, each in enumerate(self.optimizers):
            state = tensors.get(f"optimizer {number}", {})
            state = {int(parameter): values for parameter, values in state.items()}
            groups = each.optimizer.state_dict()["param_groups"]  # of the config, as before
            each.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.scaler.load_state_dict(facts["scaler"])
        self.epoch, self.steps, self.history = facts["epoch"], facts["steps"], facts["history"]
        self.best, (self.best_loss, self.best_epoch) = tensors.get("best", {}), facts["best"]


class Progress:
    """A line in the log now and then: epoch, losses and the time that is left."""

    def __init__(self, first: int, total: int) -> None:
        self.first, self.total = first, total
        self._started = self._printed = time.monotonic()

    def show(self, row: dict[str, Any]) -> None:
        """After each epoch; silent if there was a line a moment ago, but for the last epoch."""
        now, epoch = time.monotonic(), row["epoch"]
        if now - self._printed < PROGRESS_SECONDS and epoch < self.total:
            return
        self._printed = now
        rest = (now - self._started) / (epoch - self.first) * (self.total - epoch)
        losses = [f"{k} {row[k]:.4g}" for k in ("train_loss", "val_loss") if row[k] is not None]
        left = timedelta(seconds=round(rest))
        print(f"epoch {epoch} of {self.total}: {', '.join(losses)}; {left} left", flush=True)


def fit(
    trainer: Trainer,
    batches: tuple[SliceBatches, SliceBatches],
    checkpoint: Path,
    stop: StopRequest,
) -> None:
    """Train from where the trainer is to the last epoch, with checkpoints.

    Raises:
        DataError: a loss that is not finite.
        StoppedError: a signal has ended the training.
    """
    loop, total = trainer.loop, trainer.loop.epochs
    saved, written = trainer.epoch, time.monotonic()
    progress = Progress(trainer.epoch, total)
    while trainer.epoch < total:
        if not trainer.run_epoch(*batches, stop):
            where = f"goes on after epoch {saved}" if saved else "begins again"
            raise StoppedError(
                f"Stopped by a signal in epoch {trainer.epoch + 1} of {total}, whose end was not "
                f"near; the same command {where}."
            )
        epoch, row = trainer.epoch, trainer.history[-1]
        if not np.isfinite(row["train_loss"]):
            raise DataError(
                f"{checkpoint.parent.parent}: the training loss is not finite in epoch {epoch}; "
                "lower train.learning_rate or use train.precision 32-true."
            )
        progress.show(row)
        due = time.monotonic() - written >= loop.checkpoint_seconds
        if stop.received or (due and epoch % loop.checkpoint_every == 0):
            trainer.save(checkpoint)
            saved, written = epoch, time.monotonic()
        if stop.received and epoch < total:
            raise StoppedError(
                f"Stopped by a signal after epoch {epoch} of {total}; the same command goes on "
                "from there."
            )


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
    """Train a method and write ``model.safetensors``, ``config.json`` and ``history.csv``.

    A checkpoint in ``out_dir/checkpoint`` is written every ``loop.checkpoint_every`` epochs, but
    not more often than every ``loop.checkpoint_seconds``, and on SIGTERM or SIGUSR1 (see
    :class:`StopRequest`). If the process dies, the next call continues from there and ends with
    the same weights as an uninterrupted one (same device and threads).

    Args:
        method: the method, with its options.
        sets: healthy slices for training and for validation.
        out_dir: where the model goes.
        loop: epochs, batch size, learning rate and so on (``train`` of the config).
        keep: ``best`` (lowest healthy validation loss) or ``last``.
        fixed_validation: the same slices, noise and levels in every validation.
        seed: of this training; see :func:`uad.seeds.derive_seed`.
        identity: what makes this training this one (options, data hashes); a checkpoint of
            another identity is discarded.

    Returns:
        Facts for the provenance record.

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
    sets = _placed(*sets, loop, device)
    batches = _batches(sets, method, loop, seed, fixed_validation)
    with StopRequest() as stop, deterministic():
        trainer = Trainer(method, loop, seed, fixed_validation)
        resumed = checkpoint.exists()
        if resumed:
            log.info("continuing from %s", checkpoint)
            trainer.load(checkpoint)
        else:
            _validate_untrained(trainer, batches[1], stop)
        fit(trainer, batches, checkpoint, stop)
        history, kept = _export(trainer, out, keep, identity)
        shutil.rmtree(checkpoint.parent)
    return {
        "seed": seed,
        "resumed": resumed,
        "steps": trainer.steps,
        "weights_of_epoch": kept,
        "val_loss_before": float(history["val_loss"].iloc[0]),
        "val_loss_of_weights": float(history["val_loss"].ffill()[kept]),
        "parameters": sum(p.numel() for p in trainer.network.parameters()),
        "device": str(trainer.device),
        "data_device": str(sets[0].images.device),
    }


def _validate_untrained(trainer: Trainer, validation: SliceBatches, stop: StopRequest) -> None:
    """The first row of the history; a signal ends the training at once."""
    stop.start_epoch(len(validation))
    losses = None if stop.received else trainer.validate(validation, stop)
    if losses is None or stop.received:
        raise StoppedError(
            "Stopped by a signal before the first epoch; run the same command again."
        )
    trainer.history.append({"epoch": 0, "step": 0, "train_loss": None, **losses})


def _export(
    trainer: Trainer, out: Path, keep: str, identity: dict[str, Any]
) -> tuple[pd.DataFrame, int]:
    """Write history, identity and weights; the history by epoch, and the epoch of the weights."""
    best = keep == "best"
    weights = trainer.best if best else trainer.network.state_dict()
    kept = trainer.best_epoch if best else trainer.epoch
    history = pd.DataFrame(trainer.history)
    history["weights"] = (history["epoch"] == kept).astype(int)  # 1: the epoch that gave them
    with atomic_path(out / "history.csv") as temporary:
        history.to_csv(temporary, index=False, lineterminator="\n", float_format="%.8g")
    write_json(out / "config.json", identity)
    with atomic_path(out / "model.safetensors") as temporary:
        save_file({k: v.cpu().contiguous() for k, v in weights.items()}, temporary)
    return history.set_index("epoch"), kept


def _batches(
    sets: tuple[TrainingSet, TrainingSet], method: Method, loop: Train, seed: int, fixed: bool
) -> tuple[SliceBatches, SliceBatches]:
    """Of training and validation."""
    training = SliceBatches(
        sets[0],
        loop.batch_size,
        loop.samples_per_volume,
        seed,
        drop_last=True,
        sequence=method.sequence,
    )
    validation = SliceBatches(
        sets[1],
        loop.batch_size,
        loop.validation_samples_per_volume,
        derive_seed(seed, "validation"),
        drop_last=False,
        fixed=fixed,
        sequence=method.sequence,
    )
    return training, validation


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
