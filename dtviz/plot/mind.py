"""Pictures of a change of mind (paper, Fig. 3): a plan with a box around what it shows, and posteriors over the steps.

plot_plan(image, box=(8, 8, 40, 40), caption="step 5\\ncat face .97", ax=axes[0])
plot_posteriors({"cat face": curve, "pig face": other}, mark=4, ax=axes[1])
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from .look import COLOURS, GREY, MARKERS

RED = "#D00000"  # the paper's box
CONCEPTS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")  # the lost one first
LOOKS = {"asked for": COLOURS["distilled"], "not asked for, same images": GREY, "not asked for, own prompt": "#56B4E9"}


def plot_plan(
    image, *, caption: str = "", box: tuple[int, int, int, int] | None = None, ax: Axes | None = None
) -> Axes:
    """One image (3, h, w) in [0, 1] with a red box, if any (top, left, bottom, right in pixels), and a caption below.

    >>> len(plot_plan(np.zeros((3, 8, 8)), box=(0, 0, 4, 4)).patches)
    1
    """
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"image of shape {image.shape} must be (3, height, width)")
    ax = ax or plt.subplots(figsize=(0.9, 1.0))[1]
    height, width = image.shape[1:]
    smooth = "nearest" if width <= 128 else "antialiased"
    ax.imshow(
        np.clip(np.moveaxis(image, 0, -1), 0, 1), extent=(0, width, height, 0), interpolation=smooth, aspect="equal"
    )
    if box is not None:
        top, left, bottom, right = box
        # Drawn on the outline of the pixels, not clipped, so that a box at the image's edge is seen whole.
        ax.add_patch(
            Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=RED, linewidth=1.1, clip_on=False)
        )
    ax.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
    ax.spines[:].set_visible(False)
    ax.set_xlabel(caption, fontsize=5.5, color=GREY, labelpad=2, linespacing=1.15)
    return ax


def plot_case(
    plans,
    final,
    *,
    steps: Sequence[int],
    at: int,
    box: tuple[int, int, int, int],
    curves: Mapping[str, Sequence[float]],
    shown: float,
    label: str = "",
    axes: Sequence[Axes] | None = None,
) -> Sequence[Axes]:
    """One sample in a row: some of its plans, the final image, the posteriors over all steps (paper, Fig. 3).

    plans:  (plan, 3, h, w) in [0, 1], those of `steps` (from 0). final: (3, h, w), the final image.
    at:     the step, one of `steps`, whose plan has the box. curves: as in `plot_posteriors`; the first is the concept that
    is lost, whose posterior stands under every plan. label: text to the left.
    axes:   one for each plan, one for the final image, one for the curves; those to spare stay empty.

    >>> axes = plot_case(np.zeros((1, 3, 8, 8)), np.zeros((3, 8, 8)), steps=[0], at=0, box=(0, 0, 4, 4), curves={"cat": [0.9, 0]}, shown=0.9)
    >>> axes[0].get_xlabel()
    'step 1\\n.90'
    """
    if axes is None:
        ratios = [1] * (len(plans) + 1) + [2]
        axes = plt.subplots(1, len(ratios), figsize=(0.8 * sum(ratios), 1.0), width_ratios=ratios)[1]
    lost = list(next(iter(curves.values())))
    for image, step, ax in zip(plans, steps, axes, strict=False):
        caption = f"step {step + 1}\n{_short(lost[step])}"
        plot_plan(image, box=box if step == at else None, caption=caption, ax=ax)
    for ax in axes[len(plans) : -2]:
        ax.axis("off")
    plot_plan(final, caption=f"final image\n{_short(lost[-1])}", ax=axes[-2])
    plot_posteriors(curves, shown=shown, mark=at, ax=axes[-1])
    axes[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=6)
    return axes


def plot_posteriors(
    curves: Mapping[str, Sequence[float]],
    *,
    shown: float | None = None,
    mark: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Posterior of each concept over the steps, the final image's last; the concepts' names stand in a legend.

    curves: concept -> (step + 1,) in [0, 1], the last value the final image's. shown: the level from which on a plan shows
    a concept, dotted. mark: the step (from 0) at which a red line stands.

    >>> [tick.get_text() for tick in plot_posteriors({"cat face": [0.9, 0.1, 0.0]}).get_legend().texts]
    ['cat face']
    """
    ax = ax or plt.subplots(figsize=(2.2, 1.0))[1]
    for (name, curve), colour, marker in zip(curves.items(), CONCEPTS, MARKERS, strict=False):
        steps = len(curve) - 1
        ax.plot(np.arange(1, steps + 1), curve[:-1], color=colour, label=name, linewidth=1)
        ax.plot(steps + 1, curve[-1], marker, color=colour, markersize=3, clip_on=False)
    if shown is not None:
        ax.axhline(shown, color=GREY, linestyle=":", linewidth=0.7)
    if mark is not None:
        ax.axvline(mark + 1, color=RED, linewidth=0.7)
    ax.set(xlim=(0.5, steps + 1.5), ylim=(0, 1.02), yticks=[0, 0.5, 1])
    ax.set_xticks([1, (steps + 1) // 2, steps + 1], ["1", str((steps + 1) // 2), "end"])
    ax.tick_params(labelsize=5.5)
    ax.legend(fontsize=5.5, loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=1.2, borderaxespad=0.2)
    return ax


def plot_rates(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """How often an absent concept was shown on the way, a row a model and a dot a condition, with intervals.

    table: `model`, `condition`, `value`, `low`, `high`, shares in [0, 1].

    >>> table = pd.DataFrame([["base", "asked for", 0.1, 0.0, 0.2]], columns=["model", "condition", "value", "low", "high"])
    >>> plot_rates(table).get_xlabel()
    'shown on the way, % of the concepts that the final image lacks'
    """
    models, conditions = list(table["model"].unique()), list(table["condition"].unique())
    ax = ax or plt.subplots(figsize=(3.2, 0.6 + 0.4 * len(models)))[1]
    for c, condition in enumerate(conditions):
        rows = table[table["condition"] == condition]
        y = [models.index(model) + 0.22 * (c - (len(conditions) - 1) / 2) for model in rows["model"]]
        bars = 100 * np.abs(rows[["low", "high"]].to_numpy().T - rows["value"].to_numpy())
        look = {"fmt": MARKERS[c], "markersize": 3.5, "elinewidth": 0.9, "color": LOOKS.get(condition, "black")}
        ax.errorbar(100 * rows["value"], y, xerr=bars, label=condition, **look)
    ax.axvline(0, color=GREY, linewidth=0.5)
    ax.set_yticks(range(len(models)), models)
    ax.set(ylim=(len(models) - 0.5, -0.5), xlabel="shown on the way, % of the concepts that the final image lacks")
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.legend(loc="lower right")
    return ax


def plot_judge(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """How often a judge names a plan as the final image is named, over the steps, beside another judge's.

    table: `judge`, `step` (from 1), `accuracy` in [0, 1].

    >>> table = pd.DataFrame({"judge": ["plans"] * 2, "step": [1, 2], "accuracy": [0.5, 1.0]})
    >>> plot_judge(table).get_ylabel()
    'named as the final image'
    """
    ax = ax or plt.subplots(figsize=(2.4, 1.6))[1]
    for (name, rows), colour in zip(
        table.groupby("judge", sort=False), (COLOURS["base"], GREY, "#000000"), strict=False
    ):
        ax.plot(rows["step"], rows["accuracy"], "o-", color=colour, markersize=2, linewidth=1, label=name)
    ax.set(xlabel="step", ylabel="named as the final image", ylim=(0, 1.02))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend()
    return ax


def _short(value: float) -> str:
    """A posterior in hundredths, without the zero before the point."""
    return f"{value:.2f}".removeprefix("0")
