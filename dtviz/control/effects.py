"""What a control does to scores and pixels: percentage change, transfer, monotonicity, and what it leaves alone (Table 1).

    effect({"base": (before, after), "DMD2": (b, a)})     # a table, one row a model: percent, difference, transfer, p
    sweep(scales, scores)                                 # does the score rise with the scale, at every step, for every seed?
    outside(before, after)                                # (n,) change of each image where the edits of the others do not reach

Arrays in, numbers out. Scores are (prompt, seed), before and after of the same prompts and seeds in the same order. Intervals and
tests are over prompts, whose sample stands for others that were not tried; or, with over="seeds", over seeds, each the mean of its
images of all prompts: then they speak of these prompts alone, as they must where a control is meant for a handful.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from ..diversity import holm, paired_test
from ..estimate import Estimate, checked, mean_interval

OVER = ("prompts", "seeds")


@dataclass(frozen=True)
class Sweep:
    """How a score goes with a control's scale.

    Attributes:
        table: one row a scale: `scale`, `value`, `low`, `high`, the mean with its interval; and of the step from the scale before:
            `step`, `step_low`, `step_high`, and `p`, its sign-flip p with Holm's correction for all steps.
        spearman: mean over all images of the rank correlation of score and scale, in [-1, 1], with its interval. Page's (1963)
            trend statistic is this, rescaled.
        p: two-sided sign-flip p of that correlation.
        rising: share of all seeds' steps that rise, in [0, 1]; .5 for noise.
    """

    table: pd.DataFrame
    spearman: Estimate
    p: float
    rising: float

    @property
    def monotone(self) -> bool:
        """Whether the mean over prompts and seeds rises at every step."""
        return bool((self.table["step"].iloc[1:] > 0).all())


def effect(
    scores: Mapping[str, tuple], *, base: str = "base", over: str = "prompts", confidence: float = 0.95
) -> pd.DataFrame:
    """The change of a score that a control makes on each model, and how much of the base's change the others have.

    scores: model -> (before, after), each (prompt, seed), the scores of the plain and the controlled images, such as the cosine with
    the control's text. base: the model that the control was trained on; without it there is no transfer. over: "prompts" or "seeds".

    Returns one row a model: `model`, `before`, `after` (means); `percent`, 100 (after / before - 1) of the means, the paper's
    Table 1, with `percent_low`, `percent_high` by Fieller; `difference`, after - before, with its t interval and the
    sign-flip `p`, Holm-corrected for all models; `transfer`, difference / the base's difference, by Fieller, nan for the base;
    `prompts`, `seeds`, `over`. A percentage counts from the score's zero: it says something for scores whose zero means something, and is nan
    where the score before is not above 0. An interval reaches to infinity where what is divided by may be 0.
    ValueError: shapes differ, a score is not finite, no model, another `over`.

    >>> table = effect({"base": ([[1.0], [1.0]], [[1.5], [1.5]]), "student": ([[1.0], [2.0]], [[1.25], [2.25]])})
    >>> table[["model", "percent", "transfer"]].values.tolist()
    [['base', 50.0, nan], ['student', 16.666666666666675, 0.5]]
    """
    shapes = {model: _checked(model, *pair) for model, pair in scores.items()}
    if len(set(shapes.values())) != 1:
        raise ValueError(f"scores of {list(scores)} must be of one model or more, all of the same prompts and seeds")
    axis = _axis(over)
    means = {
        model: tuple(np.mean(part, axis=axis, dtype=np.float64) for part in pair) for model, pair in scores.items()
    }
    rows = []
    for model, (before, after) in means.items():
        test = paired_test(after, before, confidence=confidence)
        percent = ratio(after, before, confidence=confidence)
        shown = before.mean() > 0
        row = {"model": model, "before": before.mean(), "after": after.mean()}
        for name, value in zip(("", "_low", "_high"), (percent.value, percent.low, percent.high), strict=True):
            row["percent" + name] = 100 * (value - 1) if shown else np.nan
        row |= {"difference": test.mean, "difference_low": test.low, "difference_high": test.high, "p": test.p}
        transfer = Estimate(np.nan, np.nan, np.nan, len(before))
        if base in means and model != base:
            transfer = ratio(after - before, means[base][1] - means[base][0], confidence=confidence)
        row |= {"transfer": transfer.value, "transfer_low": transfer.low, "transfer_high": transfer.high}
        rows.append(row | dict(zip(("prompts", "seeds"), shapes[model], strict=True)) | {"over": over})
    table = pd.DataFrame(rows)
    table["p"] = holm(table["p"])
    return table


def ratio(a, b, *, confidence: float = 0.95) -> Estimate:
    """mean(a) / mean(b) of paired values, with Fieller's (1954) interval: all r that a t test of a - r b would not refuse.

    Exact for normal values, and honest where mean(b) may be 0: the interval is then infinite, where a jackknife's would be narrow
    and wrong. a, b: (n,), one value a prompt each; n = 1 has no interval (nan). ValueError: lengths differ, values not finite.

    >>> ratio([1.0, 3.0], [2.0, 6.0]).value
    0.5
    """
    a, b = checked(a, name="a"), checked(b, name="b")
    n = len(a)
    if n != len(b):
        raise ValueError(f"a has {n} values and b {len(b)}: they must be of the same prompts, in the same order")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence = {confidence} must lie between 0 and 1: .95, not 95")
    mean_a, mean_b = a.mean(), b.mean()
    value = float(mean_a / mean_b) if mean_b else np.nan
    if n == 1:
        return Estimate(value, np.nan, np.nan, n)
    (v_aa, v_ab), (_, v_bb) = np.cov(a, b) / n * stats.t.ppf((1 + confidence) / 2, n - 1) ** 2
    # (mean_a - r mean_b)² <= t² var(a - r b) is a quadratic in r, and an interval where mean(b) differs from 0
    leading, middle, last = mean_b**2 - v_bb, mean_a * mean_b - v_ab, mean_a**2 - v_aa
    if not leading > 0:
        return Estimate(value, -np.inf, np.inf, n)
    half = np.sqrt(max(middle**2 - leading * last, 0.0))
    return Estimate(value, float((middle - half) / leading), float((middle + half) / leading), n)


def sweep(scales, scores, *, over: str = "prompts", confidence: float = 0.95) -> Sweep:
    """Whether a score rises with a control's scale.

    scales: (scale,) rising, three or more; scores: (scale, prompt, seed). A falling score is a sweep of its negative. over: "prompts"
    or "seeds", as in `effect`. ValueError: fewer scales, not rising, other shapes, scores not finite, another `over`.

    >>> found = sweep([-1, 0, 1], [[[0.0, 0.0]], [[1.0, 1.0]], [[3.0, 0.5]]])
    >>> found.monotone, found.rising, found.spearman.value
    (True, 0.75, 0.75)
    """
    scales, scores = checked(scales, name="scales"), np.asarray(scores, dtype=np.float64)
    if len(scales) < 3 or not (np.diff(scales) > 0).all():
        raise ValueError(f"scales = {scales.tolist()} must be three or more, each above the one before")
    if scores.ndim != 3 or len(scores) != len(scales) or not scores.size or not np.isfinite(scores).all():
        raise ValueError(f"scores of shape {scores.shape} must be ({len(scales)} scales, prompt, seed), all finite")
    axis = _axis(over)
    units = scores.mean(axis=1 + axis)  # (scale, prompt) or (scale, seed)
    tests = [paired_test(above, below, confidence=confidence) for below, above in itertools.pairwise(units)]
    rows = []
    for scale, values in zip(scales, units, strict=True):
        mean = mean_interval(values, confidence=confidence)
        rows.append({"scale": scale, "value": mean.value, "low": mean.low, "high": mean.high})
    table = pd.DataFrame(rows)
    corrected = holm([test.p for test in tests])
    for name, steps in (("step", "mean"), ("step_low", "low"), ("step_high", "high")):
        table[name] = [np.nan, *(getattr(test, steps) for test in tests)]
    table["p"] = [np.nan, *corrected]
    order = stats.rankdata(scales) - (len(scales) + 1) / 2
    ranks = stats.rankdata(scores, axis=0) - (len(scales) + 1) / 2
    norm = np.sqrt((ranks**2).sum(axis=0) * (order**2).sum())
    products = np.einsum("s,sij->ij", order, ranks)
    rho = np.divide(products, norm, out=np.zeros_like(norm), where=norm > 0)  # a score that never changes has no trend
    each = rho.mean(axis=axis)
    trend = paired_test(each, np.zeros_like(each), confidence=confidence)
    rising = float((np.diff(scores, axis=0) > 0).mean())
    return Sweep(table, Estimate(trend.mean, trend.low, trend.high, trend.n), trend.p, rising)


def outside(before, after, *, share: float = 0.5) -> np.ndarray:
    """How much each image changes where the edits of the *others* do not reach: what an edit leaves alone, or not, (n,).

    before, after: (n, 3, height, width) in [0, 1], n >= 2, plain and controlled images of one prompt and the same seeds. A pixel
    changes by the mean over colours of |after - before|. Of each image the share of its pixels counts in which the other images'
    mean change is least. Its own change does not choose them, which would make the rest small by construction: changes that are
    alike everywhere, or elsewhere in every image, are seen in full. Compare with the same of another seed in place of `after`.
    ValueError: shapes differ, fewer than two images, share outside (0, 1].

    >>> plain, edited = np.zeros((2, 3, 1, 2)), np.zeros((2, 3, 1, 2))
    >>> edited[..., 0] = 1.0
    >>> outside(plain, edited)
    array([0., 0.])
    """
    before, after = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if before.shape != after.shape or before.ndim != 4 or len(before) < 2 or not 0 < share <= 1:
        raise ValueError(
            f"before {before.shape} and after {after.shape} must be (n, 3, height, width) of the same images, n >= 2; "
            f"share = {share} must lie in (0, 1]"
        )
    change = np.abs(after - before).mean(axis=1).reshape(len(before), -1)  # (n, pixel)
    others = change.sum(axis=0) - change
    count = max(1, round(share * change.shape[1]))
    least = np.argsort(others, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(change, least, axis=1).mean(axis=1)


def _checked(model: str, before, after) -> tuple[int, int]:
    """The numbers of prompts and seeds."""
    before, after = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    finite = before.size and np.isfinite(before).all() and np.isfinite(after).all()
    if before.shape != after.shape or before.ndim != 2 or not finite:
        raise ValueError(
            f"scores of {model!r}: before {before.shape} and after {after.shape} must be (prompt, seed), the same and finite"
        )
    return before.shape


def _axis(over: str) -> int:
    """The axis of (prompt, seed) that is averaged, so that the other's values are the sample."""
    if over not in OVER:
        raise ValueError(f"over={over!r} is not one of {', '.join(OVER)}")
    return 1 - OVER.index(over)
