"""Whether a method reconstructs healthy tissue well enough to be ranked: figure and footnote."""

import json

import numpy as np
import pytest

from test_report_tables import SPEC, make_metrics, one, summary_of, texts_of
from uad.commands.show_results import print_readiness
from uad.config import load
from uad.core.files import write_json
from uad.core.paths import Tree
from uad.evaluate.readiness import LIMIT, healthy_errors, means_by_role
from uad.report.table_spec import TableSpec
from uad.report.tables import DSSIM, collect_readiness

QUALITY = {"window": "gaussian", "clamp": True}
SENTENCE = (
    "Not trained far enough to rank by an SSIM-based score (healthy DSSIM above 0.25, "
    "docs/positive-control.md): "
)


@pytest.fixture
def scan():
    """A scan, its brain and its lesion."""
    content = np.random.default_rng(0).uniform(0.2, 0.8, (24, 24, 4)).astype(np.float32)
    brain = np.zeros(content.shape, dtype=bool)
    brain[2:-2, 2:-2] = True
    lesion = np.zeros_like(brain)
    lesion[8:12, 8:12, 1] = True
    return content * brain, brain, lesion


def test_errors_are_those_of_the_healthy_brain(scan):
    content, brain, lesion = scan
    assert healthy_errors(content, content, brain, lesion, QUALITY) == {
        "dssim": 0, "l1": 0, "contrast_ratio": 1
    }  # fmt: skip
    half = np.where(lesion | ~brain, 5, content / 2 + 0.1)  # outside anything may be
    found = healthy_errors(content, half, brain, lesion, QUALITY)
    healthy = brain & ~lesion
    assert found["l1"] == pytest.approx(np.abs(content - half)[healthy].mean(), rel=1e-6)
    assert found["contrast_ratio"] == pytest.approx(0.5, rel=1e-6)
    as_stored = (mask.astype(np.uint8) for mask in (brain, lesion))
    assert healthy_errors(content, half, *as_stored, QUALITY) == found


def test_a_grey_image_and_an_inverted_one_are_above_the_limit(scan):
    content, brain, lesion = scan
    grey = healthy_errors(content, 0.15 * brain, brain, lesion, QUALITY)
    assert grey["dssim"] > LIMIT and grey["contrast_ratio"] == pytest.approx(0, abs=1e-9)
    inverted = (1 - content) * brain
    limits = [
        healthy_errors(content, inverted, brain, lesion, QUALITY | {"clamp": c})["dssim"]
        for c in (True, False)
    ]
    assert LIMIT < limits[0] <= 0.5 < limits[1]


def test_what_is_undefined_is_left_out_of_means(scan):
    content, brain, lesion = scan
    empty = healthy_errors(content, content, brain, brain, QUALITY)
    flat = healthy_errors(0.5 * brain, 0.5 * brain, brain, lesion, QUALITY)
    assert np.isnan([*empty.values(), flat["contrast_ratio"]]).all()
    means = means_by_role({"test/a": {**flat, "l1": 0.5}, "test/b": empty, "val_unhealthy/c": flat})
    assert means["test"] == {"n_volumes": 2, "dssim": 0, "l1": 0.5, "contrast_ratio": None}
    assert means["val_unhealthy"]["n_volumes"] == 1
    json.dumps(means, allow_nan=False)
    assert means_by_role({}) == {}


def readiness(folder, values):
    """Files of two folds of each method and test set; None: it reconstructs nothing."""
    for (method, test), value in values.items():
        for fold in (0, 1):
            path = folder / f"{method}-{test}-{fold}.json"
            cell = {"experiment": "cross_T2", "method": method, "fold": fold, "test_dataset": test}
            shift = 0.02 * (fold - 0.5)
            roles = {} if value is None else {"test": {"dssim": value + shift}}
            write_json(path, {**cell, "roles": roles})
            yield path


def test_rows_above_the_limit_are_named_below_the_table_in_every_format(tmp_path):
    tests = ("brats21", "mslub")
    dssim = {"thresh": (None, None), "pddpm": (0.46, 0.25), "pddpm-iqa": (0.254, 0.1)}
    values = {(m, t): v for m, found in dssim.items() for t, v in zip(tests, found, strict=True)}
    summary = summary_of(readiness=collect_readiness(readiness(tmp_path, values)))
    assert one(summary, "pddpm")[DSSIM] == pytest.approx(0.46)
    assert np.isnan([one(summary, m)[DSSIM] for m in ("thresh", "oracle")]).all()
    texts = texts_of(tmp_path, summary)
    for suffix in ("md", "html", "tex"):
        assert f"{SENTENCE}pDDPM (0.46)." in texts[suffix].replace("\\", "")
    lines = [line for line in texts["csv"].split("\n") if line.startswith("pddpm,")]
    assert {line[-7:] for line in lines} == {",0.4600", ",0.2500"}


def test_a_table_whose_rows_are_below_the_limit_says_nothing(tmp_path):
    found = collect_readiness(readiness(tmp_path, {("pddpm", "brats21"): LIMIT}))
    texts = texts_of(tmp_path, summary_of(readiness=found))
    assert not any("Not trained far enough" in text for text in texts.values())


def test_the_end_of_a_run_says_it_once(tmp_path, content, capsys):
    content["run"] = {"tables": ["table1", "table4"]}
    cfg, tree = load({**content, "results": str(tmp_path)}), Tree(str(tmp_path))
    (tmp_path / "tables").mkdir()
    for name in cfg.tables_of_run():
        methods = cfg.tables[name].rows
        spec = TableSpec(name, "A table", methods, SPEC.places, cfg.labels)
        found = collect_readiness(readiness(tmp_path, {("ddpm-iqa", "brats21"): 0.4}))
        metrics = make_metrics(dict.fromkeys(methods, 0.5), folds=1, volumes=2, spec=spec)
        summary = summary_of(metrics, spec, readiness=found)
        summary.to_csv(tree.table("csv", name), index=False)
    print_readiness(cfg, tree)
    said = f"{SENTENCE}{cfg.labels['ddpm-iqa']} (0.40)."
    assert " ".join(capsys.readouterr().out.split()) == said
