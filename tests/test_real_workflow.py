"""The whole workflow on real scans: IXI T1 heads to MSLUB patients (about half an hour)."""

import os
from pathlib import Path

import pandas as pd
import pytest
import yaml

from test_workflow import snakemake

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
    where = {"ixi": {"path": str(DATA / "ixi")}, "mslub": {"path": str(DATA / "mslub/mni")}}
    paths = tmp_path / "paths.yaml"
    paths.write_text(yaml.safe_dump({"datasets": where}))
    overlays = (root / "tests/real/config.yaml", paths)
    snakemake(root, tmp_path, "tables", "air", "figures", "--configfile", *overlays)
    results = tmp_path / "results-real"
    table = pd.read_csv(results / "tables/tableT1.csv")
    print(table.to_string())
    assert table["mean"].between(0, 100).all() and len(table) == 12
    assert "phantom" not in (results / "tables/tableT1.md").read_text()
    for k in range(2):
        split = pd.read_csv(results / f"splits/cross_T1/fold-{k}.tsv", sep="\t")
        assert (split["role"] == "train").sum() >= 12
    sidecars = list(results.glob("preprocessed/ixi/*/anat/*SRI24*preproc*.json"))
    overlaps = [yaml.safe_load(p.read_text())["registration"]["overlap_dice"] for p in sidecars]
    assert len(overlaps) == 16 and min(overlaps) >= 0.93
