"""Training: every method learns, seeds decide everything, a killed job loses nothing."""

import hashlib
import json
import os
import re
import signal
import textwrap
from functools import cache
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from tools import forks
from uad.config import Train
from uad.core.errors import DataError
from uad.core.files import text_digest
from uad.evaluate.reconstruct import load_network, reconstruct_volume
from uad.methods import load
from uad.methods.base import Setup
from uad.train import loop as training
from uad.train import stop as training_stop
from uad.train.batches import SliceBatches, TrainingSet
from uad.train.checkpoint import load_checkpoint, save_checkpoint
from uad.train.loop import Trainer, train
from uad.train.stop import SIGNALS, StoppedError, StopRequest

torch.set_num_threads(1)
SIZE = 24
UNET = {"channels": [8, 16], "num_res_blocks": 1, "num_head_channels": 8, "norm_num_groups": 4}
METHODS = {
    "ddpm": ("diffusion", {"network": UNET}, "l1"),
    "pddpm": ("diffusion", {"network": {**UNET, "scale_shift": True}, "patch_grid": [2, 2]}, "l1"),
    "pddpm-iqa": (
        "diffusion",
        {"network": {**UNET, "scale_shift": True}, "patch_grid": [2, 2]},
        "fusion",
    ),
    "dae": ("denoising", {"channels": [8, 16], "norm_num_groups": 4, "noise_resolution": 6}, "l2"),
}
#: Steps its own optimisers, in two stages.
ADVERSARIAL = ("adversarial", {"channels": [8, 8], "latent": 4, "critic_steps": 2}, "l2")

LOOP = {
    "epochs": 8,
    "batch_size": 4,
    "samples_per_volume": 4,
    "validation_samples_per_volume": 4,
    "learning_rate": 3e-3,
    "validate_every": 2,
    "checkpoint_every": 2,
    "checkpoint_seconds": 0,
    "precision": "32-true",
    "accelerator": "cpu",
}


def fit(method, data, held_out, out, keep="best", seed=5, **loop):
    """Train with the small loop above."""
    return train(
        method,
        (data, held_out),
        out,
        Train.model_validate({**LOOP, **loop}),
        keep=keep,
        fixed_validation=True,
        seed=seed,
        identity={"test": 1},
    )


