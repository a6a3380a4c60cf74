"""Measure the effect of a control on scores and pixels (Table 1 of the paper)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..metrics.statistics import Estimate, PairedTest, checked, holm, mean_interval, paired_test, ratio

OVER = ("prompts", "seeds")


@dataclass(frozen=True)
class Sweep:
    """A score over a control's scale."""

    table: pd.DataFrame  # one row per scale: mean `value` with `low`, `high`
    spearman: PairedTest  # mean over images of the rank correlation of score and scale (Page's trend test, rescaled)
    rising: float  # share of all seeds' steps that rise; 0.5 for noise
    monotone: bool  # the mean rises at every step


def effect(scores: Mapping[str, tuple], *, base: str = "base", over: str = "prompts") -> pd.DataFrame:
    """Compare scores of plain and controlled images: one row per model, with 95% intervals in `_low` and `_high`.

    `percent` is 100 (after / before - 1) as in Table 1, nan unless before > 0. `difference` has a t interval and a
    Holm-corrected sign-flip `p`. `transfer` is difference / the base's difference. Intervals of ratios are Fieller's.

    Args:
        scores: model -> (before, after), each (prompt, seed).
        base: model on which the control was trained. Without it there is no transfer.
        over: "prompts" or "seeds", the sample of intervals and tests.
    """
    axis, shapes = _axis(over), sorted({np.shape(part) for parts in scores.values() for part in parts})
    if len(shapes) != 1 or len(shapes[0]) != 2 or not np.isfinite(list(scores.values())).all():
        raise ValueError(f"scores have shapes {shapes}: all must be (prompt, seed), of the same ones, and finite")
    means = {model: [np.mean(part, axis=axis, dtype=np.float64) for part in parts] for model, parts in scores.items()}
    rows = []
    for model, (before, after) in means.items():
        test, percent = paired_test(after, before), ratio(after, before)
        scale = 100 if before.mean() > 0 else np.nan
        transfer = Estimate(np.nan, np.nan, np.nan, len(before))
        if base in means and model != base:
            transfer = ratio(after - before, means[base][1] - means[base][0])
        row = {"model": model, "before": before.mean(), "after": after.mean()}
        row |= {name: scale * (value - 1) for name, value in _columns("percent", percent).items()}
        row |= _columns("difference", test) | {"p": test.p} | _columns("transfer", transfer)
        rows.append(row | dict(zip(OVER, shapes[0], strict=True)) | {"over": over})
    table = pd.DataFrame(rows)
    table["p"] = holm(table["p"])
    return table


def sweep(scales, scores, *, over: str = "prompts") -> Sweep:
    """Test whether scores (scale, prompt, seed) rise with the scales of a control (scale,), three or more, rising."""
    scales, scores = checked(scales, name="scales"), np.asarray(scores, dtype=np.float64)
    if len(scales) < 3 or not (np.diff(scales) > 0).all():
        raise ValueError(f"scales = {scales.tolist()} must be three or more, each above the one before")
    if scores.ndim != 3 or len(scores) != len(scales) or not scores.size or not np.isfinite(scores).all():
        raise ValueError(f"scores of shape {scores.shape} must be ({len(scales)} scales, prompt, seed), all finite")
    axis = _axis(over)
    units = scores.mean(axis=1 + axis)  # (scale, prompt) or (scale, seed)
    table = pd.DataFrame([vars(mean_interval(values)) for values in units]).drop(columns="n")
    table.insert(0, "scale", scales)
    flat = pd.DataFrame(scores.reshape(len(scales), -1))
    rho = flat.rank().corrwith(pd.Series(scales).rank()).fillna(0)  # a score that never changes has no trend
    trend = paired_test(rho.to_numpy().reshape(scores.shape[1:]).mean(axis=axis), np.zeros(units.shape[1]))
    rising, monotone = float((np.diff(scores, axis=0) > 0).mean()), bool((np.diff(table["value"]) > 0).all())
    return Sweep(table, trend, rising, monotone)


def outside(before, after) -> np.ndarray:
    """Return how much each image changes in the half of the pixels in which the other images change least, (n,).

    before, after: (n, 3, height, width) in [0, 1], n >= 2: plain and controlled images of one prompt and the same seeds.
    A pixel changes by the mean over colours of |after - before|.
    """
    before, after = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if before.shape != after.shape or before.ndim != 4 or len(before) < 2:
        raise ValueError(f"before {before.shape} and after {after.shape} must be (n, 3, height, width), n >= 2")
    change = np.abs(after - before).mean(axis=1).reshape(len(before), -1)  # (n, pixel)
    others = change.sum(axis=0) - change
    least = np.argsort(others, axis=1, kind="stable")[:, : change.shape[1] // 2]
    return np.take_along_axis(change, least, axis=1).mean(axis=1)


def _columns(name: str, one: Estimate) -> dict[str, float]:
    return {name: one.value, f"{name}_low": one.low, f"{name}_high": one.high}


def _axis(over: str) -> int:
    """Return the axis of (prompt, seed) that is averaged. The other one is the sample."""
    if over not in OVER:
        raise ValueError(f"over={over!r} is not one of {', '.join(OVER)}")
    return 1 - OVER.index(over)
