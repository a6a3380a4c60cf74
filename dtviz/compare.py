"""Groups that share no prompts, and how much has to be measured to see a difference.

permutation_test(animals, objects)                      # mean difference, Welch's interval, permutation p
of = spread(differences, errors, seeds=30)              # from a first study: prompts among each other, seeds within
prompts_needed(.02, of, seeds=100)                      # prompts for which .02 is seen four times in five
"""

from dataclasses import dataclass
from math import comb

import numpy as np
from scipy import stats

from .estimate import checked

EXACT_UP_TO = 200_000  # ways to split the values into the two groups
DRAWS = 20_000
MOST = 10_000  # prompts


@dataclass(frozen=True)
class GroupTest:
    """mean(a) - mean(b), Welch's t interval, the two-sided permutation p, group sizes; method "exact" or "monte carlo"."""

    mean: float
    low: float
    high: float
    p: float
    n: int
    m: int
    method: str


@dataclass(frozen=True)
class Spread:
    """Standard deviations of one difference: `between` prompts, as if seeds were endless; `within`, of a single seed.

    Measured with n seeds, a prompt's difference deviates from the mean by sqrt(between² + within² / n).
    """

    between: float
    within: float


def permutation_test(a, b, *, confidence: float = 0.95) -> GroupTest:
    """Do two groups of independent values have the same distribution? By how far apart their means are.

    Under the null every split of all values into groups of these sizes is equally likely; p is the share of splits whose
    means are at least as far apart. All splits up to 200,000 of them, above 20,000 at random with a fixed seed, p = (hits + 1)
    / 20,001 (Phipson & Smyth 2010). For values of the same prompts `diversity.paired_test` sees more.

    a: (n,), b: (m,), at least two each. ValueError: fewer, or a value that is not finite.

    >>> permutation_test([1.0, 2.0, 3.0], [7.0, 8.0, 9.0]).p
    0.1
    """
    a, b = checked(a, name="a"), checked(b, name="b")
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a has {len(a)} values and b {len(b)}: both need at least two")
    exact = comb(len(a) + len(b), len(a)) <= EXACT_UP_TO
    found = stats.permutation_test(
        (a, b),
        lambda x, y, axis: np.abs(x.mean(axis) - y.mean(axis)),
        permutation_type="independent",
        alternative="greater",
        vectorized=True,
        n_resamples=np.inf if exact else DRAWS,
        batch=1000,
        rng=np.random.default_rng(0),
    )
    interval = stats.ttest_ind(a, b, equal_var=False).confidence_interval(confidence)
    mean = float(a.mean() - b.mean())
    method = "exact" if exact else "monte carlo"
    return GroupTest(mean, float(interval.low), float(interval.high), float(found.pvalue), len(a), len(b), method)


def spread(differences, errors, *, seeds: int) -> Spread:
    """What a first study says of the spread of a difference between two methods.

    differences: (n,) of the same prompts; errors: (n,) their standard errors, of `seeds` seeds each: of two methods
    sqrt(e_a² + e_b²), where e is an interval's half width over its t. between² is the variance over prompts less the mean
    squared error, and 0 where that is negative (method of moments, as DerSimonian and Laird 1986 with equal weights).
    ValueError: fewer than two prompts, lengths that differ, a negative error, seeds below 1.

    >>> spread([0.0, 2.0], [0.0, 0.0], seeds=10)
    Spread(between=1.4142135623730951, within=0.0)
    """
    values, errors = checked(differences, name="differences"), checked(errors, name="errors")
    if len(values) < 2 or len(values) != len(errors) or (errors < 0).any() or seeds < 1:
        raise ValueError(
            f"differences ({len(values)}) and errors ({len(errors)}) must be of the same prompts, two or more, no error "
            f"below 0; seeds = {seeds} must be at least 1"
        )
    noise = (errors**2).mean()
    return Spread(float(np.sqrt(max(values.var(ddof=1) - noise, 0.0))), float(np.sqrt(noise * seeds)))


def power(difference: float, of: Spread, *, prompts: int, seeds: int, alpha: float = 0.05, tests: int = 1) -> float:
    """How often a true mean difference is seen, with p < alpha two-sided, by a paired test over so many prompts and seeds.

    Noncentral t at alpha / tests (Bonferroni, the worst of Holm's steps). 0 where the sign-flip test of so few prompts
    cannot go below alpha: its least p is 2 / 2^prompts. ValueError: prompts below 2, seeds or tests below 1, alpha outside
    (0, 1), both deviations 0.

    >>> round(power(0.05, Spread(0.1, 0.0), prompts=36, seeds=30), 2)
    0.83
    """
    if prompts < 2 or seeds < 1 or tests < 1 or not 0 < alpha < 1:
        raise ValueError(
            f"prompts = {prompts} must be at least 2, seeds = {seeds} and tests = {tests} at least 1, alpha = {alpha} "
            "between 0 and 1"
        )
    deviation = np.hypot(of.between, of.within / np.sqrt(seeds))
    if not deviation > 0:
        raise ValueError(f"of = {of} has no spread, so that any difference would be seen: measure more prompts first")
    level = alpha / tests
    if 2.0 ** (1 - prompts) > level:
        return 0.0
    shift = abs(difference) * np.sqrt(prompts) / deviation
    edge = stats.t.ppf(1 - level / 2, prompts - 1)
    # The mean over the estimated deviation's own distribution: scipy's noncentral t is nan for many shifts and prompts.
    shares = (np.arange(4000) + 0.5) / 4000
    edges = edge * np.sqrt(stats.chi2.ppf(shares, prompts - 1) / (prompts - 1))
    return float((stats.norm.sf(edges - shift) + stats.norm.cdf(-edges - shift)).mean())


def prompts_needed(
    difference: float, of: Spread, *, seeds: int, power_of: float = 0.8, alpha: float = 0.05, tests: int = 1
) -> int:
    """The fewest prompts, of `seeds` seeds each, with which `power` reaches `power_of`.

    ValueError: as `power`; power_of outside (0, 1); or more than 10,000 prompts would be needed.

    >>> prompts_needed(0.05, Spread(0.1, 0.0), seeds=30)
    34
    """
    if not 0 < power_of < 1:
        raise ValueError(f"power_of = {power_of} must lie between 0 and 1: .8 to see a difference four times in five")
    options = {"seeds": seeds, "alpha": alpha, "tests": tests}
    low, high = 1, MOST  # power grows with prompts: low is too few, high enough
    if power(difference, of, prompts=high, **options) < power_of:
        raise ValueError(f"difference = {difference} is too small: more than {MOST} prompts would be needed")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(difference, of, prompts=middle, **options) >= power_of else (middle, high)
    return high
