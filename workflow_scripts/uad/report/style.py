"""How all figures look and how they are saved, so that equal input gives equal bytes.

Matplotlib is imported inside the functions, so that importing this module costs nothing.
"""

from __future__ import annotations

import contextlib
import os
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from uad.core.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.lines import Line2D

PathLike = str | os.PathLike[str]

# Okabe and Ito's colours, which stay apart for colour-blind readers.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#6b7178"
#: Line styles of up to 14 methods: seven colours, then the same colours dashed.
CYCLE: list[dict[str, Any]] = [
    {"color": color, "ls": line}
    for line in ("-", (0, (3.2, 1.4)))
    for color in (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#E69F00", "#1c1e21")
]
DASHED = {"color": GREY, "lw": 0.7, "ls": (0, (4, 3)), "zorder": 0}
_RC = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 7,
    "legend.frameon": False,
}


@contextlib.contextmanager
def drawing(
    path: PathLike, width: float, height: float, *, dpi: int = 200, colours: int | None = None
) -> Iterator[Figure]:
    """A figure of a size in inches, saved as PNG at the end, without anything that changes.

    The PNG has at most so many colours, if any number is given. Line plots have few, and with a
    palette they take a third of the bytes. The look is ours, whatever a user's matplotlibrc says.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # The backend is left alone: figures are made without pyplot.
    defaults = {k: v for k, v in mpl.rcParamsDefault.items() if not k.startswith("backend")}
    with mpl.rc_context(defaults | _RC):
        figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
        yield figure
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=dpi, metadata={"Software": None})
            if colours:
                from PIL import Image

                with Image.open(temporary) as picture:
                    reduced = picture.convert("RGB").quantize(colours)
                reduced.save(temporary, optimize=True)


@contextlib.contextmanager
def panels_and_key(path: PathLike, title: str, width: float, height: float) -> Iterator[SubFigure]:
    """A drawing with a title of its full width, and below it (so high) all the rest.

    A legend beside the panels would otherwise stand in the title's way.
    """
    lines = textwrap.wrap(title, int(11 * width))
    head = 0.1 + 0.16 * len(lines)
    with drawing(path, width, head + height, colours=128) as figure:
        top, body = figure.subfigures(2, 1, height_ratios=(head, height))
        top.text(0.01, 0.35, "\n".join(lines), ha="left", va="center", weight="bold", size=9)
        yield body


def looks(methods: Sequence[Any]) -> list[dict[str, Any]]:
    """A line style for each method, in their order."""
    return [CYCLE[number % len(CYCLE)] for number in range(len(methods))]


def method_key(labels: Sequence[str], width: float, characters: int) -> list[Line2D]:
    """Lines of a legend that name the methods, broken into lines of so many characters."""
    return [
        key_line(**look, lw=width, label=textwrap.fill(label, characters))
        for look, label in zip(looks(labels), labels, strict=True)
    ]


def key_line(**look: Any) -> Line2D:
    """A line of a legend; without a look it is blank."""
    from matplotlib.lines import Line2D

    return Line2D([], [], **(look or {"ls": "", "label": ""}))


def grid(axes: Axes, axis: str = "both") -> None:
    """Thin lines behind what is drawn."""
    axes.grid(axis=axis, which="major", lw=0.4, color="#e3e6ea")
    axes.set_axisbelow(True)


def notebook_style() -> None:
    """The same look for the pictures of a notebook; for the process that it is called in."""
    import matplotlib as mpl

    mpl.rcParams.update(_RC | {"figure.dpi": 110, "figure.facecolor": "white"})
