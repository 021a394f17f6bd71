"""Checkpoints of a training without pickle: safetensors for tensors, JSON for the rest."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from uad.core.errors import DataError
from uad.core.files import atomic_path, write_json

log = logging.getLogger(__name__)

#: Between the names of nested dictionaries; no name of a parameter has it.
SEPARATOR = "/"


def save_checkpoint(path: Path, tensors: dict[str, Any], facts: dict[str, Any]) -> None:
    """Write tensors (in nested dictionaries with string keys) and JSON facts to one file.

    Raises:
        TypeError: something among the tensors is none.
    """
    flat = {key: value.detach().cpu().contiguous() for key, value in _flat(tensors).items()}
    with atomic_path(path) as temporary:
        save_file(flat, temporary, metadata={"facts": json.dumps(facts)})


def load_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What :func:`save_checkpoint` was given, with the tensors on the CPU.

    Raises:
        DataError: the file is damaged or no checkpoint.
    """
    nested: dict[str, Any] = {}
    try:
        with safe_open(path, framework="pt") as handle:
            facts = json.loads(handle.metadata()["facts"])
            for name in handle.keys():  # noqa: SIM118 (no dictionary)
                *parents, last = name.split(SEPARATOR)
                inner = nested
                for parent in parents:
                    inner = inner.setdefault(parent, {})
                inner[last] = handle.get_tensor(name)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not a readable checkpoint ({error}).") from error
    return nested, facts


def _flat(tensors: dict[str, Any], prefix: str = "") -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for key, value in tensors.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}{SEPARATOR}")
        elif isinstance(value, torch.Tensor):
            found[f"{prefix}{key}"] = value
        else:
            raise TypeError(
                f"a checkpoint holds tensors, not {type(value).__name__} ({prefix}{key})"
            )
    return found


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
