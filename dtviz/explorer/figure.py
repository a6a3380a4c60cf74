"""Draw the sides of an explorer: `plot_explorer` for saved pictures, `CurvesImage` for the live curves.

    figure = plot_explorer(session.panels(), note="emoji-dmd, 'dog face'")

Both use `plot_curves` and `montage`. Drawing a whole figure takes 100 ms: the live view shows the images as PNG, and moves
only the step markers of its curves.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure, FigureBase
from matplotlib.patches import Rectangle
from PIL import Image

from ..plot.style import COLOURS, GREY, OTHERS, caption, escape_math, style

SEED, REGION, WORDS = COLOURS["base"], COLOURS["distilled"], OTHERS  # colours of the lines
SIZE = 240  # pixels of an image on screen
_IMAGES, _CURVES, _BAND = 5.2, 4.4, 2.3  # inches: width of three images, width of the curves, height of a side

Box = tuple[int, int, int, int]  # top, left, bottom, right in pixels, bottom and right excluded
Limits = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One line of a chart."""

    name: str
    x: tuple[float, ...]  # share of the steps done
    y: tuple[float, ...]
    colour: str
    dashed: bool = False


@dataclass(frozen=True, eq=False)
class Panel:
    """Content of one side at one step."""

    title: str  # settings of the run
    caption: str  # name of the step
    numbers: str  # diversity of the samples
    x_t: np.ndarray | None  # of the large sample, (height, width, 3) uint8
    x0: np.ndarray  # the same of the predicted x0 or the final image
    samples: np.ndarray  # x0 of all samples
    sample: int  # number of the large sample
    charts: tuple[tuple[str, tuple[Line, ...]], ...]  # label and lines of each
    share: float  # of the steps done
    box: Box | None  # region


def plot_explorer(panels: Sequence[Panel], *, note: str) -> Figure:
    """Plot one band for each side: x_t, x0 with the region, all samples, curves. `note` is a line below."""
    ratios = [*[_BAND] * len(panels), 0.25]
    with style():
        figure = plt.figure(figsize=(_IMAGES + _CURVES, sum(ratios)), dpi=100, layout="none")
        for band, panel in zip(figure.subfigures(len(ratios), 1, height_ratios=ratios), panels, strict=False):
            images, curves = band.subfigures(1, 2, width_ratios=[_IMAGES, _CURVES])
            _plot_images(images, panel)
            plot_curves(curves, panel, y_limits(panels))(panel.share)
        caption(figure, note)
    plt.close(figure)  # a notebook shows it as the value of its cell, not twice
    return figure


def _plot_images(figure: FigureBase, panel: Panel) -> None:
    axes = figure.subplots(1, 3)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.12, top=0.8, wspace=0.06)
    titles = ("decoded $x_t$" if panel.x_t is not None else "$x_t$ not kept", panel.caption, "all seeds")
    images = panel.x_t, panel.x0, montage(panel.samples, framed=panel.sample)
    for ax, image, title in zip(axes, images, titles, strict=True):
        ax.axis("off")
        ax.set_title(title, fontsize=7)
        if image is not None:
            ax.imshow(image, interpolation="nearest" if len(panel.x0) <= 128 else "antialiased")
    if panel.box is not None:
        top, left, bottom, right = panel.box
        look = {"fill": False, "edgecolor": REGION, "clip_on": False}
        axes[1].add_patch(Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, **look))
    figure.text(0.01, 0.97, escape_math(panel.title), fontsize=8, weight="bold", va="top")
    figure.text(0.01, 0.03, panel.numbers, fontsize=7, color=GREY)


def y_limits(panels: Sequence[Panel]) -> list[Limits]:
    """Return the limits of each chart's y axis, the same on all sides."""
    charts = zip(*(panel.charts for panel in panels), strict=True)
    values = [np.concatenate([line.y for _, lines in sides for line in lines]) for sides in charts]
    return [(min(0.0, 1.05 * y.min()), max(1.08 * y.max(), 1e-9)) for y in values]


def plot_curves(figure: FigureBase, panel: Panel, limits: Sequence[Limits]) -> Callable[[float], list[Artist]]:
    """Plot a side's charts in an empty figure. Return a function that moves the step markers and returns them."""
    dots, rules = [], []
    axes = figure.subplots(1, len(panel.charts), squeeze=False)[0]
    for ax, (label, lines), limit in zip(axes, panel.charts, limits, strict=True):
        for line in lines:
            ax.plot(line.x, line.y, color=line.colour, linestyle="--" if line.dashed else "-", label=line.name)
            dots.append((*ax.plot([], [], "o", color=line.colour), line))
        rules.append(ax.axvline(0, color=GREY, linestyle=":", linewidth=0.8))
        ax.set(xlim=(0, 1.03), ylim=limit, xlabel="share of the steps done")
        ax.set_title(label, fontsize=7)
        ax.legend(handlelength=1.5)
    figure.subplots_adjust(left=0.09, right=0.98, bottom=0.17, top=0.88, wspace=0.25)

    def move(share: float) -> list[Artist]:
        for dot, line in dots:
            nearest = int(np.argmin(np.abs(np.subtract(line.x, share))))
            dot.set_data([line.x[nearest]], [line.y[nearest]])
        for rule in rules:
            rule.set_xdata([share, share])
        return [*rules, *(dot for dot, _ in dots)]

    return move


class CurvesImage:
    """Draw one side's curves as PNG. While they stay the same, draw only the step markers again."""

    def __init__(self) -> None:
        self._content = None

    def png(self, panel: Panel, limits: Sequence[Limits]) -> bytes:
        if self._content != (panel.charts, limits):
            self._content = panel.charts, limits
            self._canvas = FigureCanvasAgg(Figure((_CURVES, _BAND), dpi=110))
            with style():
                self._move = plot_curves(self._canvas.figure, panel, limits)
            for marker in self._move(panel.share):
                marker.set_animated(True)  # left out of the background
            self._canvas.draw()
            self._background = self._canvas.copy_from_bbox(self._canvas.figure.bbox)
        self._canvas.restore_region(self._background)
        for marker in self._move(panel.share):
            self._canvas.figure.draw_artist(marker)
        return to_png(np.asarray(self._canvas.buffer_rgba()))


def to_png(image: np.ndarray) -> bytes:
    """Encode (height, width, 3 or 4) uint8 as PNG without alpha."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image[..., :3])).save(file, "PNG", compress_level=1)
    return file.getvalue()


def montage(images: np.ndarray, *, framed: int | None = None) -> np.ndarray:
    """Arrange (n, height, width, 3) uint8 in a grid, thinned out above `SIZE` pixels, with a frame around one of them."""
    columns = math.ceil(math.sqrt(len(images)))
    stride = max(1, columns * images.shape[1] // SIZE)
    empty = -len(images) % columns
    cells = np.pad(images[:, ::stride, ::stride], ((0, empty), (3, 3), (3, 3), (0, 0)), constant_values=255)
    if framed is not None:
        inner = cells[framed, 3:-3, 3:-3].copy()
        cells[framed] = np.multiply(to_rgb(SEED), 255)
        cells[framed, 3:-3, 3:-3] = inner
    rows = cells.reshape(-1, columns, *cells.shape[1:]).swapaxes(1, 2)
    return rows.reshape(-1, columns * cells.shape[2], 3)
