"""Brain masks of many scans by a network that is loaded once: one file for all of them."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from uad.core.errors import ConfigError, DataError, unknown
from uad.core.files import atomic_path
from uad.core.nifti import read_scan
from uad.preprocess.hdbet import HdBet

log = logging.getLogger(__name__)

#: Back ends that have a network: a class that loads it, by name in the config.
NETWORKS = {"hdbet": HdBet}


def predict_brain_masks(
    scans: Mapping[str, str | os.PathLike[str]],
    out: str | os.PathLike[str],
    backend: str,
    **options: Any,
) -> list[str]:
    """Predict the brain masks of scans (paths by subject) and write them into one file.

    A scan that cannot be used does not end the others: its message stands in the file in place of
    its mask. The file (safetensors) has a mask per subject (bits, on the axes of ``Scan.data``)
    and JSON with shapes, messages and facts of the network; ``options`` are the network's.

    Returns:
        The subjects without a mask.
    """
    from safetensors.numpy import save_file

    if backend not in NETWORKS:
        raise ConfigError(unknown("skull-stripping back end with a network", backend, NETWORKS))
    network = NETWORKS[backend](**options)
    masks: dict[str, np.ndarray] = {}
    found: dict[str, dict[str, Any]] = {}
    for number, (subject, path) in enumerate(scans.items(), 1):
        try:
            mask = network.predict(read_scan(path))
        except DataError as error:
            log.warning("%s is left out: %s", subject, error)
            found[subject] = {"error": str(error)}
            continue
        except Exception as error:
            error.add_note(f"while predicting the brain mask of {path}")
            raise
        print(f"{number} of {len(scans)}: {path}", flush=True)
        masks[subject] = np.packbits(mask)
        found[subject] = {"shape": list(mask.shape)}
    content = {"facts": network.facts, "scans": found}
    with atomic_path(out) as temporary:
        # one entry: the order of several is not fixed
        save_file(masks, temporary, metadata={"predictions": json.dumps(content)})
    return [subject for subject, entry in found.items() if "error" in entry]


def read_prediction(
    path: str | os.PathLike[str], subject: str
) -> tuple[np.ndarray, dict[str, Any]]:
    """A subject's mask, bool on the axes of ``Scan.data``, and the facts of the network.

    Raises:
        DataError: the scan could not be used (the message is that of the network's job), the
            subject is not in the file, or the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    again = "Delete it and run the same command again."
    try:
        with safe_open(path, framework="numpy") as handle:
            content = json.loads((handle.metadata() or {})["predictions"])
            entry = content["scans"][subject]
            if "error" in entry:
                raise DataError(entry["error"])
            bits, shape = handle.get_tensor(subject), entry["shape"]
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{Path(path)}: not a readable file of masks ({error}). {again}") from error
    except KeyError as error:
        raise DataError(f"{Path(path)}: has no mask of {subject}. {again}") from error
    return np.unpackbits(bits, count=math.prod(shape)).reshape(shape).astype(bool), content["facts"]
