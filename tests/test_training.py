"""Training: seeds decide everything, a killed or stopped job loses nothing."""

import hashlib
import json
import os
import re
import signal
from functools import cache, partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from tools import forks
from uad.config import Train
from uad.core.errors import DataError
from uad.core.files import text_digest
from uad.evaluate.reconstruct import Reconstructor, load_network
from uad.methods import load
from uad.methods.base import Setup
from uad.networks.execution import numerics
from uad.train import loop as training
from uad.train.batches import SliceBatches, TrainingSet
from uad.train.checkpoint import load_checkpoint
from uad.train.loop import Trainer, train
from uad.train.stop import SIGNALS, StoppedError

torch.set_num_threads(1)
forks.preload("torch", "pandas", "uad.train.loop", "uad.networks.unet")
SIZE = 24
UNET = {"channels": [8, 16], "num_res_blocks": 1, "num_head_channels": 8, "norm_num_groups": 4}
PDDPM = {"network": {**UNET, "scale_shift": True}, "patch_grid": [2, 2]}
DAE = {"channels": [8, 16], "norm_num_groups": 4, "noise_resolution": 6}
METHODS = {
    "pddpm": ("diffusion", PDDPM, "l1"),
    "pddpm-iqa": ("diffusion", PDDPM, "fusion"),
    "dae": ("denoising", DAE, "l2"),
    # steps its own optimisers, in two stages
    "f-anogan": ("adversarial", {"channels": [8, 8], "latent": 4, "critic_steps": 2}, "l2"),
}
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


def make(name):
    family, options, loss = METHODS[name]
    quality = {"clamp": True} if loss == "fusion" else {}
    return load(family)(options, Setup(loss=loss, quality=quality, image_size=(SIZE, SIZE)))


def run(name, out, **options):
    """Train a method of METHODS, or go on with it; ``name`` may be the method itself."""
    method = make(name) if isinstance(name, str) else name
    return fit(method, phantom_slices(4, 0), phantom_slices(2, 1), out, **options)


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def assert_same_training(folder, other):
    for file in ("model.safetensors", "history.csv"):
        assert digest(folder / file) == digest(other / file), file


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """``whole(name)``: the folder of an undisturbed training by the small loop."""

    @cache
    def trained(name, **options):
        folder = tmp_path_factory.mktemp(name)
        run(name, folder, **options)
        return folder

    return trained


@pytest.fixture(autouse=True)
def guarded():
    """Were a signal not caught it would end the tests; nor may a handler of ours stay."""

    def missed(number, frame):
        raise AssertionError(f"{signal.Signals(number).name} was not caught")

    before = {number: signal.signal(number, missed) for number in SIGNALS}
    yield
    left = {number: signal.signal(number, handler) for number, handler in before.items()}
    assert set(left.values()) == {missed}


# What is written


def test_outputs_are_whole_and_readable(whole):
    folder = whole("dae")
    names = ["config.json", "history.csv", "model.safetensors"]
    assert sorted(p.name for p in folder.iterdir()) == names
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
    run("dae", tmp_path, epochs=4)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    (line,) = said  # four epochs in less than ten seconds: only the last is told
    assert re.fullmatch(r"epoch 4 of 4: train_loss \S+, val_loss \S+; 0:00:00 left", line)


def test_same_seed_same_bytes_and_other_seed_other_bytes(tmp_path):
    for folder, seed in (("a", 5), ("b", 5), ("c", 6)):
        run("pddpm-iqa", tmp_path / folder, seed=seed, epochs=2)
    assert_same_training(tmp_path / "a", tmp_path / "b")
    with pytest.raises(AssertionError):
        assert_same_training(tmp_path / "a", tmp_path / "c")


