"""Entries of the results (limits, pairs of times, values) and the README's tables of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uad.core.files import read_json, write_text

Entry = tuple[str, dict[str, Any]]


def pair(what: str, reference: Sequence[float], ours: Sequence[float]) -> Entry:
    """Seconds of both sides, and how many times as long the reference takes (of medians)."""
    theirs, own = (float(np.median(times)) for times in (reference, ours))
    entry = {"what": what, "reference_s": theirs, "ours_s": own, "ratio": theirs / own}
    if len(reference) == len(ours) > 1:
        ratios = np.divide(reference, ours)
        entry["quartiles"] = [float(value) for value in np.quantile(ratios, (0.25, 0.75))]
    return "pairs", entry


def value(what: str, number: float, unit: str) -> Entry:
    """A number by itself."""
    return "values", {"what": what, "value": float(number), "unit": unit}


def limit(text: str, number: float, at_least: float = -np.inf, at_most: float = np.inf) -> Entry:
    """What has to hold, and whether it does."""
    holds = bool(at_least <= number <= at_most)
    return "limits", {"text": text, "value": float(number), "holds": holds}


def update(folder: Path) -> None:
    """Rewrite every block of README.md from its JSON file."""
    readme = folder / "README.md"
    write_text(readme, with_tables(readme.read_text(encoding="utf-8"), folder))


def with_tables(text: str, folder: Path) -> str:
    """The README with its blocks, between ``<!-- NAME.json -->`` and its end, made anew."""

    def block(match: re.Match[str]) -> str:
        path = folder / match[2]
        content = f"Not measured yet: there is no `{path.name}`.\n"
        return match[1] + (render_speed(read_json(path)) if path.exists() else content) + match[3]

    blocks = re.compile(r"(<!-- (\w+\.json) -->\n).*?(<!-- end of \2 -->)", re.DOTALL)
    return blocks.sub(block, text)


def set_gpu_rate(path: Path, results: dict[str, Any]) -> None:
    """Write the rate of a training step on the measured GPU into the unit costs of `make plan`."""
    values = {entry["what"]: entry["value"] for entry in results["values"]}
    rate, machine = values["tf32: reached by a step"], results["machine"]["gpu"]
    text = path.read_text(encoding="utf-8")
    gpu = re.compile(r"(?<=  gpu:\n)    tflops: .*?(?=  cpu:\n)", re.DOTALL)
    how = f"measured on {machine}, {results['date'][:10]}; a step of the paper's pDDPM in tf32"
    write_text(path, gpu.sub(f"    tflops: {rate:.3g}\n    how: >-\n      {how}\n", text))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, all but the first column aligned to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, rule, *rows))


def render_speed(results: dict[str, Any]) -> str:
    """When and on what, the limits, the pairs of times, and the values."""
    machine, versions = results["machine"], results["versions"]
    changed = " with changes" if results["changed_since"] else ""
    where = ", ".join(filter(None, (machine["gpu"], machine["cpu"])))
    measured_on = (
        f"{results['date'][:10]}, {(results['commit'] or 'an unknown commit')[:10]}{changed}; "
        f"{where}, {machine['cores']} cores, {machine['memory_gib']} GiB, load "
        f"{machine['load_before']} before; Python {versions['python']}, "
        f"torch {versions['torch']}.\n"
    )
    limits = [
        [entry["text"], f"{entry['value']:.3g}", "ok" if entry["holds"] else "MISSED"]
        for entry in results["limits"]
    ]
    pairs = [
        [e["what"], _seconds(e["reference_s"]), _seconds(e["ours_s"]), _times(e)]
        for e in results["pairs"]
    ]
    values = [
        [e["what"], _seconds(e["value"]) if e["unit"] == "s" else f"{e['value']:.3g} {e['unit']}"]
        for e in results["values"]
    ]
    parts = [measured_on, table(("must hold", "measured", ""), limits)]
    if pairs:
        parts.append(table(("", "reference", "here", "times as fast"), pairs))
    if values:
        parts.append(table(("", "measured"), values))
    return "\n".join(parts)


def _seconds(number: float) -> str:
    """A time in the unit that suits it."""
    size = abs(number)
    unit, scale = ("s", 1) if size >= 1 else ("ms", 1e-3) if size >= 1e-3 else ("µs", 1e-6)
    return f"{number / scale:.3g} {unit}"


def _times(entry: dict[str, Any]) -> str:
    quartiles = entry.get("quartiles")
    return f"{entry['ratio']:.3g}" + (" ({:.3g} to {:.3g})".format(*quartiles) if quartiles else "")
