"""Markdown from the results, and the README's blocks that hold it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from uad.core.files import read_json, write_text


def update(readme: Path, folder: Path) -> None:
    """Rewrite every block of the README from its JSON file in ``folder``."""
    text = readme.read_text(encoding="utf-8")
    for name in BLOCKS:
        text = replace(text, name, render(name, folder))
    write_text(readme, text)


def render(name: str, folder: Path) -> str:
    """The block called ``name``: what its file says, or that there is none."""
    path = folder / f"{name}.json"
    if not path.exists():
        return f"Not measured yet: there is no `{path.name}`.\n"
    return BLOCKS[name](read_json(path))


def replace(text: str, name: str, content: str) -> str:
    """``text`` with what stands between the marks of a block replaced.

    Raises:
        ValueError: the block is not there exactly once.
    """
    begin, end = f"<!-- {name}.json -->\n", f"<!-- end of {name}.json -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"the marks '{begin.strip()}' and '{end}' must stand there once")
    return pattern.sub(lambda _: f"{begin}{content}{end}", text)


# pieces -----------------------------------------------------------------------------------------


def seconds(value: float | dict[str, Any]) -> str:
    """A time in the unit that suits it; of a spread the median."""
    value = value["median"] if isinstance(value, dict) else value
    size = abs(value)
    unit, scale = ("s", 1) if size >= 1 else ("ms", 1e-3) if size >= 1e-3 else ("µs", 1e-6)
    return f"{value / scale:.3g} {unit}"


def times(value: float | dict[str, Any]) -> str:
    """A ratio; of a spread the median, and the quartiles."""
    if not isinstance(value, dict):
        return f"{value:.3g}"
    return f"{value['median']:.3g} ({value['low']:.3g} to {value['high']:.3g})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table, all but the first ``left`` columns aligned to the right."""
    rule = ["---" if number < left else "---:" for number in range(len(head))]
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, rule, *rows))


def measured_on(results: dict[str, Any]) -> str:
    """A line: when, at which commit, on what."""
    machine, versions = results["machine"], results["versions"]
    commit = (results["commit"] or "an unknown commit")[:10]
    changed = " with changes" if results["changed_since"] else ""
    gpu = f"{machine['gpu']}, " if machine["gpu"] else ""
    return (
        f"{results['date'][:10]}, {commit}{changed}; {gpu}{machine['cpu']}, {machine['cores']} "
        f"cores, {machine['memory_gib']} GiB, load {machine['load_before']} before; Python "
        f"{versions['python']}, torch {versions['torch']}, numba {versions['numba'] or 'absent'}.\n"
    )


def render_limits(results: dict[str, Any]) -> str:
    """What must hold, what was measured, and whether it holds."""
    rows = []
    for limit in results["limits"]:
        value, holds = limit["value"], limit["holds"]
        verdict = {True: "ok", False: "MISSED", None: "not measured"}[holds]
        rows.append([limit["text"], "" if value is None else f"{value:.3g}", verdict])
    return table(("must hold", "measured", ""), rows)


def _pairs(rows: Sequence[tuple[str, Any, Any, Any]]) -> str:
    """A table of times of both sides and their ratio."""
    body = [
        [
            text,
            seconds(theirs),
            seconds(ours),
            times(ratio if ratio is not None else _median(theirs) / _median(ours)),
        ]
        for text, theirs, ours, ratio in rows
    ]
    return table(("", "reference", "here", "times as fast"), body)


def _median(value: float | dict[str, Any]) -> float:
    return value["median"] if isinstance(value, dict) else value


# CPU --------------------------------------------------------------------------------------------


def render_cpu(results: dict[str, Any]) -> str:
    """All tables of the CPU's figures."""
    figures = results["figures"]
    parts = [measured_on(results), render_limits(results)]
    pairs = [row for name, rows in PAIRS.items() if name in figures for row in rows(figures[name])]
    parts += [_pairs(pairs)] if pairs else []
    if "evaluation" in figures:
        parts.append(_agreement(figures["evaluation"]))
    loops = [figures[name] for name in ("training_loop", "training_loop_demo") if name in figures]
    parts += [_loops(loops)] if loops else []
    if "imports" in figures:
        parts.append(_imports(figures["imports"]["scripts"]))
    return "\n".join(parts)


