"""The configuration: the paper as data, refused where it points to nothing."""

import copy
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uad import config as uad_config
from uad.config import load, load_files, merged
from uad.config.reference import GENERATED
from uad.core.errors import ConfigError


def test_the_committed_config_is_valid_and_is_the_paper(content):
    cfg = load(content)
    assert not cfg.phantom
    assert cfg.preprocessing.shape == (96, 96, 50)
    assert (cfg.train.epochs, cfg.train.batch_size, cfg.train.learning_rate) == (1600, 32, 1e-4)
    assert cfg.protocol.t_test_of("cross_T2", "brats21") == 500
    assert cfg.protocol.t_test_of("cross_T2", "mslub") == 750
    assert cfg.backend_of("ixi") == "hdbet" and cfg.backend_of("brats21") == "foreground"


@pytest.mark.parametrize(
    ("path", "phantom"),
    [
        ("config.demo.yaml", True),
        ("config.phantom.yaml", True),
        ("tests/e2e/config.yaml", True),
        ("tests/real/config.yaml", False),
        ("config.fast.yaml", False),
    ],
)
def test_overlays_are_valid_and_know_whether_they_are_phantoms(root, path, phantom):
    assert load_files([root / "config.yaml", root / path]).phantom == phantom


LAYERS = st.dictionaries(
    st.sampled_from("abc"),
    st.recursive(
        st.none() | st.integers(0, 3) | st.just([1]),
        lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
        max_leaves=6,
    ),
)


@given(below=LAYERS, above=LAYERS)
def test_overlays_are_merged_as_snakemake_merges_them(below, above):
    from snakemake.utils import update_config

    expected, before = copy.deepcopy(below), copy.deepcopy(below)
    update_config(expected, above)
    assert merged(below, above) == expected
    assert below == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"mine\.yaml: cannot be read \(.*No such file"),
        ("train: {epochs", r"mine\.yaml: cannot be read \(while parsing"),
        ("[1, 2]", r"mine\.yaml: is no configuration \(it has no keys\)"),
        ("train: {epohcs: 3}", "did you mean 'epochs'"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_named(root, tmp_path, text, message):
    if text:
        (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_files([root / "config.yaml", tmp_path / "mine.yaml"])


def test_an_empty_overlay_changes_nothing(root, tmp_path):
    (tmp_path / "mine.yaml").write_text("# nothing yet\n")
    paths = [root / "config.yaml", tmp_path / "mine.yaml"]
    assert load_files(paths) == load_files(paths[:1])


@pytest.mark.parametrize("path", GENERATED, ids=lambda path: path.name)
def test_what_is_generated_from_the_model_is_committed(path):
    assert path.read_text(encoding="utf-8") == GENERATED[path](), "run 'make schema'"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("protcol",), {}, r"unknown key 'protcol'; did you mean 'protocol'\?"),
        (("train", "epohcs"), 3, r"train: unknown key 'epohcs'; did you mean 'epochs'\?"),
        (("methods", "pddpm", "model"), "pdpm", r"methods\.pddpm\.model: unknown model 'pdpm'; did you mean 'pddpm'"),
        (("methods", "pddpm", "loss"), "l3", r"methods\.pddpm\.loss: Input should be 'l1'"),
        (("models", "pddpm", "family"), "difusion", r"unknown family 'difusion'; did you mean 'diffusion'"),
        (("models", "pddpm", "train"), {"epochz": 1}, r"models\.pddpm\.train: unknown key 'epochz'; did you mean 'epochs'"),
        (("tables", "table3", "rows"), ["pddpm", "pddpm-iqu"], r"tables\.table3: unknown method 'pddpm-iqu'; did you mean 'pddpm-iqa'"),
        (("tables", "table3", "columns"), [{"experiment": "intra_FLARE", "test": "brats21"}], r"unknown experiment 'intra_FLARE'; did you mean 'intra_FLAIR'"),
        (("tables", "table3", "columns"), [{"experiment": "intra_FLAIR", "test": "mslub"}], r"unknown test set 'mslub'"),
        (("experiments", "cross_T2", "train"), "ixo", r"experiments\.cross_T2\.train: unknown data set 'ixo'; did you mean 'ixi'"),
        (("experiments", "cross_T2", "modality"), "FLAIR", r"data set 'ixi' has no FLAIR"),
        (("experiments", "cross_T2", "train"), "mslub", r"cross_T2\.train: 'mslub' has lesion masks, and setting 'cross' trains on healthy"),
        (("experiments", "cross_T2", "test"), ["ixi"], r"cross_T2\.test: 'ixi' is healthy"),
        (("experiments", "intra_FLAIR", "test"), ["mslub"], r"'intra' tests on the data set it trains on"),
        (("datasets", "ixi", "path"), None, r"source 'folder' needs 'path'"),
        (("protocol", "t_test"), {"cross_T2": 500}, r"t_test needs an entry 'default'"),
        (("protocol", "alpha"), 1.5, r"protocol\.alpha: Input should be less than or equal to 1"),
        (("models", "pddpm", "options", "path_grid"), [2, 2], r"models\.pddpm\.options: unknown key 'path_grid'; did you mean 'patch_grid'"),
        (("models", "pddpm", "options", "patch_grid"), [5, 5], r"patch_grid of \(5, 5\) does not divide slices of \(96, 96\)"),
        (("models", "ddpm", "options"), {"network": {"channels": [100, 200]}}, r"norm_num_groups 32 does not divide 100 channels"),
        (("preprocessing", "shape"), [90, 96, 50], r"models\.dae\.options: 4 levels need slices divisible by 8"),
        (("preprocessing", "percentiles"), [99, 1], r"percentiles must rise"),
        (("preprocessing", "skullstrip", "backend"), "hdbt", r"unknown back end 'hdbt'; did you mean 'hdbet'"),
        (("datasets", "mslub", "skullstrip"), "forground", r"datasets\.mslub\.skullstrip: unknown back end 'forground'; did you mean 'foreground'"),
        (("datasets", "ixi", "modalities"), ["T1", "FLAIR"], r"the ixi data set has no FLAIR images"),
        (("splits", "unhealthy_validation"), {"brats": 100}, r"unknown data set 'brats'; did you mean 'brats21'"),
        (("splits", "reference"), {"leaks": "drop"}, r"splits\.reference\.leaks: Input should be 'keep' or 'drop_from_train'"),
        (("protocol", "median"), 4, r"protocol\.median: the side of the median window must be odd"),
        (("models", "pddpm", "train"), {"epochs": -3}, r"models\.pddpm\.train\.epochs: Input should be greater"),
        (("tables", "table3", "rows"), ["pddpm", "pddpm"], r"row 'pddpm' is listed twice"),
        (("tables", "table3", "columns"), [{"experiment": "intra_FLAIR", "test": "brats21"}] * 2, r"column 'intra_FLAIR/brats21' is listed twice"),
        (("run", "folds"), [7], r"there is no fold 7"),
        (("run", "folds"), [], r"run\.folds: List should have at least 1 item"),
        (("run", "tables"), ["table9"], r"run\.tables: unknown table 'table9'"),
    ],
)  # fmt: skip
def test_a_mistake_is_refused_with_its_place_and_the_near_match(content, path, value, message):
    place = content
    for key in path[:-1]:
        place = place.setdefault(key, {})
    place[path[-1]] = value
    with pytest.raises(ConfigError, match=message):
        load(content)


@pytest.mark.parametrize("change", [{"folds": 6}, {"train": "controls"}])
def test_published_splits_are_for_experiments_that_they_know(content, change):
    content["splits"] = {"kind": "reference"}
    content["datasets"]["controls"] = content["datasets"]["ixi"] | {"layout": "bids-healthy"}
    content["experiments"]["cross_T2"] |= change
    with pytest.raises(
        ConfigError, match="cross_T2: the published splits .* 5 folds, train on ixi"
    ):
        load(content)


def test_protocol_paper_is_what_the_paper_wrote_and_single_choices_still_win(content):
    content["protocol"] = "paper"
    paper = load(content).protocol
    assert (paper.postprocessing_order, paper.ssim_window, paper.component_max_size) == (
        "median_first",
        "uniform",
        0,
    )
    content["protocol"] = {"preset": "paper", "median": 3}
    assert load(content).protocol.median == 3
    assert load(content).protocol.postprocessing_order == "median_first"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"f-anogan": {"loss": "fusion"}}, "trains with a loss of its own: l2"),
        ({"thresh": {"loss": "fusion"}}, "is not trained; leave it out"),
        ({"thresh": {"score": "l1"}}, "'direct' is for methods that score"),
        ({"pddpm-fq": {"seeded_as": "pdpm"}}, "did you mean 'pddpm'"),
    ],
)
def test_options_that_a_method_would_ignore_are_refused(content, change, message):
    for name, options in change.items():
        content["methods"][name] |= options
    with pytest.raises(ConfigError, match=re.escape(message)):
        uad_config.load(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variants": {"even": {"median": 4}}}, "must be odd"),
        ({"variants": {"odd": {"median": 3}}, "columns": [{"experiment": "intra_FLAIR", "test": "mslub"}]}, "unknown test set 'mslub'"),
        ({"methods": ["thresh"]}, "has no reconstructions to score again"),
        ({"variants": {}, "sweep": {"alhpa": [0.5]}}, "did you mean 'alpha'"),
    ],
)  # fmt: skip
def test_a_study_that_would_fail_after_the_trainings_is_refused(content, change, message):
    content["studies"]["quality_maps"] |= change
    with pytest.raises(ConfigError, match=re.escape(message)):
        uad_config.load(content)


def test_a_sweep_of_whole_numbers_stays_whole(content):
    study = content["studies"]["alpha"]
    study["sweep"] = {"erosion": [0, 1.0]}
    variants = uad_config.load(content).variants_of("alpha", "pddpm-iqa")
    assert [type(v["erosion"]) for v in variants] == [int] * 3


def test_methods_may_draw_the_same_random_numbers(content):
    cfg = uad_config.load(content)
    assert cfg.seed_name_of("pddpm-iqa-max") == cfg.seed_name_of("pddpm-iqa") == "pddpm-iqa"