def phantom_slices(n, seed):
    """Discs of constant brightness with a bright centre: something that can be learnt."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE / 2
    radius = np.hypot(x, y)
    volumes = np.zeros((n, SIZE, SIZE, 6), np.float32)
    for i in range(n):
        size = rng.uniform(7, 10)
        disc = (radius < size) * rng.uniform(0.5, 0.7) + (radius < size / 2) * 0.2
        volumes[i] = disc[:, :, None]
    return TrainingSet.from_volumes(volumes, volumes > 0, [np.arange(6)] * n)


def make(name):
    family, options, loss = {**METHODS, "f-anogan": ADVERSARIAL}[name]
    quality = {"clamp": True} if loss == "fusion" else {}
    return load(family)(options, Setup(loss=loss, quality=quality, image_size=(SIZE, SIZE)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """``whole(name)``: the folder of an undisturbed training by the small loop."""

    @cache
    def trained(name):
        folder = tmp_path_factory.mktemp(name)
        fit(make(name), phantom_slices(4, 0), phantom_slices(2, 1), folder)
        return folder

    return trained


def assert_same_training(folder, other):
    for file in ("model.safetensors", "history.csv"):
        assert digest(folder / file) == digest(other / file), file


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "name",
    [*(pytest.param(name, marks=pytest.mark.slow) for name in ("ddpm", "pddpm")), "pddpm-iqa"],
)
def test_a_method_learns_and_restores_a_healthy_volume_better_than_before(name, tmp_path):
    data = phantom_slices(4, 0)
    method = make(name)
    loop = {"epochs": 20, "validate_every": 10, "checkpoint_every": 20, "learning_rate": 0.01}
    facts = fit(method, data, phantom_slices(2, 1), tmp_path, **loop)
    assert facts["val_loss_of_weights"] < 0.7 * facts["val_loss_before"]
    volume = np.swapaxes(phantom_slices(1, 9).images[0].numpy(), 0, 2)

    def error(network):
        restored = reconstruct_volume(
            method, network, volume, volume > 0, t_test=500, batch=6, seed=1
        )
        assert restored.shape == volume.shape
        return np.abs(restored - volume).mean()

    torch.manual_seed(0)
    assert error(load_network(method, tmp_path / "model.safetensors")) < error(
        method.build().eval()
    )


def test_outputs_are_whole_and_readable(whole):
    folder = whole("pddpm")
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.json",
        "history.csv",
        "model.safetensors",
    ]
    history = pd.read_csv(folder / "history.csv")
    assert list(history.columns) == ["epoch", "step", "train_loss", "val_loss", "weights"]
    best = history["val_loss"].iloc[1:].idxmin()
    assert history["weights"].tolist() == [int(i == best) for i in range(9)]
    assert history["epoch"].tolist() == list(range(9))
    assert history["step"].tolist() == [4 * e for e in range(9)]
    assert history.set_index("epoch")["val_loss"].notna().tolist() == [e % 2 == 0 for e in range(9)]
    assert json.loads((folder / "config.json").read_text()) == {"test": 1}


def test_the_log_says_how_far_a_training_is_without_flooding(tmp_path, capsys, monkeypatch):
    still = SimpleNamespace(monotonic=lambda: 0.0)  # however slow the machine is
    monkeypatch.setattr(training, "time", still)
    fit(make("pddpm"), phantom_slices(4, 0), phantom_slices(2, 1), tmp_path)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    (line,) = said  # eight epochs in less than ten seconds: only the last is told
    assert re.fullmatch(r"epoch 8 of 8: train_loss \S+, val_loss \S+; 0:00:00 left", line)


def test_same_seed_same_bytes_and_other_seed_other_bytes(tmp_path):
    data, held_out = phantom_slices(4, 0), phantom_slices(2, 1)
    for folder, seed in (("a", 5), ("b", 5), ("c", 6)):
        fit(make("pddpm-iqa"), data, held_out, tmp_path / folder, seed=seed, epochs=2)
    a, b, c = (tmp_path / f / "model.safetensors" for f in "abc")
    assert digest(a) == digest(b) != digest(c)
    assert digest(a.with_name("history.csv")) == digest(b.with_name("history.csv"))


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
import test_training as t
from uad.train import loop as training

after = {epochs}
original = training.Trainer.training_step
def dying(self, batch, number):
    if self.epoch >= after and number % 4 == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, batch, number)
training.Trainer.training_step = dying
t.fit(t.make({name!r}), t.phantom_slices(4, 0), t.phantom_slices(2, 1), {out!r})
"""


@pytest.mark.parametrize("epochs", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_a_killed_training_resumes_and_ends_with_the_same_weights(whole, tmp_path, root, epochs):
    data, held_out = phantom_slices(4, 0), phantom_slices(2, 1)
    script = KILLED.format(
        tests=str(root / "tests"), epochs=epochs, name="pddpm", out=str(tmp_path / "killed")
    )
    done = forks.python(textwrap.dedent(script))
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    facts = fit(make("pddpm"), data, held_out, tmp_path / "killed")
    assert facts["resumed"] == (epochs >= LOOP["checkpoint_every"])
    assert_same_training(tmp_path / "killed", whole("pddpm"))


EXPORTING = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
import test_training as t
from uad.train import loop as training
setattr(training, "save_file", lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL))
t.fit(t.make("pddpm"), t.phantom_slices(4, 0), t.phantom_slices(2, 1), {out!r})
"""


def test_a_training_killed_while_it_writes_its_results_ends_with_the_same(whole, tmp_path, root):
    data, held_out = phantom_slices(4, 0), phantom_slices(2, 1)
    script = EXPORTING.format(tests=str(root / "tests"), out=str(tmp_path / "killed"))
    done = forks.python(textwrap.dedent(script))
    assert done.returncode == -signal.SIGKILL
    fit(make("pddpm"), data, held_out, tmp_path / "killed")
    assert_same_training(tmp_path / "killed", whole("pddpm"))


SIGNALLED = """
import os, signal, sys
from types import SimpleNamespace
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
import test_training as t
from uad.train import loop as training
from uad.core.provenance import job

