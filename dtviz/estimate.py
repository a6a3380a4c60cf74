"""A number with its confidence interval, and how one is made.

mean_interval([1.0, 2.0, 3.0])      # Estimate(value=2.0, low=-.48, high=4.48, n=3)
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Estimate:
    """A value with its confidence interval (nan where there are too few data for one) from n items.

    >>> Estimate(0.25, 0.2, 0.3, 30).high
    0.3
    """

    value: float
    low: float
    high: float
    n: int


def mean_interval(values, *, confidence: float = 0.95) -> Estimate:
    """Mean with Student's t interval, for values that are independent, such as one a prompt; nan interval for n = 1.

    >>> mean_interval([1.0, 2.0, 3.0]).value
    2.0
    """
    values = checked(values, name="values")
    n = len(values)
    error = values.std(ddof=1) / np.sqrt(n) if n > 1 else np.nan
    return t_interval(float(values.mean()), error, n, confidence)


def t_interval(value: float, error: float, n: int, confidence: float, *, freedom: float | None = None) -> Estimate:
    """value ± t · error, with n - 1 degrees of freedom or those given; nan for n = 1. ValueError: confidence, by name."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence = {confidence} must lie between 0 and 1: .95, not 95")
    half = _quantile((1 + confidence) / 2, freedom or n - 1) * error if n > 1 else np.nan
    return Estimate(value, value - half, value + half, n)


@cache
def _quantile(share: float, freedom: float) -> float:
    """Of Student's t: most of the time of an interval, and the same for all prompts of as many samples."""
    return float(stats.t.ppf(share, freedom))


def checked(values, *, name: str) -> np.ndarray:
    """values as float64 (n,). ValueError, by `name`: another shape, none at all, or one that is not finite."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"{name} of shape {values.shape} must be (n,) finite numbers, n >= 1")
    return values
