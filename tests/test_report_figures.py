"""Figures: the right slices and curves, and equal bytes."""

import re

import numpy as np
import pandas as pd
import pytest

from test_report_tables import air_record
from uad import evaluate
from uad.core.errors import DataError
from uad.preprocess.slices import write_store
from uad.report.air_table import air_table
from uad.report.curves import figure_curves, mean_dice, mean_precision
from uad.report.figures import figure_air, figure_loss
from uad.report.map_figures import choose_slices, figure_maps, map_samples, map_scale

# --- slices and their maps


def test_a_small_a_median_and_a_large_lesion_are_shown():
    sizes = {f"case-{i:02d}": 10 * i for i in range(13)}
    # case-00 has no lesion; of 12 volumes those at floor(12 q) = 2, 6, 10 are taken
    assert choose_slices(sizes) == ["case-03", "case-07", "case-11"]
    assert choose_slices(dict(reversed(sizes.items()))) == choose_slices(sizes)
    for volumes in (1, 2, 3, 6, 7):
        choices = choose_slices(dict.fromkeys(map(str, range(volumes)), 5))
        assert len(set(choices)) == len(choices) == min(3, volumes)
    with pytest.raises(DataError, match="lesion"):
        choose_slices({"a": 0})


def test_samples_are_turned_for_display_and_made_of_the_chosen_volumes_only(tmp_path):
    names = [f"case-{i}" for i in range(4)]
    volumes = np.arange(4 * 5 * 6 * 3, dtype=np.float16).reshape(4, 5, 6, 3)
    lesions = np.zeros(volumes.shape, np.uint8)
    for i, lesion in enumerate(lesions):  # case-0 has none; slice 1 has most
        lesion[0, 0, 2], lesion[1 : 1 + i, 4, 1] = i > 0, 1
    store = tmp_path / "s.safetensors"
    write_store(store, names, zip(volumes, np.ones_like(lesions), lesions, strict=True))
    loaded = []

    def layers(subject, volume, mask):
        loaded.append(subject)
        return {"input": volume, "half": volume / 2 * mask}

    samples = map_samples(store, names[:3], layers)
    assert loaded == [s["subject"] for s in samples] == ["case-1", "case-2"]  # not case-3
    assert [(s["slice"], s["lesion_voxels"]) for s in samples] == [(1, 2), (1, 3)]
    first = samples[0]
    np.testing.assert_array_equal(first["input"], np.rot90(volumes[1, :, :, 1]))
    np.testing.assert_array_equal(first["half"], first["input"] / 2)
    assert first["truth"].shape == (6, 5) and first["truth"][1, 1]


def test_equal_maps_give_equal_bytes_without_a_date_at_200_dpi(tmp_path):
    truth = np.zeros((24, 20), dtype=bool)
    truth[5:12, 0:6] = True
    sample = {"subject": "a-long-name-of-a-subject", "slice": 21, "lesion_voxels": 1234}
    sample |= {"truth": truth, "input": np.ones(truth.shape), "a": truth * 0.5}
    maps = {"a": ("a method with a name of several words", "l1"), "zero": ("second", "l1")}
    for name in ("a", "b"):
        samples = [sample | {"zero": np.zeros(truth.shape)}]
        options = {"phantom": True, "title": "Maps"}
        figure_maps(tmp_path / f"{name}.png", samples, ["input"], maps, **options)
    png, again = ((tmp_path / f"{name}.png").read_bytes() for name in "ab")
    assert png == again and b"pHYs" + (7874).to_bytes(4, "big") in png  # pixels per metre
    assert not re.search(rb"20\d\d-\d\d-\d\d|tEXt", png)


def test_maps_share_a_scale_that_says_when_it_cuts_and_may_be_zero_everywhere():
    spot = np.r_[np.ones(9999), 5.0]
    samples = [{"a": np.full(9, 1.0), "b": np.full(9, 3.0), "zero": np.zeros(9), "spot": spot}]
    assert map_scale(samples, ["a", "b"]) == (3.0, False)
    assert map_scale(samples, ["zero"]) == (1.0, False)
    assert map_scale(samples, ["spot"]) == (1.0, True)