original = training.Trainer.training_step
def signalled(self, batch, number):
    if self.epoch == {epoch} and number % 4 >= 1:
        os.kill(os.getpid(), signal.{number})  # again at each batch: one is enough, more do no harm
    return original(self, batch, number)
training.Trainer.training_step = signalled
with job(SimpleNamespace(rule="train_model", log=[{log!r}], output=[{out!r} + "/made"])):
    data, held_out = t.phantom_slices(4, 0), t.phantom_slices(2, 1)
    t.fit(t.make({name!r}), data, held_out, {out!r}, checkpoint_every=7)
"""


@pytest.mark.parametrize(
    ("name", "epoch", "number"),
    [
        ("pddpm", 4, "SIGTERM"),
        pytest.param("f-anogan", 2, "SIGTERM", marks=pytest.mark.slow),
        ("f-anogan", 5, "SIGUSR1"),
    ],
)
def test_a_signal_saves_the_running_epoch_and_the_same_command_goes_on_from_there(
    whole, tmp_path, root, monkeypatch, name, epoch, number
):
    """checkpoint_every is 7, so what is resumed here is what the signal has saved."""
    data, held_out = phantom_slices(4, 0), phantom_slices(2, 1)
    log, out = tmp_path / "train.log", tmp_path / "stopped"
    script = SIGNALLED.format(
        tests=str(root / "tests"), epoch=epoch, number=number, name=name, log=str(log), out=str(out)
    )
    done = forks.python(textwrap.dedent(script))
    message = f"Stopped by a signal after epoch {epoch + 1} of 8; the same command goes on"
    assert done.returncode == 1
    assert done.stderr.startswith(f"ERROR in rule train_model: {message}")
    assert message in log.read_text() and "Traceback" not in log.read_text()
    assert log.read_text().count(f"{number}: stopping the training") == 1
    assert not (out / "model.safetensors").exists()

    begun = epochs_begun(monkeypatch)
    assert fit(make(name), data, held_out, out, checkpoint_every=7)["resumed"]
    assert begun == list(range(epoch + 1, 8))
    assert_same_training(out, whole(name))


def epochs_begun(monkeypatch):
    """The epochs (from 0) whose first batch was trained on, from now on."""
    begun, original = [], Trainer.training_step

    def noted(self, batch, number):
        if number % 4 == 0:
            begun.append(self.epoch)
        return original(self, batch, number)

    monkeypatch.setattr(Trainer, "training_step", noted)
    return begun


def signal_at(monkeypatch, place, when, number=signal.SIGTERM):
    """One signal to this process, before the step of the module that ``when`` chooses."""
    original, sent = getattr(Trainer, place), []

    def signalled(self, batch, step):
        if not sent and when(self, step % 4):
            sent.append(os.kill(os.getpid(), number))
        return original(self, batch, step)

    monkeypatch.setattr(Trainer, place, signalled)


@pytest.fixture(autouse=True)
def guarded():
    """Were a signal not caught it would end the tests; nor may a handler of ours stay."""

    def missed(number, frame):
        raise AssertionError(f"{signal.Signals(number).name} was not caught")

    before = {number: signal.signal(number, missed) for number in SIGNALS}
    yield
    left = {number: signal.signal(number, handler) for number, handler in before.items()}
    assert set(left.values()) == {missed}


def test_an_epoch_whose_end_is_not_near_is_left_at_once(whole, tmp_path, monkeypatch):
    data, held_out = phantom_slices(4, 0), phantom_slices(2, 1)
    with monkeypatch.context() as patch:
        patch.setattr(training_stop, "GRACE", 0.0)
        signal_at(patch, "training_step", lambda m, i: m.epoch == 5 and i == 1)
        message = "in epoch 6 of 8, whose end was not near; the same command goes on after epoch 4"
        with pytest.raises(StoppedError, match=message):
            fit(make("pddpm"), data, held_out, tmp_path / "stopped")
    begun = epochs_begun(monkeypatch)
    fit(make("pddpm"), data, held_out, tmp_path / "stopped")
    assert begun == [4, 5, 6, 7]
    assert_same_training(tmp_path / "stopped", whole("pddpm"))


def test_how_near_the_end_is_follows_from_the_batches_of_the_epoch_so_far(tmp_path, monkeypatch):
    """Four batches of training and two of validation, 10 s each."""
    clock = SimpleNamespace(now=0)
    monkeypatch.setattr(training_stop.time, "monotonic", lambda: clock.now)

    def reached(grace):
        """How many of the six batches are done after a signal at the epoch's start."""
        stop = StopRequest()
        stop.start_epoch(6)
        stop.deadline = clock.now + grace
        for batch in range(1, 7):
            clock.now += 10
            if stop.too_late():
                return batch, "left"
        return 6, "finished"

    assert reached(59) == (1, "left")
    assert reached(60) == (6, "finished")


