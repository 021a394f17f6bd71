"""Reconstruction: several volumes in a pass, while others are read and written."""

import threading

import numpy as np
import pytest
import torch

from test_methods import CODE
from test_training import DAE, PDDPM, SIZE
from uad.core.errors import DataError
from uad.evaluate.reconstruct import Reconstructor
from uad.methods import load
from uad.methods.base import Setup
from uad.networks.execution import from_slices

torch.set_num_threads(1)
NAMES, DEPTH = ["test/a", "test/b", "test/c", "test/d", "test/e"], 4
PER_PASS = 2


def reconstructor(family="diffusion", options=PDDPM, noise_field="per_batch", **how):
    torch.manual_seed(0)
    setup = Setup(noise_field=noise_field, image_size=(SIZE, SIZE))
    method = load(family)(options, setup)
    network = method.build().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():  # U-Nets end in zeros
                parameter.normal_(std=0.05)
    return Reconstructor(method, network, t_test=500, batch=PER_PASS * DEPTH + 1, **how)


def read(name):
    seed = ord(name[-1])
    volume = np.random.default_rng(seed).random((SIZE, SIZE, DEPTH), dtype=np.float32)
    return volume, volume > 0.1, seed


def one_by_one(method):
    return {name: method.volume(*read(name)) for name in NAMES}


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, volume in expected.items():
        np.testing.assert_allclose(found[name], volume, atol=1e-6)


@pytest.mark.parametrize(
    ("family", "options", "noise_field"),
    [
        ("diffusion", PDDPM, "per_batch"),
        ("diffusion", PDDPM, "per_sample"),
        ("denoising", DAE, "per_batch"),
        ("autoencoder", CODE, "per_batch"),
    ],
)
def test_a_volume_does_not_depend_on_those_that_share_its_pass(family, options, noise_field):
    method = reconstructor(family, options, noise_field)
    expected = one_by_one(method)
    restored = method.restore([read(name) for name in NAMES])
    assert_same(dict(zip(NAMES, map(from_slices, restored), strict=True)), expected)


@pytest.mark.parametrize(
    ("device", "family", "options", "several"),
    [
        ("cuda", "diffusion", PDDPM, 2),
        ("cpu", "diffusion", PDDPM, 1),
        ("cuda", "sequential", {**CODE, "sequence": 4, "heads": 2}, 1),
    ],
)
def test_volumes_share_passes_on_a_gpu_unless_the_method_takes_a_whole_one(
    device, family, options, several
):
    method = reconstructor(family, options)
    method.device = device
    assert method.volumes_per_pass(DEPTH) == several
    assert method.volumes_per_pass(100) == 1


def test_compiled_it_is_one_graph_of_one_shape_whatever_the_last_pass(monkeypatch):
    from torch._dynamo.testing import CompileCounterWithBackend

    backend, compiled = CompileCounterWithBackend("eager"), torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, mode, **options: compiled(f, backend=backend, **options)
    )
    monkeypatch.setattr(Reconstructor, "volumes_per_pass", lambda self, depth: PER_PASS)
    found = {}
    reconstructor(compile="default").run(NAMES, DEPTH, read, found.__setitem__)
    assert backend.frame_count == 1
    assert_same(found, one_by_one(reconstructor()))


def test_the_next_volumes_are_read_and_the_last_written_while_a_pass_is_computed(monkeypatch):
    """Each pass waits for what should happen beside it; alone it would wait for ever."""
    monkeypatch.setattr(Reconstructor, "volumes_per_pass", lambda self, depth: PER_PASS)
    method, restore, found = reconstructor(), Reconstructor.restore, {}
    was_read, written = ({name: threading.Event() for name in NAMES} for _ in range(2))

    def reading(name):
        was_read[name].set()
        return read(name)

    def writing(name, volume):
        found[name] = volume
        written[name].set()

    def waiting(self, given):
        begun = NAMES.index(next(name for name in NAMES if read(name)[2] == given[0][2]))
        for event in [was_read[n] for n in NAMES[begun + PER_PASS :][:PER_PASS]]:
            assert event.wait(30)
        for event in [written[n] for n in NAMES[:begun]]:
            assert event.wait(30)
        return restore(self, given)

    with monkeypatch.context() as patch:
        patch.setattr(Reconstructor, "restore", waiting)
        method.run(NAMES, DEPTH, reading, writing)
    assert_same(found, one_by_one(method))


def test_an_error_names_its_volume():
    def broken(error, place):
        def action(name, *volume):
            if name == "test/c":
                raise error
            return None if volume else read(name)

        reading, writing = (action, lambda *_: None) if place == "read" else (read, action)
        reconstructor().run(NAMES, DEPTH, reading, writing)

    for place in ("read", "write"):
        with pytest.raises(DataError, match=r"^test/c: it is damaged\."):
            broken(DataError("it is damaged."), place)
    with pytest.raises(OSError, match="disk") as caught:
        broken(OSError("disk full"), "write")
    assert caught.value.__notes__ == ["in the reconstruction of test/c"]
