"""Images side by side (paper, Figures 4 and 6) and one sample's change of mind (Figure 3)."""

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.transforms import offset_copy

from .curves import plot_posteriors
from .style import GREY, RED, escape_math

CELL = 0.64  # inches: the width of an image


def plot_image_grid(
    images, *, row_labels: Sequence[str] | None = None, column_labels: Sequence[str] | None = None,
    groups: Sequence[tuple[str, int]] | None = None, captions=None, ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Draw images side by side, with labels and headed groups of columns. A wrong shape or range raises ValueError.

    Args:
        images: (row, column, 3, height, width) or (row, column, height, width, 3) in [0, 1]. A cell of nan stays blank.
        groups: (heading, number of columns) from the left, together all columns. A gap separates them.
        captions: (row, column) texts under the images, "" for none.
    """
    images = np.asarray(images, dtype=np.float32)
    if images.ndim == 5 and images.shape[2] == 3:
        images = np.moveaxis(images, 2, -1)
    if images.ndim != 5 or images.shape[-1] != 3 or not images.size:
        raise ValueError(f"images of shape {images.shape} must be (row, column, 3, height, width) or channels last")
    low, high = np.nanmin(images, initial=0), np.nanmax(images, initial=1)
    if low < -1e-6 or high > 1 + 1e-6:
        raise ValueError(f"images reach from {low:.3g} to {high:.3g}, allowed is [0, 1]; uint8, or the VAE's [-1, 1]?")
    rows, columns, height, width, _ = images.shape
    for name, given, shape in (
        ("row_labels", row_labels, (rows,)),
        ("column_labels", column_labels, (columns,)),
        ("groups", groups and [0] * sum(count for _, count in groups), (columns,)),
        ("captions", captions, (rows, columns)),
    ):
        if given is not None and np.shape(given) != shape:
            raise ValueError(f"{name} cover {np.shape(given)}, but the grid has {shape}")
    groups = groups or [("", columns)]
    tall = height / width  # the width of an image is 1
    step_y = tall + (0.06 if captions is None else 0.2 / CELL)
    group = np.repeat(np.arange(len(groups)), [count for _, count in groups])  # of each column
    left, top = np.arange(columns) * 1.06 + group * 0.22, np.arange(rows) * step_y
    if ax is None:
        size = (left[-1] + 1) * CELL + (1.0 if row_labels is not None else 0), (top[-1] + step_y) * CELL + 0.5
        ax = plt.subplots(figsize=size)[1]
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


def plot_x0(image, *, caption: str = "", box: tuple[int, int, int, int] | None = None, ax: Axes | None = None) -> Axes:
    """Draw one image (3, height, width) in [0, 1] with a caption and a red box (top, left, bottom, right in pixels)."""
    ax = plot_image_grid(np.asarray(image)[None, None], ax=ax or plt.subplots(figsize=(0.9, 1.0))[1])
    if box is not None:
        top, left, bottom, right = np.divide(box, np.shape(image)[-1])  # the width of an image is 1
        outline = {"fill": False, "edgecolor": RED, "linewidth": 1.1, "clip_on": False}  # whole at the image's edge
        ax.add_patch(Rectangle((left, top), right - left, bottom - top, **outline))
    ax.set_xlabel(caption, color=GREY, labelpad=2)
    return ax


def plot_case(
    x0, final, *, steps: Sequence[int], mark: int, box: tuple[int, int, int, int],
    posteriors: Mapping[str, Sequence[float]], threshold: float | None = None, label: str = "",
    axes: Sequence[Axes] | None = None,
) -> Sequence[Axes]:  # fmt: skip
    """Draw one sample in a row: x0 of some steps, the final image, the posteriors of all steps (paper, Figure 3).

    Args:
        x0: (image, 3, height, width) in [0, 1], of `steps` (from 0). final: (3, height, width).
        mark: the step, one of `steps`, whose image has the box. label: text to the left of the row.
        posteriors, threshold: as for `plot_posteriors`.
        axes: one for each x0, one for the final image, one for the posteriors. Spare ones stay empty.
    """
    if axes is None:
        ratios = [1] * (len(x0) + 1) + [2]
        axes = plt.subplots(1, len(ratios), figsize=(0.8 * sum(ratios) + 1.8, 1.2), width_ratios=ratios)[1]
    for image, step, ax in zip(x0, steps, axes, strict=False):
        plot_x0(image, box=box if step == mark else None, caption=f"step {step + 1}", ax=ax)
    for ax in axes[len(x0) : -2]:
        ax.axis("off")
    plot_x0(final, caption="final image", ax=axes[-2])
    plot_posteriors(posteriors, threshold=threshold, mark=mark, ax=axes[-1])
    axes[0].set_ylabel(label, rotation=0, ha="right", va="center")
    return axes
