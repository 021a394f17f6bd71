"""Lightning checkpoints without pickle: safetensors for tensors, JSON for the rest."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import CheckpointIO
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from uad.core.errors import DataError
from uad.core.files import atomic_path


def _encode(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Nested Python data as JSON; tensors are moved to ``tensors`` and referred to by number."""
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[_encode(k, tensors), _encode(v, tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_encode(item, tensors) for item in value]}
    if isinstance(value, Enum):
        return _encode(value.value, tensors)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint cannot hold {type(value).__name__} without pickle")


def _decode(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return OrderedDict((_decode(k, tensors), _decode(v, tensors)) for k, v in content)
    items = [_decode(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items


class SafetensorsCheckpointIO(CheckpointIO):
    """Writes whole checkpoints or none, and reads them without running any code in them."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write a Lightning checkpoint dictionary to ``path``."""
        tensors: dict[str, torch.Tensor] = {}
        structure = json.dumps(_encode(checkpoint, tensors))
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata={"checkpoint": structure})

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint dictionary; tensors arrive on the CPU, Lightning moves them."""
        try:
            with safe_open(path, framework="pt") as handle:
                structure = json.loads(handle.metadata()["checkpoint"])
                tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, TypeError) as error:
            raise DataError(f"{path}: not a readable checkpoint ({error}).") from error
        return _decode(structure, tensors)

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint if it is there."""
        Path(path).unlink(missing_ok=True)
