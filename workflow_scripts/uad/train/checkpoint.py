"""Checkpoints of a training without pickle: safetensors for tensors, JSON for the rest."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from uad.core.errors import DataError
from uad.core.files import atomic_path, write_json

log = logging.getLogger(__name__)


def save_checkpoint(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write tensors and JSON facts to one file."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"facts": json.dumps(facts)})


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What :func:`save_checkpoint` was given, with the tensors on the CPU.

    Raises:
        DataError: the file is damaged or no checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as handle:
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
            return tensors, json.loads(handle.metadata()["facts"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not a readable checkpoint ({error}).") from error


def discard_foreign(checkpoints: Path, identity: str) -> None:
    """Keep a checkpoint directory only if it belongs to this very training."""
    marker = checkpoints / "identity.json"
    try:
        known = json.loads(marker.read_text())["identity"]
    except (OSError, ValueError, KeyError):
        known = None
    if checkpoints.exists() and known != identity:
        log.warning("%s is of another configuration or version: starting anew", checkpoints)
        shutil.rmtree(checkpoints)
    write_json(marker, {"identity": identity})