# --- losses and AIR


def history(steps):
    step = np.arange(1, steps + 1)
    val = np.where(step % 10 == 0, 0.6 * np.exp(-step / 50) + 0.03, np.nan)
    train = 0.5 * np.exp(-step / 50) + 0.02
    columns = {"epoch": (step - 1) // 10, "step": step, "train_loss": train, "val_loss": val}
    return pd.DataFrame(columns)


@pytest.mark.parametrize("steps", [1, 400])
def test_losses_in_any_order_give_the_same_picture(tmp_path, steps):
    figure_loss(tmp_path / "a.png", history(steps), "a title")
    figure_loss(tmp_path / "b.png", history(steps).iloc[::-1], "a title")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_an_empty_history_is_refused(tmp_path):
    empty = history(5).assign(train_loss=np.nan, val_loss=np.nan)
    with pytest.raises(DataError, match="no loss"):
        figure_loss(tmp_path / "a.png", empty, "a title")
    assert not list(tmp_path.iterdir())


def test_equal_air_gives_equal_bytes(tmp_path):
    kept = {"invert": False, "air_after": 1.5}
    other = air_record(0, experiment="cross_T2", modality="T2", **kept)
    frame = air_table([air_record(0, **kept), air_record(1), air_record(2), other])
    paths = [tmp_path / "one.png", tmp_path / "two.png"]
    for path in paths:
        figure_air(path, frame, phantom=True)
    assert paths[0].read_bytes() == paths[1].read_bytes()


# --- curves


def curve(scale=1.0, folds=3):
    frames = []
    for fold in range(folds):
        rng = np.random.default_rng(fold)
        scores = np.concatenate([rng.gamma(2, 1, 900), rng.gamma(6, 1, 100)]).astype(np.float32)
        pairs = [(scale * scores, np.arange(1000) >= 900)]
        frame = evaluate.threshold_curve(lambda pairs=pairs: pairs, points=15)
        frames.append(frame.assign(fold=fold))
    return pd.concat(frames)


def draw(path, curves):
    chosen = {name: [3.0] * frame["fold"].nunique() for name, frame in curves.items()}
    options = {"phantom": True, "title": "T", "prevalence": 0.1}
    figure_curves(path, curves, chosen=chosen, **options)
    return path.read_bytes()


def test_curves_of_several_scales_and_folds_in_any_order_give_equal_bytes(tmp_path):
    one = curve(10, folds=1)
    methods = {"a": curve(0.01, folds=2), "b": one, "c": one.assign(mean_dice=0)}
    shuffled = {name: frame.sample(frac=1, random_state=1) for name, frame in methods.items()}
    assert draw(tmp_path / "a.png", methods) == draw(tmp_path / "b.png", shuffled)
    with pytest.raises(DataError, match="no finite values"):
        draw(tmp_path / "d.png", {"a": curve().assign(precision=np.nan)})


def test_the_mean_curve_takes_the_highest_threshold_that_reaches_a_recall():
    def fold(recall, precision, scale):
        thresholds = scale * np.arange(3)
        columns = {"threshold": thresholds, "precision": precision, "recall": recall}
        return pd.DataFrame(columns | {"mean_dice": [0.8, 0.4, 0]})

    parts = [
        fold([1.0, 0.5, 0.0], [0.1, 0.6, np.nan], 1.0),
        fold([0.8, 0.4, 0.0], [0.3, 0.8, np.nan], 2.0),
    ]
    recall, precision = mean_precision(parts)
    at = dict(zip(recall.round(2), precision, strict=True))
    assert at[0.4] == pytest.approx((0.6 + 0.8) / 2)
    assert at[0.41] == pytest.approx((0.6 + 0.3) / 2)
    assert at[0.51] == pytest.approx((0.1 + 0.3) / 2)
    assert recall.max() == pytest.approx(0.8)  # no mean where a fold has no value
    thresholds, dice = mean_dice(parts)
    assert thresholds.tolist() == [0, 1, 2, 4]
    assert dice.tolist() == pytest.approx([0.8, 0.5, 0.2, 0])
