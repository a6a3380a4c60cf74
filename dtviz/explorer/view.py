"""Decode and measure a trace (`View`), and draw the sides of an explorer: saved (`plot_explorer`) or live (`CurvesImage`)."""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure, FigureBase
from matplotlib.layout_engine import PlaceHolderLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image

from ..core.decode import Preview, decode_latents
from ..core.trace import Trace
from ..metrics.factors import FACTORS, read_factors
from ..metrics.similarity import concept_timeline, similarity_to_final
from ..plot.style import COLOURS, GREY, OTHERS, Limits, caption, escape_math, style

SEED, REGION, WORDS = COLOURS["base"], COLOURS["distilled"], OTHERS  # colours of the lines
_IMAGES, _CURVES, _BAND = 5.5, 2.75, 2.3  # inches: width of three images, width of the curves, height of a side

Box = tuple[int, ...]  # top, left, bottom, right in pixels, bottom and right excluded; () for none
MAX_SIZE = 384  # pixels on a side of the images that are kept: all steps of all samples are in memory


class Line(NamedTuple):
    name: str
    y: tuple[float, ...]  # a value for every step
    colour: str
    style: str = "-"  # " ": squares in a row of the line's name, at the steps where y is the row's number


class View:
    """Images and features of a trace. Frame `steps`, the last one, is the final image."""

    def __init__(self, trace: Trace, *, pair: Any = None, embed: Any = None, on_frame: Callable = lambda share: None):
        """Decode and embed every step. `on_frame` takes the share done. Without a pair colours are a preview."""
        if trace.final.ndim == 5:
            raise NotImplementedError(f"videos of shape {tuple(trace.final.shape[1:])} cannot be shown, only images")
        # `colours`: how latents became colours, "" for the pair's own autoencoder
        vae, self.colours, self.embed = (None, "", embed) if pair else (*preview_of(trace), None)
        x0, x_t = [*trace.x0, trace.final], [] if trace.x_t is None else [*trace.x_t]
        images, features = [], []
        for i, latents in enumerate(x0 + x_t):
            decoded = decode_latents(latents, pair, vae=vae)
            images.append(_to_uint8(decoded))
            if i < len(x0):
                features.append(self.embed(decoded) if self.embed else latents.flatten(1).float().numpy())
            on_frame((i + 1) / len(x0 + x_t))
        self.trace, self.steps = trace, len(trace.x0)
        self.images = np.stack(images[: len(x0)])  # (step + 1, sample, height, width, 3) uint8
        self.x_t = np.stack([*images[len(x0) :], self.images[-1]]) if x_t else None  # the same, if the trace holds it
        self.features = np.stack(features)  # (step + 1, sample, d) float32; of the latents without an embedder
        self.distances = similarity_to_final(self.features[:-1], self.features[-1])  # (step, sample) 1 - cosine

    def region(self, box: Sequence[int], sample: int) -> np.ndarray:
        """Return (step,) distances to the final image of a region of one sample's images, by the embedder."""
        top, left, bottom, right = box
        features = self.embed(_to_float(self.images[:, sample, top:bottom, left:right]))
        return similarity_to_final(features[:-1, None], features[-1:])[:, 0]

    def timeline(self, text: Any, words: Sequence[str], sample: int) -> np.ndarray:
        """Return (step, word) cosines of one sample's predicted x0 and words, by an embedder that reads text."""
        features = text(_to_float(self.images[:-1, sample]))
        return concept_timeline(features[:, None], text.text(list(words)))[:, 0]

    def factors(self, sample: int) -> dict[str, list[Line]]:
        """Return a chart of the steps at which a factor of one sample's x0 is read as in its final image, with that reading."""
        labels = read_factors(_to_float(self.images[:, sample]))
        title = "same as final: " + ", ".join(FACTORS[name][read[-1]] for name, read in labels.items())
        rows = [np.where(read[:-1] == read[-1], row, -1) for row, read in enumerate(labels.values())]
        return {title: [Line(name, tuple(y), SEED, " ") for name, y in zip(labels, rows, strict=True)]}


