"""dtviz.compare against brute force, scipy, and simulations with known truth."""

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from dtviz.compare import Spread, permutation_test, power, prompts_needed, spread
from dtviz.diversity import paired_test


def brute_force(a, b):
    values, n = np.concatenate([a, b]), len(a)
    observed = abs(np.mean(a) - np.mean(b)) - 1e-12
    splits = list(combinations(range(len(values)), n))
    apart = [abs(values[list(s)].mean() - np.delete(values, list(s)).mean()) >= observed for s in splits]
    return np.mean(apart)


@pytest.mark.parametrize(("n", "m"), [(4, 4), (3, 6), (7, 5)])
def test_permutation_test_against_every_split(n, m):
    a, b = np.random.default_rng(n).normal(size=n), np.random.default_rng(m).normal(0.8, 1, m)
    found = permutation_test(a, b)
    assert found.method == "exact"
    assert found.p == pytest.approx(brute_force(a, b))
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert (found.mean, found.n, found.m) == (pytest.approx(a.mean() - b.mean()), n, m)


def test_permutation_test_by_hand_with_ties_and_symmetry():
    assert permutation_test([1.0, 2.0, 3.0], [7.0, 8.0, 9.0]).p == pytest.approx(2 / 20)
    assert permutation_test([0.1, 0.2, 0.3], [0.3, 0.1, 0.2]).p == pytest.approx(1.0)
    a, b = np.random.default_rng(1).normal(size=(2, 6))
    assert permutation_test(a, b).p == pytest.approx(permutation_test(b, a).p)


def test_permutation_test_holds_its_level_and_repeats():
    draw = np.random.default_rng(0)
    p = [permutation_test(draw.exponential(size=5), draw.exponential(size=6)).p for _ in range(400)]
    # standard error of a share of .05 in 400 runs: .011
    assert np.mean(np.array(p) <= 0.05) < 0.085
    a, b = draw.normal(size=30), draw.normal(0.5, 1, 25)
    random = permutation_test(a, b)
    assert random.method == "monte carlo" and random == permutation_test(a, b)
    assert random.p == pytest.approx(stats.ttest_ind(a, b).pvalue, abs=0.02)


def test_permutation_test_refuses():
    with pytest.raises(ValueError, match="both need at least two"):
        permutation_test([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="b of shape"):
        permutation_test([1.0, 2.0], [1.0, np.nan])


def test_spread_finds_the_deviations_that_were_put_in():
    draw, seeds = np.random.default_rng(0), 25
    true = draw.normal(0.1, 0.3, 20_000)
    measured = true + draw.normal(0, 2.0 / np.sqrt(seeds), true.size)
    found = spread(measured, np.full(true.size, 2.0 / np.sqrt(seeds)), seeds=seeds)
    assert (found.between, found.within) == pytest.approx((0.3, 2.0), rel=0.03)
    assert spread([0.1, 0.1], [1.0, 1.0], seeds=4) == Spread(0.0, 2.0)


@pytest.mark.parametrize(
    ("prompts", "seeds", "difference"), [(8, 10, 0.6), (20, 5, 0.5), (20, 80, 0.25), (12, 10, 0.0)]
)
def test_power_is_how_often_the_sign_flip_test_sees_the_difference(prompts, seeds, difference):
    draw, of, runs = np.random.default_rng(prompts), Spread(0.3, 1.5), 400
    deviation = np.sqrt(of.between**2 + of.within**2 / seeds)
    seen = [paired_test(draw.normal(difference, deviation, prompts), np.zeros(prompts)).p < 0.05 for _ in range(runs)]
    # four standard errors of a share in 400 runs are at most .1
    assert np.mean(seen) == pytest.approx(power(difference, of, prompts=prompts, seeds=seeds), abs=0.1)


def test_power_in_known_cases():
    assert power(0.0, Spread(1.0, 0.0), prompts=20, seeds=1) == pytest.approx(0.05, abs=1e-4)
    for prompts, difference in ((8, 0.6), (34, 0.5), (200, 0.1)):  # where scipy's noncentral t can be had
        edge = stats.t.ppf(0.975, prompts - 1)
        expected = stats.nct.sf(edge, prompts - 1, difference * prompts**0.5)
        expected += stats.nct.cdf(-edge, prompts - 1, difference * prompts**0.5)
        assert power(difference, Spread(1.0, 0.0), prompts=prompts, seeds=1) == pytest.approx(expected, abs=1e-4)
    assert power(9.0, Spread(1.0, 0.0), prompts=5, seeds=1) == 0.0  # five prompts cannot go below .0625
    assert power(9.0, Spread(1.0, 0.0), prompts=6, seeds=1) > 0.99
    assert power(9.0, Spread(1.0, 0.0), prompts=6, seeds=1, tests=3) == 0.0
    assert power(1e6, Spread(1e-3, 0.0), prompts=50, seeds=1) == pytest.approx(1.0)
    finite = [power(0.5, Spread(1.0, 0.0), prompts=n, seeds=1) for n in range(6, 500)]
    assert np.isfinite(finite).all() and (np.diff(finite) > -1e-9).all()
    more_seeds = [power(0.2, Spread(0.2, 2.0), prompts=20, seeds=n) for n in (5, 20, 80)]
    assert more_seeds == sorted(more_seeds)
    # Cohen's table: d = .5, alpha .05 two-sided, power .8 needs 34 pairs
    assert prompts_needed(0.5, Spread(1.0, 0.0), seeds=1) == 34
    assert prompts_needed(-0.5, Spread(1.0, 0.0), seeds=1) == 34
    needed = prompts_needed(0.1, Spread(0.2, 1.0), seeds=30, tests=3)
    assert power(0.1, Spread(0.2, 1.0), prompts=needed, seeds=30, tests=3) >= 0.8
    assert power(0.1, Spread(0.2, 1.0), prompts=needed - 1, seeds=30, tests=3) < 0.8


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: power(0.1, Spread(0.0, 0.0), prompts=9, seeds=9), "no spread"),
        (lambda: power(0.1, Spread(1.0, 0.0), prompts=1, seeds=9), "prompts = 1"),
        (lambda: power(0.1, Spread(1.0, 0.0), prompts=9, seeds=9, alpha=5), "alpha = 5"),
        (lambda: prompts_needed(1e-9, Spread(1.0, 0.0), seeds=9), "more than 10000 prompts"),
        (lambda: prompts_needed(0.1, Spread(1.0, 0.0), seeds=9, power_of=80), "power_of = 80"),
        (lambda: spread([1.0], [1.0], seeds=3), "two or more"),
        (lambda: spread([1.0, 2.0], [1.0], seeds=3), "same prompts"),
        (lambda: spread([1.0, 2.0], [1.0, -1.0], seeds=3), "no error below 0"),
    ],
)
def test_bad_arguments_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