@pytest.mark.parametrize("grace", [0.0, 60.0])
def test_a_signal_during_validation_counts_too(tmp_path, monkeypatch, grace):
    data, held_out = phantom_slices(4, 0), phantom_slices(2, 1)
    options = {"validate_every": 1, "checkpoint_every": 3}
    fit(make("pddpm"), data, held_out, tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        patch.setattr(training_stop, "GRACE", grace)
        signal_at(patch, "validation_step", lambda m, i: m.epoch == 4)
        with pytest.raises(StoppedError, match="after epoch 5 of 8" if grace else "after epoch 3"):
            fit(make("pddpm"), data, held_out, tmp_path / "stopped", **options)
    begun = epochs_begun(monkeypatch)
    fit(make("pddpm"), data, held_out, tmp_path / "stopped", **options)
    assert begun == [*range(5 if grace else 3, 8)]
    for file in ("model.safetensors", "history.csv"):
        assert digest(tmp_path / "stopped" / file) == digest(tmp_path / "whole" / file)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("place", ["set-up", "validation"])
def test_a_signal_before_the_first_epoch_ends_the_training_at_once(
    tmp_path, monkeypatch, place, number
):
    data, held_out = phantom_slices(4, 0), phantom_slices(2, 1)
    method = make("pddpm")
    if place == "set-up":
        build = method.build
        method.build = lambda: (os.kill(os.getpid(), number), build())[1]
    else:
        signal_at(monkeypatch, "validation_step", lambda module, index: True, number)
    begun = epochs_begun(monkeypatch)
    with pytest.raises(StoppedError, match="before the first epoch; run the same command again"):
        fit(method, data, held_out, tmp_path)
    assert begun == []


def test_a_signal_while_a_training_is_taken_up_again_loses_nothing(whole, tmp_path, monkeypatch):
    data, held_out = phantom_slices(4, 0), phantom_slices(2, 1)
    out = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        signal_at(patch, "training_step", lambda m, i: m.epoch == 2)
        with pytest.raises(StoppedError, match="after epoch 3 of 8"):
            fit(make("pddpm"), data, held_out, out)
    again = make("pddpm")
    build = again.build
    again.build = lambda: (os.kill(os.getpid(), signal.SIGTERM), build())[1]
    with pytest.raises(StoppedError, match="in epoch 4 of 8.*goes on after epoch 3"):
        fit(again, data, held_out, out)
    fit(make("pddpm"), data, held_out, out)
    assert_same_training(out, whole("pddpm"))


def test_a_signal_in_the_last_epoch_lets_the_training_finish(whole, tmp_path, monkeypatch):
    data, held_out = phantom_slices(4, 0), phantom_slices(2, 1)
    signal_at(monkeypatch, "training_step", lambda m, i: m.epoch == 7)
    fit(make("pddpm"), data, held_out, tmp_path / "signalled", checkpoint_every=5)
    assert_same_training(tmp_path / "signalled", whole("pddpm"))


SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NAME": "smk-train",
    "SLURM_NTASKS": "4",
    "SLURM_NNODES": "2",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NODELIST": "node[1-2]",
}


