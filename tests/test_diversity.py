"""dtviz.diversity against double loops, closed forms, scipy, symmetries and scenarios with known modes."""

import tracemalloc
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from sklearn.neighbors import NearestNeighbors

from dtviz.diversity import (
    drawings_reached,
    entropy,
    holm,
    mean_interval,
    mean_pairwise,
    medoid,
    modes_covered,
    nearest,
    nearest_distance,
    paired_test,
    vendi,
)  # fmt: skip

BASE = [0.396, 0.233, 0.237, 0.484, 0.337]  # the paper's Table 3
DISTILLED = [0.271, 0.199, 0.198, 0.347, 0.305]
HYBRID = [0.373, 0.265, 0.283, 0.461, 0.366]


def features(n=12, d=5, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)) + 0.5


def loop_mean(rows):
    """Mean of 1 - cosine over pairs, one pair at a time."""
    pairs = [(a, b) for i, a in enumerate(rows) for b in rows[:i]]
    return np.mean([1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs])


def test_mean_pairwise_and_its_jackknife_against_loops():
    rows = features()
    n = len(rows)
    found = mean_pairwise(rows)
    without = [loop_mean(np.delete(rows, i, axis=0)) for i in range(n)]
    half = stats.t.ppf(0.975, n - 1) * np.sqrt((n - 1) / n * np.sum((without - np.mean(without)) ** 2))
    # 1e-13: sums of 66 terms of size one in float64, then squares of differences of .01
    assert found.value == pytest.approx(loop_mean(rows), abs=1e-14)
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=1e-13)
    assert found.n == n


def test_mean_pairwise_of_known_directions():
    assert mean_pairwise(np.eye(7)).value == pytest.approx(1, abs=1e-15)
    assert mean_pairwise(np.eye(7)).high == pytest.approx(1, abs=1e-7)  # all pairs alike: an interval of no width
    assert mean_pairwise([[1.0, 0.0], [-3.0, 0.0]]).value == 2.0
    assert np.isnan(mean_pairwise(np.eye(2)).low)
    # modes of sizes 4, 2, 2: the pairs in different modes are 20 of 28
    assert mean_pairwise(np.eye(3)[[0, 0, 0, 0, 1, 1, 2, 2]]).value == pytest.approx(20 / 28, abs=1e-15)


def test_mean_pairwise_of_full_collapse_is_zero_and_never_negative():
    found = mean_pairwise(np.repeat(features(1, 512), 100, axis=0))
    assert 0 <= found.value < 1e-28  # rounding, 1e-16, squared, over 512 numbers
    nearly = np.array([[1.0, 0.0], [1.0, 1e-6], [1.0, -1e-6]])
    assert mean_pairwise(nearly).value == pytest.approx((0.5 + 0.5 + 2) * 1e-12 / 3, rel=1e-9)


def test_mean_pairwise_does_not_depend_on_order_scale_or_rotation():
    rows = features()
    rotation = np.linalg.qr(features(5, 5, seed=1))[0]
    changed = mean_pairwise((rows[::-1] * np.arange(1, 13)[:, None]) @ rotation)
    expected = mean_pairwise(rows)
    assert (changed.value, changed.low, changed.high) == pytest.approx(
        (expected.value, expected.low, expected.high), abs=1e-13
    )


def test_mean_pairwise_falls_as_modes_collapse():
    values = [mean_pairwise(np.eye(8)[np.arange(96) % modes]).value for modes in (8, 4, 2, 1)]
    assert values == sorted(values, reverse=True)
    assert values[-1] == 0
    assert values[0] == pytest.approx((1 - 1 / 8) * 96 / 95, abs=1e-14)


def draw_directions(rng, runs, n):
    """50 directions of falling variance, as features have; the truth is 1 - |mean unit vector|², of a million draws."""
    scale = 0.5 * np.linspace(1, 0.05, 50) ** 2
    return np.eye(50)[0] + rng.normal(size=(runs, n, 50)) * scale, 0.7409


def draw_circle(rng, runs, n):
    """Directions from a von Mises distribution: the true mean distance is 1 - (I1(k) / I0(k))^2."""
    angles = rng.vonmises(0, 2.0, (runs, n))
    return np.stack([np.cos(angles), np.sin(angles)], axis=2), 1 - (special.iv(1, 2.0) / special.iv(0, 2.0)) ** 2


def draw_two_modes(rng, runs, n):
    """One image in five of another mode: 2 x .8 x .2 of the pairs are at distance 1."""
    return np.eye(2)[(rng.random((runs, n)) < 0.2).astype(int)], 0.32


