"""Measures as curves, points and intervals (paper, Figures 3, 5 and 7)."""

from collections.abc import Mapping, Sequence
from itertools import cycle, product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.text import Annotation, Text
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from .style import COLOURS, GREY, MARKERS, RED, UNLIMITED, Limits, colours_of


def plot_similarity_to_final(table: pd.DataFrame, *, embedder: str, ax: Axes | None = None) -> Axes:
    """Draw each step's distance to the final image against the fraction of steps done (paper, Figure 5).

    The dotted level is the first distance of the model with the fewest steps. The legend says when each is within it.

    table: `model`, `fraction` in (0, 1], `distance`, and `low`, `high` for a band. One row a model and step.
    """
    ax = ax or plt.subplots(figsize=(3.6, 3.0))[1]
    sweep = table.rename(columns={"model": "series", "fraction": "x", "distance": "value"})
    plot_sweep(sweep, x_label="fraction of steps", y_label=f"{embedder} distance\nto the final image", ax=ax)
    shortest = min(ax.lines, key=lambda line: len(line.get_xdata()))
    title = f"first within the dotted level of {shortest.get_label()}"
    level = shortest.get_ydata()[0]
    for line in ax.lines:
        within = line.get_xdata()[line.get_ydata() <= level][:1]
        ax.vlines(within, 0, level, color=line.get_color(), linestyle="--", linewidth=0.8)
        line.set_label(f"{line.get_label()}: " + (f"{within[0]:.0%} of steps" if len(within) else "never"))
    ax.set(xlim=(0, 1), xticks=np.linspace(0, 1, 6))
    ax.set_ylim(0, (1.1 + 0.07 * len(ax.lines)) * ax.get_ylim()[1])  # the curves fall to the right, below the legend
    ax.legend(title=title, loc="upper right", alignment="left")
    ax.axhline(level, color=GREY, linestyle=":", linewidth=0.8)
    return ax


