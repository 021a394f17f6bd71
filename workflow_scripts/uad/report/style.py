"""How all figures look and how they are saved, so that equal input gives equal bytes.

Matplotlib is imported inside the functions, so that importing this module costs nothing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uad.core.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PathLike = str | os.PathLike[str]

# Okabe and Ito's colours, which stay apart for colour-blind readers.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#6b7178"
#: Line styles of up to 14 methods: seven colours, then the same colours dashed.
CYCLE: list[dict[str, Any]] = [
    {"color": color, "ls": line}
    for line in ("-", (0, (3.2, 1.4)))
    for color in (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#E69F00", "#1c1e21")
]
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
    "svg.hashsalt": "uad",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
}
#: What would tell when and by what a figure was made.
_METADATA: dict[str, dict[str, Any]] = {
    ".png": {"Software": None},
    ".svg": {"Date": None, "Creator": None},
}


def save(figure: Figure, path: PathLike, dpi: int = 200, colours: int | None = None) -> None:
    """Save as PNG or SVG (by suffix), without anything that changes between runs.

    A PNG has at most so many colours, if any number is given. Line plots have few, and with a
    palette they take a third of the bytes.
    """
    suffix = Path(path).suffix
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=dpi, metadata=_METADATA[suffix])
        if colours and suffix == ".png":
            from PIL import Image

            with Image.open(temporary) as picture:
                reduced = picture.convert("RGB").quantize(colours)
            reduced.save(temporary, optimize=True)


def grid(axes: Axes, axis: str = "both") -> None:
    """Thin lines behind what is drawn."""
    axes.grid(axis=axis, which="major", lw=0.4, color="#e3e6ea")
    axes.set_axisbelow(True)


def style() -> Any:
    """Matplotlib's own defaults plus ours, whatever a user's matplotlibrc says."""
    import matplotlib as mpl

    # The backend is left alone: figures are made without pyplot.
    defaults = {k: v for k, v in mpl.rcParamsDefault.items() if not k.startswith("backend")}
    return mpl.rc_context(defaults | _RC)


def notebook_style() -> None:
    """The same look for the pictures of a notebook; for the process that it is called in."""
    import matplotlib as mpl

    mpl.rcParams.update(_RC | {"figure.dpi": 110, "figure.facecolor": "white"})