def _data_rows(figure: dict[str, Any]) -> list[tuple[str, Any, Any, Any]]:
    theirs, ours = figure["reference_s"], figure["ours_s"]
    rows = [
        (
            f"**data and noise of a batch of {figure['batch']}**",
            theirs["together"],
            ours["together"],
            figure["ratio"],
        ),
        ("data", theirs["data"], ours["data"], None),
        (
            "data, if the reference copied its volumes",
            theirs["data, copied by value"],
            ours["data"],
            None,
        ),
        ("noise", theirs["noise"], ours["noise"], None),
        (
            "data and noise, if the reference's noise took no time",
            theirs["data"],
            ours["together"],
            figure["ratio_if_noise_were_free"],
        ),
    ]
    if figure["compiled_noise_s"] is not None:
        compiled = figure["compiled_noise_s"]
        rows += [
            ("noise, the reference's compiled by numba", compiled, ours["noise"], None),
            (
                "data and noise, the reference's noise compiled",
                _median(theirs["data"]) + compiled,
                ours["together"],
                figure["ratio_with_compiled_noise"],
            ),
        ]
    return rows


def _evaluation_rows(figure: dict[str, Any]) -> list[tuple[str, Any, Any, Any]]:
    return [
        (
            "**scoring and metrics of a volume, per core**",
            figure["reference_s"],
            figure["ours_s"],
            figure["ratio"],
        ),
        *(
            (stage, pair["reference"], pair["ours"], None)
            for stage, pair in figure["stages_s"].items()
        ),
    ]


def _inference_rows(figure: dict[str, Any]) -> list[tuple[str, Any, Any, Any]]:
    return [
        (
            "**reconstruction of a volume, per core**",
            figure["reference_s"],
            figure["ours_s"],
            figure["ratio"],
        ),
        (
            "reconstruction, if the reference took slice by slice",
            figure["slice_by_slice_s"],
            figure["ours_s"],
            figure["ratio_slice_by_slice"],
        ),
    ]


def _step_rows(figure: dict[str, Any]) -> list[tuple[str, Any, Any, Any]]:
    return [
        (
            f"**training step, {figure['batch']} slices, narrow network**",
            figure["reference_step_s"],
            figure["step_s"],
            None,
        )
    ]


#: Figure -> rows of the table of both sides.
PAIRS: dict[str, Callable[[dict[str, Any]], list[tuple[str, Any, Any, Any]]]] = {
    "data_and_noise": _data_rows,
    "evaluation": _evaluation_rows,
    "inference": _inference_rows,
    "training_loop": _step_rows,
}


def _agreement(figure: dict[str, Any]) -> str:
    own, rounding = figure["differences_with_own_maps"], figure["map_rounding"]
    return (
        f"Agreement over {figure['volumes']} volumes (mean Dice {figure['mean_dice']:.3f}, AUPRC "
        f"{figure['mean_auprc']:.3f}): from one anomaly map threshold, Dice and AUPRC differ by at "
        f"most {figure['largest_difference']:.1g}; from each side's own map by "
        f"{own['threshold']:.1g}, {own['dice']:.1g} and {own['auprc']:.1g}. The map itself, in "
        f"float32 on both sides, is off from double precision by at most "
        f"{rounding['reference']:.1g} (reference) and {rounding['ours']:.1g} (here).\n"
    )


def _loops(loops: Sequence[dict[str, Any]]) -> str:
    head = [
        "training loop, one thread",
        *(
            f"{loop['slice'][1]}x{loop['slice'][0]}, batch {loop['batch']}, "
            f"{loop['parameters'] / 1e6:.2g} M parameters, {loop['steps_per_epoch']} steps an epoch"
            for loop in loops
        ),
    ]
    rows = [
        ["forward, loss and backward", *(seconds(loop["bare_step_s"]) for loop in loops)],
        *(
            [part, *(seconds(loop["parts_s"][part]) for loop in loops)]
            for part in loops[0]["parts_s"]
        ),
        ["**beyond forward and backward**", *(f"{loop['overhead']:.1%}" for loop in loops)],
    ]
    return table(head, rows)