@pytest.mark.parametrize(
    ("losses", "best"),
    [([3, 1, 2], 2), ([np.inf, np.inf, 5], 3), ([2, 2, 2], 1), ([np.nan, 7, np.nan], 2)],
    ids=["lowest", "any before infinity", "the first of equals", "never a NaN"],
)
def test_the_best_weights_are_those_of_the_lowest_validation_loss(
    tmp_path, monkeypatch, losses, best
):
    """Also after a checkpoint: the training is stopped and taken up again in between."""
    given, weights, run_epoch = dict(enumerate(losses)), {}, Trainer.run_epoch
    monkeypatch.setattr(Trainer, "validate", lambda self: float(given.get(self.epoch, 9)))

    def noted(self):
        run_epoch(self)
        weights[self.epoch] = {k: v.clone() for k, v in self.network.state_dict().items()}

    monkeypatch.setattr(Trainer, "run_epoch", noted)
    again = partial(run, "dae", tmp_path, epochs=len(losses), validate_every=1)
    with monkeypatch.context() as patch:
        signal_at(patch, "training_step", lambda m, i: m.epoch == 1)
        with pytest.raises(StoppedError, match="after epoch 2 of"):
            again()
    facts = again()
    assert facts["resumed"] and facts["weights_of_epoch"] == best
    kept = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(kept[name], value) for name, value in weights[best].items())


# Killed and stopped

IN_A_PROCESS = """
import os, signal, sys
from types import SimpleNamespace
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
import test_training as t
from uad.core.provenance import job
from uad.train import loop as training

def end(*arguments, **options):
    os.kill(os.getpid(), signal.{number})
def before_batches(epoch, first):
    original = training.Trainer.training_step
    def step(self, images, masks, number):
        if epoch(self.epoch) and first(number):
            end()
        return original(self, images, masks, number)
    training.Trainer.training_step = step
{body}
with job(SimpleNamespace(rule="train_model", log=[{out!r} + ".log"], output=[{out!r} + "/made"])):
    t.run({name!r}, {out!r}, checkpoint_every={every})
"""


def in_a_process(root, out, name, body, number="SIGKILL", every=2):
    """A training as a job of its own that sends itself a signal where ``body`` says."""
    tests = str(root / "tests")
    options = {"out": str(out), "name": name, "body": body, "number": number, "every": every}
    return forks.python(IN_A_PROCESS.format(tests=tests, **options))


@pytest.mark.parametrize(
    ("name", "body", "resumed"),
    [
        ("dae", "before_batches(lambda e: e >= 1, lambda i: i == 1)", False),
        ("f-anogan", "before_batches(lambda e: e >= 3, lambda i: i == 1)", True),
        ("dae", "training.save_file = end", True),
    ],
    ids=["before a checkpoint", "after one", "while results are written"],
)
def test_a_killed_training_ends_with_the_same_weights(whole, tmp_path, root, name, body, resumed):
    out = tmp_path / "killed"
    assert in_a_process(root, out, name, body).returncode == -signal.SIGKILL
    assert not (out / "model.safetensors").exists()
    assert run(name, out)["resumed"] == resumed
    assert_same_training(out, whole(name))


def test_a_signal_saves_the_running_epoch_and_the_same_command_goes_on_from_there(
    whole, tmp_path, root, monkeypatch
):
    """checkpoint_every is 7, so what is resumed here is what the signal has saved."""
    out, name = tmp_path / "stopped", "dae"
    # again at each batch: one is enough, more do no harm
    body = "before_batches(lambda e: e == 4, lambda i: i >= 1)"
    done = in_a_process(root, out, name, body, "SIGUSR1", every=7)
    message = "Stopped by a signal after epoch 5 of 8; the same command goes on"
    assert done.returncode == 1
    assert done.stderr.startswith(f"ERROR in rule train_model: {message}")
    log = (tmp_path / "stopped.log").read_text()
    assert message in log and "Traceback" not in log
    assert log.count("SIGUSR1: stopping the training") == 1
    assert not (out / "model.safetensors").exists()

    begun = epochs_begun(monkeypatch)
    assert run(name, out, checkpoint_every=7)["resumed"]
    assert begun == [5, 6, 7]
    assert_same_training(out, whole(name))


def epochs_begun(monkeypatch):
    """The epochs (from 0) whose first batch was trained on, from now on."""
    begun, original = [], Trainer.training_step

    def noted(self, images, masks, number):
        if number == 0:
            begun.append(self.epoch)
        return original(self, images, masks, number)

    monkeypatch.setattr(Trainer, "training_step", noted)
    return begun


