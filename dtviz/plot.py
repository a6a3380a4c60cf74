"""The paper's figures from tables and arrays: `plot_*(data, *, ax=None) -> Axes`.

    with style():
        ax = plot_similarity_to_final(table, embedder="DreamSim")
        footer(ax.figure, "emoji-dmd, guidance 3, 100 seeds")
        ax.figure.savefig("fig5.pdf")

Without `ax` a figure of a fitting size is made. Nothing here computes a statistic: they come in the table.
"""

import textwrap
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import offset_copy

# Okabe & Ito's colours, told apart by colour-blind readers; a method has the same one in every figure.
COLOURS = {
    "base": "#0072B2", "distilled": "#D55E00", "hybrid": "#009E73", "hybrid σ": "#5D3A9B", "skip": "#CC79A7", "real": "#555555",
}  # fmt: skip
MORE = ["#D55E00", "#CC79A7", "#E69F00", "#56B4E9", "#009E73", "#000000"]  # for names that are no method, in turn
AVERAGE = "Average"
GREY = "#777777"
LINE = 0.19  # inches from one row of a printed table to the next
MARKERS = "osD^v>"

_STYLE = {
    "font.family": "DejaVu Sans", "font.size": 7, "axes.labelsize": 7, "axes.titlesize": 8, "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5, "legend.fontsize": 6.5, "legend.frameon": False, "axes.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "xtick.major.width": 0.5, "ytick.major.width": 0.5, "xtick.major.size": 2.5, "ytick.major.size": 2.5,
    "axes.spines.top": False, "axes.spines.right": False, "figure.constrained_layout.use": True, "figure.dpi": 150,
    "savefig.dpi": 300, "savefig.bbox": "tight", "savefig.pad_inches": 0.03, "pdf.fonttype": 42, "svg.fonttype": "none",
}  # fmt: skip


@contextmanager
def style():
    """Print style for the figures made inside; every setting is as before on leaving, also after an error.

    >>> with style():
    ...     plt.rcParams["savefig.dpi"]
    300.0
    """
    with mpl.rc_context(_STYLE):
        yield


def footer(fig: Figure, text: str) -> None:
    """A small grey line below the figure: pair, embedder, settings. Long text is wrapped to the figure's width.

    >>> footer(plt.figure(), "emoji-dmd, 8 seeds")
    """
    wrapped = textwrap.fill(text, max(20, int(fig.get_figwidth() * 20)))  # about 20 letters of 6 points an inch
    fig.supxlabel(wrapped, x=0.005, ha="left", fontsize=6, color=GREY, linespacing=1.3)


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
    colours = dict(zip(models, _colours(models), strict=True))
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


