"""Images side by side (paper, Figures 4 and 6) and one sample's change of mind (Figure 3)."""

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.transforms import offset_copy

from .curves import plot_posteriors
from .style import GREY, RED, WIDTH, escape_math

CELL = 0.62  # inches: the width of an image, less where many stand side by side
PITCH = 1.06  # from one image to the next, in widths of an image


def plot_image_grid(
    images, *, row_labels: Sequence[str] | None = None, column_labels: Sequence[str] | None = None,
    groups: Sequence[tuple[str, int]] | None = None, captions=None, ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Draw images side by side, with labels and headed groups of columns. A wrong shape or range raises ValueError.

    Args:
        images: (row, column, 3, height, width) in [0, 1]. A cell of nan stays blank.
        groups: (heading, number of columns) from the left, together all columns. A gap separates them.
        captions: (row, column) texts under the images, "" for none.
    """
    images = np.asarray(images, dtype=np.float32)
    if images.ndim != 5 or images.shape[2] != 3 or not images.size:
        raise ValueError(f"images of shape {images.shape} must be (row, column, 3, height, width)")
    low, high = np.nanmin(images, initial=0), np.nanmax(images, initial=1)
    if low < -1e-6 or high > 1 + 1e-6:
        raise ValueError(f"images reach from {low:.3g} to {high:.3g}, allowed is [0, 1]; uint8, or the VAE's [-1, 1]?")
    images = np.moveaxis(images, 2, -1)
    rows, columns, height, width, _ = images.shape
    groups = groups or [("", columns)]
    tall = height / width  # the width of an image is 1
    group = np.repeat(np.arange(len(groups)), [count for _, count in groups])  # of each column
    left, margin = np.arange(columns) * PITCH + group * 0.22, 0.05 if row_labels is None else 1.0
    cell = min(CELL, (WIDTH - margin) / (left[-1] + 1))
    step_y = tall + (0.06 if captions is None else 0.17 / cell)
    top = np.arange(rows) * step_y
    if ax is None:
        ax = plt.subplots(figsize=((left[-1] + 1) * cell + margin, (top[-1] + step_y) * cell + 0.5))[1]
    interpolation = "nearest" if width <= 128 else "antialiased"  # small images keep sharp pixels
    for r, c in np.ndindex(rows, columns):
        if not np.isnan(images[r, c]).any():
            extent = (left[c], left[c] + 1, top[r] + tall, top[r])
            ax.imshow(np.clip(images[r, c], 0, 1), extent=extent, interpolation=interpolation)
        if captions is not None:
            ax.text(left[c] + 0.5, top[r] + tall + 0.03, captions[r][c], ha="center", va="top", fontsize=7, color=GREY)
    ax.set(xlim=(left[0], left[-1] + 1), ylim=(top[-1] + step_y, 0), aspect="equal")
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    ax.set_xticks(left + 0.5, column_labels or [""] * columns)
    ax.set_yticks(top + tall / 2, [escape_math(textwrap.fill(label, 16)) for label in row_labels or [""] * rows])
    lines = max(1 + str(label).count("\n") for label in column_labels) if column_labels else 0
    raised = offset_copy(ax.transData, ax.figure, y=4 + 9 * lines, units="points")  # above the column labels
    for i, (heading, _) in enumerate(groups):
        if heading:
            ends = left[group == i][0], left[group == i][-1] + 1
            ax.plot(ends, [0, 0], color="black", linewidth=0.5, transform=raised, clip_on=False)
            ax.text(np.mean(ends), -0.05, heading, ha="center", va="bottom", fontsize=8, transform=raised)
    return ax


def plot_case(
    x0, final, *, steps: Sequence[int], mark: int, box: tuple[int, int, int, int], columns: int,
    posteriors: Mapping[str, Sequence[float]], threshold: float, label: str, axes: Sequence[Axes],
) -> None:  # fmt: skip
    """Draw one sample in a row: x0 of some steps, the final image, the posteriors of all steps (paper, Figure 3).

    Args:
        x0: (image, 3, height, width) in [0, 1], of `steps` (from 0). final: (3, height, width).
        mark: the step, one of `steps`, whose image has the red `box` (top, left, bottom, right in pixels).
        posteriors: concept -> (step + 1,) in [0, 1], the last value the final image's. threshold: the dotted level.
        columns: places for x0, of which some may stay empty. axes: one for the images, one for the posteriors.
    """
    images = np.full((1, columns + 1, *np.shape(final)), np.nan)
    images[0, : len(x0)], images[0, -1] = x0, final
    captions = [f"step {step + 1}" for step in steps] + [""] * (columns - len(x0)) + ["final"]
    plot_image_grid(images, row_labels=[label], captions=[captions], ax=axes[0])
    top, left, bottom, right = np.divide(box, np.shape(final)[-1])  # the width of an image is 1
    corner, look = (PITCH * list(steps).index(mark) + left, top), {"edgecolor": RED, "linewidth": 1.1}
    axes[0].add_patch(Rectangle(corner, right - left, bottom - top, fill=False, clip_on=False, **look))
    plot_posteriors(posteriors, threshold=threshold, mark=mark, ax=axes[1])
