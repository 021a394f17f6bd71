"""Small trees for tests of quality control: tables of measures, sheets of pictures, a gallery."""

from pathlib import Path

import numpy as np
import pandas as pd

from uad.core.paths import Tree
from uad.data.layouts import bids_label
from uad.qc.gallery import gallery_data, write_gallery
from uad.qc.measure import MEASURES, add_flags
from uad.qc.pictures import write_sheet
from uad.qc.sheets import sheets_of

RESOURCES = Path(__file__).resolve().parents[2] / "resources" / "gallery"
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
            **{m.name: rng.uniform(0.9, 1.1, len(scans)).round(6) for m in MEASURES},
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


def write_tree(results, tables, decisions=(), *, phantom=True, pictures=True):
    """Write the gallery of some tables, with the pictures that it links; its path."""
    from PIL import Image

    tree = Tree(str(results))
    links = {}
    for dataset, table in tables.items():
        links[dataset] = {
            "packed": f"packed/{dataset}_{{modality}}_sheet-{{sheet}}.webp",
            **{
                stage: f"../preprocessed/{dataset}/sub-{{subject}}/figures/"
                f"sub-{{subject}}_desc-{stage}_{{suffix}}.png"
                for stage in ("skullstrip", "register")
            },
        }
        for modality, part in table.groupby("modality") if pictures else ():
            for number, subjects in enumerate(sheets_of(list(part["subject"]))):
                write_sheet(
                    tree.packed_sheet(dataset, modality, number), map(packed, range(len(subjects)))
                )
            suffix = {"T1": "T1w", "T1CE": "T1ce", "T2": "T2w"}.get(modality, modality)
            for subject in part["subject"]:
                for stage in ("skullstrip", "register"):
                    path = Path(
                        tree.scan(
                            "png", dataset=dataset, subject=subject, suffix=suffix,
                            folder="figures", desc=stage,
                        )
                    )  # fmt: skip
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.new("L", (84, 39), 90).save(path)
    data = gallery_data(
        tables,
        pictures=links,
        shape=SHAPE,
        decisions=decisions,
        decisions_file="qc_decisions.tsv",
        threshold=3.5,
        phantom=phantom,
    )
    template = {p.suffix[1:]: p.read_text(encoding="utf-8") for p in RESOURCES.iterdir()}
    write_gallery(tree.gallery(), data, template)
    return Path(tree.gallery())
