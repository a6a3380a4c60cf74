"""Measures as curves, points and intervals (paper, Figures 1, 3, 5 and 7)."""

from collections.abc import Mapping, Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .style import GREY, MARKERS, RED, UNLIMITED, Limits, colour_of, colours_of


def plot_similarity_to_final(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw each step's distance to the final image against the fraction of steps done (paper, Figure 5).

    table: `model`, `fraction` in (0, 1], `distance`, and `low`, `high` for a band. One row a model and step.
    The dotted level is the first distance of the model with the fewest steps. The legend says when each is within it.
    """
    ax = ax or plt.subplots(figsize=(3.6, 2.8))[1]
    sweep = table.rename(columns={"model": "series", "fraction": "x", "distance": "value"})
    plot_sweep(sweep, x_label="fraction of steps", y_label="distance to the final image", limits=(0, np.inf), ax=ax)
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


def plot_plane(table: pd.DataFrame, *, x_label: str, y_label: str, ax: Axes | None = None) -> Axes:
    """Draw a measure of a few methods against their cost, each with its interval and its name beside the point.

    table: `method`, `x`, `value`, `low`, `high`, none below 0. One row a method.
    """
    ax = ax or plt.subplots(figsize=(3.4, 2.6))[1]
    for row in table.itertuples():
        colour = colour_of(row.method)
        ax.vlines(row.x, max(row.low, 0), row.high, color=colour, linewidth=0.8)
        ax.plot(row.x, row.value, "o", color=colour, markeredgecolor="white", clip_on=False, zorder=3)
        ax.annotate(row.method, (row.x, row.value), (6, 0), textcoords="offset points", color=colour, va="center")
    ax.set(xlabel=x_label, ylabel=y_label, xlim=(0, None), ylim=(0, None))
    return ax


def plot_effects(table: pd.DataFrame, *, x_label: str, ax: Axes | None = None) -> Axes:
    """Draw a dot with its interval for each row, and a line at 0. table: `row`, `value`, `low`, `high`."""
    ax = ax or plt.subplots(figsize=(3.4, 0.6 + 0.17 * len(table)))[1]
    y = np.arange(len(table))
    ax.axvline(0, color=GREY, linewidth=0.6, linestyle=":")
    ax.hlines(y, table["low"], table["high"], color=colour_of("base"), linewidth=1)
    ax.plot(table["value"], y, "o", color=colour_of("base"), markeredgecolor="white")
    ax.set_yticks(y, table["row"])
    ax.set(ylim=(len(table) - 0.5, -0.5), xlabel=x_label)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    return ax


def plot_posteriors(posteriors: Mapping[str, Sequence[float]], *, threshold: float, mark: int, ax: Axes) -> None:
    """Draw the posterior of each concept over the steps, the final image's as a marker, and the names at the right."""
    end = len(next(iter(posteriors.values())))
    colours = dict(zip(posteriors, ("#0072B2", "#E69F00", "#009E73", "#CC79A7"), strict=False))
    for (name, colour), marker in zip(colours.items(), MARKERS, strict=False):
        ax.plot(np.arange(1, end), posteriors[name][:-1], color=colour, linewidth=1)
        ax.plot(end, posteriors[name][-1], marker, color=colour, clip_on=False)
    names = sorted(colours, key=lambda name: posteriors[name][-1])  # from the bottom, a line of 7 points each
    for i, name in enumerate(names):
        place = {"xycoords": ax.transAxes, "textcoords": "offset points", "va": "bottom"}
        ax.annotate(name, (1.04, 0), (0, 9 * i), color=colours[name], **place)
    ax.axhline(threshold, color=GREY, linestyle=":", linewidth=0.7)
    ax.axvline(mark + 1, color=RED, linewidth=0.7)
    ax.set(xlim=(0.5, end + 0.5), ylim=(0, 1.02), yticks=[0, 0.5, 1])
    ax.set_xticks([1, end // 2, end], ["step 1", str(end // 2), "final"])
