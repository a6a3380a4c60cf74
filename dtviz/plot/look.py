"""What all figures share: the print style, a footer that says what is shown, and a colour for every method."""

import textwrap
from collections.abc import Iterable
from contextlib import contextmanager

import matplotlib as mpl
from matplotlib.figure import Figure

# Okabe & Ito's colours, told apart by colour-blind readers; a method has the same one in every figure.
COLOURS = {
    "base": "#0072B2", "distilled": "#D55E00", "hybrid": "#009E73", "hybrid σ": "#5D3A9B", "skip": "#CC79A7", "real": "#555555",
}  # fmt: skip
MORE = [
    "#D55E00",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#000000",
    "#0072B2",
    "#5D3A9B",
]  # for names that are no method, in turn
GREY = "#777777"
MARKERS = "osD^v>"

_STYLE = {
    "font.family": "DejaVu Sans", "font.size": 7, "axes.labelsize": 7, "axes.titlesize": 8, "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5, "legend.fontsize": 6.5, "legend.frameon": False, "axes.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "xtick.major.width": 0.5, "ytick.major.width": 0.5, "xtick.major.size": 2.5, "ytick.major.size": 2.5,
    "axes.spines.top": False, "axes.spines.right": False, "figure.constrained_layout.use": True, "figure.dpi": 150,
    "savefig.dpi": 300, "savefig.bbox": "tight", "savefig.pad_inches": 0.03, "pdf.fonttype": 42, "svg.fonttype": "none",
}  # fmt: skip


@contextmanager
def style():
    """Print style for the figures made inside; every setting is as before on leaving, also after an error.

    >>> with style():
    ...     mpl.rcParams["savefig.dpi"]
    300.0
    """
    with mpl.rc_context(_STYLE):
        yield


def footer(fig: Figure, text: str) -> None:
    """A small grey line below the figure: pair, embedder, settings. Long text is wrapped to the figure's width.

    >>> footer(Figure(), "emoji-dmd, 8 seeds")
    """
    wrapped = textwrap.fill(text, max(20, int(fig.get_figwidth() * 20)))  # about 20 letters of 6 points an inch
    fig.supxlabel(plain(wrapped), x=0.005, ha="left", fontsize=6, color=GREY, linespacing=1.3)


def plain(text: str) -> str:
    """A text that is no formula, such as a prompt: its dollars are drawn, and not taken for the ends of mathematics.

    >>> print(plain("a $5 bill and $10"))
    a \\$5 bill and \\$10
    """
    return text.replace("$", r"\$")


def colours_of(names: Iterable[str]) -> list[str]:
    """A method's own colour; for other names the rest in turn.

    >>> colours_of(["base", "emoji-dmd student"])
    ['#0072B2', '#D55E00']
    """
    names = list(names)
    free = iter([colour for colour in MORE if colour not in {COLOURS.get(name) for name in names}] * len(names))
    return [COLOURS[name] if name in COLOURS else next(free) for name in names]
