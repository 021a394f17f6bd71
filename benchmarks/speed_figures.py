"""Figures of data and noise, of scoring and metrics, and of reconstruction."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import reference_path as reference
import torch
from speed_material import (
    QUALITY,
    SEED,
    SIMPLEX,
    Case,
    Sizes,
    alternate,
    arrays,
    make_cases,
    make_method,
    make_training_set,
    one_thread,
)
from speed_tables import Entry, limit, pair, value
from torch import Tensor, nn

from uad.core.seeds import derive_seed
from uad.evaluate import average_precision, dice, evaluate_volume, postprocess, predict
from uad.evaluate import search_threshold as own_threshold
from uad.evaluate.reconstruct import Reconstructor
from uad.evaluate.score import score_volume
from uad.networks.execution import ready, reuse_freed_memory, to_slices
from uad.preprocess.slices import read_store, read_volumes, volume_writer, write_store
from uad.train.batches import SliceBatches

POSTPROCESSING = {"erosion": reference.EROSIONS, "median": reference.MEDIAN}


def data_and_noise(sizes: Sizes) -> Iterator[Entry]:
    """A batch of slices and its noise: index operations against a manager process and a loop.

    The draw of an epoch is part of its first batch.
    """
    cases, method = make_cases(sizes), make_method(sizes)
    count, found = 2 * sizes.batch, []
    ours = SliceBatches(make_training_set(cases, count), sizes.batch, 1, SEED, drop_last=True)
    volumes = reference.SharedVolumes(*arrays(cases, count))

    def own_noise(sample: tuple[Tensor, Tensor], number: int) -> None:
        generator = torch.Generator().manual_seed(derive_seed(SEED, "train", number))
        method.noise(sample[0], generator, "simplex", **SIMPLEX)

    def reference_noise(sample: dict[str, Tensor], number: int) -> None:
        reference.batch_noise(sample["image"].squeeze(-1).shape, number)

    def epoch(batches: Iterable[Any], noise: Callable[[Any, int], None]) -> np.ndarray:
        """Mean seconds for the data and for the noise of a batch."""
        clocks = [time.perf_counter()]
        for number, sample in enumerate(batches):
            clocks.append(time.perf_counter())
            noise(sample, number)
            clocks.append(time.perf_counter())
        return np.diff(clocks).reshape(-1, 2).mean(axis=0)

    with one_thread(), contextlib.closing(volumes):
        for _ in range(2 * sizes.repetitions + 1):
            theirs = epoch(reference.loader(volumes, sizes.batch), reference_noise)
            found.append([theirs, epoch(ours, own_noise)])
    # without the first, which warms up
    (data, noise), (own_data, own_drawn) = np.transpose(found[1:], (1, 2, 0))
    own = own_data + own_drawn
    together = pair(f"**data and noise of a batch of {sizes.batch}**", data + noise, own)
    free = pair("data and noise, if the reference's noise took no time", data, own)
    yield limit("data and noise of a batch: at least 20 times as fast", together[1]["ratio"], 20)
    yield limit("the same, if the reference's noise took no time", free[1]["ratio"], 20)
    yield together
    yield pair("data", data, own_data)
    yield pair("noise", noise, own_drawn)
    yield free


# --- scoring and metrics


class Evaluation(NamedTuple):
    """From reconstructions to metrics, stage by stage."""

    anomaly_map: Callable[[Case], np.ndarray]
    erosion_and_median: Callable[[np.ndarray, Case], np.ndarray]
    threshold_search: Callable[[list[np.ndarray], list[np.ndarray]], float]
    dice_and_auprc: Callable[[np.ndarray, Case, float], tuple[float, float]]

    def stages(
        self, cases: list[Case], maps: list[np.ndarray] | None = None
    ) -> tuple[dict[str, Callable[[], Any]], dict[str, Any]]:
        """Each stage as a function of nothing, and the results; with maps from those on."""
        maps = maps or [self.anomaly_map(case) for case in cases]
        pairs = list(zip(maps, cases, strict=True))
        clean = [self.erosion_and_median(*each) for each in pairs]
        lesions = [case.lesion for case in cases]
        found = self.threshold_search(clean, lesions)

        def judged() -> list[tuple[float, float]]:
            return [self.dice_and_auprc(*each, found) for each in zip(clean, cases, strict=True)]

        stages = {
            "anomaly map": lambda: [self.anomaly_map(case) for case in cases],
            "erosion and median": lambda: [self.erosion_and_median(*each) for each in pairs],
            "threshold search": lambda: self.threshold_search(clean, lesions),
            "Dice and AUPRC": judged,
        }
        return stages, {"maps": maps, "clean": clean, "threshold": found, "judged": judged()}


def _reference_judged(scores: np.ndarray, case: Case, threshold: float) -> tuple[float, float]:
    prediction = reference.drop_small_components(scores > threshold)
    return (
        reference.dice(prediction, case.lesion),
        reference.average_precision(scores, case.lesion),
    )


def _judged(scores: np.ndarray, case: Case, threshold: float) -> tuple[float, float]:
    prediction = predict(scores, threshold, reference.COMPONENT)
    return dice(prediction, case.lesion), average_precision(scores, case.lesion)


REFERENCE = Evaluation(
    lambda case: reference.score_volume(case.volume, case.reconstruction),
    lambda scores, case: reference.postprocess(scores, case.mask),
    reference.search_threshold,
    _reference_judged,
)
OURS = Evaluation(
    lambda case: score_volume("fusion", case.volume, case.reconstruction, **QUALITY),
    lambda scores, case: postprocess(scores, case.mask, **POSTPROCESSING),
    lambda maps, lesions: own_threshold(maps, lesions).threshold,
    _judged,
)


def evaluation(sizes: Sizes) -> Iterator[Entry]:
    """From reconstructions to Dice, threshold and AUPRC: core seconds per volume."""
    cases = make_cases(sizes)
    how = {"repetitions": sizes.repetitions, "clock": time.process_time}
    ours, found = OURS.stages(cases)
    theirs, same_map = REFERENCE.stages(cases, found["maps"])

    def every() -> None:
        for scores, case in zip(found["clean"], cases, strict=True):
            evaluate_volume(scores, case.lesion, case.mask, found["threshold"], reference.COMPONENT)

    with one_thread():
        times = {
            stage: np.divide(alternate(theirs[stage], ours[stage], **how), len(cases))
            for stage in ours
        }
        two, all_metrics = alternate(ours["Dice and AUPRC"], every, **how)
    whole = pair("**scoring and metrics of a volume, per core**", *sum(times.values()))
    off = max(
        float(np.abs(np.subtract(same_map[key], found[key])).max())
        for key in ("threshold", "judged")
    )
    yield limit("scoring and metrics per core: at least 5 times as fast", whole[1]["ratio"], 5)
    yield limit("threshold, Dice and AUPRC of a map: equal to 1e-6", off, at_most=1e-6)
    yield whole
    for stage, both in times.items():
        yield pair(stage, *both)
    text = "all metrics of a volume: at most 3 times Dice and AUPRC"
    yield limit(text, np.median(all_metrics) / np.median(two), at_most=3)
    seconds = np.median(all_metrics) / len(cases)
    yield value("all metrics of a volume, per core", 1e3 * seconds, "ms")


# --- reconstruction


def awake(network: nn.Module) -> nn.Module:
    """Give the layers that start at zero some weights: zeros can be multiplied faster."""
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    return network


def reconstruction(sizes: Sizes, t_test: int = 500) -> Iterator[Entry]:
    """Reconstruction of a volume by pDDPM, core seconds; the network is not trained."""
    method, case = make_method(sizes), make_cases(sizes)[0]
    slices, depth = to_slices(case.volume).unsqueeze(1), sizes.shape[2]
    networks = []
    for _ in range(2):
        torch.manual_seed(SEED)
        networks.append(awake(method.build().eval()))
    ours = Reconstructor(method, ready(networks[1], "cpu"), t_test, depth)

    def theirs() -> None:
        noise = reference.batch_noise(slices.shape, SEED).float()
        reference.reconstruct(networks[0], slices, noise, t_test, reference.signal())

    reuse_freed_memory()  # as the job does; for both sides, since it cannot be taken back
    with one_thread():
        yield pair(
            "**reconstruction of a volume, per core**",
            *alternate(
                theirs,
                lambda: ours.volume(case.volume, case.mask, SEED),
                repetitions=sizes.repetitions,
                clock=time.process_time,
            ),
        )


def volumes(sizes: Sizes) -> Iterator[Entry]:
    """As many volumes as BraTS has: restored, with several in a pass, scored and evaluated.

    How many share a pass, and whether it is compiled, is tried on an eighth of them.
    """
    method, cases = make_method(sizes), make_cases(sizes)
    network, depth = ready(method.build(), sizes.device), sizes.shape[2]
    names = [f"test/{number:04d}" for number in range(sizes.restored)]
    chosen = list(itertools.islice(itertools.cycle(cases), sizes.restored))
    subjects = [str(number) for number in range(len(cases))]
    with tempfile.TemporaryDirectory() as folder:
        store, restored = Path(folder, "store"), Path(folder, "restored")
        stored = ((case.volume.astype(np.float16), case.mask, case.lesion) for case in cases)
        write_store(store, subjects, stored)

        def read(name: str) -> tuple[np.ndarray, np.ndarray, int]:
            number = int(name.split("/")[1])
            part = read_store(store, [subjects[number % len(subjects)]])
            return part.volumes[0], part.masks[0], number

        def seconds(some: list[str], batch: int, mode: str) -> float:
            how = batch, sizes.device, "bf16-mixed", mode
            reconstructor = Reconstructor(method, network, 500, *how)
            warm = names[: reconstructor.volumes_per_pass(depth)]
            reconstructor.run(warm, depth, read, lambda name, volume: None)
            begin = time.perf_counter()
            with volume_writer(restored, some, sizes.shape, np.float16) as write:
                reconstructor.run(some, depth, read, write)
            return time.perf_counter() - begin

        modes = ("off", "default") if sizes.device == "cuda" else ("off",)
        tried, part = {}, names[: max(1, len(names) // 8)]
        for way in itertools.product(sizes.slices_per_pass, modes):
            tried[way] = seconds(part, *way) / len(part)
            what = "a volume restored with {} slices in a pass, compile {}"
            yield value(what.format(*way), tried[way], "s")
        restoring = seconds(names, *min(tried, key=tried.__getitem__))
        begin = time.perf_counter()
        maps = [
            OURS.erosion_and_median(OURS.anomaly_map(case._replace(reconstruction=volume)), case)
            for case, volume in zip(chosen, read_volumes(restored).values(), strict=True)
        ]
    middle = time.perf_counter()
    threshold = OURS.threshold_search(maps[:100], [case.lesion for case in chosen[:100]])
    for scores, case in zip(maps, chosen, strict=True):
        evaluate_volume(scores, case.lesion, case.mask, threshold, reference.COMPONENT)
    end = time.perf_counter()
    text = f"reconstruction and scoring of {sizes.restored} volumes: at most 5 minutes"
    yield limit(text, (restoring + end - begin) / 60, at_most=5)
    yield value(f"reconstruction of {sizes.restored} volumes", restoring, "s")
    yield value(f"anomaly maps of {sizes.restored} volumes", middle - begin, "s")
    yield value(f"threshold and metrics of {sizes.restored} volumes", end - middle, "s")
