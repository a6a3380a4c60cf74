"""Intervals of 95%, tests and sentences for values measured once a prompt.

comparisons = compare({"hybrid - base": (hybrid, base), "hybrid - distilled": (hybrid, distilled)})
print(comparisons["hybrid - base"])  # hybrid - base: -0.144 [-0.170, -0.118], p = 2e-09
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import stats

LEVEL = 0.05
LEAST_PROMPTS = 6  # the smallest p of n sign flips is 2 / 2^n: .0625 for five
EXACT_UP_TO = 40  # pairs: two halves of 2^20 signed sums each, under a second


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval from n items, nan if they are too few: `dtviz.Estimate(0.25, 0.2, 0.3, 30)`."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class PairedTest(Estimate):
    """Mean of a - b over n pairs with its t interval, and the two-sided sign-flip p."""

    p: float


@dataclass(frozen=True)
class Comparison:
    """One difference a - b across prompts, tested together with others."""

    name: str  # such as "hybrid - base"
    test: PairedTest  # its p is not corrected
    p: float  # with Holm's correction for all comparisons made together

    def __str__(self) -> str:
        return f"{self.name}: {self.test.value:+.3f} [{self.test.low:+.3f}, {self.test.high:+.3f}], p = {self.p:.2g}"

    def outcome(self, *, sign: int = 1) -> str:
        """Return whether a - b has this sign, 1 or -1: "holds", "does not hold", "is not shown", or cannot be shown."""
        if self.p < LEVEL:
            return "holds" if sign * self.test.value > 0 else "does not hold"
        return "is not shown" if self.test.n >= LEAST_PROMPTS else f"cannot be shown with {self.test.n} prompts"

    def conclude(self, claim: str, *, sign: int = 1) -> str:
        """Return the claim, its `outcome` for `sign`, the mean and p on one line."""
        return f"{claim}: {self.outcome(sign=sign)} ({self.test.value:+.3f}, p = {self.p:.2g})."

    def direction(self) -> str:
        """Return on one line whether a is higher or lower than b, for a comparison without a claim."""
        words = "no difference is shown" if self.p >= LEVEL else "higher" if self.test.value > 0 else "lower"
        return f"{self.name}: {words} ({self.test.value:+.3f}, p = {self.p:.2g})."


def mean_interval(values) -> Estimate:
    """Return the mean of independent values (n,) with Student's t interval, which is nan for n = 1."""
    values = checked(values, name="values")
    n = len(values)
    error = values.std(ddof=1) / np.sqrt(n) if n > 1 else np.nan
    return t_interval(float(values.mean()), error, n)


def t_interval(value: float, error: float, n: int) -> Estimate:
    """Return value ± t · error with n - 1 degrees of freedom. The interval is nan for n = 1."""
    half = _quantile(n - 1) * error if n > 1 else np.nan
    return Estimate(value, value - half, value + half, n)


def ratio(a, b) -> Estimate:
    """Return mean(a) / mean(b) of paired values (n,) with Fieller's (1954) interval.

    It holds all r for which a t test of a - r b does not reject 0. It is infinite where mean(b) may be 0, and nan for n = 1.
    """
    a, b = _paired(a, b)
    n, mean_a, mean_b = len(a), a.mean(), b.mean()
    value = float(mean_a / mean_b) if mean_b else np.nan
    if n == 1:
        return Estimate(value, np.nan, np.nan, n)
    (v_aa, v_ab), (_, v_bb) = np.cov(a, b) / n * _quantile(n - 1) ** 2
    # (mean_a - r mean_b)² <= t² var(a - r b) is a quadratic in r, and an interval where mean(b) differs from 0
    leading, middle, last = mean_b**2 - v_bb, mean_a * mean_b - v_ab, mean_a**2 - v_aa
    if not leading > 0:
        return Estimate(value, -np.inf, np.inf, n)
    half = np.sqrt(max(middle**2 - leading * last, 0.0))
    return Estimate(value, float((middle - half) / leading), float((middle + half) / leading), n)


def paired_test(a, b) -> PairedTest:
    """Test whether the mean of a - b, (n,) each, is zero: two-sided sign-flip test, with Student's t interval for the mean.

    p is the share of all 2^n sign choices whose mean is at least as far from zero, exact up to 40 pairs. Above it is from
    100,000 random choices with a fixed seed (Phipson & Smyth 2010).
    """
    a, b = _paired(a, b)
    return PairedTest(**vars(mean_interval(a - b)), p=_sign_flip_p(a - b))


def _sign_flip_p(difference: np.ndarray) -> float:
    n = len(difference)
    # Equal sums, added in another order, differ by rounding; they are ties and count as "at least as far".
    observed = abs(difference.sum()) - 1e-10 * np.abs(difference).sum()
    if observed <= 0:
        return 1.0
    if n <= EXACT_UP_TO:
        left, right = _signed_sums(difference[: n // 2]), np.sort(_signed_sums(difference[n // 2 :]))
        return float(2 * (len(right) - np.searchsorted(right, observed - left)).sum() / 2.0**n)
    rng, draws = np.random.default_rng(0), 100_000
    hits = sum(np.sum(abs(rng.choice([-1.0, 1.0], (1000, n)) @ difference) >= observed) for _ in range(draws // 1000))
    return float((hits + 1) / (draws + 1))


def _signed_sums(values: np.ndarray) -> np.ndarray:
    """Return all 2^n sums of ±values."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums - value, sums + value])
    return sums


def holm(pvalues) -> np.ndarray:
    """Return Holm's (1979) adjusted p-values (m,), in the order given, for m tests made together."""
    p = checked(pvalues, name="pvalues")
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def compare(differences: Mapping[str, tuple]) -> dict[str, Comparison]:
    """Test every difference, name -> (a, b), with `paired_test`, and correct p for all of them together (Holm 1979)."""
    tests = {name: paired_test(a, b) for name, (a, b) in differences.items()}
    corrected = holm([test.p for test in tests.values()]) if tests else []
    return {name: Comparison(name, test, float(p)) for (name, test), p in zip(tests.items(), corrected, strict=True)}


def pseudovalues(measure: Callable, *prompts: Sequence) -> np.ndarray:
    """Return jackknife pseudo-values (n,) of a measure, n · whole - (n - 1) · without the prompt (Tukey 1958).

    prompts: sequences of n >= 2 arrays, one a prompt. `measure` gets each sequence joined along the first axis.
    """
    lengths = [len(arrays) for arrays in prompts]
    n = min(lengths, default=0)
    if n < 2 or len(set(lengths)) != 1:
        raise ValueError(f"prompts hold {lengths} arrays: one a prompt, at least two in each")
    whole = measure(*(np.concatenate(arrays) for arrays in prompts))
    others = [[j for j in range(n) if j != i] for i in range(n)]
    without = [measure(*(np.concatenate([arrays[j] for j in rest]) for arrays in prompts)) for rest in others]
    return n * whole - (n - 1) * np.array(without, dtype=np.float64)


def checked(values, *, name: str) -> np.ndarray:
    """Return values as float64 (n,), n >= 1 and all finite, or raise ValueError."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"{name} of shape {values.shape} must be (n,) finite numbers, n >= 1")
    return values


def _paired(a, b) -> tuple[np.ndarray, np.ndarray]:
    a, b = checked(a, name="a"), checked(b, name="b")
    if len(a) != len(b):
        raise ValueError(f"a has {len(a)} values and b {len(b)}: they must be of the same prompts, in the same order")
    return a, b


@cache  # most of the time of an interval
def _quantile(freedom: int) -> float:
    return float(stats.t.ppf(0.975, freedom))
