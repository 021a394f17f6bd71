"""Which layouts fit a folder, how many subjects they would find, and what keeps the others away."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

from uad.core.patterns import LESION, AnyLayout, Layout, known_layouts, layout_of, visible_files

#: How deep below a folder files are looked for; how many names are tried on a pattern that fits
#: none, and how many such layouts are explained.
DEPTH, MOST, EXPLAINED = 8, 500, 3
OWN = "No layout fits. A few patterns of your own do: docs/your-own-data.md."


def fits(folder: str | Path, own: Mapping[str, AnyLayout] | None = None) -> list[str]:
    """A line for each layout (known, or a user's own) that fits a folder, best first; and for the
    nearest of those that find no subject in it, the first part of a pattern that failed.
    """
    paths = (path.relative_to(folder).as_posix() for path in visible_files(folder, DEPTH))
    names = [name for name in paths if re.search(r"\.nii(\.gz)?$", name, re.IGNORECASE)]
    if not names:
        return [f"{folder}: no NIfTI file (.nii, .nii.gz) in it."]
    layouts = {name: layout_of(layout) for name, layout in (own or {}).items()} | known_layouts()
    found, near = [], []
    for name, layout in layouts.items():
        above, subjects = _subjects(layout, names)
        if subjects:
            whole = sum(layout.healthy or LESION in has for has in subjects.values())
            found.append((whole, _describe(name, layout, names, above, subjects)))
        else:
            score, why = _first_failure(layout, "image", names)
            near.append((score, f"{name}: no subject. {why}"))
    found.sort(key=lambda pair: -pair[0])
    near.sort(key=lambda pair: -pair[0])
    if found:
        return [line for _, line in found]
    return [*(line for _, line in near[:EXPLAINED]), OWN]


def _subjects(layout: Layout, names: list[str]) -> tuple[str, dict[str, set[str]]]:
    """Below which folder a layout finds most, and what each subject has there."""
    trees: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    expressions = [
        (role, re.compile(rf"(?:(?P<above>.*?)/)??{layout.expression(pattern)}"))
        for role, pattern in layout.patterns
    ]
    for name in names:
        matches = [(role, expression.fullmatch(name)) for role, expression in expressions]
        if matches := [(role, match.groupdict()) for role, match in matches if match]:
            role, parts = min(matches, key=lambda found: len(found[1]["above"] or ""))
            kind = layout.modality_of(parts.get("modality")) if role == "image" else role
            trees[parts["above"] or ""][parts["subject"]].add(kind)
    for above, subjects in trees.items():
        trees[above] = {n: has for n, has in subjects.items() if has & {*layout.modalities}}
    return max(trees.items(), key=lambda tree: len(tree[1]), default=("", {}))


def _describe(
    name: str, layout: Layout, names: list[str], above: str, subjects: dict[str, set[str]]
) -> str:
    counts = Counter(kind for has in subjects.values() for kind in has)
    listed = ", ".join(f"{kind} {counts[kind]}" for kind in layout.needs() if counts[kind])
    text = f"{name}: {len(subjects)} subject(s): {listed}{f'; below {above}/' if above else ''}"
    if not layout.healthy and not counts[LESION]:
        text += f"; no lesion mask. {_first_failure(layout, LESION, names)[1]}"
    return text


def _first_failure(layout: Layout, role: str, names: list[str]) -> tuple[float, str]:
    """How much of a pattern fits the file that it fits best, and where it stops."""
    best, lax = (-1.0, ""), layout.model_copy(update={"subject": "[^/]+"})
    for pattern in (p for r, p in layout.patterns if r == role):
        plain = re.sub(r"\[.*?\]", "", pattern).removesuffix(".nii.gz")
        pieces = [*re.findall(r"\{\w+\}|\*|[^{}*]+", plain), ".nii.gz"]
        starts = [layout.expression("".join(pieces[:k]), "") for k in range(len(pieces))]
        others = [lax.expression("".join(pieces[:k]), "") for k in range(len(pieces))]
        for name in names[:MOST]:
            tail = "/".join(name.split("/")[-1 - plain.count("/") :])
            fit = max(k for k, start in enumerate(starts) if re.match(start, tail))
            # names of subjects may be of any form to come near, but not to fit
            score = max(k for k, start in enumerate(others) if re.match(start, tail)) / len(pieces)
            if score > best[0]:
                means = {
                    "{subject}": layout.subject,
                    "{modality}": list(layout.modalities.values()),
                }
                what = means.get(pieces[fit])
                what = f" ({what if isinstance(what, str) else ' or '.join(what)})" if what else ""
                why = f"'{pieces[fit]}'{what} of '{pattern}' does not fit {name}."
                best = score, f"Nearest: {why}"
    return best