def signal_at(monkeypatch, place, when, number=signal.SIGTERM):
    """One signal to this process, before the step of the trainer that ``when`` chooses."""
    original, sent = getattr(Trainer, place), []

    def signalled(self, images, masks, step):
        if not sent and when(self, step):
            sent.append(os.kill(os.getpid(), number))
        return original(self, images, masks, step)

    monkeypatch.setattr(Trainer, place, signalled)


def signalled_at_build(name, number=signal.SIGTERM):
    """A method during whose set-up a signal comes."""
    method = make(name)
    build = method.build
    method.build = lambda: (os.kill(os.getpid(), number), build())[1]
    return method


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_before_the_first_epoch_ends_the_training_at_once(tmp_path, monkeypatch, number):
    begun = epochs_begun(monkeypatch)
    with pytest.raises(StoppedError, match="after epoch 0 of 8"):
        run(signalled_at_build("dae", number), tmp_path)
    assert begun == []


def test_a_signal_while_a_training_is_taken_up_again_loses_nothing(whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        signal_at(patch, "validation_step", lambda m, i: m.epoch == 3)
        with pytest.raises(StoppedError, match="after epoch 4 of 8"):
            run("dae", tmp_path)
    with pytest.raises(StoppedError, match="after epoch 4 of 8"):
        run(signalled_at_build("dae"), tmp_path)
    run("dae", tmp_path)
    assert_same_training(tmp_path, whole("dae"))


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accelerator": "gpu"}, r"train\.accelerator is 'gpu', but torch sees no CUDA"),
        ({"learning_rate": 1e18, "epochs": 30}, r"training loss is not finite in epoch \d"),
        ({"batch_size": 32}, r"do not fill one batch of 32.*samples_per_volume"),
    ],
)
def test_what_cannot_be_trained_is_a_clear_error(tmp_path, monkeypatch, options, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DataError, match=message):
        run("pddpm", tmp_path, **options)


def test_a_stage_whose_weights_may_be_used_must_be_validated(tmp_path):
    """f-AnoGAN's encoder comes last: weights of the first stage would be untrained."""
    with pytest.raises(DataError, match="raise train.epochs or lower train.validate_every"):
        run("f-anogan", tmp_path, epochs=10, validate_every=6)


@pytest.mark.parametrize("identity", ["other", text_digest({"test": 1})], ids=["other", "old"])
def test_a_checkpoint_of_another_configuration_or_format_is_not_continued(tmp_path, identity):
    """Before format 2 the marker was the digest of the identity alone."""
    foreign = tmp_path / "checkpoint"
    foreign.mkdir()
    (foreign / "identity.json").write_text(json.dumps({"identity": identity}))
    (foreign / "last.safetensors").write_bytes(b"not even a checkpoint")
    assert not run("dae", tmp_path, epochs=2)["resumed"]


def test_a_damaged_checkpoint_is_named(tmp_path):
    path = tmp_path / "last.safetensors"
    path.write_bytes(os.urandom(64))
    with pytest.raises(DataError, match=r"last\.safetensors: not a readable checkpoint"):
        load_checkpoint(path)


def test_weights_of_another_network_are_refused(whole):
    with pytest.raises(DataError, match=r"model\.safetensors: not the weights"):
        load_network(make("pddpm"), whole("dae") / "model.safetensors")


# Slices and checkpoints


def test_checkpoints_are_not_written_more_often_than_they_may(tmp_path, monkeypatch):
    """Epochs of 10 s, a checkpoint may be written after each: but not within 25 s of another."""
    clock, written, run_epoch = SimpleNamespace(now=0.0), [], Trainer.run_epoch
    monkeypatch.setattr(training.time, "monotonic", lambda: clock.now)

    def slow(self):
        clock.now += 10
        run_epoch(self)

    monkeypatch.setattr(Trainer, "run_epoch", slow)
    monkeypatch.setattr(Trainer, "save", lambda self, path: written.append(self.epoch))
    run("dae", tmp_path, checkpoint_every=1, checkpoint_seconds=25)
    assert written == [3, 6]


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