def test_inside_a_slurm_job_a_training_is_what_it_is_outside(tmp_path, monkeypatch):
    data, held_out = phantom_slices(4, 0), phantom_slices(2, 1)
    fit(make("pddpm"), data, held_out, tmp_path / "outside", epochs=2)
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    with monkeypatch.context() as patch:
        signal_at(patch, "training_step", lambda m, i: i == 1, signal.SIGUSR1)
        with pytest.raises(StoppedError, match="after epoch 1 of 2"):
            fit(make("pddpm"), data, held_out, tmp_path / "inside", epochs=2)
    fit(make("pddpm"), data, held_out, tmp_path / "inside", epochs=2)
    for file in ("model.safetensors", "history.csv"):
        assert digest(tmp_path / "inside" / file) == digest(tmp_path / "outside" / file)


def test_a_gpu_that_is_asked_for_and_not_there_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DataError, match=r"train\.accelerator is 'gpu', but torch sees no CUDA"):
        fit(make("pddpm"), phantom_slices(4, 0), phantom_slices(2, 1), tmp_path, accelerator="gpu")


def test_a_loss_that_is_not_finite_stops_the_training_at_once(tmp_path):
    with pytest.raises(DataError, match=r"training loss is not finite in epoch \d"):
        fit(
            make("pddpm"),
            phantom_slices(4, 0),
            phantom_slices(2, 1),
            tmp_path,
            learning_rate=1e18,
            epochs=30,
        )


@pytest.mark.parametrize("identity", ["other", text_digest({"test": 1})], ids=["other", "old"])
def test_a_checkpoint_of_another_configuration_or_format_is_not_continued(tmp_path, identity):
    """Before format 2 the marker was the digest of the identity alone."""
    data, held_out = phantom_slices(4, 0), phantom_slices(2, 1)
    foreign = tmp_path / "checkpoint"
    foreign.mkdir()
    (foreign / "identity.json").write_text(json.dumps({"identity": identity}))
    (foreign / "last.safetensors").write_bytes(b"not even a checkpoint")
    assert not fit(make("pddpm"), data, held_out, tmp_path, epochs=2)["resumed"]


def test_the_last_weights_can_be_kept_instead_of_the_best(tmp_path):
    data, held_out = phantom_slices(4, 0), phantom_slices(2, 1)
    fit(make("pddpm"), data, held_out, tmp_path, epochs=7, keep="last")
    load_network(make("pddpm"), tmp_path / "model.safetensors")
    assert pd.read_csv(tmp_path / "history.csv")["weights"].tolist() == [0] * 7 + [1]


def test_checkpoints_are_not_written_more_often_than_they_may(tmp_path, monkeypatch):
    """Epochs of 10 s, a checkpoint may be written after each: but not within 25 s of another."""
    clock, written = SimpleNamespace(now=0.0), []
    monkeypatch.setattr(training.time, "monotonic", lambda: clock.now)
    run_epoch = Trainer.run_epoch

    def slow(self, *arguments):
        clock.now += 10
        return run_epoch(self, *arguments)

    monkeypatch.setattr(Trainer, "run_epoch", slow)
    monkeypatch.setattr(Trainer, "save", lambda self, path: written.append(self.epoch))
    options = {"checkpoint_every": 1, "checkpoint_seconds": 25}
    fit(make("dae"), phantom_slices(4, 0), phantom_slices(2, 1), tmp_path, **options)
    assert written == [3, 6]


