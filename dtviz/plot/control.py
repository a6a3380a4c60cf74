"""Effects of controls as dots with their intervals."""

from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from .look import GREY, MARKERS, colours_of


def plot_effects(table: pd.DataFrame, *, x_label: str, ax: Axes | None = None) -> Axes:
    """One row a case, in it a dot with its interval for each series, and a line at 0, where nothing changes; a legend for several.

    table: `row`, `series`, `value`, `low`, `high`; rows and series in order of appearance. An interval that reaches to infinity
    goes to the edge.

    >>> table = pd.DataFrame([["both", "smile", 2.0, 1.0, 3.0]], columns=["row", "series", "value", "low", "high"])
    >>> [label.get_text() for label in plot_effects(table, x_label="emoji-clip score").get_yticklabels()]
    ['both']
    """
    rows, series = list(table["row"].unique()), list(table["series"].unique())
    ax = ax or plt.subplots(figsize=(3.4, 0.5 + 0.12 * len(rows) * (len(series) + 1)))[1]
    ax.axvline(0, color=GREY, linewidth=0.6, linestyle=":")
    shift = np.linspace(-0.28, 0.28, len(series)) if len(series) > 1 else [0.0]
    finite = table[["low", "high"]].replace([np.inf, -np.inf], np.nan)
    edges = np.nanmin([finite.min().min(), 0.0]), np.nanmax([finite.max().max(), 0.0])
    for name, colour, marker, by in zip(series, colours_of(series), cycle(MARKERS), shift, strict=False):
        of = table[table["series"] == name]
        y = np.array([rows.index(row) for row in of["row"]]) + by
        ax.hlines(y, of["low"].clip(lower=edges[0]), of["high"].clip(upper=edges[1]), color=colour, linewidth=1)
        ax.plot(of["value"], y, marker, color=colour, markersize=3.5, markeredgecolor="white", label=name)
    ax.set_yticks(range(len(rows)), rows)
    ax.set(ylim=(len(rows) - 0.5, -0.5), xlabel=x_label)
    ax.tick_params(axis="y", length=0)
    if len(series) > 1:  # below, where no dots are
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=len(series))
    return ax
