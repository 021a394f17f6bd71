"""The whole workflow on real scans: IXI T1 heads to three patients (about an hour)."""

import os
from pathlib import Path

import pandas as pd
import pytest
import yaml

from test_workflow import snakemake
from tools import real_tree

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("UAD_REAL_DATA", ROOT / "../shared/data")).resolve()

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        not (DATA / "mslub" / "mni").is_dir(),
        reason=f"no real scans at {DATA}; set UAD_REAL_DATA",
    ),
]


def test_a_cross_dataset_t1_table_from_real_scans(root, tmp_path):
    real_tree.make(DATA, tmp_path / "trees")
    where = {
        "ixi": {"path": str(tmp_path / "trees/ixi")},
        "mslub": {"path": str(tmp_path / "trees/unhealthy")},
    }
    paths = tmp_path / "paths.yaml"
    paths.write_text(yaml.safe_dump({"datasets": where}))
    overlays = (root / "tests/real/config.yaml", paths)
    snakemake(root, tmp_path, "tables", "air", "figures", "--configfile", *overlays)
    results = tmp_path / "results-real"
    table = pd.read_csv(results / "tables/tableT1.csv")
    print(table.to_string())
    assert table["mean"].between(0, 100).all() and len(table) == 12
    assert "phantom" not in (results / "tables/tableT1.md").read_text()
    for k in range(3):
        split = pd.read_csv(results / f"splits/cross_T1/fold-{k}.tsv", sep="\t")
        assert (split["role"] == "train").sum() >= 20
    sidecars = list(results.glob("preprocessed/ixi/*/anat/*SRI24*preproc*.json"))
    overlaps = [yaml.safe_load(p.read_text())["registration"]["overlap_dice"] for p in sidecars]
    assert len(overlaps) == 24 and min(overlaps) >= 0.93
