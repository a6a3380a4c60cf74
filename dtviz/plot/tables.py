"""Tables as figures: diversity of each prompt, printed and as dots (paper, Table 3), and other tables of texts."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from .style import COLOURS, GREY, Limits, colour_of, escape_math

AVERAGE = "Average"
LINE, LETTER = 0.16, 0.063  # inches: a row, a letter of 7 points


def plot_diversity_table(table: pd.DataFrame, *, title: str = "", ax: Axes | None = None) -> Axes:
    """Print prompts x methods: value ± half of its interval, the best of each row bold.

    table: `prompt`, `method`, `value`, and `low`, `high` for intervals. The prompt "Average" comes last.
    """
    rows, prompts = table.assign(value=table["value"].round(3)), table["prompt"].unique()
    rows["best"] = rows["value"] == rows.groupby("prompt")["value"].transform("max")
    rows["text"] = rows["value"].map("{:.3f}".format)
    if "low" in rows:
        rows["text"] += ((rows["high"] - rows["low"]) / 2).map(" ±{:.3f}".format)
    wide = rows.pivot(index="prompt", columns="method", values=["text", "best"])
    wide = wide.loc[sorted(prompts, key=lambda prompt: prompt == AVERAGE)]
    return plot_table(wide["text"][table["method"].unique()], best=wide["best"], title=title, ax=ax)


def plot_table(cells: pd.DataFrame, *, best: pd.DataFrame | None = None, title="", ax: Axes | None = None) -> Axes:
    """Print a table of texts such as "0.10 ±0.02", methods in their colours and "Average" below a rule.

    `best` has the same rows and columns: true where a value is bold.
    """
    columns = [[cells.index.name or "", *cells.index]] + [[*head.split("\n"), *cells[head]] for head in cells]
    ends = np.cumsum([LETTER * max(map(len, texts)) + 0.15 for texts in columns])
    heads, depth = 1.2 * max(head.count("\n") + 1 for head in cells) + 0.3, len(cells)
    ax = ax or plt.subplots(figsize=(ends[-1], (depth + heads + 0.4 + 1.5 * bool(title)) * LINE))[1]
    ax.axis("off")
    ax.set(xlim=(0, ends[-1]), ylim=(depth + 0.1, -heads - 0.1))
    ax.set_title(title, loc="left")
    for y, thickness in ((-heads, 0.9), (0, 0.5), (depth, 0.9), *[(depth - 1, 0.5)] * (cells.index[-1] == AVERAGE)):
        ax.hlines(y, 0, ends[-1], color="black", linewidth=thickness)
    for y, name in zip([-heads / 2, *np.arange(depth) + 0.5], columns[0], strict=True):
        ax.text(0, y, escape_math(name), va="center", color=COLOURS.get(name, "black"))
    for head, end in zip(cells, ends[1:], strict=True):
        ax.text(end, -heads / 2, head, va="center", ha="right", color=COLOURS.get(head, "black"))
        middle = end - LETTER * max(len(text) - len(text.partition(" ")[0]) for text in cells[head])
        for y, (name, text) in enumerate(cells[head].items()):
            value, _, interval = text.partition(" ")
            weight = "bold" if best is not None and best.loc[name, head] else "normal"
            ax.text(middle, y + 0.5, value, va="center", ha="right", weight=weight)
            if interval:
                ax.text(middle + 0.05, y + 0.5, interval, va="center", color=GREY)
    return ax


def plot_diversity_dots(
    table: pd.DataFrame, *, x_label: str = "mean pairwise distance", differences: Sequence[str] = (),
    limits: Limits = (0, np.inf), ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Draw each method's prompts as faint dots, and their "Average" with its interval.

    table: as for `plot_diversity_table`. differences: lines of text below, such as "hybrid - base: +.012, p = .44".
    """
    import seaborn  # takes seconds

    colours = {method: colour_of(method) for method in table["method"].unique()}
    methods = list(colours)
    ax = ax or plt.subplots(figsize=(3.8, 0.6 + 0.2 * len(methods) + 0.13 * len(differences)))[1]
    look = {"hue": "method", "palette": colours, "legend": False, "size": 2, "alpha": 0.45, "warn_thresh": 1}
    dots = table[table["prompt"] != AVERAGE]
    # A swarm has no random jitter, so the figure is the same each time.
    seaborn.swarmplot(dots, x="value", y="method", order=methods, ax=ax, **look)
    for mean in table[table["prompt"] == AVERAGE].itertuples():
        look, y = {"color": colours[mean.method]}, methods.index(mean.method)
        ends = np.clip([getattr(mean, "low", np.nan), getattr(mean, "high", np.nan)], *limits)
        ax.plot(ends, [y, y], linewidth=1.6, **look)
        ax.plot(mean.value, y, "o", markersize=5, markeredgecolor="white", **look)
    ax.set(ylim=(len(methods) - 0.5, -0.5), ylabel="")
    ax.set_xlabel("\n".join([x_label, *differences]))
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    return ax
