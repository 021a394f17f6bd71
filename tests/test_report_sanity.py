"""The checks at the end of the demo can fail."""

import pandas as pd
import pytest
import yaml

from uad.config import load, merged
from uad.core.files import write_json, write_tsv
from uad.core.paths import Tree
from uad.report.sanity import check_phantom_run


@pytest.fixture
def run(content, root, tmp_path):
    """Results of a tiny run that passes; returns its config and tree."""
    overlay = yaml.safe_load((root / "config.demo.yaml").read_text(encoding="utf-8"))
    cfg = load({**merged(content, overlay), "results": str(tmp_path)})
    tree = Tree(str(tmp_path))
    history = pd.DataFrame({"val_loss": [1.0, None, 0.5]})
    for fold in (0, 1):
        path = tmp_path / f"models/intra_FLAIR/pddpm/fold-{fold}/history.csv"
        path.parent.mkdir(parents=True)
        history.to_csv(path, index=False)
        metrics = pd.DataFrame({"subject": ["a"], "auprc": [0.2], "prevalence": [0.02]})
        write_tsv(tree.per_test("metrics", "tsv", "intra_FLAIR", "pddpm", fold, "brats21"), metrics)
        for experiment, invert in (("cross_T2", 0), ("intra_FLAIR", 1), ("intra_T1CE", 1)):
            write_json(tree.air(experiment, fold), {"paper_rule_invert": bool(invert)})
    return cfg, tree


def test_a_run_that_learnt_and_detects_passes(run):
    checks = check_phantom_run(run[0])
    assert len(checks) == 2 and all(passed for passed, _ in checks)
    assert "fell by 50%" in checks[0][1] and "10.0 times" in checks[1][1]


def test_a_training_that_did_not_learn_is_named(run, tmp_path):
    path = tmp_path / "models/intra_FLAIR/pddpm/fold-1/history.csv"
    pd.DataFrame({"val_loss": [1.0, 0.8]}).to_csv(path, index=False)
    passed, sentence = check_phantom_run(run[0])[0]
    assert not passed and "intra_FLAIR/pddpm/fold-1" in sentence


def test_a_test_set_on_which_nothing_is_detected_and_a_wrong_inversion_are_named(run):
    cfg, tree = run
    metrics = pd.DataFrame({"subject": ["a"], "auprc": [0.02], "prevalence": [0.02]})
    for fold in (0, 1):
        write_tsv(tree.per_test("metrics", "tsv", "intra_FLAIR", "pddpm", fold, "brats21"), metrics)
    write_json(tree.air("cross_T2", 1), {"paper_rule_invert": True})
    failed = [sentence for passed, sentence in check_phantom_run(cfg) if not passed]
    assert "intra_FLAIR/brats21, pddpm" in failed[0]
    assert failed[1] == "cross_T2 fold 1 should be kept by Eq. 13"
