"""The figures of a CPU, against the reference path in turns, on one thread."""

from __future__ import annotations

import contextlib
import copy
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import reference_path as reference
import torch
from speed_material import (
    QUALITY,
    SEED,
    Case,
    Sizes,
    alternate,
    arrays,
    held_out,
    make_cases,
    make_method,
    make_training_set,
    one_thread,
)
from speed_tables import Entry, limit, pair, value
from torch import Tensor, nn

from uad.config import Train
from uad.core.seeds import derive_seed
from uad.evaluate import (
    average_precision,
    dice,
    evaluate_volume,
    postprocess,
    predict,
    search_threshold,
)
from uad.evaluate.reconstruct import reconstruct_volume
from uad.evaluate.score import score_volume
from uad.methods.base import Method
from uad.networks.execution import ready, reuse_freed_memory, to_slices
from uad.train.batches import SliceBatches, TrainingSet
from uad.train.loop import train


def our_batches(
    method: Method, training: TrainingSet, batch: int, device: str = "cpu"
) -> Iterator[tuple[float, float]]:
    """Seconds for the data and for the noise of each batch of an epoch, as the training gets them.

    The draw of the epoch is part of its first batch. On a GPU the work is queued, not waited for.
    """
    options = {"octaves": reference.OCTAVES, "persistence": reference.PERSISTENCE}
    options["frequency"] = reference.FREQUENCY
    begin = time.perf_counter()
    for number, sample in enumerate(SliceBatches(training, batch, 1, SEED, drop_last=True)):
        middle = time.perf_counter()
        generator = torch.Generator(device).manual_seed(derive_seed(SEED, "train", number))
        method.noise(sample[0], generator, "simplex", **options)
        end = time.perf_counter()
        yield middle - begin, end - middle
        begin = time.perf_counter()


def reference_batches(
    volumes: reference.SharedVolumes, batch: int
) -> Iterator[tuple[float, float]]:
    """The same for the reference path."""
    begin = time.perf_counter()
    for number, sample in enumerate(reference.loader(volumes, batch)):
        images = sample["image"].squeeze(-1)
        middle = time.perf_counter()
        reference.batch_noise(images.shape, number)
        end = time.perf_counter()
        yield middle - begin, end - middle
        begin = time.perf_counter()


def data_and_noise(sizes: Sizes) -> Iterator[Entry]:
    """A batch of slices and its noise: index operations against a manager process and a loop."""
    cases = make_cases(sizes)
    method, training = make_method(sizes), make_training_set(cases, sizes.subjects)
    theirs, ours = [], []
    volumes = reference.SharedVolumes(*arrays(cases, sizes.subjects))
    with one_thread(), contextlib.closing(volumes):
        for turn in range(2 * sizes.repetitions + 1):
            found = (
                np.mean(list(reference_batches(volumes, sizes.batch)), axis=0),
                np.mean(list(our_batches(method, training, sizes.batch)), axis=0),
            )
            if turn:  # the first is to warm up
                theirs.append(found[0])
                ours.append(found[1])
    (data, noise), (own_data, own_noise) = np.transpose(theirs), np.transpose(ours)
    together = pair(
        f"**data and noise of a batch of {sizes.batch}**", data + noise, own_data + own_noise
    )
    free = pair("data and noise, if the reference's noise took no time", data, own_data + own_noise)
    yield limit("data and noise of a batch: at least 20 times as fast", together[1]["ratio"], 20)
    yield limit("the same, if the reference's noise took no time", free[1]["ratio"], 20)
    yield together
    yield pair("data", data, own_data)
    yield pair("noise", noise, own_noise)
    yield free


STAGES = ("anomaly map", "erosion and median", "threshold search", "Dice and AUPRC")