@pytest.mark.parametrize(
    ("losses", "best"),
    [([3, 1, 2], 2), ([np.inf, np.inf, 5], 3), ([2, 2, 2], 1), ([np.nan, 7, np.nan], 2)],
    ids=["lowest", "any before infinity", "the first of equals", "never a NaN"],
)
def test_the_best_weights_are_those_of_the_lowest_validation_loss(
    tmp_path, monkeypatch, losses, best
):
    """Also after a checkpoint: the training is stopped and taken up again in between."""
    given = dict(enumerate(losses))
    monkeypatch.setattr(
        Trainer, "validate", lambda self, *_: {"val_loss": float(given.get(self.epoch, 9))}
    )
    data, weights = (phantom_slices(4, 0), phantom_slices(2, 1)), {}
    run_epoch = Trainer.run_epoch

    def noted(self, *arguments):
        done = run_epoch(self, *arguments)
        weights[self.epoch] = {k: v.clone() for k, v in self.network.state_dict().items()}
        return done

    monkeypatch.setattr(Trainer, "run_epoch", noted)
    with monkeypatch.context() as patch:
        signal_at(patch, "training_step", lambda m, i: m.epoch == 1)
        with pytest.raises(StoppedError, match="after epoch 2 of"):
            fit(make("dae"), *data, tmp_path, epochs=len(losses), validate_every=1)
    facts = fit(make("dae"), *data, tmp_path, epochs=len(losses), validate_every=1)
    assert facts["resumed"] and facts["weights_of_epoch"] == best
    kept = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(kept[name], value) for name, value in weights[best].items())


@pytest.mark.parametrize(
    ("choice", "free", "moved"),
    [
        ("auto", 10.0, True),
        ("auto", 1.9, False),
        ("accelerator", 1.9, True),
        ("host", 10.0, False),
    ],
)
def test_slices_live_beside_the_network_where_they_fit(monkeypatch, choice, free, moved):
    data, held_out = phantom_slices(4, 0), phantom_slices(2, 1)
    needed = data.nbytes + held_out.nbytes
    assert needed == sum(t.nbytes for d in (data, held_out) for t in (d.images, d.masks))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (int(free * needed), 0))
    monkeypatch.setattr(TrainingSet, "to", lambda self, device: device)
    placed = training._placed(data, held_out, Train(data_device=choice), "cuda")
    assert placed == (("cuda", "cuda") if moved else (data, held_out))
    assert training._placed(data, held_out, Train(data_device=choice), "cpu") == (data, held_out)


@pytest.mark.slow
def test_half_precision_learns_the_same_within_its_rounding(tmp_path):
    data, held_out = phantom_slices(4, 0), phantom_slices(2, 1)
    losses = {}
    for precision in ("32-true", "bf16-mixed"):
        out = tmp_path / precision
        fit(make("pddpm-iqa"), data, held_out, out, precision=precision, epochs=20)
        losses[precision] = pd.read_csv(out / "history.csv").set_index("epoch")["val_loss"].dropna()
    full, half = losses["32-true"], losses["bf16-mixed"]
    assert full.iloc[-1] < 0.5 * full.iloc[0] and not half.equals(full)
    assert (half - full).abs().max() < 0.1 * full.iloc[0]  # the curve itself goes up and down so

    network = load_network(make("pddpm-iqa"), tmp_path / "32-true" / "model.safetensors")
    volume = np.swapaxes(phantom_slices(1, 9).images[0].numpy(), 0, 2)
    options = {"t_test": 500, "batch": 6, "seed": 1}
    exact, rounded = (
        reconstruct_volume(
            make("pddpm-iqa"), network, volume, volume > 0, precision=precision, **options
        )
        for precision in losses
    )
    assert rounded.dtype == np.float32
    assert 0 < np.abs(rounded - exact).max() < 0.02


@pytest.mark.slow
def test_a_compiled_network_learns_the_same_and_its_weights_load_without_it(tmp_path):
    data, held_out = phantom_slices(4, 0), phantom_slices(2, 1)
    for mode in ("off", "default"):
        fit(make("pddpm-iqa"), data, held_out, tmp_path / mode, epochs=2, compile=mode)
    plain, compiled = (load_file(tmp_path / m / "model.safetensors") for m in ("off", "default"))
    assert plain.keys() == compiled.keys()
    for name, weights in plain.items():
        assert torch.allclose(weights, compiled[name], atol=1e-3), name
    load_network(make("pddpm-iqa"), tmp_path / "default" / "model.safetensors")


def test_too_few_slices_for_a_batch_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"do not fill one batch of 32.*samples_per_volume"):
        fit(
            make("pddpm"),
            phantom_slices(2, 0),
            phantom_slices(2, 1),
            tmp_path,
            batch_size=32,
        )


