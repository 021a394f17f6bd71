"""Small trees for tests of quality control: tables of measures, sheets of pictures, a gallery."""

from pathlib import Path

import numpy as np
import pandas as pd

from uad.core.paths import SUFFIX, Tree
from uad.data.layouts import bids_label
from uad.qc.gallery import sheets_of, write_sheet
from uad.qc.measure import NAMES, add_flags
from uad.report.pages import gallery_page

SHAPE = (24, 24, 12)


def measured(subjects, modalities, seed=0):
    """A flagged table of made-up measures, all near 1."""
    rng = np.random.default_rng(seed)
    names = [f"BraTS2021_{number:05d}" for number in range(subjects)]
    scans = [(name, modality) for name in names for modality in modalities]
    table = pd.DataFrame(
        {
            "subject": [bids_label(name) for name, _ in scans],
            "name": [name for name, _ in scans],
            "site": "brats21",
            "modality": [modality for _, modality in scans],
            **{name: rng.uniform(0.9, 1.1, len(scans)).round(6) for name in NAMES},
            "warnings": "",
        }
    )
    return add_flags(table)


def packed(seed):
    """A packed volume with its brain and lesion."""
    x, y, z = np.meshgrid(*(np.linspace(-1.2, 1.2, n) for n in SHAPE), indexing="ij")
    mask = x**2 + y**2 + z**2 < 1
    lesion = (x - 0.4) ** 2 + y**2 + (z - 0.01 * seed) ** 2 < 0.05
    volume = np.random.default_rng(seed).uniform(0.3, 0.7, SHAPE) * mask + 0.3 * lesion
    return volume.astype(np.float16), mask, lesion


def write_gallery(results, table, decisions=(), *, phantom=True):
    """Write the gallery of a data set ``brats21``; its path."""
    links = {"packed": "packed/brats21_{modality}_sheet-{sheet}.webp"}
    for stage in ("skullstrip", "register"):
        links[stage] = (
            "../preprocessed/brats21/sub-{subject}/figures/"
            f"sub-{{subject}}_desc-{stage}_{{suffix}}.png"
        )
    page = gallery_page(
        {"brats21": table},
        pictures={"brats21": links},
        shape=SHAPE,
        decisions=decisions,
        decisions_file="qc_decisions.tsv",
        threshold=3.5,
        phantom=phantom,
    )
    path = Path(Tree(str(results)).gallery())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def write_pictures(results, table):
    """Write the pictures that a gallery of this table links."""
    from PIL import Image

    tree = Tree(str(results))
    for modality, part in table.groupby("modality"):
        for number, subjects in enumerate(sheets_of(list(part["subject"]))):
            sheet = tree.packed_sheet("brats21", modality, number)
            write_sheet(sheet, map(packed, range(len(subjects))))
    for row in table.itertuples():
        for stage in ("skullstrip", "register"):
            scan = {"dataset": "brats21", "subject": row.subject, "suffix": SUFFIX[row.modality]}
            path = Path(tree.scan("png", **scan, folder="figures", desc=stage))
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (84, 39), 90).save(path)
