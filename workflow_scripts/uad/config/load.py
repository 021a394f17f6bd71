"""Reading a configuration with its overlays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from uad.config.checks import error_lines
from uad.config.model import Config
from uad.core.errors import ConfigError
from uad.core.files import read_yaml


def load(content: dict[str, Any]) -> Config:
    """Validate the merged content of ``config.yaml`` and its overlays.

    Raises:
        ConfigError: with one line per problem: where, what, and the near match.
    """
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        text = "\n".join(f"  - {line}" for line in error_lines(error))
        raise ConfigError(f"The configuration is not valid:\n{text}") from None


def load_files(paths: Iterable[str | Path]) -> Config:
    """Validate ``config.yaml`` and overlays (the last has the last word) as Snakemake sees them.

    Raises:
        ConfigError: a file cannot be read, or as :func:`load`.
    """
    from yaml import YAMLError

    content: Any = {}
    for path in paths:
        try:
            layer = read_yaml(path)
        except (OSError, UnicodeDecodeError, YAMLError) as error:
            raise ConfigError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
        if not isinstance(layer or {}, dict):
            raise ConfigError(f"{path}: is no configuration (it has no keys).")
        content = merged(content, layer or {})
    return load(content)


def merged(below: Any, above: Mapping[str, Any]) -> Any:
    """A new configuration: mappings merged key by key, all else replaced.

    The same as ``snakemake.utils.update_config``, which this library does not import.
    """
    if not above:
        return below
    result = dict(below) if isinstance(below, Mapping) else {}
    for key, value in above.items():
        result[key] = merged(result.get(key, {}), value) if isinstance(value, Mapping) else value
    return result