def test_weights_of_another_network_are_refused(tmp_path):
    fit(make("dae"), phantom_slices(4, 0), phantom_slices(2, 1), tmp_path, epochs=2)
    with pytest.raises(DataError, match=r"model\.safetensors: not the weights"):
        load_network(make("pddpm"), tmp_path / "model.safetensors")


def test_each_epoch_draws_the_same_number_of_eligible_slices_from_every_volume():
    data = TrainingSet(torch.zeros(3, 6, 4, 4), torch.ones(3, 6, 4, 4) > 0, [np.array([1, 2])] * 3)
    data.images[:] = (
        torch.arange(3)[:, None, None, None] * 10 + torch.arange(6)[None, :, None, None]
    )
    batches = SliceBatches(data, 2, 2, seed=1, drop_last=True)
    drawn = torch.cat([b["images"][:, 0, 0, 0] for b in batches])
    assert sorted(int(v) // 10 for v in drawn) == [0, 0, 1, 1, 2, 2]
    assert {int(v) % 10 for v in drawn} <= {1, 2}
    again = torch.cat([b["images"][:, 0, 0, 0] for b in batches])
    batches.epoch = 1
    other = torch.cat([b["images"][:, 0, 0, 0] for b in batches])
    assert torch.equal(drawn, again) and not torch.equal(drawn, other)


def test_checkpoints_survive_a_round_trip_without_pickle(tmp_path):
    tensors = {"a": torch.arange(3), "nested": {"0": {"y.z": torch.ones(2, 2)}, "empty": {}}}
    facts = {"rows": [{"loss": 0.1 + 0.2, "none": None}], "best": [float("inf"), 2]}
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, tensors, facts)
    loaded, again = load_checkpoint(path)
    assert again == facts
    assert torch.equal(loaded["a"], tensors["a"])
    assert torch.equal(loaded["nested"]["0"]["y.z"], torch.ones(2, 2))
    assert set(load_file(path)) == {"a", "nested/0/y.z"}
    with pytest.raises(TypeError, match=r"holds tensors, not builtin_function.* \(f\)"):
        save_checkpoint(path, {"f": print}, {})


def test_a_damaged_checkpoint_is_named(tmp_path):
    path = tmp_path / "last.safetensors"
    path.write_bytes(os.urandom(64))
    with pytest.raises(DataError, match=r"last\.safetensors: not a readable checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("scale_shift", "millions"), [(False, 34.49), (True, 37.51)], ids=["DDPM", "pDDPM"]
)
def test_networks_at_paper_size_have_the_authors_number_of_parameters(scale_shift, millions):
    from uad.networks.unet import diffusion_unet

    with torch.device("meta"):
        network = diffusion_unet(scale_shift=scale_shift)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == millions


def test_pddpm_keeps_the_input_outside_the_patch_and_tiles_all_patches():
    method = make("pddpm")
    calls = []

    class Probe(torch.nn.Module):
        def forward(self, x, t):
            calls.append((x.clone(), t.clone()))
            return torch.full_like(x, 0.5)

    images = torch.rand(3, 1, SIZE, SIZE)
    generator = torch.Generator().manual_seed(0)
    restored = method.reconstruct(Probe(), images, images > 0, 750, generator)
    assert torch.allclose(restored, torch.full_like(images, 0.75))
    assert len(calls) == 4
    for x, t in calls:
        changed = x != images * 2 - 1
        assert (t == 749).all()
        assert 0 < changed.float().mean() <= 0.25


def test_a_stage_whose_weights_may_be_used_must_be_validated(tmp_path):
    """f-AnoGAN's encoder comes last: weights of the first stage would be untrained."""
    method = load("adversarial")(
        {"channels": [8, 8], "latent": 4}, Setup(loss="l2", image_size=(16, 16))
    )
    loop = Train(epochs=10, validate_every=6, batch_size=2)
    with pytest.raises(DataError, match="raise train.epochs or lower train.validate_every"):
        train(
            method,
            (None, None),
            tmp_path,
            loop,
            keep="best",
            fixed_validation=True,
            seed=0,
            identity={},
        )
