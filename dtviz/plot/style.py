"""The style, caption and colours that all figures share."""

import textwrap
from collections.abc import Iterable
from contextlib import contextmanager

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

WIDTH = 7.2  # inches: the printed width of a page, and the most that a figure has
# Okabe and Ito's colours, which colour-blind readers tell apart. A method has the same one in every figure.
COLOURS = {
    "base": "#0072B2", "distilled": "#D55E00", "hybrid": "#009E73", "hybrid σ": "#5D3A9B", "skip": "#CC79A7",
}  # fmt: skip
OTHERS = ("#D55E00", "#CC79A7", "#E69F00", "#56B4E9", "#009E73", "#000000", "#0072B2", "#5D3A9B")
GREY, RED = "#666666", "#D00000"  # red: the paper's boxes
MARKERS = "osD^v>"
Limits = tuple[float, float]  # the lowest and highest possible value of a measure
UNLIMITED = (-np.inf, np.inf)

_STYLE = {
    "font.family": "DejaVu Sans", "font.size": 7, "axes.labelsize": 7, "axes.titlesize": 8, "xtick.labelsize": 7,
    "ytick.labelsize": 7, "legend.fontsize": 7, "legend.title_fontsize": 7, "legend.frameon": False,
    "axes.linewidth": 0.5, "lines.linewidth": 1.2, "lines.markersize": 3.5, "lines.markeredgewidth": 0.5,
    "xtick.major.width": 0.5, "ytick.major.width": 0.5, "xtick.major.size": 2.5, "ytick.major.size": 2.5,
    "axes.spines.top": False, "axes.spines.right": False, "figure.constrained_layout.use": True, "figure.dpi": 150,
    "savefig.dpi": 300, "savefig.bbox": "tight", "savefig.pad_inches": 0.03, "pdf.fonttype": 42, "svg.fonttype": "none",
}  # fmt: skip


@contextmanager
def style():
    """Set the print style for figures made in the block and restore all settings at its end."""
    with mpl.rc_context(_STYLE):
        yield


def caption(fig: Figure, text: str) -> None:
    """Write `text` in grey below the figure, wrapped to its width. The figure grows by the new lines."""
    letters = max(20, int(fig.get_figwidth() * 17))  # about 17 of 7 points an inch
    lines = textwrap.wrap(escape_math(text), letters)
    before = fig.get_supxlabel().splitlines()
    if lines != before:
        fig.set_figheight(fig.get_figheight() + 0.13 * (len(lines) - len(before)))
        fig.supxlabel("\n".join(lines), x=0.005, ha="left", fontsize=7, color=GREY, linespacing=1.3)


def escape_math(text: str) -> str:
    """Escape `$` so that matplotlib does not read a prompt as math."""
    return text.replace("$", r"\$")


def colours_of(names: Iterable[str]) -> list[str]:
    """Return a colour for each name: a method's own, for other names the unused ones in turn."""
    names = list(names)
    unused = iter([colour for colour in OTHERS if colour not in {COLOURS.get(name) for name in names}] * len(names))
    return [COLOURS[name] if name in COLOURS else next(unused) for name in names]


def colour_of(method: str) -> str:
    """Return the colour of a method that is named where it is drawn. "hybrid, k = 2" has that of "hybrid", others grey."""
    return COLOURS.get(method.split(",")[0], GREY)
