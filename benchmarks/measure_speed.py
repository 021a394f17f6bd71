"""How fast the library is, against a plain version of the reference path.

    python benchmarks/measure_speed.py                 # CPU, some minutes on two cores
    python benchmarks/measure_speed.py --device cuda   # all figures of a GPU
    python benchmarks/measure_speed.py evaluation      # some figures; printed, not written
    python benchmarks/measure_speed.py --table         # only the tables of README.md

Writes benchmarks/speed.json (or speed_gpu.json) and the tables in benchmarks/README.md that are
made from it. A limit that is missed is printed; it fails the command only with --strict. What
each figure means: benchmarks/README.md.
"""

import argparse
import sys
import time
from pathlib import Path

import speed_figures
import speed_material
import speed_tables
import speed_training
import torch

from uad.core.files import write_json

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


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help="default: all")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--folder", type=Path, default=HERE, help="of the JSON files and README.md")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    parser.add_argument("--strict", action="store_true", help="fail where a limit is missed")
    arguments = parser.parse_args(words)
    missed = False
    if not arguments.table:
        name = "speed_gpu.json" if arguments.device == "cuda" else "speed.json"
        kept = None if arguments.figures else arguments.folder / name
        results = measure(arguments.device, arguments.figures, kept)
        print(speed_tables.render_speed(results))
        missed = any(not limit["holds"] for limit in results["limits"])
        if kept and arguments.device == "cuda":
            speed_tables.set_gpu_rate(HERE.parent / "resources/unit_costs.yaml", results)
    if not arguments.figures:
        speed_tables.update(arguments.folder)
    return int(arguments.strict and missed)


def measure(device: str, wanted: list[str], kept: Path | None) -> dict:
    """Measure figures (none named: all), and say when, on what and with what.

    Each entry is written to the file ``kept`` as soon as it is there, and stays if this is ended.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "--device cuda: torch sees no GPU here, so nothing was measured. Run it where there is "
            "one, with a torch that was built for it."
        )
    figures = FIGURES[device]
    for name in wanted:
        if name not in figures:
            raise SystemExit(f"no figure '{name}': {', '.join(figures)}")
    results = speed_material.conditions(device) | {"limits": [], "pairs": [], "values": []}
    for name in wanted or figures:
        begin = time.perf_counter()
        for kind, entry in figures[name](SIZES[device]):
            results[kind].append(entry)
            if kept:
                write_json(kept, results)
        print(f"{name}: measured in {time.perf_counter() - begin:.0f} s", file=sys.stderr)
    return results


if __name__ == "__main__":
    sys.exit(main())
