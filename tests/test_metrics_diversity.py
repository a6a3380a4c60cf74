"""metrics.diversity against double loops, closed forms, scipy, symmetries and scenarios with known modes."""

import numpy as np
import pytest
from scipy import stats

from dtviz.metrics.diversity import entropy, mean_pairwise, vendi


def features(n=12, d=5, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)) + 0.5


def loop_mean(rows):
    """Mean of 1 - cosine over pairs, one pair at a time."""
    pairs = [(a, b) for i, a in enumerate(rows) for b in rows[:i]]
    return np.mean([1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs])


def test_mean_pairwise_and_its_jackknife_against_loops():
    rows = features()
    n = len(rows)
    estimate = mean_pairwise(rows)
    without = [loop_mean(np.delete(rows, i, axis=0)) for i in range(n)]
    half = stats.t.ppf(0.975, n - 1) * np.sqrt((n - 1) / n * np.sum((without - np.mean(without)) ** 2))
    # 1e-13: sums of 66 terms of size one in float64, then squares of differences of .01
    assert estimate.value == pytest.approx(loop_mean(rows), abs=1e-14)
    assert (estimate.low, estimate.high) == pytest.approx((estimate.value - half, estimate.value + half), abs=1e-13)
    assert estimate.n == n


def test_mean_pairwise_of_known_directions():
    assert mean_pairwise(np.eye(7) * np.arange(1, 8)).value == pytest.approx(1, abs=1e-15)  # lengths do not count
    assert mean_pairwise(np.eye(7)).high == pytest.approx(1, abs=1e-7)  # all pairs alike: an interval of no width
    assert mean_pairwise([[1.0, 0.0], [-3.0, 0.0]]).value == 2.0
    assert np.isnan(mean_pairwise(np.eye(2)).low)
    # modes of sizes 4, 2, 2: the pairs in different modes are 20 of 28
    assert mean_pairwise(np.eye(3)[[0, 0, 0, 0, 1, 1, 2, 2]]).value == pytest.approx(20 / 28, abs=1e-15)


def test_mean_pairwise_of_full_collapse_is_zero_and_never_negative():
    assert 0 <= mean_pairwise(np.repeat(features(1, 512), 100, axis=0)).value < 1e-28  # rounding, squared, 512 times
    nearly = np.array([[1.0, 0.0], [1.0, 1e-6], [1.0, -1e-6]])
    assert mean_pairwise(nearly).value == pytest.approx((0.5 + 0.5 + 2) * 1e-12 / 3, rel=1e-9)


def draw_directions(rng, runs, n):
    """50 directions of falling variance, as features have; the truth is 1 - |mean unit vector|², of a million draws."""
    scale = 0.5 * np.linspace(1, 0.05, 50) ** 2
    return np.eye(50)[0] + rng.normal(size=(runs, n, 50)) * scale, 0.7409


def draw_two_modes(rng, runs, n):
    """One image in five of another mode: 2 x .8 x .2 of the pairs are at distance 1."""
    return np.eye(2)[(rng.random((runs, n)) < 0.2).astype(int)], 0.32


@pytest.mark.parametrize(
    ("draw", "n", "least"),
    [
        *((draw_directions, n, 0.92) for n in (10, 30, 100)),
        # skewed distances: it falls short of the promise where images are few, as docs/numbers.md says
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


@pytest.mark.parametrize(
    "bad", [np.ones((1, 3)), np.ones(3), np.ones((2, 3, 4)), np.array([[0.0, 0.0], [1.0, 0.0]]), [[np.nan, 1], [1, 1]]]
)
def test_mean_pairwise_refuses(bad):
    with pytest.raises(ValueError, match="features of shape"):
        mean_pairwise(bad)


@pytest.mark.parametrize("q", [0.1, 1, 1 + 1e-6, 2, 200])
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
    assert vendi(rows, q=0.5) == pytest.approx(np.sum(np.sqrt(weights)) ** 2, rel=1e-12)
    assert vendi(rows, q=3) == pytest.approx(np.sum(weights**3) ** -0.5, rel=1e-12)
    with pytest.raises(ValueError, match="q = nan"):
        vendi(rows, q=np.nan)


def test_entropy_is_scipys_with_the_correction_and_less_biased():
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
