"""Raw trees of real scans, by links, in the layouts that the workflow reads.

Usage: real_tree.py DATA OUT, with DATA the folder of UAD_REAL_DATA. ``OUT/ixi`` are the IXI
heads; ``OUT/unhealthy`` has MSLUB patients 07 and 19 and, as patient 90 of the same layout,
one glioma (TCGA-DU-7294) with an automatic mask.
"""

import sys
from pathlib import Path

MODALITIES = {"T1W": "t1", "T2W": "t2", "FLAIR": "flair", "consensus_gt": "seg"}
GLIOMA, ITS_NAME = "TCGA-DU-7294", "patient90"


def link(target: Path, source: Path) -> None:
    """A link to a file that exists."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    target.symlink_to(source.resolve(strict=True))


def make(data: Path, out: Path) -> None:
    """Write both trees."""
    for scan in sorted((data / "ixi/IXI-T1").glob("*.nii.gz")):
        link(out / "ixi/IXI-T1" / scan.name, scan)
    for patient in sorted((data / "mslub/mni").glob("patient*")):
        for name in MODALITIES:
            scan = patient / f"{patient.name}_{name}.nii.gz"
            link(out / "unhealthy" / patient.name / scan.name, scan)
    for name, theirs in MODALITIES.items():
        scan = data / "tcga" / GLIOMA / f"{GLIOMA}_{theirs}.nii.gz"
        link(out / "unhealthy" / ITS_NAME / f"{ITS_NAME}_{name}.nii.gz", scan)


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]))