def evaluation(sizes: Sizes) -> Iterator[Entry]:
    """From reconstructions to Dice, threshold and AUPRC: core seconds per volume."""
    cases = make_cases(sizes)
    results: dict[str, Any] = {}
    stages: dict[str, list[list[float]]] = {"reference": [], "ours": []}

    def run(name: str, path: Callable[..., Any]) -> Callable[[], None]:
        def action() -> None:
            clocks: list[float] = []
            results[name] = path(cases, lambda: clocks.append(time.process_time()))
            stages[name].append([(b - a) / len(cases) for a, b in itertools.pairwise(clocks)])

        return action

    with one_thread():
        actions = run("reference", reference_evaluation), run("ours", our_evaluation)
        # all threads of this process: seconds of cores
        times = alternate(*actions, repetitions=sizes.repetitions, clock=time.process_time)
    whole = pair(
        "**scoring and metrics of a volume, per core**",
        *(np.divide(side, len(cases)) for side in times),
    )
    same_map = reference_evaluation(cases, lambda: None, results["ours"]["map"])
    off = max(
        float(np.abs(np.subtract(same_map[key], results["ours"][key])).max())
        for key in ("threshold", "dice", "auprc")
    )
    yield limit("scoring and metrics per core: at least 5 times as fast", whole[1]["ratio"], 5)
    yield limit("threshold, Dice and AUPRC of a map: equal to 1e-6", off, at_most=1e-6)
    yield whole
    for number, stage in enumerate(STAGES):
        sides = ([run[number] for run in stages[name][1:]] for name in ("reference", "ours"))
        yield pair(stage, *sides)

    ours = results["ours"]

    def each(judge: Callable[..., Any]) -> Callable[[], None]:
        def action() -> None:
            for scores, case in zip(ours["clean"], cases, strict=True):
                judge(scores, case)

        return action

    def two_metrics(scores: np.ndarray, case: Case) -> None:
        dice(predict(scores, ours["threshold"], reference.COMPONENT), case.lesion)
        average_precision(scores, case.lesion)

    def all_metrics(scores: np.ndarray, case: Case) -> None:
        how = ours["threshold"], reference.COMPONENT
        evaluate_volume(scores, case.lesion, case.mask, *how)

    with one_thread():
        actions = each(two_metrics), each(all_metrics)
        times = alternate(*actions, repetitions=sizes.repetitions, clock=time.process_time)
    two, every = (float(np.median(side)) / len(cases) for side in times)
    text = "all metrics of a volume: at most 3 times Dice and AUPRC"
    yield limit(text, every / two, at_most=3)
    yield value("all metrics of a volume, per core", 1e3 * every, "ms")


def reference_evaluation(
    cases: list[Case], stamp: Callable[[], None], maps: list[np.ndarray] | None = None
) -> dict[str, Any]:
    """The reference path's stages, with a stamp before and after each."""
    lesions = [case.lesion for case in cases]
    stamp()
    maps = maps or [reference.score_volume(case.volume, case.reconstruction) for case in cases]
    stamp()
    clean = [reference.postprocess(each, case.mask) for each, case in zip(maps, cases, strict=True)]
    stamp()
    threshold, _ = reference.search_threshold(clean, lesions)
    stamp()
    dices, precisions = [], []
    for scores, lesion in zip(clean, lesions, strict=True):
        prediction = reference.drop_small_components(scores > threshold)
        dices.append(reference.dice(prediction, lesion))
        precisions.append(reference.average_precision(scores, lesion))
    stamp()
    return {"map": maps, "threshold": threshold, "dice": dices, "auprc": precisions}


def our_evaluation(cases: list[Case], stamp: Callable[[], None]) -> dict[str, Any]:
    """The library's stages, likewise."""
    options = {"erosion": reference.EROSIONS, "median": reference.MEDIAN}
    stamp()
    maps = [score_volume("fusion", case.volume, case.reconstruction, **QUALITY) for case in cases]
    stamp()
    clean = [
        postprocess(each, case.mask, **options) for each, case in zip(maps, cases, strict=True)
    ]
    stamp()
    found = search_threshold(clean, [case.lesion for case in cases], method="halving").threshold
    stamp()
    dices, precisions = [], []
    for scores, case in zip(clean, cases, strict=True):
        dices.append(dice(predict(scores, found, reference.COMPONENT), case.lesion))
        precisions.append(average_precision(scores, case.lesion))
    stamp()
    return {
        "map": maps,
        "clean": clean,
        "threshold": found,
        "dice": dices,
        "auprc": precisions,
    }


def inference(sizes: Sizes, t_test: int = 500) -> Iterator[Entry]:
    """Reconstruction of a volume by pDDPM, core seconds; the network is not trained."""
    method, case = make_method(sizes), make_cases(sizes)[0]
    slices, depth = to_slices(case.volume).unsqueeze(1), sizes.shape[2]
    torch.manual_seed(SEED)
    plain = awake(method.build().eval())
    network = ready(copy.deepcopy(plain), "cpu")
    schedule = reference.signal()

    def theirs() -> Tensor:
        noise = reference.batch_noise(slices.shape, SEED).float()
        return reference.reconstruct(plain, slices, noise, t_test, schedule, depth)

    def ours() -> np.ndarray:
        return reconstruct_volume(
            method, network, case.volume, case.mask, t_test=t_test, batch=depth, seed=SEED
        )

    reuse_freed_memory()  # as the job does; for both sides, since it cannot be taken back
    with one_thread():
        times = alternate(theirs, ours, repetitions=sizes.repetitions, clock=time.process_time)
    yield pair("**reconstruction of a volume, per core**", *times)