def _imports(scripts: dict[str, Any]) -> str:
    rows = sorted(scripts.items(), key=lambda item: -_median(item[1]["seconds"]))
    return table(
        ("imports of a script, with interpreter start", "", "loads"),
        [
            [f"`{name}`", seconds(row["seconds"]), ", ".join(row["loaded"]) or "-"]
            for name, row in rows
        ],
    )


# GPU --------------------------------------------------------------------------------------------


def render_gpu(results: dict[str, Any]) -> str:
    """All tables of the GPU's figures."""
    figures = results["figures"]
    parts = [measured_on(results), render_limits(results)]
    pairs = []
    if "training_step" in figures:
        step = figures["training_step"]
        theirs = step["reference_s"]
        label = f"training step of {step['batch']} slices"
        pairs += [
            (f"**{label}**", theirs["together"], step["step_s"], step["ratio"]),
            (
                f"{label}, the reference without data and noise",
                theirs["forward, backward, optimiser"],
                step["step_s"],
                step["ratio_without_data_and_noise"],
            ),
        ]
    if "data_and_noise" in figures:
        data = figures["data_and_noise"]
        pairs.append(
            (
                f"**data and noise of a batch of {data['batch']}**",
                data["reference_s"],
                data["ours_s"],
                data["ratio"],
            )
        )
    parts += [_pairs(pairs)] if pairs else []
    rows = [["bf16 matmul ceiling", f"{figures['matmul']['tflops']['median']:.0f} TFLOP/s"]]
    if "training_step" in figures:
        rows += [
            ["training step", f"{step['tflop_per_step']:.3g} TFLOP"],
            ["reached", f"{step['tflops']:.3g} TFLOP/s, {step['fraction_of_ceiling']:.1%}"],
            *(
                [f"step with torch.compile `{mode}`", seconds(value)]
                for mode, value in step["seconds_by_compile_mode"].items()
            ),
            ["steps of a fold", f"{step['minutes_of_steps']:.3g} min"],
            ["fold, with validation", f"{step['minutes_of_fold']:.3g} min"],
        ]
    if "fusion_loss" in figures:
        loss = figures["fusion_loss"]
        both = f"{seconds(loss['fusion_s'])}; {seconds(loss['l1_s'])}"
        rows.append(["fusion-quality loss; l1", both])
    if "volumes" in figures:
        volumes = figures["volumes"]
        rows += [
            [f"{stage} of {volumes['volumes']} volumes", seconds(value)]
            for stage, value in volumes["stages_s"].items()
        ]
    parts.append(table(("", ""), rows))
    return "\n".join(parts)


# the demo ---------------------------------------------------------------------------------------


def render_demo(results: dict[str, Any]) -> str:
    """Where the time of a finished run went, a row per rule."""
    rows = [
        [
            f"`{rule['rule']}`",
            str(rule["jobs"]),
            f"{rule['core_seconds']:.0f}",
            f"{rule['seconds_a_job']:.2f}",
            "-" if rule["seconds_with_start"] is None else f"{rule['seconds_with_start']:.2f}",
            f"{rule['share']:.1%}",
        ]
        for rule in results["rules"]
    ]
    rows.append(["all", str(results["jobs"]), f"{results['core_seconds']:.0f}", "", "", "100.0%"])
    head = ("rule", "jobs", "core seconds", "s a job", "with start", "share")
    return (
        f"{results['started'][:10]}, {(results['commit'] or 'an unknown commit')[:10]}: from the "
        f"first job's start to the last one's end {results['wall_s'] / 60:.1f} minutes on "
        f"{results['cores']} cores, which the scripts kept busy {results['busy']:.0%} of that "
        "time. The rest is the start of interpreters and of Snakemake, and waiting. "
        f"{_recording(results)}\n\n" + table(head, rows)
    )


def _recording(results: dict[str, Any]) -> str:
    """What the provenance records cost, as a sentence."""
    seconds = results["record_seconds"]
    share = seconds / (results["wall_s"] * results["cores"])
    return f"The provenance records took {seconds:.0f} core seconds of it: {share:.1%}."


#: Block of the README and name of its file -> what makes it.
BLOCKS: dict[str, Callable[[dict[str, Any]], str]] = {
    "speed": render_cpu,
    "speed_gpu": render_gpu,
    "demo": render_demo,
}