@pytest.mark.parametrize(
    ("draw", "n", "least"),
    [
        *((draw_directions, n, 0.92) for n in (10, 30, 100)),
        # skewed distances: it falls short of the promise where images are few, as its docstring says
        *((draw_circle, n, least) for n, least in ((10, 0.86), (30, 0.92), (100, 0.92))),
        *((draw_two_modes, n, least) for n, least in ((10, 0.78), (30, 0.86), (100, 0.92))),
    ],
)
def test_jackknife_interval_covers_95_percent(draw, n, least):
    runs = 1500
    images, truth = draw(np.random.default_rng(0), runs, n)
    estimates = [mean_pairwise(rows) for rows in images]
    # the standard error of a share of .95 in 1500 runs is .006
    assert least <= np.mean([estimate.low <= truth <= estimate.high for estimate in estimates]) <= 0.975
    values = [estimate.value for estimate in estimates]
    assert np.mean(values) == pytest.approx(truth, abs=4 * np.std(values) / np.sqrt(runs))  # unbiased


def test_30_000_images_of_1792_features_would_fit_in_2_gb():
    """A tenth of them, in a tenth of that, all arrays that are made counted."""
    rows = np.ones((3000, 1792), dtype=np.float32) + np.eye(3000, 1792, dtype=np.float32)
    for measure in (mean_pairwise, vendi, medoid, nearest_distance):
        tracemalloc.start()
        measure(rows)
        peak = tracemalloc.get_traced_memory()[1] + rows.nbytes
        tracemalloc.stop()
        # blocks that do not grow with n may take 80 MB more
        assert peak < 0.2e9 + 80e6, measure.__name__


@pytest.mark.parametrize(
    "bad", [np.ones((1, 3)), np.ones(3), np.ones((2, 3, 4)), np.array([[0.0, 0.0], [1.0, 0.0]]), [[np.nan, 1], [1, 1]]]
)
def test_mean_pairwise_refuses(bad):
    with pytest.raises(ValueError, match="features of shape"):
        mean_pairwise(bad)


def test_confidence_is_a_share():
    with pytest.raises(ValueError, match=r"\.95, not 95"):
        mean_pairwise(np.eye(3), confidence=95)
    assert mean_pairwise(features(), confidence=0.5).low > mean_pairwise(features()).low


@pytest.mark.parametrize("q", [0.1, 0.5, 1, 1 + 1e-6, 2, 3.5, 200, np.inf])
def test_vendi_of_equal_modes_counts_them(q):
    # 1e-9: at 1 + 1e-6 the formula divides rounding of 1e-16 by 1e-6
    assert vendi(np.eye(16)[np.arange(24) % 4], q=q) == pytest.approx(4, rel=1e-9)
    assert vendi(np.ones((10, 3)), q=q) == pytest.approx(1, rel=1e-9)
    assert vendi(np.eye(6), q=q) == pytest.approx(6, rel=1e-9)


@pytest.mark.parametrize("shape", [(12, 5), (5, 12)])
def test_vendi_against_the_full_gram_matrix(shape):
    rows = features(*shape)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    weights = np.linalg.svd(unit / np.sqrt(len(unit)), compute_uv=False) ** 2
    assert vendi(rows, q=1) == pytest.approx(np.exp(stats.entropy(weights)), rel=1e-12)
    assert vendi(rows) == pytest.approx(1 / np.mean((unit @ unit.T) ** 2), rel=1e-12)
    assert vendi(rows, q=np.inf) == pytest.approx(1 / weights.max(), rel=1e-12)
    assert vendi(rows, q=0.5) == pytest.approx(np.sum(np.sqrt(weights)) ** 2, rel=1e-12)
    assert vendi(rows, q=3) == pytest.approx(np.sum(weights**3) ** -0.5, rel=1e-12)


def test_vendi_of_unequal_modes_is_the_entropy_of_their_shares_and_falls_with_q():
    rows = np.eye(3)[[0, 0, 0, 0, 1, 1, 2, 2]]
    assert vendi(rows, q=1) == pytest.approx(np.exp(stats.entropy([0.5, 0.25, 0.25])))
    scores = [vendi(rows, q=q) for q in (0.2, 1, 1.5, 2, 5, np.inf)]
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] == pytest.approx(2)


@pytest.mark.parametrize("q", [0, -1, np.nan])
def test_vendi_refuses_q(q):
    with pytest.raises(ValueError, match="q = "):
        vendi(np.eye(3), q=q)


def test_modes_covered_counts_and_refuses():
    assert modes_covered([3, 3, 1], n_modes=4) == 2
    assert modes_covered(["noto", "twemoji", "noto"]) == 2
    for bad in ([4, 1], [-1, 1]):
        with pytest.raises(ValueError, match="n_modes = 4"):
            modes_covered(bad, n_modes=4)
    with pytest.raises(ValueError, match="n_modes = 1"):
        modes_covered(["a", "b"], n_modes=1)
    for bad in ([], [0.5], [[1, 2]]):
        with pytest.raises(ValueError, match="labels"):
            modes_covered(bad)


def test_entropy_is_scipys_with_miller_and_madows_correction_and_less_biased():
    labels = ["a"] * 5 + ["b"] * 3 + ["c"]
    assert entropy(labels) == pytest.approx(stats.entropy([5, 3, 1]) + 2 / 18)
    assert entropy([7] * 10) == 0
    shares, rng = [0.4, 0.3, 0.2, 0.1], np.random.default_rng(0)
    draws = [rng.choice(4, 30, p=shares) for _ in range(2000)]
    truth = stats.entropy(shares)
    corrected = np.mean([entropy(draw) for draw in draws]) - truth
    plain = np.mean([stats.entropy(np.bincount(draw)) for draw in draws]) - truth
    assert abs(corrected) < 0.005 < 0.04 < -plain  # (4 - 1) / 60 = .05
    for bad in ([], [0.5], [[1, 2]]):
        with pytest.raises(ValueError, match="labels"):
            entropy(bad)


def test_mode_collapse_scenario_finds_the_modes_that_are_left():
    """Samples around three of seven drawings: nearest names them, the counts and the Vendi score see three."""
    rng = np.random.default_rng(0)
    drawings, drawn = 5 * np.eye(7, 32), rng.integers(0, 3, 60)
    samples = drawings[drawn] + 0.02 * rng.normal(size=(60, 32))
    found = nearest(samples, drawings)
    np.testing.assert_array_equal(found, drawn)
    assert modes_covered(found, n_modes=7) == 3
    assert vendi(samples) == pytest.approx(3, abs=0.15)  # the three shares are not quite equal


@pytest.mark.parametrize("chunk", [1, 5, 1024])
def test_nearest_against_a_loop(chunk):
    rows, others = features(23, 6), features(11, 6, seed=1)
    cosine = [[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in others] for a in rows]
    np.testing.assert_array_equal(nearest(rows, others, chunk=chunk), np.argmax(cosine, axis=1))


@pytest.mark.parametrize("chunk", [1, 5, 1024])
def test_nearest_distance_and_medoid_against_loops(chunk):
    rows = features(23, 6)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    distance = 1 - unit @ unit.T
    assert medoid(rows) == distance.sum(axis=1).argmin()
    np.fill_diagonal(distance, np.inf)
    np.testing.assert_allclose(nearest_distance(rows, chunk=chunk), distance.min(axis=1), atol=1e-14)
    repeated = nearest_distance([[1.0, 2.0], [2.0, 4.0]])  # whatever the scale
    np.testing.assert_allclose(repeated, [0, 0], atol=1e-15)  # rounding of a sum of squares
    with pytest.raises(ValueError, match="chunk = 0"):
        nearest_distance(rows, chunk=0)


@pytest.mark.parametrize("n", [10, 30, 100])
def test_mean_interval_covers_95_percent_of_skewed_values_too(n):
    rng = np.random.default_rng(n)
    for draws, truth in ((rng.normal(size=(2000, n)), 0), (rng.gamma(4, size=(2000, n)), 4)):
        found = [mean_interval(row) for row in draws]
        assert 0.92 <= np.mean([one.low <= truth <= one.high for one in found]) <= 0.975


def test_nearest_refuses():
    with pytest.raises(ValueError, match="same width"):
        nearest(np.ones((2, 3)), np.ones((2, 4)))
    with pytest.raises(ValueError, match="chunk = 0"):
        nearest(np.ones((2, 3)), np.ones((2, 3)), chunk=0)


def test_drawings_reached_is_naeems_coverage_with_one_neighbour():
    """Against their definition with scikit-learn's neighbours; Euclid's order on unit rows is the cosine's."""
    rng = np.random.default_rng(4)
    for n, m in ((3, 2), (30, 7), (200, 50)):
        samples, drawn = (
            rows / np.linalg.norm(rows, axis=1, keepdims=True)
            for rows in (rng.normal(size=(n, 4)), rng.normal(size=(m, 4)))
        )
        radius = NearestNeighbors(n_neighbors=2).fit(drawn).kneighbors(drawn)[0][:, 1]  # the first is itself
        closest = NearestNeighbors(n_neighbors=1).fit(samples).kneighbors(drawn)[0][:, 0]
        np.testing.assert_array_equal(drawings_reached(3 * samples, 0.5 * drawn), closest < radius)


