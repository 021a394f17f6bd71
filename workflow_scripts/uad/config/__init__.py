"""The typed model of ``config.yaml``: the paper as data.

Everything that the workflow may be told stands here once, with its type, range and default.
The JSON schema and ``docs/configuration.md`` are generated from it (``reference.py``). It runs in
every Snakemake process, so importing it must stay cheap: no torch.
"""

from uad.config.inputs import Dataset, Preprocessing
from uad.config.load import load, load_files, merged
from uad.config.model import Config
from uad.config.training import Experiment, Protocol, Train

__all__ = [
    "Config",
    "Dataset",
    "Experiment",
    "Preprocessing",
    "Protocol",
    "Train",
    "load",
    "load_files",
    "merged",
]
