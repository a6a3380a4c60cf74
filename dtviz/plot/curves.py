"""Measures as curves and points: similarity to the final image (Fig. 5), sweeps of a setting (Fig. 7), two measures in a plane."""

from collections.abc import Mapping
from itertools import cycle

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .look import GREY, MARKERS, colours_of


def plot_similarity_to_final(
    table: pd.DataFrame, *, embedder: str, student: str | None = None, ax: Axes | None = None
) -> Axes:
    """Distance of each step's x̂0 to the final image against the fraction of steps done (paper, Fig. 5).

    table:    one row a model and step: `model`, `fraction` (0, 1], `distance`, and `low`, `high` for the band.
    embedder: title of the distance, for the y axis. "base" has the base's colour, other models colours in turn.
    student:  the model whose level after its first step is the dotted line; None: the one with the fewest steps.
    Each model's first step within that level is marked with the percentage of steps done. ValueError: no such model.

    >>> table = pd.DataFrame({"model": ["base"] * 2, "fraction": [0.5, 1], "distance": [0.4, 0.1]})
    >>> plot_similarity_to_final(table, embedder="DreamSim").get_ylabel()
    'DreamSim distance to the final image'
    """
    models = {name: rows.sort_values("fraction") for name, rows in table.groupby("model", sort=False)}
    student = min(models, key=lambda name: len(models[name])) if student is None else student
    if student not in models:
        raise ValueError(f"student = {student!r} is not a model of the table, which has {list(models)}")
    ax = ax or plt.subplots(figsize=(3.6, 2.6))[1]
    level = models[student]["distance"].iloc[0]
    ax.axhline(level, color=GREY, linestyle=":", linewidth=0.8, label="_level")
    colours = dict(zip(models, colours_of(models), strict=True))
    notes = []
    for i, (name, rows) in enumerate(models.items()):
        look = {"color": colours[name], "marker": MARKERS[i % len(MARKERS)], "markersize": 3}
        ax.plot(rows["fraction"], rows["distance"], label=name, **look)
        if {"low", "high"} <= set(rows.columns):
            ax.fill_between(rows["fraction"], rows["low"], rows["high"], color=colours[name], alpha=0.18, linewidth=0)
        within = rows["fraction"][rows["distance"] <= level]
        if len(within):
            at = within.iloc[0]
            ax.plot([at, at], [0, level], color=colours[name], linestyle="--", linewidth=0.8, label="_within")
            notes.append((name, f"{name}: {at:.0%} of steps"))
        else:
            notes.append((name, f"{name}: never"))
    ax.set(xlabel="fraction of inference steps", ylabel=f"{embedder} distance to the final image", xlim=(0, 1.02))
    ax.set_ylim(0, 1.12 * ax.get_ylim()[1])
    # The curves fall to the right, so the upper right corner is free for the names and what the marks say.
    handles = [next(line for line in ax.lines if line.get_label() == name) for name, _ in notes]
    title = f"first within the level of {student}\nafter its first step (dotted)"
    legend = ax.legend(
        handles, [note for _, note in notes], title=title, loc="upper right", title_fontsize=6, alignment="left"
    )
    legend.get_title().set_color(GREY)
    return ax


def plot_sweep(
    table: pd.DataFrame,
    *,
    x_label: str,
    y_label: str,
    reference: Mapping[str, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """A measure against one setting, a line with its band for each series (paper, Fig. 7).

    table: `series`, `x`, `value`, `low`, `high`. reference: name -> value of dotted lines, such as the base's.

    >>> table = pd.DataFrame({"series": ["hybrid"] * 2, "x": [1, 2], "value": [0.2, 0.3], "low": [0.1, 0.2], "high": [0.3, 0.4]})
    >>> plot_sweep(table, x_label="k", y_label="distance", reference={"base": 0.4}).get_legend_handles_labels()[1]
    ['base', 'hybrid']
    """
    ax = ax or plt.subplots(figsize=(2.6, 2.2))[1]
    reference, series = dict(reference or {}), list(table["series"].unique())
    colours = dict(zip([*reference, *series], colours_of([*reference, *series]), strict=True))
    for name, value in reference.items():
        ax.axhline(value, color=colours[name], linestyle=":", linewidth=0.8, label=name)
    for name, marker in zip(series, cycle(MARKERS), strict=False):
        colour = colours[name]
        rows = table[table["series"] == name].sort_values("x")
        ax.plot(rows["x"], rows["value"], color=colour, marker=marker, markersize=3, label=name)
        ax.fill_between(rows["x"], rows["low"], rows["high"], color=colour, alpha=0.18, linewidth=0)
    ax.set(xlabel=x_label, ylabel=y_label)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend()
    return ax


def plot_plane(table: pd.DataFrame, *, x_label: str, y_label: str, ax: Axes | None = None) -> Axes:
    """Two measures of each method against each other, with the intervals of both.

    table: one row a method: `method`, `x`, `x_low`, `x_high`, `y`, `y_low`, `y_high`.

    >>> table = pd.DataFrame([["base", 0.3, 0.2, 0.4, 0.9, 0.8, 1.0]], columns=["method", "x", "x_low", "x_high", "y", "y_low", "y_high"])
    >>> plot_plane(table, x_label="distance", y_label="accuracy").get_legend_handles_labels()[1]
    ['base']
    """
    ax = ax or plt.subplots(figsize=(4.4, 2.6))[1]
    for row, colour, marker in zip(table.itertuples(), colours_of(table["method"]), cycle(MARKERS), strict=False):
        bars = {
            "xerr": [[row.x - row.x_low], [row.x_high - row.x]],
            "yerr": [[row.y - row.y_low], [row.y_high - row.y]],
        }
        look = {"fmt": marker, "color": colour, "markersize": 4, "markeredgecolor": "white", "elinewidth": 0.8}
        ax.errorbar(row.x, row.y, **bars, **look, label=row.method)
    ax.set(xlabel=x_label, ylabel=y_label)
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax
