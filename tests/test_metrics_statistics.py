"""metrics.statistics against scipy's tests, enumeration, the paper's own Table 3, and scenarios with known truth."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dtviz.metrics.quality import frechet_distance
from dtviz.metrics.statistics import Comparison, PairedTest, compare, holm, mean_interval, paired_test, pseudovalues

BASE = [0.396, 0.233, 0.237, 0.484, 0.337]  # the paper's Table 3
DISTILLED = [0.271, 0.199, 0.198, 0.347, 0.305]
HYBRID = [0.373, 0.265, 0.283, 0.461, 0.366]


def brute_force(a, b):
    difference = np.subtract(a, b)
    sums = [abs(np.dot(signs, difference)) for signs in product([-1, 1], repeat=len(difference))]
    return np.mean(np.array(sums) >= abs(difference.sum()) - 1e-9)


def test_mean_interval_is_students():
    values = np.random.default_rng(0).normal(size=9)
    estimate, expected = mean_interval(values), stats.ttest_1samp(values, 0).confidence_interval()
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert (estimate.value, estimate.n) == (values.mean(), 9)
    assert mean_interval([2.0]).value == 2.0
    assert np.isnan(mean_interval([2.0]).high)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=9))
def test_paired_test_is_exact_with_ties(difference):
    a = np.array(difference) / 10  # tenths: equal sums differ by rounding, and must still be ties
    assert paired_test(a, np.zeros(len(a))).p == brute_force(a, np.zeros(len(a)))


def test_paired_test_extremes():
    assert paired_test(np.ones(40), np.zeros(40)).p == 2 / 2**40
    assert paired_test(np.ones(41), np.zeros(41)).p == 1 / 100_001
    assert paired_test([1.0, 2.0], [1.0, 2.0]).p == 1.0
    assert paired_test([1.0], [0.0]).p == 1.0
    for bad, message in (([1.0, 2.0], "same prompts"), ([np.nan], "b of shape")):
        with pytest.raises(ValueError, match=message):
            paired_test([1.0], bad)


def test_monte_carlo_agrees_with_the_exact_test_and_repeats():
    difference = np.random.default_rng(5).normal(0.25, 1, 40)
    exact = paired_test(difference, np.zeros(40))
    # A pair that does not differ doubles every count, so the true p stays, and 41 pairs are drawn at random.
    random = paired_test([*difference, 0.0], np.zeros(41))
    assert random.p == pytest.approx(exact.p, abs=4 * np.sqrt(exact.p / 100_000))
    assert random.p == paired_test([*difference, 0.0], np.zeros(41)).p


def test_holm_by_hand_and_never_below_the_raw_p():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]
    p = np.random.default_rng(0).uniform(size=20)
    assert (holm(p) >= p).all()


def test_comparisons_are_paired_tests_whose_p_is_corrected_for_all_of_them():
    a, b, c = np.random.default_rng(0).normal([[0.5], [0.2], [0.0]], 0.3, (3, 8))
    comparisons = compare({"a - b": (a, b), "a - c": (a, c)})
    tests = [paired_test(a, b), paired_test(a, c)]
    assert [one.test for one in comparisons.values()] == tests
    assert [one.p for one in comparisons.values()] == holm([test.p for test in tests]).tolist()
    interval = stats.ttest_rel(a, b).confidence_interval()
    assert (tests[0].low, tests[0].high) == pytest.approx((interval.low, interval.high), abs=1e-12)  # eight of size one
    assert compare({}) == {}


def test_the_papers_own_table_cannot_show_its_claims():
    """Five prompts: "exceeds the base" has p = .44, "exceeds the distilled model" the smallest p there is, .0625."""
    base, distilled = compare({"hybrid - base": (HYBRID, BASE), "hybrid - distilled": (HYBRID, DISTILLED)}).values()
    assert (base.p, distilled.p) == (brute_force(HYBRID, BASE), 2 * brute_force(HYBRID, DISTILLED)) == (0.4375, 0.125)
    assert str(base) == "hybrid - base: +0.012 [-0.028, +0.053], p = 0.44"
    assert base.outcome() == distilled.outcome() == "cannot be shown with 5 prompts"


@pytest.mark.parametrize(
    ("mean", "p", "n", "sign", "outcome", "direction"),
    [
        (0.2, 0.049, 36, 1, "holds", "higher"),
        (-0.2, 0.049, 36, 1, "does not hold", "lower"),
        (-0.2, 0.049, 36, -1, "holds", "lower"),
        (0.2, 0.05, 36, 1, "is not shown", "no difference is shown"),
        (0.2, 0.05, 6, -1, "is not shown", "no difference is shown"),
        (0.2, 0.0625, 5, 1, "cannot be shown with 5 prompts", "no difference is shown"),
    ],
)
def test_the_words(mean, p, n, sign, outcome, direction):
    one = Comparison("a - b", PairedTest(mean, mean - 0.0104, mean + 0.0104, n, p / 3), p)
    assert one.outcome(sign=sign) == outcome
    assert one.conclude("A claim", sign=sign) == f"A claim: {outcome} ({mean:+.3f}, p = {p:.2g})."
    assert one.direction() == f"a - b: {direction} ({mean:+.3f}, p = {p:.2g})."
    assert str(one) == f"a - b: {mean:+.3f} [{mean - 0.0104:+.3f}, {mean + 0.0104:+.3f}], p = {p:.2g}"


def test_pseudovalues_of_a_mean_are_the_prompts_own_and_of_a_variance_are_unbiased():
    rows = np.random.default_rng(2).normal(size=(7, 1))
    np.testing.assert_allclose(pseudovalues(np.mean, list(rows)), rows[:, 0], atol=1e-14)
    assert pseudovalues(np.var, list(rows)).mean() == pytest.approx(rows.var(ddof=1), rel=1e-12)  # Quenouille 1956
    for bad in ([], [np.ones((1, 2, 1))], [np.ones((3, 1, 1)), np.ones((2, 1, 1))]):
        with pytest.raises(ValueError, match="at least two in each"):
            pseudovalues(np.mean, *bad)


def test_pseudovalues_of_a_frechet_distance_against_a_loop_and_a_known_shift():
    """Samples that are the drawings moved by 2: the distance is 4, whichever prompt is left out."""
    rng = np.random.default_rng(3)
    real = [rng.normal(i, 1, (5, 3)) for i in range(4)]
    moved = [array + np.array([2, 0, 0]) for array in real]
    np.testing.assert_allclose(pseudovalues(frechet_distance, moved, real), 4, rtol=1e-9)
    samples = [rng.normal(i, 2, (6, 3)) for i in range(4)]
    whole = frechet_distance(np.vstack(samples), np.vstack(real))
    for i, value in enumerate(pseudovalues(frechet_distance, samples, real)):
        rest = [j for j in range(4) if j != i]
        without = frechet_distance(np.vstack([samples[j] for j in rest]), np.vstack([real[j] for j in rest]))
        assert value == pytest.approx(4 * whole - 3 * without, rel=1e-9)