def test_each_epoch_draws_the_same_number_of_eligible_slices_from_every_volume():
    data = TrainingSet(torch.zeros(3, 6, 4, 4), torch.ones(3, 6, 4, 4) > 0, [np.array([1, 2])] * 3)
    volumes, slices = torch.arange(3)[:, None, None, None], torch.arange(6)[:, None, None]
    data.images[:] = volumes * 10 + slices
    batches = SliceBatches(data, 2, 2, seed=1, drop_last=True)

    def drawn():
        return torch.cat([images[:, 0, 0, 0] for images, _ in batches])

    first = drawn()
    assert sorted(int(v) // 10 for v in first) == [0, 0, 1, 1, 2, 2]
    assert {int(v) % 10 for v in first} <= {1, 2}
    assert torch.equal(first, drawn())
    batches.epoch = 1
    assert not torch.equal(first, drawn())


# Precision and compilation


@pytest.mark.slow
def test_half_precision_learns_the_same_within_its_rounding(tmp_path):
    losses = {}
    for precision in ("32-true", "bf16-mixed"):
        out = tmp_path / precision
        run("pddpm-iqa", out, precision=precision, epochs=20)
        losses[precision] = pd.read_csv(out / "history.csv").set_index("epoch")["val_loss"].dropna()
    full, half = losses["32-true"], losses["bf16-mixed"]
    assert full.iloc[-1] < 0.5 * full.iloc[0] and not half.equals(full)
    assert (half - full).abs().max() < 0.1 * full.iloc[0]  # the curve itself goes up and down so

    network = load_network(make("pddpm-iqa"), tmp_path / "32-true" / "model.safetensors")
    volume = np.swapaxes(phantom_slices(1, 9).images[0].numpy(), 0, 2)
    exact, rounded = (
        Reconstructor(make("pddpm-iqa"), network, 500, 6, precision=precision).volume(
            volume, volume > 0, seed=1
        )
        for precision in losses
    )
    assert rounded.dtype == np.float32
    assert 0 < np.abs(rounded - exact).max() < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pddpm", "pddpm-iqa"])
def test_compiled_in_one_graph_with_padded_last_batches_the_losses_are_the_same(
    name, tmp_path, monkeypatch
):
    from torch._dynamo.testing import CompileCounterWithBackend

    graphs = []

    def traced(target, *, mode, **options):
        backend = CompileCounterWithBackend("aot_eager")
        graphs.append(backend)
        return compile_with(target, backend=backend, **options)

    compile_with = torch.compile
    monkeypatch.setattr(torch, "compile", traced)
    losses = []
    for mode in ("off", "default"):
        # at a higher rate the rounding grows from step to step
        options = {"epochs": 13, "validation_samples_per_volume": 3, "learning_rate": 1e-4}
        if mode == "default":
            options["layout"] = "channels_last"  # as on a GPU
        # batches of 4 in training, of 4 and 2 in validation
        assert run(name, tmp_path / mode, compile=mode, **options)["steps"] == 52
        losses.append(pd.read_csv(tmp_path / mode / "history.csv"))
    pd.testing.assert_frame_equal(*losses, rtol=0, atol=1e-5)
    # the network once to train with and once to validate with, whatever the last batch
    assert graphs[0].frame_count == 2


@pytest.mark.parametrize("name", ["pddpm", "pddpm-iqa", "dae"])
def test_a_step_never_waits_for_the_device(name):
    class Counter(TorchDispatchMode):
        waits = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.waits += function is torch.ops.aten._local_scalar_dense.default
            return function(*args, **kwargs or {})

    method = make(name)
    network = method.build()
    (optimizer,) = method.optimizers(network, 1e-3)
    images = torch.rand(4, 1, SIZE, SIZE)

    def update(loss, number=0):
        optimizer.zero_grad()
        loss.backward()

    with Counter() as counter:
        method.training_step(network, images, images > 0, torch.Generator(), update, 0.0)
    assert counter.waits == 0


def test_the_config_decides_on_tf32_and_on_deterministic_algorithms():
    def state():
        return (
            torch.backends.cudnn.allow_tf32,
            torch.backends.cudnn.benchmark,
            torch.are_deterministic_algorithms_enabled(),
        )

    before = state()
    with numerics("tf32"):
        assert state() == (True, False, True)
    with numerics("32-true", deterministic=False):
        assert state() == (False, True, False)
    assert state() == before
