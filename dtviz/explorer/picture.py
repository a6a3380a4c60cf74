"""The picture twin of an explorer: the same content as a matplotlib figure, for paper, HTML exports and GitHub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..plot.look import GREY, plain, style
from .chart import PALETTE, Line


@dataclass(frozen=True)
class Shown:
    """One side of an explorer as it stands.

    Attributes:
        title, step: what ran, and which step is shown, in words.
        noisy, plan: (height, width, 3) uint8, x_t (None: not kept) and x̂0 or the final image of the chosen sample.
        samples: (sample, height, width, 3) uint8, all samples at this step; `chosen` is the number of the large one.
        curves, timeline: the lines of the two charts; no timeline without words.
        measure, numbers: the distance's title, and a line of diversity numbers.
        at: the share of the steps done.
        box: (top, left, bottom, right) of a region, or None.
    """

    title: str
    step: str
    noisy: np.ndarray | None
    plan: np.ndarray
    samples: np.ndarray
    chosen: int
    curves: Sequence[Line]
    timeline: Sequence[Line]
    measure: str
    numbers: str
    at: float
    box: tuple[int, int, int, int] | None


def plot_explorer(sides: Sequence[Shown], *, note: str) -> Figure:
    """One band for each side: x_t, x̂0 with the region, all seeds, the similarity-to-final curve, the words' timeline.

    note: the line below, such as prompt and pair.

        figure = plot_explorer([shown], note="emoji-dmd, 'dog face'")
    """
    timed = any(side.timeline for side in sides)
    width, band, below = 9.4 if timed else 7.2, 2.0, 0.35  # inches
    with style(), plt.rc_context({"figure.constrained_layout.use": False, "savefig.bbox": None}):
        figure = plt.figure(figsize=(width, band * len(sides) + below))
        top = 1.08 * max(max(line.y) for side in sides for line in side.curves) or 1.0
        for i, side in enumerate(sides):
            floor = below + band * (len(sides) - 1 - i)
            places = [(0.08, 0.42, 1.1), (1.26, 0.42, 1.1), (2.44, 0.42, 2.0), (4.85, 0.42, 2.2), (7.4, 0.42, 1.9)]
            high = 1.1
            axes = [
                figure.add_axes(
                    (x / width, (floor + y) / figure.get_figheight(), w / width, high / figure.get_figheight())
                )
                for x, y, w in places[: 4 + timed]
            ]
            _pictures(axes[:3], side)
            where = {"transform": figure.transFigure, "va": "bottom"}
            figure.text(
                0.08 / width,
                (floor + 1.75) / figure.get_figheight(),
                plain(side.title),
                fontsize=8,
                weight="bold",
                **where,
            )
            figure.text(
                0.08 / width, (floor + 0.2) / figure.get_figheight(), side.numbers, fontsize=6, color=GREY, **where
            )
            _lines(axes[3], side.curves, at=side.at, label=f"{side.measure} to the final image", top=top)
            if side.timeline:
                _lines(axes[4], side.timeline, at=side.at, label="cosine of plan and words", top=None)
            elif timed:
                axes[4].set_visible(False)
        figure.text(0.08 / width, 0.06 / figure.get_figheight(), note, fontsize=6, color=GREY)
    plt.close(figure)  # it is shown by being returned, not twice
    return figure


def _pictures(axes, side: Shown) -> None:
    noisy, plan, samples = axes
    crisp = "nearest" if side.plan.shape[1] <= 128 else "antialiased"
    if side.noisy is not None:
        noisy.imshow(side.noisy, interpolation=crisp)
    noisy.set_title("decode of $x_t$" if side.noisy is not None else "$x_t$ not kept", fontsize=6.5)
    plan.imshow(side.plan, interpolation=crisp)
    plan.set_title(side.step, fontsize=6.5)
    if side.box is not None:
        top, left, bottom, right = side.box
        plan.add_patch(
            Rectangle(
                (left - 0.5, top - 0.5), right - left, bottom - top, fill=False, edgecolor=PALETTE[1], clip_on=False
            )
        )
    count = len(side.samples)
    columns = next((c for c in range(1, count + 1) if -(-count // c) * 1.8 <= c), 1)  # the place is 2.0 inches by 1.1
    rows = -(-count // columns)
    tall = side.samples.shape[1] / side.samples.shape[2]
    for i, picture in enumerate(side.samples):
        x, y = i % columns * 1.08, i // columns * (tall + 0.08)
        samples.imshow(picture, extent=(x, x + 1, y + tall, y), interpolation=crisp)
        if i == side.chosen:
            look = {"fill": False, "edgecolor": PALETTE[0], "linewidth": 1.5, "clip_on": False}
            samples.add_patch(Rectangle((x, y), 1, tall, **look))
    samples.set(xlim=(0, columns * 1.08 - 0.08), ylim=(rows * (tall + 0.08) - 0.08, 0), aspect="equal", anchor="N")
    samples.set_title("all seeds", fontsize=6.5)
    for ax in axes:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)


def _lines(ax, lines: Sequence[Line], *, at: float, label: str, top: float | None) -> None:
    for line in lines:
        ax.plot(line.x, line.y, color=line.colour, linestyle="--" if line.dashed else "-", label=line.name)
        marked = int(np.argmin(np.abs(np.asarray(line.x) - at)))
        ax.plot([line.x[marked]], [line.y[marked]], "o", color=line.colour, markersize=3.5, label="_now")
    ax.axvline(at, color=GREY, linestyle=":", linewidth=0.8)
    ax.set(xlim=(0, 1.02), xlabel="share of the steps done")
    ax.set_title(label, fontsize=6.5)
    if top is not None:
        ax.set_ylim(0, top)
    if lines:
        ax.legend(fontsize=5.5)
