"""Tables as figures: diversity of each prompt, printed and as dots (paper, Table 3), and other tables of texts."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from .style import COLOURS, GREY, Limits, colours_of, escape_math

AVERAGE = "Average"
LINE, LETTER, GAP = 0.19, 0.064, 0.35  # inches: a row, a letter of 7 points, between two panels


def plot_diversity_table(table: pd.DataFrame, *, title: str = "", ax: Axes | None = None) -> Axes:
    """Print prompts x methods: value ± half of its interval, the best of each row bold. More than 20 prompts are halved.

    table: `prompt`, `method`, `value`, and `low`, `high` for intervals. The prompt "Average" comes last.
    """
    rows, prompts = table.assign(value=table["value"].round(3)), table["prompt"].unique()
    rows["best"] = rows["value"] == rows.groupby("prompt")["value"].transform("max")
    rows["text"] = rows["value"].map("{:.3f}".format)
    if "low" in rows:
        rows["text"] += ((rows["high"] - rows["low"]) / 2).map(" ±{:.3f}".format)
    wide = rows.pivot(index="prompt", columns="method", values=["text", "best"])
    wide = wide.loc[sorted(prompts, key=lambda prompt: prompt == AVERAGE)]
    cells, best = wide["text"][table["method"].unique()], wide["best"]
    panels = 1 if len(set(prompts) - {AVERAGE}) <= 20 else 2
    depth, widths = -(-len(cells) // panels), _widths(cells)
    step = sum(widths) + GAP
    ax = ax or plt.subplots(figsize=(panels * step - GAP, (depth + 2.5) * LINE))[1]
    ax.set_xlim(0, panels * step - GAP)
    ax.set_title(title, loc="left")
    for panel in range(panels):
        _print(cells[panel * depth :][:depth], ax, widths=widths, depth=depth, best=best, left=panel * step)
    return ax


def plot_table(cells: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Print a table of texts such as "0.10 ±0.02", a method a row in its colour. Heads may have two lines."""
    widths = _widths(cells)
    ax = ax or plt.subplots(figsize=(sum(widths), (len(cells) + 2.2) * LINE + 0.45))[1]  # with a caption of three lines
    ax.set_xlim(0, sum(widths))
    _print(cells, ax, widths=widths, depth=len(cells))
    return ax


def _widths(cells: pd.DataFrame) -> list[float]:
    """Return inches for the names of the rows and for each column."""
    columns = [list(cells.index)] + [[*head.split("\n"), *cells[head]] for head in cells]
    return [LETTER * max(map(len, texts)) + 0.15 for texts in columns]


def _print(cells: pd.DataFrame, ax: Axes, *, widths: list[float], depth: int, best=None, left: float = 0) -> None:
    """Print rows from y = 0 down to `depth`, where "Average" stands below a rule, and heads above."""
    ax.axis("off")
    heads = max(head.count("\n") for head in cells) + 1
    ax.set_ylim(depth + 0.1, -heads - 0.1)
    average = cells.index[-1] == AVERAGE
    for y, thickness in ((-heads, 0.9), (0, 0.5), (depth, 0.9), *[(depth - 1, 0.5)] * average):
        ax.hlines(y, left, left + sum(widths), color="black", linewidth=thickness)
    rows = {name: depth - 0.5 if name == AVERAGE else row + 0.5 for row, name in enumerate(cells.index)}
    for name, y in [(cells.index.name or "", -heads / 2), *rows.items()]:
        ax.text(left, y, escape_math(name), va="center", color=COLOURS.get(name, "black"))
    for head, end in zip(cells, left + np.cumsum(widths)[1:], strict=True):
        ax.text(end, -heads / 2, head, va="center", ha="right", color=COLOURS.get(head, "black"))
        middle = end - LETTER * max(len(text) - len(text.partition(" ")[0]) for text in cells[head])
        for name, y in rows.items():
            value, _, interval = cells.loc[name, head].partition(" ")
            weight = "bold" if best is not None and best.loc[name, head] else "normal"
            ax.text(middle, y, value, va="center", ha="right", weight=weight)
            if interval:
                ax.text(middle + 0.05, y, interval, va="center", color=GREY)


def plot_diversity_dots(
    table: pd.DataFrame, *, embedder: str, differences: Sequence[str] = (), limits: Limits = (0, np.inf),
    ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Draw each method's prompts as faint dots, and their "Average" with its interval.

    table: as for `plot_diversity_table`. differences: lines of text below, such as "hybrid - base: +.012, p = .44".
    """
    import seaborn  # takes seconds

    colours = dict(zip(methods := list(table["method"].unique()), colours_of(methods), strict=True))
    ax = ax or plt.subplots(figsize=(3.8, 1.4 + 0.3 * len(methods) + 0.14 * len(differences)))[1]
    look = {"hue": "method", "palette": colours, "legend": False, "size": 2.5, "alpha": 0.45, "warn_thresh": 1}
    dots = table[table["prompt"] != AVERAGE]
    # A swarm has no random jitter, so the figure is the same each time.
    seaborn.swarmplot(dots, x="value", y="method", order=methods, ax=ax, **look)
    for mean in table[table["prompt"] == AVERAGE].itertuples():
        look, y = {"color": colours[mean.method]}, methods.index(mean.method)
        ends = np.clip([getattr(mean, "low", np.nan), getattr(mean, "high", np.nan)], *limits)
        ax.plot(ends, [y, y], linewidth=1.6, **look)
        ax.plot(mean.value, y, "o", markersize=5, markeredgecolor="white", **look)
    ax.set(ylim=(len(methods) - 0.5, -0.5), ylabel="")
    ax.set_xlabel("\n".join([f"mean pairwise {embedder} distance", *differences]))
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    return ax