def preview_of(trace: Trace) -> tuple[Preview, str]:
    """Return a map from the latents of a trace to colours without a model, and its description."""
    if "preview" in trace.provenance:
        preview = Preview(**trace.provenance["preview"])
        return preview, f"linear preview of the latents (R² {preview.r2:.2f})"
    cells = trace.final.float().movedim(1, -1).flatten(0, -2)
    axes = torch.linalg.svd(cells - cells.mean(dim=0), full_matrices=False).Vh[:3].T
    low, high = torch.quantile(cells @ axes, torch.tensor([0.01, 0.99]), dim=0)
    weights = torch.cat([axes, -low[None]]) / (high - low).clamp(min=1e-6)
    return Preview(weights, 8, float("nan")), "false colours: the latents' first three principal components"


def _to_uint8(images: torch.Tensor) -> np.ndarray:
    """Convert (n, 3, height, width) in [0, 1] to (n, height, width, 3) uint8 of at most `MAX_SIZE` pixels on a side."""
    scale = MAX_SIZE / max(images.shape[-2:])
    if scale < 1:
        images = torch.nn.functional.interpolate(images, scale_factor=scale, mode="area")
    return (images * 255).round().byte().movedim(1, -1).numpy()


def _to_float(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32) / 255


@dataclass(frozen=True, eq=False)
class Panel:
    """Content of one side at one step."""

    title: str  # settings of the run
    caption: str  # name of the step
    numbers: str  # diversity of the samples
    x_t: np.ndarray | None  # of the large sample, (height, width, 3) uint8
    samples: np.ndarray  # predicted x0 or final image of all samples, (n, height, width, 3) uint8
    sample: int  # number of the large sample
    charts: dict[str, list[Line]]  # lines of each label
    share: float  # of the steps done
    box: Box  # region

    @property
    def x0(self) -> np.ndarray:
        return self.samples[self.sample]


def plot_explorer(panels: Sequence[Panel], *, note: str) -> Figure:
    """Plot one band for each side: x_t, x0 with the region, all samples, curves. `note` is a line below."""
    ratios = [*[_BAND] * len(panels), 0.15]
    with style():
        # without pyplot, so that a notebook shows it as the value of its cell, not twice
        figure = Figure(figsize=(_IMAGES + _CURVES, sum(ratios)), layout=PlaceHolderLayoutEngine(True, False))
        for band, panel in zip(figure.subfigures(len(ratios), 1, height_ratios=ratios), panels, strict=False):
            images, curves = band.subfigures(1, 2, width_ratios=[_IMAGES, _CURVES])
            _plot_images(images, panel)
            plot_curves(curves, panel, y_limits(panels))
        caption(figure, note)
    return figure


def _plot_images(figure: FigureBase, panel: Panel) -> None:
    axes = figure.subplots(1, 3)
    figure.subplots_adjust(left=0, right=1, bottom=0.08, top=0.85, wspace=0.03)
    titles = ("decoded $x_t$" if panel.x_t is not None else "$x_t$ not kept", panel.caption, "all seeds")
    for ax, image, title in zip(axes, (panel.x_t, panel.x0, montage(panel)), titles, strict=True):
        ax.axis("off")
        ax.set_title(title, fontsize=7, pad=3)
        if image is not None:
            ax.imshow(image, interpolation="nearest" if len(panel.x0) <= 128 else "antialiased")
    if panel.box:
        top, left, bottom, right = panel.box
        corner, look = (left - 0.5, top - 0.5), {"fill": False, "edgecolor": REGION, "clip_on": False}
        axes[1].add_patch(Rectangle(corner, right - left, bottom - top, **look))
    figure.text(0, 0.995, escape_math(panel.title), fontsize=8, weight="bold", va="top")
    figure.text(0, 0.015, panel.numbers, fontsize=7, color=GREY)


def y_limits(panels: Sequence[Panel]) -> list[Limits]:
    """Return the limits of each chart's y axis, the same on all sides."""
    charts = zip(*(panel.charts.values() for panel in panels), strict=True)
    values = [np.concatenate([line.y for lines in sides for line in lines]) for sides in charts]
    room = 1.2 + 0.2 * len(values)  # for the legend above the lines
    return [(min(0.0, 1.05 * y.min()), max(room * y.max(), 1e-9)) for y in values]


def plot_curves(figure: FigureBase, panel: Panel, limits: Sequence[Limits]) -> list[Line2D]:
    """Plot a side's charts in an empty figure. Return the step markers."""
    markers = []
    axes = figure.subplots(len(panel.charts), 1, sharex=True, squeeze=False)[:, 0]
    for ax, (label, lines), limit in zip(axes, panel.charts.items(), limits, strict=True):
        rows = [line.name for line in lines if line.style == " "]
        for line in lines:
            shares = np.arange(1, len(line.y) + 1) / len(line.y)
            ax.plot(shares, line.y, line.style, marker="s" if rows else ".", color=line.colour, label=line.name)
        markers.append(ax.axvline(panel.share, color=GREY, linestyle=":", linewidth=0.8))
        ax.set(xlim=(0, 1.03), ylim=limit)
        ax.set_title(label, fontsize=7, pad=3)
        if rows:
            ax.set(yticks=range(len(rows)), yticklabels=rows, ylim=(len(rows) - 0.5, -0.5))
            continue
        ax.legend(loc="upper right", ncols=3, handlelength=1.2, columnspacing=0.8, labelspacing=0.2, borderaxespad=0)
    axes[-1].set_xlabel("share of the steps done", labelpad=1)
    figure.subplots_adjust(left=0.155, right=0.98, bottom=0.16, top=0.92, hspace=0.35)
    return markers


class CurvesImage:
    """Draw one side's curves as PNG. While they stay the same, draw only the step markers again."""

    _content = None

    def png(self, panel: Panel, limits: Sequence[Limits]) -> bytes:
        if self._content != (panel.charts, limits):
            self._content = panel.charts, limits
            self._canvas = FigureCanvasAgg(Figure((_CURVES, 2.0), dpi=200, facecolor="none"))
            with style(), mpl.rc_context({"axes.facecolor": "none"}):  # transparent, for a dark page
                self._markers = plot_curves(self._canvas.figure, panel, limits)
            for marker in self._markers:
                marker.set_animated(True)  # left out of the background
            self._canvas.draw()
            self._background = self._canvas.copy_from_bbox(self._canvas.figure.bbox)
        self._canvas.restore_region(self._background)
        for marker in self._markers:
            marker.set_xdata([panel.share] * 2)
            self._canvas.figure.draw_artist(marker)
        return to_png(np.asarray(self._canvas.buffer_rgba()))


def to_png(image: np.ndarray) -> bytes:
    """Encode (height, width, 3 or 4) uint8."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def montage(panel: Panel, *, pixels: int = 360) -> np.ndarray:
    """Arrange all samples in a grid of about so many pixels, (height, width, 4) uint8, with a frame around the large one."""
    columns = math.ceil(math.sqrt(len(panel.samples)))
    stride = max(1, columns * panel.samples.shape[1] // pixels)
    samples = np.insert(panel.samples[:, ::stride, ::stride], 3, 255, axis=-1)
    n, height, width, _ = samples.shape
    edge, rows = max(2, height // 20), math.ceil(n / columns)
    cells = np.zeros((rows * columns, height + 2 * edge, width + 2 * edge, 4), np.uint8)  # transparent
    cells[panel.sample] = np.multiply((*to_rgb(SEED), 1), 255)
    cells[:n, edge:-edge, edge:-edge] = samples
    return cells.reshape(rows, columns, *cells.shape[1:]).swapaxes(1, 2).reshape(-1, columns * cells.shape[2], 4)