def plot_image_grid(
    images,
    *,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    groups: Sequence[tuple[str, int]] | None = None,
    captions=None,
    cell: float = 0.64,
    ax: Axes | None = None,
) -> Axes:
    """Images side by side, every pixel crisp, with labels and headed groups of columns (paper, Figs. 4 and 6).

    images:   (row, column, 3, height, width) or (row, column, height, width, 3), [0, 1]; a cell of nan stays blank.
    groups:   (heading, number of columns) from the left, with a gap between, adding up to all columns.
    captions: (row, column) texts under the images, such as "step 5/20"; "" for none. cell: an image's width in inches.
    ValueError: another shape or range, labels or groups that do not fit.

    >>> len(plot_image_grid(np.zeros((2, 3, 3, 8, 8)), column_labels=["a", "b", "c"]).images)
    6
    """
    images = np.asarray(images, dtype=np.float32)
    if images.ndim == 5 and images.shape[2] == 3:
        images = np.moveaxis(images, 2, -1)
    if images.ndim != 5 or images.shape[-1] != 3 or not images.size:
        raise ValueError(f"images of shape {images.shape} must be (row, column, 3, height, width) or channels last")
    if np.nanmin(images, initial=0) < -1e-6 or np.nanmax(images, initial=0) > 1 + 1e-6:
        raise ValueError(
            f"images reach from {np.nanmin(images):.3g} to {np.nanmax(images):.3g}, allowed is [0, 1]; are they uint8, "
            "or in the VAE's [-1, 1]?"
        )
    rows, columns, height, width, _ = images.shape
    groups = [("", columns)] if groups is None else list(groups)
    for name, given, needed in (
        ("row_labels", rows if row_labels is None else len(row_labels), rows),
        ("column_labels", columns if column_labels is None else len(column_labels), columns),
        ("groups", sum(count for _, count in groups), columns),
        ("captions", (rows, columns) if captions is None else np.shape(captions), (rows, columns)),
    ):
        if given != needed:
            raise ValueError(f"{name} cover {given}, but the grid has {needed}")
    tall = height / width
    step_y = tall + (0.06 if captions is None else 0.30)
    before = np.repeat(np.arange(len(groups)), [count for _, count in groups])  # groups to the left of each column
    left = np.arange(columns) * 1.06 + before * 0.22
    top = np.arange(rows) * step_y
    if ax is None:
        size = (left[-1] + 1) * cell + (0.9 if row_labels is not None else 0), (top[-1] + step_y) * cell + 0.5
        ax = plt.subplots(figsize=size)[1]
    for r, c in np.ndindex(rows, columns):
        if not np.isnan(images[r, c]).any():
            extent = (left[c], left[c] + 1, top[r] + tall, top[r])
            ax.imshow(
                np.clip(images[r, c], 0, 1), extent=extent, interpolation="nearest" if width <= 128 else "antialiased"
            )
        if captions is not None:
            ax.text(left[c] + 0.5, top[r] + tall + 0.03, captions[r][c], ha="center", va="top", fontsize=5, color=GREY)
    ax.set(xlim=(left[0], left[-1] + 1), ylim=(top[-1] + step_y, 0), aspect="equal")
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    ax.set_xticks(left + 0.5, column_labels if column_labels is not None else [""] * columns)
    wrapped = [textwrap.fill(label, 16) for label in row_labels] if row_labels is not None else [""] * rows
    ax.set_yticks(top + tall / 2, wrapped)
    lines = 0 if column_labels is None else 1 + max(str(label).count("\n") for label in column_labels)
    raised = offset_copy(ax.transData, ax.figure, y=4 + 9 * lines, units="points")  # above the column labels
    for i, (heading, _) in enumerate(groups):
        if heading:
            ends = left[before == i][0], left[before == i][-1] + 1
            ax.plot(ends, [0, 0], color="black", linewidth=0.5, transform=raised, clip_on=False)
            ax.text(np.mean(ends), -0.05, heading, ha="center", va="bottom", fontsize=8, transform=raised)
    return ax


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
            ax.text(x0, y, prompt, va="center")
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
        ax = plt.subplots(figsize=(ends[-1], (len(cells) + 2.2) * LINE))[1]
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
    for y, (method, colour) in enumerate(zip(methods, _colours(methods), strict=True)):
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
    colours = dict(zip([*reference, *series], _colours([*reference, *series]), strict=True))
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
    for row, colour, marker in zip(table.itertuples(), _colours(table["method"]), cycle(MARKERS), strict=False):
        bars = {
            "xerr": [[row.x - row.x_low], [row.x_high - row.x]],
            "yerr": [[row.y - row.y_low], [row.y_high - row.y]],
        }
        look = {"fmt": marker, "color": colour, "markersize": 4, "markeredgecolor": "white", "elinewidth": 0.8}
        ax.errorbar(row.x, row.y, **bars, **look, label=row.method)
    ax.set(xlabel=x_label, ylabel=y_label)
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


def _colours(names) -> list[str]:
    """A method's own colour; for other names the rest in turn."""
    free = iter([colour for colour in MORE if colour not in {COLOURS.get(name) for name in names}] * len(names))
    return [COLOURS[name] if name in COLOURS else next(free) for name in names]