def test_drawings_reached_of_fresh_samples_of_the_same_kind():
    """By exchangeability the nearest of n samples and m - 1 other drawings is a sample with probability n / (n + m - 1)."""
    rng, n, m, runs = np.random.default_rng(0), 12, 6, 3000
    shares = [drawings_reached(rng.normal(size=(n, 3)), rng.normal(size=(m, 3))).mean() for _ in range(runs)]
    # its standard deviation is below .2, so that of the mean below .004
    assert np.mean(shares) == pytest.approx(n / (n + m - 1), abs=0.012)


def test_drawings_reached_by_copies_by_collapse_and_by_error():
    drawn = features(6, 16)
    assert drawings_reached(np.repeat(drawn, 5, axis=0), drawn).all()
    collapsed = drawings_reached(np.repeat(np.eye(6)[2:3], 30, axis=0), np.eye(6))
    np.testing.assert_array_equal(
        np.flatnonzero(collapsed), [2]
    )  # the others' nearest are as far, and that is not nearer
    assert not drawings_reached(-drawn, drawn).any()
    assert not drawings_reached(-drawn, drawn[[0, 0]]).any()


def test_drawings_reached_refuses():
    with pytest.raises(ValueError, match="same width"):
        drawings_reached(np.ones((2, 3)), np.eye(4))
    with pytest.raises(ValueError, match="drawn of shape"):
        drawings_reached(np.ones((2, 3)), np.ones((1, 3)))


def test_mean_interval_is_students():
    values = features(9, 1)[:, 0]
    found = mean_interval(values, confidence=0.9)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert (found.value, found.n) == (values.mean(), 9)
    assert mean_interval([2.0]).value == 2.0
    assert np.isnan(mean_interval([2.0]).high)


def brute_force(a, b):
    difference = np.subtract(a, b)
    sums = [abs(np.dot(signs, difference)) for signs in product([-1, 1], repeat=len(difference))]
    return np.mean(np.array(sums) >= abs(difference.sum()) - 1e-9)


def test_paired_test_of_the_papers_table_3():
    against_base, against_distilled = paired_test(HYBRID, BASE), paired_test(HYBRID, DISTILLED)
    assert round(against_base.mean, 3) == 0.012
    assert against_base.p == brute_force(HYBRID, BASE) == 0.4375  # "exceeds the base" is not supported
    assert against_base.low < 0 < against_base.high
    assert against_distilled.p == 0.0625  # the least that five prompts can give
    assert against_base.method == "exact"
    expected = stats.ttest_rel(HYBRID, BASE).confidence_interval()
    assert (against_base.low, against_base.high) == pytest.approx((expected.low, expected.high), rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=9))
def test_paired_test_is_exact_with_ties(difference):
    a = np.array(difference) / 10  # tenths: equal sums differ by rounding, and must still be ties
    assert paired_test(a, np.zeros(len(a))).p == brute_force(a, np.zeros(len(a)))


def test_paired_test_agrees_with_scipy_and_is_symmetric():
    a, b = features(11, 2, seed=3).T
    found = paired_test(a, b)
    expected = stats.permutation_test(
        (a, b), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf
    )
    assert found.p == pytest.approx(expected.pvalue, abs=1e-12)
    assert paired_test(b, a).p == found.p
    assert paired_test(b, a).mean == pytest.approx(-found.mean)


def test_paired_test_extremes():
    assert paired_test(np.ones(40), np.zeros(40)).p == 2 / 2**40
    assert paired_test(np.ones(41), np.zeros(41)).p == 1 / 100_001
    assert paired_test([1.0, 2.0], [1.0, 2.0]).p == 1.0
    assert paired_test([1.0], [0.0]).p == 1.0


def test_monte_carlo_agrees_with_the_exact_test_and_repeats():
    difference = np.random.default_rng(5).normal(0.25, 1, 40)
    exact = paired_test(difference, np.zeros(40))
    # A pair that does not differ doubles every count, so the true p stays, and 41 pairs are drawn at random.
    random = paired_test([*difference, 0.0], np.zeros(41))
    assert (exact.method, random.method) == ("exact", "monte carlo")
    assert random.p == pytest.approx(exact.p, abs=4 * np.sqrt(exact.p / 100_000))
    assert random.p == paired_test([*difference, 0.0], np.zeros(41)).p


def test_paired_test_refuses():
    with pytest.raises(ValueError, match="same prompts"):
        paired_test([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="b of shape"):
        paired_test([1.0], [np.nan])


def test_holm_by_hand_and_never_below_the_raw_p():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]
    p = np.random.default_rng(0).uniform(size=20)
    assert (holm(p) >= p).all()
    assert (np.argsort(holm(p), kind="stable")[:1] == np.argmin(p)).all()
    with pytest.raises(ValueError, match="pvalues"):
        holm([1.2])
