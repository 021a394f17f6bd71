"""The JSON schema of the config and a table of its keys for people, both generated."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from uad.config.model import Config

ROOT = Path(__file__).resolve().parents[3]

_INTRODUCTION = """\
# All keys of the configuration

Generated from `workflow_scripts/uad/config` by `make schema`; do not edit. `<name>` stands for a
name of your choice. Values change by an overlay (`snakemake --configfile mine.yaml`), never by
editing `config.yaml`. What a choice changes in the results: [deviations.md](deviations.md).
"""


def schema() -> str:
    """The JSON schema, as committed in ``resources/``."""
    return json.dumps(Config.model_json_schema(), indent=2, sort_keys=True) + "\n"


def key_table() -> str:
    """Markdown: a section per part of the config, a row per key."""
    whole = Config.model_json_schema()
    definitions = whole["$defs"]
    top, sections = [], []
    for key, spec in whole["properties"].items():
        rows = list(_rows(key, spec, definitions))
        if len(rows) == 1 and rows[0][0] == key:
            top += rows
        else:
            sections.append((key, _target(spec, definitions).get("description", ""), rows))
    parts = [_INTRODUCTION, "## Top level\n", _markdown(top)]
    for key, description, rows in sections:
        first = description.split("\n\n")[0].replace("\n", " ").replace("``", "`")
        parts += [f"## {key}\n", *([f"{first}\n"] if first else []), _markdown(rows)]
    return "\n".join(parts)


def _target(spec: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """The object that a key holds, behind references and names of the user's choice."""
    while True:
        if "$ref" in spec:
            spec = definitions[spec["$ref"].rsplit("/", 1)[1]]
        elif "additionalProperties" in spec and isinstance(spec["additionalProperties"], dict):
            spec = spec["additionalProperties"]
        elif "patternProperties" in spec:
            spec = next(iter(spec["patternProperties"].values()))
        else:
            return spec


def _rows(
    path: str, spec: dict[str, Any], definitions: dict[str, Any]
) -> Iterator[tuple[str, str, str, str]]:
    """(key, type, default, description) of a key and of those below it."""
    named = "additionalProperties" in spec or "patternProperties" in spec
    target = _target(spec, definitions)
    place = f"{path}.<name>" if named else path
    choices = [_target(each, definitions) for each in target.get("oneOf", [])]
    below: dict[str, Any] = {}
    for each in [target, *choices]:
        below |= each.get("properties", {})
    if below:
        if plain := [each for each in choices if "properties" not in each]:
            yield place, _kind(plain[0], definitions), "", spec.get("description", "")
        for key, inner in below.items():
            yield from _rows(f"{place}.{key}", inner, definitions)
        return
    default = json.dumps(spec["default"]) if "default" in spec else ""
    yield place, _kind(target, definitions), default, spec.get("description", "")


def _kind(spec: dict[str, Any], definitions: dict[str, Any]) -> str:
    """A type in words, with its choices and its range."""
    if "$ref" in spec:
        return _kind(_target(spec, definitions), definitions)
    if "enum" in spec:
        return ", ".join(map(str, spec["enum"]))
    if "const" in spec:
        return str(spec["const"])
    if "anyOf" in spec:
        return " or ".join(dict.fromkeys(_kind(each, definitions) for each in spec["anyOf"]))
    kind = str(spec.get("type", "any"))
    if kind == "array":
        items = spec.get("items") or {}
        return f"list of {_kind(items, definitions)}" if items else "list"
    limits = [
        f"{sign} {spec[key]:g}"
        for key, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "<"),
        )
        if key in spec
    ]
    return " ".join([{"object": "mapping", "null": "null"}.get(kind, kind), *limits])


def _markdown(rows: list[tuple[str, str, str, str]]) -> str:
    def cell(text: str) -> str:
        return " ".join(text.split()).replace("|", "\\|").replace("``", "`")

    lines = ["| key | type | default | |", "| --- | --- | --- | --- |"]
    for key, kind, default, description in rows:
        shown = f"`{default}`" if default else ""
        lines.append(f"| `{key}` | {cell(kind)} | {cell(shown)} | {cell(description)} |")
    return "\n".join(lines) + "\n"


#: Committed file -> what renders it; a test holds them together.
GENERATED = {
    ROOT / "resources" / "config.schema.json": schema,
    ROOT / "docs" / "configuration.md": key_table,
}