def awake(network: nn.Module) -> nn.Module:
    """Give the layers that start at zero some weights: zeros can be multiplied faster."""
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    return network


class Alternation:
    """Bare and reference steps in between the steps of a real training.

    A training calls :meth:`between` before each forward pass. The time from the end of one call to
    the begin of the next is one whole step of the real loop. Within the call a copy of the network
    takes the bare step (forward, loss, backward on inputs that are there already), so that both
    are measured in turns, in one process, on the same machine state.
    """

    def __init__(self, method: Method, shape: tuple[int, ...], reference_every: int = 4) -> None:
        generator = torch.Generator().manual_seed(SEED)
        self.method, self.reference_every = method, reference_every
        self.images = torch.rand(shape, generator=generator)
        self.levels = torch.randint(1000, shape[:1], generator=generator)
        self.real: list[float] = []
        self.bare: list[float] = []
        self.reference: list[float] = []
        self._left: float | None = None
        build = method.build
        method.build = lambda: self._watch(build())  # type: ignore[method-assign]

    def _watch(self, network: nn.Module) -> nn.Module:
        self._copy = copy.deepcopy(network).train()
        self._other = reference.checkpointed(copy.deepcopy(network)).train()
        self._optimizer = torch.optim.Adam(self._other.parameters(), lr=1e-4)
        network.register_forward_pre_hook(self.between)
        return network

    def between(self, network: nn.Module, inputs: tuple) -> None:
        """A step of the real loop is over, the next has not begun to compute."""
        if not network.training:  # validation
            return
        begin = time.perf_counter()
        if self._left is not None:
            self.real.append(begin - self._left)
        scaled = self.images * 2 - 1
        self.method.quality_loss(scaled, self._copy(self.images, self.levels)).backward()
        self._copy.zero_grad()
        self.bare.append(time.perf_counter() - begin)
        if (len(self.bare) - 1) % self.reference_every == 0:
            begin = time.perf_counter()
            with torch.random.fork_rng(devices=[]):  # the real training must not see this
                noise = reference.batch_noise(self.images.shape, len(self.bare)).float()
                arguments = self._other, self._optimizer, self.images, noise, reference.signal()
                reference.training_step(*arguments)
            self.reference.append(time.perf_counter() - begin)
        self._left = time.perf_counter()


def run_training(method: Method, cases: list[Case], sizes: Sizes, folder: str) -> None:
    """A training on a CPU, with a checkpoint after every epoch."""
    training = make_training_set(cases, sizes.batch * sizes.steps)
    loop = Train(
        epochs=sizes.epochs, batch_size=sizes.batch, validate_every=sizes.epochs,
        checkpoint_every=1, checkpoint_seconds=0, accelerator="cpu",
    )  # fmt: skip
    train(
        method, (training, held_out(training, 2)), folder, loop,
        keep="last", fixed_validation=True, seed=SEED, identity={},
    )  # fmt: skip


def training_loop(sizes: Sizes) -> Iterator[Entry]:
    """What the training loop costs beyond forward and backward pass, with one thread.

    The end of an epoch (history, a new draw of slices, a checkpoint) counts as a share of each of
    its steps. Validation is left out: it is forward passes of its own.
    """
    method, (width, height, _) = make_method(sizes), sizes.shape
    watched = Alternation(method, (sizes.batch, 1, height, width))
    with tempfile.TemporaryDirectory() as folder, one_thread():
        run_training(method, make_cases(sizes), sizes, folder)
    neighbours = [(a + b) / 2 for a, b in itertools.pairwise(watched.bare)]
    beyond = np.subtract(watched.real, neighbours)
    # between the last step of an epoch and the first of the next lies the end of the epoch
    is_end = np.arange(len(beyond)) % sizes.steps == sizes.steps - 1
    step, bare = np.array(watched.real)[~is_end], float(np.median(watched.bare))
    extra = float(np.median(beyond[~is_end]))
    end = float(np.mean(beyond[is_end]) - extra) / sizes.steps
    text = "training loop beyond forward and backward: at most 5 % of them"
    yield limit(text, (extra + end) / bare, at_most=0.05)
    what = f"**training step, {sizes.batch} slices, narrow network**"
    yield pair(what, watched.reference, step)
    yield value("forward, loss and backward of a training step", bare, "s")
    yield value("the rest of the step: batch, noise, optimiser, loop", extra, "s")
    yield value("end of the epoch, its share of a step", end, "s")


FIGURES: dict[str, Callable[[Sizes], Iterator[Entry]]] = {
    "training_loop": training_loop,
    "data_and_noise": data_and_noise,
    "evaluation": evaluation,
    "inference": inference,
}
