"""Images side by side, as in the paper's Figures 4 and 6."""

import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.transforms import offset_copy

from .look import GREY, plain


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
    wrapped = [plain(textwrap.fill(label, 16)) for label in row_labels] if row_labels is not None else [""] * rows
    ax.set_yticks(top + tall / 2, wrapped)
    lines = 0 if column_labels is None else 1 + max(str(label).count("\n") for label in column_labels)
    raised = offset_copy(ax.transData, ax.figure, y=4 + 9 * lines, units="points")  # above the column labels
    for i, (heading, _) in enumerate(groups):
        if heading:
            ends = left[before == i][0], left[before == i][-1] + 1
            ax.plot(ends, [0, 0], color="black", linewidth=0.5, transform=raised, clip_on=False)
            ax.text(np.mean(ends), -0.05, heading, ha="center", va="bottom", fontsize=8, transform=raised)
    return ax
