"""Finished runs side by side: the whole tree, a changed scan, a changed config value."""

import shutil

import nibabel as nib
import numpy as np
import pytest

from tools.workflow import snakemake
from uad.audit.compare import compare
from uad.core.files import read_tsv

pytestmark = pytest.mark.slow

METRICS = "results/metrics/intra_FLAIR/thresh/fold-0/brats21.tsv"


def again(root, folder, config, *arguments):
    """Run the workflow again in a finished folder, for what is older than its inputs."""
    return snakemake(root, folder, "--configfile", config, *arguments)


def test_a_run_and_its_copy_elsewhere_are_identical(finished, copy_of):
    shutil.rmtree(copy_of / "results" / "logs")
    comparison = compare(finished / "results", copy_of)
    assert comparison.verdict == "identical"
    assert len(comparison.results) > 150 and not comparison.cells and not comparison.setup
    assert comparison.phantom


def test_a_changed_scan_is_named_with_the_cells_that_it_touches(root, finished, copy_of, config):
    roles = read_tsv(finished / "results/splits/intra_FLAIR/fold-0.tsv").set_index("role")[
        "subject"
    ]
    # of a validation subject: AIR is measured on it, and no network has to be trained for that
    subject = str(roles.loc[["val_unhealthy"]].iloc[0])
    name = subject.replace("BraTS2021", "BraTS2021_")
    scan = f"raw/brats21/{name}/{name}_flair.nii.gz"
    path = copy_of / "results" / scan
    image = nib.load(path)
    scaled = np.asarray(image.dataobj).copy()
    corner = scaled[24:32, 24:32, 14:20]
    scaled[24:32, 24:32, 14:20] = (corner * 1.2).astype(scaled.dtype)
    nib.save(nib.Nifti1Image(scaled, image.affine, image.header), path)
    again(root, copy_of, config, "--rerun-triggers", "mtime", "--", METRICS, "air")

    comparison = compare(finished / "results", copy_of / "results")
    assert comparison.verdict == "different"
    (origin,) = comparison.origins
    assert origin.keys == (scan,)
    assert [reason.kind for reason in origin.reasons] == ["changed since"]
    # only this subject is another one, and then all that is made from all subjects
    of_scans = {f.key for f in comparison.results if f.differs and f.stage == "register_scan"}
    assert of_scans and all(f"sub-{subject}" in key for key in of_scans)
    assert "slices/brats21_FLAIR.safetensors" in {f.key for f in comparison.results if f.differs}
    cells = {name: [c for c in comparison.cells if c.table == f"tables/{name}.csv"]
             for name in ("air", "table3")}  # fmt: skip
    assert any(cell.metric == "mean_normal" and cell.difference for cell in cells["air"])
    # that table was not made again: its numbers are the same, but they rest on the scan
    assert {(cell.row, cell.metric) for cell in cells["table3"]} == {
        (row, metric) for row in ("thresh", "ddpm", "pddpm-iqa") for metric in ("dice", "auprc")
    }
    assert not any(cell.differs for cell in cells["table3"])


def test_a_changed_config_value_is_named_where_it_is_read_first(root, finished, copy_of, config):
    again(
        root, copy_of, config, "--rerun-triggers", "params", "mtime",
        "--config", "protocol={erosion: 2}", "--", METRICS, "results/config.resolved.yaml",
    )  # fmt: skip

    comparison = compare(finished / "results", copy_of / "results")
    (origin,) = comparison.origins
    assert origin.stage == "score_volumes"
    assert origin.keys == ("maps/intra_FLAIR/thresh/fold-0/brats21.safetensors",)
    expected = "other params: postprocessing.erosion 1 → 2"
    assert [reason.text for reason in origin.reasons] == [expected]
    assert "protocol.erosion 1 → 2" in comparison.setup["config"]
    assert {c.row for c in comparison.cells if c.table == "tables/table3.csv"} == {"thresh"}
