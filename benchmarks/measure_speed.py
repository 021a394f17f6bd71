"""How fast the library is: each figure against a plain version of the reference path.

    python benchmarks/measure_speed.py                    # CPU, some minutes on two cores
    python benchmarks/measure_speed.py --device cuda      # all figures of a GPU
    python benchmarks/measure_speed.py --figures imports  # these only; the others stay
    python benchmarks/measure_speed.py --table            # rewrite the tables of README.md only

Writes benchmarks/speed.json (or speed_gpu.json) and the tables in benchmarks/README.md that are
made from it. A limit that is missed is printed; it fails the command only with --strict. What
each figure means: benchmarks/README.md.
"""

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
OUTPUTS = {"cpu": HERE / "speed.json", "gpu": HERE / "speed_gpu.json"}


def main() -> int:
    arguments = parse()
    from speed import tables

    kind = "gpu" if arguments.device == "cuda" else "cpu"
    output = arguments.output or OUTPUTS[kind]
    if not arguments.table:
        results = measure(arguments, kind, output)
        print(tables.render_limits(results))
    if arguments.readme:
        tables.update(arguments.readme, arguments.readme.parent)
    if arguments.table:
        return 0
    return int(
        arguments.strict and not all(limit["holds"] is not False for limit in results["limits"])
    )


def measure(arguments: argparse.Namespace, kind: str, output: Path) -> dict:
    """Measure, and write what was found, beside what was found before."""
    import torch
    from speed import cpu, gpu, material, timing
    from speed.limits import check

    from uad.core.files import read_json, write_json

    if kind == "gpu" and not torch.cuda.is_available():
        raise SystemExit(
            "--device cuda: torch sees no GPU here, so nothing was measured. Run it where there is "
            "one, with a torch that was built for it."
        )
    known = gpu.FIGURES if kind == "gpu" else cpu.FIGURES
    wanted = tuple(arguments.figures or known)
    for name in wanted:
        if name not in known:
            raise SystemExit(f"no figure '{name}': {', '.join(known)}")
    conditions = timing.conditions(arguments.device)
    if kind == "gpu":
        figures = gpu.measure(wanted, material.PAPER_GPU, gpu.FULL)
    else:
        figures = cpu.measure(
            wanted, HERE.parent, material.PAPER_CPU, material.DEMO, arguments.numba
        )
    before = {}
    if arguments.figures and output.exists():
        stored = read_json(output)
        if any(stored.get(key) != conditions[key] for key in ("commit", "versions")):
            raise SystemExit(
                f"{output}: of another commit or other versions, so its figures cannot stand "
                "beside new ones. Measure all of them, or give another --output."
            )
        before = stored["figures"]
    figures = {name: {**before, **figures}[name] for name in known if name in {**before, **figures}}
    results = {**conditions, "figures": figures, "limits": check(figures, kind)}
    write_json(output, results)
    return results


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--figures", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument("--output", type=Path, help="the JSON file")
    parser.add_argument(
        "--readme", type=Path, default=HERE / "README.md", help="whose tables are rewritten"
    )
    parser.add_argument(
        "--numba",
        type=Path,
        metavar="PYTHON",
        help="an interpreter with opensimplex and numba, to time the reference's noise compiled",
    )
    parser.add_argument("--table", action="store_true", help="measure nothing")
    parser.add_argument("--strict", action="store_true", help="fail where a limit is missed")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
