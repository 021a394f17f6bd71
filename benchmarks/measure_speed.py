"""How fast the library is, against a plain version of the reference path.

    python benchmarks/measure_speed.py                 # CPU, some minutes on two cores
    python benchmarks/measure_speed.py --device cuda   # all figures of a GPU
    python benchmarks/measure_speed.py evaluation      # some figures; printed, not written

Writes benchmarks/speed.json and speed.md (or speed_gpu.*). A limit that is missed is printed. What
each figure means: benchmarks/README.md.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import speed_figures
import speed_material
import speed_training
import torch

from uad.core.files import write_json, write_text

HERE = Path(__file__).resolve().parent
#: Device -> name -> a function that gives the entries of a figure.
FIGURES = {
    "cpu": {
        "training": speed_training.on_a_cpu,
        "data_and_noise": speed_figures.data_and_noise,
        "evaluation": speed_figures.evaluation,
        "reconstruction": speed_figures.reconstruction,
    },
    "cuda": {
        "training": speed_training.on_a_gpu,
        "precisions": speed_training.precisions,
        "volumes": speed_figures.volumes,
    },
}
SIZES = {"cpu": speed_material.PAPER_CPU, "cuda": speed_material.PAPER_GPU}


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help="default: all")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args(words)
    figures = FIGURES[arguments.device]
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch sees no GPU here, so nothing was measured.")
    if unknown := set(arguments.figures) - set(figures):
        raise SystemExit(f"no figure {', '.join(sorted(unknown))}: {', '.join(figures)}")
    name = "speed_gpu" if arguments.device == "cuda" else "speed"
    results = speed_material.conditions(arguments.device) | {
        "limits": [],
        "pairs": [],
        "values": [],
    }
    for figure in arguments.figures or figures:
        begin = time.perf_counter()
        for kind, entry in figures[figure](SIZES[arguments.device]):
            results[kind].append(entry)
            if not arguments.figures:  # as soon as it is there: this may be ended
                write_json(HERE / f"{name}.json", results)
                write_text(HERE / f"{name}.md", render(results))
        print(f"{figure}: measured in {time.perf_counter() - begin:.0f} s", file=sys.stderr)
    print(render(results))


def render(results: dict[str, Any]) -> str:
    """When and on what, the limits, the pairs of times, and the values, as Markdown."""
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
    tables = [
        (("must hold", "measured", ""), limits),
        (("", "reference", "here", "times as fast"), pairs),
        (("", "measured"), values),
    ]
    return "\n".join([measured_on, *(_table(head, rows) for head, rows in tables if rows)])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, rule, *rows))


def _seconds(number: float) -> str:
    """A time in the unit that suits it."""
    size = abs(number)
    unit, scale = ("s", 1) if size >= 1 else ("ms", 1e-3) if size >= 1e-3 else ("µs", 1e-6)
    return f"{number / scale:.3g} {unit}"


def _times(entry: dict[str, Any]) -> str:
    quartiles = entry.get("quartiles")
    return f"{entry['ratio']:.3g}" + (" ({:.3g} to {:.3g})".format(*quartiles) if quartiles else "")


if __name__ == "__main__":
    main()
