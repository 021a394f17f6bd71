"""Training, once for all methods, by Lightning: seeded per step, resumable, whole or absent."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, Checkpoint
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.trainer.states import TrainerFn
from safetensors.torch import save_file
from torch import Tensor, nn

from uad.config import Train
from uad.core.errors import DataError, UadError
from uad.core.files import atomic_path, text_digest, write_json
from uad.core.seeds import derive_seed
from uad.evaluate.reconstruct import device_of, reuse_freed_memory, to_slices
from uad.methods.base import Method
from uad.train.checkpoint import SafetensorsCheckpointIO

log = logging.getLogger(__name__)

#: The metric that chooses the best weights: the validation loss, or infinity where a method
#: says that its weights may not be chosen yet.
SELECTION = "selection"

#: Of the checkpoint: one without the best weights (before 2) cannot be continued.
FORMAT = 2

#: Signals that mean: stop soon (SLURM before a time limit, at preemption and at scancel).
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
#: Seconds after such a signal within which an epoch must end to be finished and saved. In a SLURM
#: job the signal comes two minutes before the time limit (profiles/slurm); a job that is cancelled
#: or preempted is killed after 30 s (KillWait), and then has what it would have had by leaving.
GRACE = 110.0 if "SLURM_JOB_ID" in os.environ else 20.0


class StoppedError(UadError):
    """A signal has ended the training; the same command goes on."""


@dataclass(frozen=True)
class TrainingSet:
    """Volumes in memory, ready to be sliced.

    Attributes:
        images: ``(N, Z, Y, X)`` float32 in [0, 1].
        masks: bool, same shape and device.
        slices: for each volume the axial slices that may be drawn.
    """

    images: Tensor
    masks: Tensor
    slices: list[np.ndarray]

    @classmethod
    def from_volumes(
        cls, volumes: np.ndarray, masks: np.ndarray, slices: Sequence[np.ndarray]
    ) -> TrainingSet:
        """From arrays in NIfTI order ``(N, X, Y, Z)``."""
        return cls(to_slices(volumes), to_slices(masks), list(slices))

    @property
    def nbytes(self) -> int:
        """Memory of images and masks."""
        return self.images.nbytes + self.masks.nbytes

    def to(self, device: torch.device | str) -> TrainingSet:
        """The same slices on a device."""
        return replace(self, images=self.images.to(device), masks=self.masks.to(device))


class SliceBatches:
    """Random slices in batches: the same number from each volume, new ones each epoch.

    With ``sequence`` above 1 a sample is that many neighbours among the slices that may be
    drawn (the last one repeated where a volume has fewer).

    Epoch ``e`` is drawn from ``(seed, e)`` alone, so that a resumed run draws
    what an uninterrupted one would have drawn. A batch is an index operation on the device of
    the data, which gets the numbers of an epoch's slices once.
    """

    def __init__(
        self,
        data: TrainingSet,
        batch_size: int,
        per_volume: int,
        seed: int,
        *,
        drop_last: bool,
        fixed: bool = False,
        sequence: int = 1,
    ) -> None:
        self.sequence = sequence
        self.data, self.batch_size, self.per_volume = data, batch_size, per_volume
        self.seed, self.drop_last, self.fixed = seed, drop_last, fixed
        self.epoch = 0
        self.batch_sampler = SimpleNamespace(sampler=self)  # where Lightning looks for set_epoch
        if drop_last and len(self) == 0:
            raise DataError(
                f"{len(data.images)} training volumes with {per_volume} slice(s) each do not fill "
                f"one batch of {batch_size}: raise train.samples_per_volume or lower "
                "train.batch_size."
            )

    def set_epoch(self, epoch: int) -> None:
        """Choose the draw of the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        total = len(self.data.images) * self.per_volume
        return total // self.batch_size if self.drop_last else -(-total // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        epoch = 0 if self.fixed else self.epoch
        rng = np.random.default_rng(derive_seed(self.seed, "slices", epoch))
        volume = np.repeat(np.arange(len(self.data.images)), self.per_volume)
        number = np.concatenate([self._draw(slices, rng) for slices in self.data.slices])
        order = rng.permutation(len(volume)) if self.drop_last else np.arange(len(volume))
        order = order[: len(self) * self.batch_size]
        where = np.stack((np.repeat(volume[order], self.sequence), number[order].ravel()))
        where = torch.from_numpy(where).to(self.data.images.device)
        for part in where.split(self.batch_size * self.sequence, dim=1):
            yield {
                "images": self.data.images[tuple(part)].unsqueeze(1),
                "masks": self.data.masks[tuple(part)].unsqueeze(1),
            }

    def _draw(self, slices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Slice numbers ``(per_volume, sequence)`` of one volume for one epoch."""
        starts = np.arange(max(1, len(slices) - self.sequence + 1))
        chosen = rng.choice(starts, self.per_volume, replace=len(starts) < self.per_volume)
        return slices[np.minimum(chosen[:, None] + np.arange(self.sequence), len(slices) - 1)]


class ReconstructionModule(pl.LightningModule):
    """Joins a method to Lightning. All randomness of a batch derives from (seed, its number)."""

    def __init__(
        self, method: Method, network: nn.Module, learning_rate: float, seed: int, fixed: bool
    ) -> None:
        super().__init__()
        self.method, self.network = method, network
        self.learning_rate, self.seed, self.fixed = learning_rate, seed, fixed
        self.automatic_optimization = method.automatic
        self.recorded: list[str] = []

    def _generator(self, *parts: object) -> torch.Generator:
        seed = derive_seed(self.seed, *parts)
        torch.manual_seed(seed)  # layers such as dropout draw from the global generator
        return torch.Generator(device=self.device).manual_seed(seed)

    @property
    def progress(self) -> float:
        """Share of the epochs that are done."""
        return self.current_epoch / max(self.trainer.max_epochs or 1, 1)

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor | None:
        """Loss of one batch; a method that is not automatic takes its steps here."""
        step = self.current_epoch * self.trainer.num_training_batches + index
        data = self.network, batch["images"], batch["masks"], self._generator("train", step)
        size = len(batch["images"])
        if self.automatic_optimization:
            loss = self.method.training_loss(*data)
            self.log("train_loss", loss, on_epoch=True, on_step=False, batch_size=size)
            return loss
        optimizers = self.optimizers(use_pl_optimizer=True)
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        values = self.method.training_step(
            *data, optimizers, self.manual_backward, step, self.progress
        )
        self.log_dict(values, on_epoch=True, on_step=False, batch_size=size)
        self.recorded = sorted(values.keys() - {"train_loss"})
        return None

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        """Healthy validation loss, with the same corruption as training."""
        epoch = 0 if self.fixed else self.current_epoch
        generator = self._generator("validation", epoch, index)
        loss = self.method.validation_loss(self.network, batch["images"], batch["masks"], generator)
        size = len(batch["images"])
        self.log("val_loss", loss, prog_bar=True, batch_size=size)
        comparable = self.method.selectable(self.progress)
        self.log(SELECTION, loss if comparable else torch.inf, batch_size=size)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """The method's optimisers."""
        return list(self.method.optimizers(self.network, self.learning_rate))


class History(Callback):
    """Epoch, step, training and validation loss; part of the checkpoint, so that it resumes."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, trainer: pl.Trainer, epoch: int, others: Sequence[str] = ()) -> None:
        """Append what Lightning has measured; it never forgets a metric, so name the others."""
        metrics = trainer.callback_metrics
        row: dict[str, Any] = {"epoch": epoch, "step": trainer.global_step}
        for key in ("train_loss", "val_loss", *others):
            row[key] = float(metrics[key]) if key in metrics else None
        self.rows.append(row)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: ReconstructionModule) -> None:
        """One row per epoch; the validation loss only where validation ran."""
        self.add(trainer, trainer.current_epoch + 1, module.recorded)
        if not np.isfinite(self.rows[-1]["train_loss"]):
            raise DataError(
                f"{trainer.default_root_dir}: the training loss is not finite in epoch "
                f"{trainer.current_epoch + 1}; lower train.learning_rate or use "
                "train.precision 32-true."
            )
        every = trainer.check_val_every_n_epoch or 1
        if (trainer.current_epoch + 1) % every:
            self.rows[-1]["val_loss"] = None

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.rows = [dict(row) for row in state_dict["rows"]]


class Best(Callback):
    """The weights of the validation with the lowest selection metric; part of the checkpoint.

    They stay on the device: early on every epoch is the best so far, and writing a network takes
    longer than such an epoch.
    """

    def __init__(self) -> None:
        self.score: float | None = None
        self.epoch = 0
        self.weights: dict[str, Tensor] = {}

    def on_validation_end(self, trainer: pl.Trainer, module: ReconstructionModule) -> None:
        """Copy the weights if they are better; the validation before the training has no part."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        score = float(trainer.callback_metrics[SELECTION])
        score = score if score == score else np.inf  # a loss that is NaN is worse than any
        if self.score is None or score < self.score:
            self.score, self.epoch = score, trainer.current_epoch + 1
            self.weights = {k: v.detach().clone() for k, v in module.network.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"score": self.score, "epoch": self.epoch, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.score, self.epoch = state_dict["score"], state_dict["epoch"]
        self.weights = dict(state_dict["weights"])


class Progress(Callback):
    """A line in the log now and then: epoch, loss and the time that is left.

    Args:
        every: seconds between two lines.
    """

    def __init__(self, every: float = 10.0) -> None:
        self.every = every

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """The clock starts; a resumed training has epochs behind it."""
        self._begun = self._told = time.monotonic()
        self._first = trainer.current_epoch

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Say something, unless that was a moment ago."""
        now, epoch, total = time.monotonic(), trainer.current_epoch + 1, trainer.max_epochs or 0
        if now - self._told < self.every and epoch < total:
            return
        self._told = now
        rest = (now - self._begun) / (epoch - self._first) * (total - epoch)
        losses = [
            f"{name} {float(trainer.callback_metrics[name]):.4g}"
            for name in ("train_loss", "val_loss")
            if name in trainer.callback_metrics
        ]
        left = timedelta(seconds=round(rest))
        print(f"epoch {epoch} of {total}: {', '.join(losses)}; {left} left", flush=True)


class Saving(Checkpoint):
    """Writes the checkpoint now and then, and ends a training that gets one of :data:`SIGNALS`.

    After a signal the epoch is finished and saved if it ends within :data:`GRACE` at the pace of
    its batches so far (a validation batch counts as one); else the training stops at the next
    batch, and what the last checkpoint holds stands. In the last epoch it goes on to the results.

    Use it around the training as a context manager, which listens to the signals, and as the
    last callback, because what it saves has to contain what the others have done.

    Args:
        last: the checkpoint to write.
        every: epochs between two checkpoints.
        seconds: and the least time between them: on a GPU an epoch can be shorter than a write.
        validation: batches of a validation.
    """

    def __init__(self, last: Path, every: int, seconds: float, validation: int) -> None:
        self.last, self.every, self.seconds = last, every, seconds
        self.validation = validation
        self._written = time.monotonic()
        self.deadline: float | None = None  # of the monotonic clock, once a signal has come
        self.saved = 0  # epochs that the checkpoint holds
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Saving:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in SIGNALS}
            self._listen()
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _listen(self) -> None:
        """Lightning puts its own handlers in place, which leave at once and save nothing."""
        for number in self._before:
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.deadline is None:
            self.deadline = time.monotonic() + GRACE
            # not through logging: the signal may have come in the middle of a line of it
            os.write(2, f"\n{signal.Signals(number).name}: stopping the training\n".encode())

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """The validation before the first epoch begins only if no signal came before it."""
        self._listen()
        self._leave_before_the_first_epoch(trainer)

    def on_validation_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        """Go on only to the end of an epoch that is near."""
        self._leave_before_the_first_epoch(trainer)
        if trainer.state.fn == TrainerFn.FITTING:
            self._count(trainer)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """A resumed training starts after the epochs of its checkpoint."""
        self._listen()
        self.saved, self._written = trainer.current_epoch, time.monotonic()

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """No epoch begins after a signal."""
        if self.deadline is not None:
            self._leave(trainer)
        validates = (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1) == 0
        self._batches = trainer.num_training_batches + validates * self.validation
        self._done, self._begun = 0, time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        """Go on only to the end of an epoch that is near."""
        self._count(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Save if it is time; after a signal save anyway and leave, unless it was the last one."""
        epoch, stopping = trainer.current_epoch + 1, self.deadline is not None
        due = time.monotonic() - self._written >= self.seconds
        if stopping or (due and epoch % self.every == 0):
            trainer.save_checkpoint(self.last)
            self.saved, self._written = epoch, time.monotonic()
        if stopping and epoch < (trainer.max_epochs or 0):
            raise StoppedError(
                f"Stopped by a signal after epoch {epoch} of {trainer.max_epochs}; the same "
                "command goes on from there."
            )

    def _count(self, trainer: pl.Trainer) -> None:
        """One batch of the epoch is done; after a signal, leave if the rest takes too long."""
        self._done += 1
        if self.deadline is None:
            return
        now = time.monotonic()
        rest = (now - self._begun) / self._done * (self._batches - self._done)
        if now + rest > self.deadline:
            self._leave(trainer)

    def _leave_before_the_first_epoch(self, trainer: pl.Trainer) -> None:
        if self.deadline is not None and trainer.state.fn == TrainerFn.VALIDATING:
            raise StoppedError(
                "Stopped by a signal before the first epoch; run the same command again."
            )

    def _leave(self, trainer: pl.Trainer) -> None:
        where = f"goes on after epoch {self.saved}" if self.saved else "begins again"
        raise StoppedError(
            f"Stopped by a signal in epoch {trainer.current_epoch + 1} of {trainer.max_epochs}, "
            f"whose end was not near; the same command {where}."
        )


def train(
    method: Method,
    training: TrainingSet,
    validation: TrainingSet,
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
    :class:`Saving`). If the process dies, the next
    call continues from there and ends with the same weights as an uninterrupted one (same
    device and threads).

    Args:
        method: the method, with its options.
        training: healthy training slices.
        validation: healthy validation slices.
        out_dir: where the model goes.
        loop: epochs, batch size, learning rate and so on (``train`` of the config).
        keep: ``best`` (lowest healthy validation loss) or ``last``.
        fixed_validation: the same slices, noise and levels in every validation.
        seed: of this training; see :func:`uad.core.seeds.derive_seed`.
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
    training, validation = _placed(training, validation, loop, device)
    out = Path(out_dir)
    checkpoints = out / "checkpoint"
    resume = checkpoints / "last.safetensors"
    _discard_foreign(checkpoints, text_digest({**identity, "checkpoint_format": FORMAT}))
    batches = SliceBatches(
        training,
        loop.batch_size,
        loop.samples_per_volume,
        seed,
        drop_last=True,
        sequence=method.sequence,
    )
    held_out = SliceBatches(
        validation,
        loop.batch_size,
        loop.validation_samples_per_volume,
        derive_seed(seed, "validation"),
        drop_last=False,
        fixed=fixed_validation,
        sequence=method.sequence,
    )
    every, seconds = loop.checkpoint_every, loop.checkpoint_seconds
    with Saving(resume, every, seconds, len(held_out)) as saving:
        torch.manual_seed(derive_seed(seed, "weights"))
        module = ReconstructionModule(
            method, method.build(), loop.learning_rate, seed, fixed=fixed_validation
        )
        if loop.compile != "off" and method.automatic:  # others may need second derivatives
            module.network.compile(mode=loop.compile)
        history, best = History(), Best()
        trainer = _trainer(out, loop, [history, *([best] if keep == "best" else []), saving])
        resumed = resume.exists()
        with warnings.catch_warnings():
            # advice that does not apply: our loaders are index operations in memory, one device
            warnings.filterwarnings("ignore", ".*does not have many workers.*")
            warnings.filterwarnings("ignore", ".*Checkpoint directory.*exists and is not empty.*")
            warnings.filterwarnings("ignore", ".*`srun` command is available.*")
            if resumed:
                log.info("continuing from %s", resume)
            else:
                trainer.validate(module, held_out, verbose=False)
                history.add(trainer, 0)
            trainer.fit(module, batches, held_out, ckpt_path=resume if resumed else None)
        frame = pd.DataFrame(history.rows)
        if keep == "best":
            export, kept = best.weights, best.epoch
        else:
            export, kept = module.network.state_dict(), loop.epochs
        # 1: the epoch that gave the weights
        frame["weights"] = (frame["epoch"] == kept).astype(int)
        with atomic_path(out / "history.csv") as temporary:
            frame.to_csv(temporary, index=False, lineterminator="\n", float_format="%.8g")
        write_json(out / "config.json", identity)
        with atomic_path(out / "model.safetensors") as temporary:
            save_file({k: v.cpu().contiguous() for k, v in export.items()}, temporary)
        shutil.rmtree(checkpoints)
    return {
        "seed": seed,
        "resumed": resumed,
        "steps": int(frame["step"].max()),
        "weights_of_epoch": kept,
        "val_loss_before": float(frame["val_loss"].iloc[0]),
        "val_loss_of_weights": float(frame.set_index("epoch")["val_loss"].ffill()[kept]),
        "parameters": sum(p.numel() for p in module.network.parameters()),
        "device": str(trainer.strategy.root_device),
        "data_device": str(training.images.device),
    }


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


def _trainer(out: Path, loop: Train, callbacks: list[Callback]) -> pl.Trainer:
    """Lightning's loop on one device, the same inside a SLURM job as outside."""
    return pl.Trainer(
        max_epochs=loop.epochs,
        accelerator=loop.accelerator,
        devices=1,
        precision=loop.precision,
        callbacks=[*callbacks, Progress()],
        enable_progress_bar=False,  # the output is a log
        # the environment: it would find SLURM's, count its tasks and requeue by itself
        plugins=[SafetensorsCheckpointIO(), LightningEnvironment()],
        logger=False,
        check_val_every_n_epoch=loop.validate_every,
        num_sanity_val_steps=0,
        default_root_dir=out,
        deterministic="warn",
        enable_model_summary=False,
    )


def _require_a_choice(method: Method, loop: Train) -> None:
    """Some validation must fall where the method lets its weights be chosen."""
    epochs = range(loop.validate_every - 1, loop.epochs, loop.validate_every)
    if not any(method.selectable(epoch / loop.epochs) for epoch in epochs):
        raise DataError(
            f"{loop.epochs} epochs with a validation every {loop.validate_every} have none in the "
            "stage whose weights may be used; raise train.epochs or lower train.validate_every."
        )


def _discard_foreign(checkpoints: Path, identity: str) -> None:
    """Keep a checkpoint directory only if it belongs to this very training."""
    marker = checkpoints / "identity.json"
    try:
        known = json.loads(marker.read_text())["identity"]
    except (OSError, ValueError, KeyError):
        known = None
    if checkpoints.exists() and known != identity:
        log.warning("%s is of another configuration or version: starting anew", checkpoints)
        shutil.rmtree(checkpoints)
    write_json(marker, {"identity": identity})