def plot_sweep(
    table: pd.DataFrame, *, x_label: str, y_label: str, reference: Mapping[str, float] | None = None,
    limits: Limits = UNLIMITED, ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Draw a measure against one setting, a line with its band for each series (paper, Figure 7).

    table: `series`, `x`, `value`, and `low`, `high` for a band. reference: name -> value of dotted lines.
    """
    ax = ax or plt.subplots(figsize=(2.6, 2.2))[1]
    names = [*(reference or {}), *table["series"].unique()]
    for name, colour, marker in zip(names, colours_of(names), cycle(MARKERS), strict=False):
        if name in (reference or {}):
            ax.axhline(reference[name], color=colour, linestyle=":", linewidth=0.8, clip_on=False, label=name)
            continue
        rows = table[table["series"] == name].sort_values("x")
        [line] = ax.plot(rows["x"], rows["value"], color=colour, marker=marker, clip_on=False, label=name)
        line.sticky_edges.y.extend(limits)  # no margin beyond a limit
        band = rows.reindex(columns=["low", "high"]).clip(*limits)
        ax.fill_between(rows["x"], band["low"], band["high"], color=colour, alpha=0.18, linewidth=0)
    ax.set(xlabel=x_label, ylabel=y_label)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    ax.legend()
    return ax


def plot_accuracy_by_step(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw how often a classifier gives x0 the class of the final image. table: `classifier`, `step`, `accuracy`."""
    sweep = table.rename(columns={"classifier": "series", "step": "x", "accuracy": "value"})
    return plot_sweep(sweep, x_label="step", y_label="same class as\nthe final image", limits=(0, 1), ax=ax)


def plot_plane(
    table: pd.DataFrame, *, x_label: str, y_label: str, x_limits: Limits = UNLIMITED,
    y_limits: Limits = UNLIMITED, ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Draw two measures of each method against each other, with both intervals and the name beside the point.

    "hybrid, k = 2" has the colour of "hybrid". A name that starts with no method is grey.

    table: `method`, `x`, `x_low`, `x_high`, `y`, `y_low`, `y_high`. One row a method.
    """
    ax = ax or plt.subplots(figsize=(4.4, 3.0))[1]
    across, up = table[["x_low", "x_high"]].clip(*x_limits), table[["y_low", "y_high"]].clip(*y_limits)
    for i, row in enumerate(table.itertuples()):
        colour = COLOURS.get(row.method.split(",")[0], GREY)
        ax.hlines(row.y, *across.iloc[i], color=colour, linewidth=0.8, clip_on=False)
        ax.vlines(row.x, *up.iloc[i], color=colour, linewidth=0.8, clip_on=False)
        [dot] = ax.plot(row.x, row.y, "o", color=colour, markeredgecolor="white", clip_on=False, zorder=3)
        dot.sticky_edges.x.extend(x_limits)  # no margin beyond a limit
        dot.sticky_edges.y.extend(y_limits)
        leader = {"arrowstyle": "-", "color": colour, "linewidth": 0.4, "shrinkA": 0, "shrinkB": 3}
        look = {"textcoords": "offset points", "ha": "center", "va": "center", "color": colour, "arrowprops": leader}
        # Outside the layout, because labels are placed after it.
        ax.add_artist(_PointLabel(row.method, (row.x, row.y), (0, 0), in_layout=False, **look))
    ax.set(xlabel=x_label, ylabel=y_label)
    return ax


class _PointLabel(Annotation):
    """A point's name, placed when drawn: close, inside the axes, off the points, intervals and labels drawn before."""

    def draw(self, renderer) -> None:
        pixels, labels = self.axes.transData.transform, [text for text in self.axes.texts if hasattr(text, "xyann")]
        dot, dots, point = pixels(self.xy), pixels([label.xy for label in labels]), renderer.points_to_pixels(1)
        before = labels[: labels.index(self)]
        taken = [label.box for label in before] + [Bbox([spot, spot]).padded(3 * point) for spot in dots]
        bars = [Bbox(pixels(ends)).padded(1) for lines in self.axes.collections for ends in lines.get_segments()]
        half = Text.get_window_extent(self, renderer).size / 2

        def cost(place: tuple[float, float]) -> float:
            distance, angle = place
            center = dot + (half + distance * point) * (np.cos(angle), np.sin(angle))
            self.box = Bbox([center - half, center + half])
            outside = not np.allclose(Bbox.union([self.box, self.axes.bbox]).bounds, self.axes.bbox.bounds)
            self.leader = np.linspace(dot, center, 20)
            pairs = [pair for label in before for pair in ((self.leader, label.box), (label.leader, self.box))]
            crossed = sum(((leader > box.p0) & (leader < box.p1)).all(axis=1).any() for leader, box in pairs)
            covered = outside + self.box.count_overlaps(taken)
            return 50 * covered + 5 * crossed + self.box.count_overlaps(bars) + distance / 10

        cost(min(product((3, 8, 14, 22, 32, 44, 60, 80, 100), np.arange(16) * np.pi / 8), key=cost))
        self.set_position((self.box.p0 + half - dot) / point)
        super().draw(renderer)


def plot_effects(table: pd.DataFrame, *, x_label: str, limits: Limits = UNLIMITED, ax: Axes | None = None) -> Axes:
    """Draw a dot with its interval for each row and series, and a line at 0. Several series have a legend below.

    table: `row`, `series`, `value`, `low`, `high`. An infinite interval reaches to the edge of the finite ones.
    """
    rows, series = list(table["row"].unique()), list(table["series"].unique())
    ax = ax or plt.subplots(figsize=(3.4, 0.7 + 0.12 * len(rows) * (len(series) + 1)))[1]
    ends = table[["low", "high"]].clip(*limits)
    finite = [0, *table["value"], *ends.to_numpy()[np.isfinite(ends)]]
    ends = ends.clip(min(finite), max(finite))
    ax.axvline(0, color=GREY, linewidth=0.6, linestyle=":")
    for i, (name, colour) in enumerate(zip(series, colours_of(series), strict=True)):
        mine = table["series"] == name
        y = table["row"][mine].map(rows.index) + 0.5 * (i + 0.5) / len(series) - 0.25
        ax.hlines(y, ends["low"][mine], ends["high"][mine], color=colour, linewidth=1)
        look = {"color": colour, "marker": MARKERS[i % len(MARKERS)], "markeredgecolor": "white"}
        ax.plot(table["value"][mine], y, linestyle="", label=name, **look)
    ax.set_yticks(range(len(rows)), rows)
    ax.set(ylim=(len(rows) - 0.5, -0.5), xlabel=x_label)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    if len(series) > 1:
        columns = len(series) if sum(map(len, series)) < 40 else 1
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=4, ncols=columns)  # below the axis label
    return ax


def plot_rates(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw how often x0 showed a concept that the final image lacks, a row a model and a dot a condition.

    table: `model`, `condition`, `value`, `low`, `high`, shares in [0, 1].
    """
    percent = table.rename(columns={"model": "row", "condition": "series"})
    percent[["value", "low", "high"]] *= 100
    x_label = "shown in x0, % of concepts absent from the final image"
    return plot_effects(percent, x_label=x_label, limits=(0, 100), ax=ax)


def plot_posteriors(
    posteriors: Mapping[str, Sequence[float]], *, threshold: float | None = None, mark: int | None = None,
    ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Draw the posterior of each concept over the steps, and the final image's as a marker at the end.

    posteriors: concept -> (step + 1,) in [0, 1], the last value the final image's.
    threshold: the level from which x0 shows a concept, dotted. mark: the step (from 0) of a red line.
    """
    ax = ax or plt.subplots(figsize=(2.4, 1.0))[1]
    end = len(next(iter(posteriors.values())))
    concept_colours = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
    for (name, curve), colour, marker in zip(posteriors.items(), concept_colours, MARKERS, strict=False):
        ax.plot(np.arange(1, end), curve[:-1], color=colour, linewidth=1, label=name)
        ax.plot(end, curve[-1], marker, color=colour, clip_on=False)
    if threshold is not None:
        ax.axhline(threshold, color=GREY, linestyle=":", linewidth=0.7)
    if mark is not None:
        ax.axvline(mark + 1, color=RED, linewidth=0.7)
    ax.set(xlim=(0.5, end + 0.5), ylim=(0, 1.02), yticks=[0, 0.5, 1])
    ax.set_xticks([1, end // 2, end], ["step 1", str(end // 2), "final"])
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=1.2, borderaxespad=0.2)
    return ax
