"""Tables as figures: Table 3 printed and as dots, and any other table of texts."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from .look import COLOURS, GREY, colours_of, plain

AVERAGE = "Average"
LINE = 0.19  # inches from one row of a printed table to the next


def plot_diversity_table(
    table: pd.DataFrame, *, title: str = "", digits: int = 3, rows_per_panel: int = 20, ax: Axes | None = None
) -> Axes:
    """Prompts x methods as a printed table: value ± half of its interval, best of each row bold (paper, Table 3).

    table: long: `prompt`, `method`, `value`, and `low`, `high` where there are intervals; the prompt "Average", if
    there is one, comes last, below a rule. More than rows_per_panel prompts are set in two columns. A given `ax`
    should be about as wide as 0.9 inch a method and panel plus the prompts' names, 0.19 inch high a row.

    >>> table = pd.DataFrame({"prompt": ["dog", "dog"], "method": ["base", "hybrid"], "value": [0.1, 0.2]})
    >>> [text.get_text() for text in plot_diversity_table(table).texts if text.get_weight() == "bold"]
    ['0.200']
    """
    prompts = [prompt for prompt in table["prompt"].unique() if prompt != AVERAGE]
    methods = list(table["method"].unique())
    cells = table.set_index(["prompt", "method"])
    panels = 1 if len(prompts) <= rows_per_panel else 2
    averaged = [AVERAGE] * (AVERAGE in set(table["prompt"]))
    depth = -(-(len(prompts) + len(averaged)) // panels)  # rows below the heads; the average is the last panel's last
    name_width = 0.062 * max(len(str(prompt)) for prompt in [*prompts, "Average"]) + 0.12  # inches, at 7 points
    panel_width = name_width + 0.9 * len(methods)
    total = panels * panel_width + (panels - 1) * 0.35
    if ax is None:
        ax = plt.subplots(figsize=(total, (depth + 2.5) * LINE))[1]
    ax.set(xlim=(0, total), ylim=(depth + 1.3, -1.3 if title else -0.3))
    ax.axis("off")
    ax.text(0, -0.8, title, va="center", fontsize=8)
    for panel in range(panels):
        x0 = panel * (panel_width + 0.35)
        rule = {"xmin": x0, "xmax": x0 + panel_width, "color": "black"}
        last = averaged if panel == panels - 1 else []
        ax.hlines([0, depth + 1], linewidth=0.9, **rule)
        ax.hlines([1, depth] if last else [1], linewidth=0.5, **rule)
        places = [(prompt, i + 1.5) for i, prompt in enumerate(prompts[panel * depth : (panel + 1) * depth])]
        places += [(average, depth + 0.5) for average in last]
        ax.text(x0, 0.5, "Prompt", va="center")
        for m, method in enumerate(methods):
            value_x = x0 + name_width + 0.9 * m + 0.42
            ax.text(
                value_x,
                0.5,
                method[:1].upper() + method[1:],
                va="center",
                ha="center",
                color=COLOURS.get(method, "black"),
            )
            for prompt, y in places:
                row = cells.loc[(prompt, method)]
                best = round(row["value"], digits) == cells.loc[prompt]["value"].round(digits).max()
                weight = "bold" if best else "normal"
                ax.text(value_x, y, f"{row['value']:.{digits}f}", va="center", ha="right", weight=weight)
                half = (row.get("high", np.nan) - row.get("low", np.nan)) / 2
                if np.isfinite(half):
                    ax.text(value_x + 0.04, y, f"±{half:.{digits}f}", va="center", fontsize=5.5, color=GREY)
        for prompt, y in places:
            ax.text(x0, y, plain(prompt), va="center")
    return ax


def plot_diversity_dots(
    table: pd.DataFrame, *, embedder: str, differences: Sequence[str] = (), ax: Axes | None = None
) -> Axes:
    """Each method's prompts as faint dots and their "Average" with its interval: Table 3 at one glance.

    table: as for `plot_diversity_table`. differences: lines of text below, such as "hybrid - base: +.012, p = .44".

    >>> table = pd.DataFrame({"prompt": ["dog", "Average"], "method": ["base"] * 2, "value": [0.1, 0.1]})
    >>> plot_diversity_dots(table, embedder="DreamSim").get_xlabel()
    'mean pairwise DreamSim distance'
    """
    methods = list(table["method"].unique())
    ax = ax or plt.subplots(figsize=(3.8, 1.4 + 0.3 * len(methods) + 0.12 * len(differences)))[1]
    for y, (method, colour) in enumerate(zip(methods, colours_of(methods), strict=True)):
        rows = table[table["method"] == method]
        dots = rows[rows["prompt"] != AVERAGE]["value"]
        # A fixed spread, so that the figure is the same each time.
        ax.scatter(dots, y + 0.14 * np.sin(np.arange(len(dots)) * 2.4), s=7, color=colour, alpha=0.3, linewidths=0)
        for _, mean in rows[rows["prompt"] == AVERAGE].iterrows():
            ax.plot([mean.get("low", np.nan), mean.get("high", np.nan)], [y, y], color=colour, linewidth=1.6)
            ax.plot(mean["value"], y, "o", color=colour, markersize=5, markeredgecolor="white")
    ax.set_yticks(range(len(methods)), methods)
    ax.set(ylim=(len(methods) - 0.5, -0.5), xlabel="\n".join([f"mean pairwise {embedder} distance", *differences]))
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    return ax


def plot_table(cells: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Texts as a printed table, a method a row in its colour; heads may have two lines.

    >>> [t.get_text() for t in plot_table(pd.DataFrame({"FD": ["0.1"]}, index=["base"])).texts]
    ['base', 'FD', '0.1']
    """
    widths = [
        0.075 * max(len(line) for text in (head, *cells[head]) for line in text.split("\n")) + 0.2 for head in cells
    ]
    left = 0.055 * max(len(name) for name in cells.index) + 0.1
    ends = left + np.cumsum(widths)
    if ax is None:
        ax = plt.subplots(figsize=(ends[-1], (len(cells) + 2.2) * LINE + 0.45))[1]  # and a footer of three lines
    ax.set(xlim=(0, ends[-1]), ylim=(len(cells) + 0.1, -2.1))
    ax.axis("off")
    for y, width in ((-2, 0.9), (0, 0.5), (len(cells), 0.9)):
        ax.hlines(y, 0, ends[-1], color="black", linewidth=width)
    for row, name in enumerate(cells.index):
        ax.text(0, row + 0.5, name, va="center", color=COLOURS.get(name, "black"))
    for end, head in zip(ends, cells, strict=True):
        ax.text(end, -1, head, va="center", ha="right")
        for row, text in enumerate(cells[head]):
            ax.text(end, row + 0.5, text, va="center", ha="right")
    return ax
