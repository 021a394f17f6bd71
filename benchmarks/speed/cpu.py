"""The figures of a CPU."""

from __future__ import annotations

import ast
import copy
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from speed import reference
from speed.material import (
    QUALITY,
    SEED,
    Case,
    Sizes,
    arrays,
    make_cases,
    make_method,
    make_training_set,
)
from speed.timing import alternate, one_thread, ratio, spread
from uad.config import Train
from uad.core.seeds import derive_seed
from uad.evaluate import evaluate_volume, postprocess, search_threshold
from uad.evaluate.reconstruct import load_network, reconstruct_volume, reuse_freed_memory, to_slices
from uad.evaluate.score import score_volume
from uad.methods import load
from uad.methods.base import Method
from uad.train.batches import SliceBatches, TrainingSet
from uad.train.loop import train

#: Libraries that take long to import.
HEAVY = ("torch", "monai", "ants", "scipy", "pandas", "matplotlib")


# training ---------------------------------------------------------------------------------------


class Alternation:
    """Bare and reference steps in between the steps of a real training.

    A training calls :meth:`between` before each forward pass. The time from the end of one call to
    the begin of the next is one whole step of the real loop: forward, loss, backward, optimiser,
    callbacks, the next batch and its noise. Within the call a copy of the network takes the bare
    step (forward, loss, backward on inputs that are there already), so that both are measured in
    turns, in one process, on the same machine state.

    Args:
        method: whose loss is taken.
        shape: of a batch, ``(B, 1, H, W)``.
        reference_every: the reference path takes a step in every so many calls.
    """

    def __init__(self, method: Method, shape: tuple[int, ...], reference_every: int) -> None:
        generator = torch.Generator().manual_seed(SEED)
        self.method = method
        self.images = torch.rand(shape, generator=generator)
        self.levels = torch.randint(1000, shape[:1], generator=generator)
        self.region = torch.zeros(shape, dtype=torch.bool)
        self.region[..., : shape[-2] // 2, : shape[-1] // 2] = True
        self.reference_every = reference_every
        self.real: list[float] = []
        self.bare: list[float] = []
        self.optimiser: list[float] = []
        self.reference: list[float] = []
        self._calls, self._left = 0, None

    def watch(self, network: nn.Module) -> nn.Module:
        """Take copies of a new network, and be called before each of its training passes."""
        self._copy = copy.deepcopy(network).train()
        self._optimizer = self.method.optimizer(self._copy.parameters(), 1e-4)
        self._other = reference.checkpointed(copy.deepcopy(network)).train()
        self._other_optimizer = torch.optim.Adam(self._other.parameters(), lr=1e-4)
        self._schedule = reference.signal()
        network.register_forward_pre_hook(self.between)
        return network

    def between(self, network: nn.Module, inputs: tuple) -> None:
        """A step of the real loop is over, the next has not begun to compute."""
        if not network.training:  # validation
            return
        if self._left is not None:
            self.real.append(time.perf_counter() - self._left)
        self._step()
        if self._calls % self.reference_every == 0:
            begin = time.perf_counter()
            noise = reference.batch_noise(self.images.shape, self._calls).float()
            state = torch.random.get_rng_state()  # the real training must not see this
            arguments = self._other, self._other_optimizer, self.images, noise, self._schedule
            reference.training_step(*arguments)
            self.reference.append(time.perf_counter() - begin)
            torch.random.set_rng_state(state)
        self._calls += 1
        self._left = time.perf_counter()

    def _step(self) -> None:
        self._optimizer.zero_grad()
        scaled = self.images * 2 - 1
        begin = time.perf_counter()
        prediction = self._copy(self.images, self.levels)
        restored = torch.where(self.region, prediction, scaled)
        self.method.quality_loss(scaled, restored).backward()
        end = time.perf_counter()
        self._optimizer.step()
        self.bare.append(end - begin)
        self.optimiser.append(time.perf_counter() - end)


def training_loop(sizes: Sizes, cases: list[Case], reference_every: int = 4) -> dict[str, Any]:
    """What the training loop costs beyond forward and backward pass, with one thread.

    The end of an epoch (history, a new draw of slices, a checkpoint as often as ``sizes`` says)
    counts as a share of each of its steps. Validation is left out: it is forward passes of its own.
    """
    family = load("diffusion")

    class Watched(family):
        def build(self) -> nn.Module:
            return alternation.watch(super().build())

    method = make_method(sizes, family=Watched)
    width, height, _ = sizes.shape
    alternation = Alternation(method, (sizes.batch, 1, height, width), reference_every)
    training = make_training_set(cases, sizes.batch * sizes.steps)
    with tempfile.TemporaryDirectory() as folder, one_thread():
        facts = _train(method, training, folder, sizes)
        parts = _parts(method, training, sizes)
    # between the last step of an epoch and the first of the next lies the end of the epoch
    ends = [n for n in range(len(alternation.real)) if n % sizes.steps == sizes.steps - 1]
    within = [value for n, value in enumerate(alternation.real) if n not in ends]
    bare = alternation.bare
    neighbours = [(a + b) / 2 for a, b in itertools.pairwise(bare)]
    differences = [
        value - neighbours[n] for n, value in enumerate(alternation.real) if n not in ends
    ]
    typical, extra = float(np.median(bare)), float(np.median(differences))
    end = float(np.mean([alternation.real[n] - neighbours[n] - extra for n in ends]))
    optimiser = float(np.median(alternation.optimiser))
    measured = parts["data"] + parts["noise"] + optimiser
    return {
        "batch": sizes.batch,
        "slice": [height, width],
        "parameters": facts["parameters"],
        "steps_per_epoch": sizes.steps,
        "checkpoint_seconds": sizes.checkpoint_seconds,
        "bare_step_s": spread(bare),
        "step_s": spread(within),
        "overhead_within_epoch": extra / typical,
        "overhead": (extra + end / sizes.steps) / typical,
        "parts_s": {
            "batch from memory": parts["data"],
            "noise": parts["noise"],
            "optimiser": optimiser,
            "loop, mixing in the noise": extra - measured,
            "end of the epoch, its share of a step": end / sizes.steps,
        },
        "reference_step_s": spread(alternation.reference),
        "reference_ratio": float(np.median(alternation.reference) / np.median(within)),
    }


def _train(method: Method, training: TrainingSet, folder: str, sizes: Sizes) -> dict[str, Any]:
    loop = Train(
        epochs=sizes.epochs,
        batch_size=sizes.batch,
        validate_every=sizes.epochs,
        checkpoint_every=1,
        checkpoint_seconds=sizes.checkpoint_seconds,
        accelerator="cpu",
    )
    validation = TrainingSet(training.images[:2], training.masks[:2], training.slices[:2])
    return train(
        method,
        (training, validation),
        folder,
        loop,
        keep="last",
        fixed_validation=True,
        seed=SEED,
        identity={},
    )


def _parts(method: Method, training: TrainingSet, sizes: Sizes) -> dict[str, float]:
    """Median seconds per batch of what comes before the forward pass."""
    data, noise = [], []
    for _ in range(3):
        for seconds in our_batches(method, training, sizes.batch):
            data.append(seconds[0])
            noise.append(seconds[1])
    return {"data": float(np.median(data)), "noise": float(np.median(noise))}


# data and noise ---------------------------------------------------------------------------------


def our_batches(
    method: Method, training: TrainingSet, batch: int, device: str = "cpu"
) -> Iterator[tuple[float, float]]:
    """Seconds for the data and for the noise of each batch of an epoch, as the training gets them.

    The draw of the epoch is part of its first batch. On a GPU the work is queued, not waited for.
    """
    batches = SliceBatches(training, batch, 1, SEED, drop_last=True)
    options = {
        "octaves": reference.OCTAVES,
        "persistence": reference.PERSISTENCE,
        "frequency": reference.FREQUENCY,
    }
    begin = time.perf_counter()
    for number, sample in enumerate(batches):
        middle = time.perf_counter()
        generator = torch.Generator(device).manual_seed(derive_seed(SEED, "train", number))
        method.noise(sample["images"], generator, "simplex", **options)
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


def data_and_noise(sizes: Sizes, cases: list[Case], compiled: Path | None = None) -> dict[str, Any]:
    """A batch of slices and its noise: index operations against a manager process and a loop."""
    images, masks = arrays(cases, sizes.subjects)
    method, training = make_method(sizes), make_training_set(cases, sizes.subjects)
    theirs: list[tuple[float, float]] = []
    ours: list[tuple[float, float]] = []
    by_value: list[tuple[float, float]] = []
    with one_thread():
        volumes = reference.SharedVolumes(images, masks)
        copied = reference.SharedVolumes(images, masks, by_value=True)
        try:
            for turn in range(2 * sizes.repetitions + 1):
                found = (
                    reference_batches(volumes, sizes.batch),
                    our_batches(method, training, sizes.batch),
                    ((value, 0.0) for value in _data_only(copied, sizes.batch)),
                )
                for kept, epoch in zip((theirs, ours, by_value), found, strict=True):
                    # of an epoch the mean: its first batch has the draw of all in it
                    data, noise = np.mean(list(epoch), axis=0)
                    if turn:  # the first is to warm up
                        kept.append((float(data), float(noise)))
        finally:
            volumes.close()
            copied.close()
    total = [sum(pair) for pair in ours]
    result = {
        "batch": sizes.batch,
        "volume": list(sizes.shape),
        "noise_compiled": reference.NUMBA,
        "reference_s": {
            "data": spread([data for data, _ in theirs]),
            "noise": spread([noise for _, noise in theirs]),
            "together": spread([sum(pair) for pair in theirs]),
            "data, copied by value": spread([data for data, _ in by_value]),
        },
        "ours_s": {
            "data": spread([data for data, _ in ours]),
            "noise": spread([noise for _, noise in ours]),
            "together": spread(total),
        },
        "ratio": ratio([sum(pair) for pair in theirs], total),
        "ratio_if_noise_were_free": ratio([data for data, _ in theirs], total),
        "compiled_noise_s": None,
        "ratio_with_compiled_noise": None,
    }
    if compiled:
        seconds = compiled_noise(compiled, sizes.shape[1], sizes.shape[0])
        together = [data + seconds for data, _ in theirs]
        result["compiled_noise_s"] = seconds
        result["ratio_with_compiled_noise"] = ratio(together, total)
    return result


def _data_only(volumes: reference.SharedVolumes, batch: int) -> Iterator[float]:
    begin = time.perf_counter()
    for _ in reference.loader(volumes, batch):
        yield time.perf_counter() - begin
        begin = time.perf_counter()


def compiled_noise(python: Path, height: int, width: int) -> float:
    """Median seconds of a reference field with opensimplex and numba, on one thread.

    Args:
        python: an interpreter that has both.
        height: rows of the field.
        width: its columns.

    Raises:
        SystemExit: it has not.
    """
    program = (
        "import json, sys, time, numba, numpy, opensimplex\n"
        "height, width, octaves, persistence, frequency = json.loads(sys.argv[1])\n"
        "times = []\n"
        "for seed in range(12):\n"
        "    begin = time.perf_counter()\n"
        "    source, field = opensimplex.OpenSimplex(seed), numpy.zeros((height, width))\n"
        "    for i in range(octaves):\n"
        "        scale = frequency / 2**i\n"
        "        points = numpy.arange(width) / scale, numpy.arange(height) / scale\n"
        "        field += persistence**i * source.noise2array(*points)\n"
        "    times.append(time.perf_counter() - begin)\n"
        "print(sorted(times[2:])[5])\n"
    )
    what = [height, width, reference.OCTAVES, reference.PERSISTENCE, reference.FREQUENCY]
    done = subprocess.run(
        [str(python), "-c", program, json.dumps(what)],
        capture_output=True,
        text=True,
        env=os.environ | {"NUMBA_NUM_THREADS": "1"},
    )
    if done.returncode:
        raise SystemExit(f"{python} cannot make the compiled noise: {done.stderr.strip()[-500:]}")
    return float(done.stdout)


# evaluation -------------------------------------------------------------------------------------

STAGES = ("anomaly map", "erosion and median", "threshold search", "Dice and AUPRC")


def evaluation(sizes: Sizes, cases: list[Case]) -> dict[str, Any]:
    """From reconstructions to Dice, threshold and AUPRC: core seconds per volume."""
    found: dict[str, dict[str, Any]] = {}
    stages: dict[str, list[list[float]]] = {"reference": [], "ours": []}

    def run(name: str, path: Callable[..., dict[str, Any]]) -> Callable[[], None]:
        def action() -> None:
            clocks: list[float] = []
            found[name] = path(cases, lambda: clocks.append(time.process_time()))
            stages[name].append([b - a for a, b in itertools.pairwise(clocks)])

        return action

    with one_thread():
        theirs, ours = alternate(
            run("reference", _reference_evaluation),
            run("ours", _our_evaluation),
            sizes.repetitions,
            time.process_time,  # all threads of this process: seconds of cores
        )
    count = len(cases)
    return {
        "volumes": count,
        "volume": list(sizes.shape),
        "reference_s": spread([value / count for value in theirs]),
        "ours_s": spread([value / count for value in ours]),
        "ratio": ratio(theirs, ours),
        "stages_s": {
            stage: {
                name: float(np.median([run[number] for run in runs[1:]])) / count
                for name, runs in stages.items()
            }
            for number, stage in enumerate(STAGES)
        },
        "mean_dice": float(np.mean(found["ours"]["dice"])),
        "mean_auprc": float(np.mean(found["ours"]["auprc"])),
    } | _agreement(cases, found["reference"], found["ours"])


def _agreement(cases: list[Case], theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """How far the two paths are apart.

    The numbers of one anomaly map have to be the same; the map itself is computed in float32 by
    both, whose rounding is small beside C2 of SSIM only where the images vary. So the map is
    held against double precision.
    """
    same_map = _reference_evaluation(cases, lambda: None, maps=ours["map"])
    exact = [reference.score_volume(case.volume, case.reconstruction, np.float64) for case in cases]
    metrics = ("threshold", "dice", "auprc")
    return {
        "differences": {key: _furthest(same_map[key], ours[key]) for key in metrics},
        "largest_difference": max(_furthest(same_map[key], ours[key]) for key in metrics),
        "differences_with_own_maps": {key: _furthest(theirs[key], ours[key]) for key in metrics},
        "map_rounding": {
            "reference": _furthest(exact, theirs["map"]),
            "ours": _furthest(exact, ours["map"]),
        },
    }


def _furthest(first: Any, second: Any) -> float:
    return float(np.abs(np.subtract(first, second)).max())


def _reference_evaluation(
    cases: list[Case], stamp: Callable[[], None], maps: list[np.ndarray] | None = None
) -> dict[str, Any]:
    lesions = [case.lesion for case in cases]
    stamp()
    if maps is None:
        maps = [reference.score_volume(case.volume, case.reconstruction) for case in cases]
    stamp()
    clean = [
        reference.postprocess(scores, case.mask) for scores, case in zip(maps, cases, strict=True)
    ]
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


def _our_evaluation(cases: list[Case], stamp: Callable[[], None]) -> dict[str, Any]:
    lesions = [case.lesion for case in cases]
    stamp()
    maps = [score_volume("fusion", case.volume, case.reconstruction, **QUALITY) for case in cases]
    stamp()
    clean = [
        postprocess(scores, case.mask, erosion=reference.EROSIONS, median=reference.MEDIAN)
        for scores, case in zip(maps, cases, strict=True)
    ]
    stamp()
    threshold = search_threshold(clean, lesions, method="halving").threshold
    stamp()
    rows = [
        evaluate_volume(scores, case.lesion, case.mask, threshold, reference.COMPONENT)
        for scores, case in zip(clean, cases, strict=True)
    ]
    stamp()
    return {
        "map": maps,
        "threshold": threshold,
        "dice": [row["dice"] for row in rows],
        "auprc": [row["auprc"] for row in rows],
    }


# imports ----------------------------------------------------------------------------------------


def imports(root: Path, repetitions: int = 5, others: int = 1) -> dict[str, Any]:
    """Wall seconds of a fresh interpreter that imports what a script imports, start included.

    Each script of ``workflow_scripts/`` is looked at; the one of the tables more often, because
    it has a limit.
    """
    scripts = {}
    for path in sorted((root / "workflow_scripts").glob("*.py")):
        count = repetitions if path.stem == "make_table" else others
        program = import_program(path)
        _import_once(program, root)  # the files come into the cache
        runs = [_import_once(program, root) for _ in range(count)]
        scripts[path.stem] = {
            "seconds": spread([seconds for seconds, _ in runs]),
            "loaded": runs[-1][1],
        }
    return {"make_table_s": scripts["make_table"]["seconds"], "scripts": scripts}


def import_program(path: Path) -> str:
    """The import statements of a script, wherever in it they stand, then what they have loaded."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lines = [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    report = f"import sys\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    return "\n".join(sorted(lines, key=lambda line: "__future__" not in line) + [report])


def _import_once(program: str, root: Path) -> tuple[float, list[str]]:
    places = [str(root / "workflow_scripts"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))}
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
    )
    return time.perf_counter() - begin, done.stdout.split()


# inference --------------------------------------------------------------------------------------


def inference(sizes: Sizes, cases: list[Case], t_test: int = 500) -> dict[str, Any]:
    """Reconstruction of a volume by pDDPM, core seconds; the network is not trained."""
    method, case = make_method(sizes), cases[0]
    slices, depth = to_slices(case.volume).unsqueeze(1), sizes.shape[2]
    schedule = reference.signal()
    torch.manual_seed(SEED)
    plain = method.build().eval()
    _wake(plain)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "model.safetensors"
        save_file(plain.state_dict(), weights)
        network = load_network(method, weights)

    def theirs(batch: int) -> Callable[[], Tensor]:
        def action() -> Tensor:
            noise = reference.batch_noise(slices.shape, SEED).float()
            return reference.reconstruct(plain, slices, noise, t_test, schedule, batch)

        return action

    def ours() -> np.ndarray:
        return reconstruct_volume(
            method, network, case.volume, case.mask, t_test=t_test, batch=depth, seed=SEED
        )

    reuse_freed_memory()  # as the job does; for both sides, since it cannot be taken back
    clock = time.process_time
    with one_thread():
        whole, batched = alternate(theirs(depth), ours, sizes.repetitions, clock)
        single, again = alternate(theirs(1), ours, max(1, sizes.repetitions // 2), clock)
    return {
        "volume": list(sizes.shape),
        "reference_s": spread(whole),
        "slice_by_slice_s": spread(single),
        "ours_s": spread(batched + again),
        "ratio": ratio(whole, batched),
        "ratio_slice_by_slice": ratio(single, again),
    }


def _wake(network: nn.Module) -> None:
    """Give the layers that start at zero some weights: zeros can be multiplied faster."""
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)


# all --------------------------------------------------------------------------------------------


def measure(
    wanted: tuple[str, ...],
    root: Path,
    sizes: Sizes,
    small: Sizes,
    compiled: Path | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """The wanted figures, by name.

    Args:
        wanted: some of :data:`FIGURES`.
        root: of the repository, for the scripts.
        sizes: of the paper's slices.
        small: of the demo's, for the training loop.
        compiled: an interpreter with numba; see :func:`compiled_noise`.
        say: gets a line per figure.
    """
    cases = make_cases(sizes)
    actions: dict[str, Callable[[], dict[str, Any]]] = {
        "imports": lambda: imports(root),
        "data_and_noise": lambda: data_and_noise(sizes, cases, compiled),
        "evaluation": lambda: evaluation(sizes, cases),
        "inference": lambda: inference(sizes, cases),
        "training_loop": lambda: training_loop(sizes, cases),
        "training_loop_demo": lambda: training_loop(small, make_cases(small, 2)),
    }
    figures = {}
    for name in wanted:
        begin = time.perf_counter()
        figures[name] = actions[name]()
        say(f"{name}: measured in {time.perf_counter() - begin:.0f} s")
    return figures


FIGURES = (
    "imports",
    "data_and_noise",
    "evaluation",
    "inference",
    "training_loop",
    "training_loop_demo",
)
