"""dtviz.quality against formulas written out with loops, scipy, closed forms, and scenarios with known truth."""

import itertools

import numpy as np
import pytest
from scipy import linalg, stats
from scipy.spatial.distance import cdist

from dtviz import quality
from dtviz.quality import clip_score, cmmd, frechet_distance, inception_score, kernel_distance, neighbours

rng = np.random.default_rng(0)


# Fréchet distance


@pytest.mark.parametrize(("n", "m", "d"), [(50, 70, 5), (40, 40, 12), (10, 12, 30), (40, 12, 30), (12, 40, 30)])
def test_frechet_equals_the_formula_with_scipys_matrix_root(n, m, d):
    a, b = rng.normal(size=(n, d)), rng.normal(1.0, 2.0, size=(m, d)) @ rng.normal(size=(d, d))
    s, t = np.cov(a.T), np.cov(b.T)
    root = linalg.sqrtm(s @ t).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s + t - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-5)


def test_frechet_of_two_known_gaussians():
    """Diagonal covariances: the sum of squared differences of means and of standard deviations."""
    a = rng.normal([0, 1], [1, 2], size=(1000, 2))
    b = rng.normal([3, 1], [2, 5], size=(1000, 2))
    assert frechet_distance(a, b) == pytest.approx(9 + 1 + 9, rel=0.1)


def test_frechet_of_the_same_set_is_zero_and_order_does_not_matter():
    a, b = rng.normal(size=(30, 8)), rng.normal(size=(40, 8))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))


def test_frechet_is_biased_upwards_by_about_one_over_n():
    """Two samples of one distribution, whose distance is 0: half the images, twice the number."""
    values = {n: np.mean([frechet_distance(*rng.normal(size=(2, n, 16))) for _ in range(20)]) for n in (100, 200, 400)}
    assert values[100] / values[200] == pytest.approx(2, rel=0.15)
    assert values[200] / values[400] == pytest.approx(2, rel=0.15)


# Kernel distances


def loop_mmd(a, b, kernel, *, pairs):
    """Mean kernel within a and within b, over `pairs` of rows, less twice that across."""
    within = [np.mean([kernel(x, y) for x, y in pairs(rows)]) for rows in (a, b)]
    return sum(within) - 2 * np.mean([kernel(x, y) for x in a for y in b])


def cubic(x, y):
    return (x @ y / len(x) + 1) ** 3


@pytest.mark.parametrize("block", [3, 512])
def test_kernel_distance_and_its_jackknife_against_loops(block, monkeypatch):
    monkeypatch.setattr(quality, "BLOCK", block)
    a, b = rng.normal(size=(8, 4)), rng.normal(0.5, 1.5, size=(6, 4))

    def value(x, y):
        return loop_mmd(x, y, cubic, pairs=lambda rows: itertools.permutations(rows, 2))

    found = kernel_distance(a, b)
    assert found.value == pytest.approx(value(a, b), rel=1e-12)
    without_a = np.array([value(np.delete(a, i, axis=0), b) for i in range(8)])
    without_b = np.array([value(a, np.delete(b, i, axis=0)) for i in range(6)])
    of_a, of_b = 7 / 8 * 8 * np.var(without_a), 5 / 6 * 6 * np.var(without_b)
    freedom = (of_a + of_b) ** 2 / (of_a**2 / 7 + of_b**2 / 5)
    half = stats.t.ppf(0.975, freedom) * np.sqrt(of_a + of_b)
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), rel=1e-9)
    assert found.n == 8


def known_kernel(mu, nu):
    """E (x·y / d + 1)³ of independent normal x, y with means mu, nu and unit covariance, from the cumulants of x·y."""
    d = len(mu)
    first, second, third = mu @ nu, mu @ mu + nu @ nu + d, 6 * mu @ nu
    moments = first, second + first**2, third + 3 * first * second + first**3
    return 1 + 3 * moments[0] / d + 3 * moments[1] / d**2 + moments[2] / d**3


@pytest.mark.parametrize("n", [10, 30, 100])
def test_the_kernel_distances_interval_covers_95_percent(n):
    d, runs, draw = 32, 600, np.random.default_rng(n)
    mu, nu = np.full(d, 0.5), np.full(d, -0.2)
    truth = known_kernel(mu, mu) + known_kernel(nu, nu) - 2 * known_kernel(mu, nu)
    found = [kernel_distance(mu + draw.normal(size=(n, d)), nu + draw.normal(size=(n, d))) for _ in range(runs)]
    assert 0.92 <= np.mean([one.low <= truth <= one.high for one in found]) <= 0.975
    spread = np.std([one.value for one in found]) / np.sqrt(runs)
    assert np.mean([one.value for one in found]) == pytest.approx(truth, abs=4 * spread)  # unbiased, at n = 10 too


@pytest.mark.parametrize("block", [3, 512])
def test_cmmd_against_loops(block, monkeypatch):
    monkeypatch.setattr(quality, "BLOCK", block)
    a, b = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in rng.normal(size=(2, 7, 5)))

    def gauss(x, y):
        return np.exp(-((x - y) ** 2).sum() / 200)

    expected = 1000 * loop_mmd(a, b, gauss, pairs=lambda rows: itertools.product(rows, repeat=2))
    assert cmmd(a, b) == pytest.approx(expected, rel=1e-9)
    assert cmmd(a, a) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="sigma = 0"):
        cmmd(a, b, sigma=0)


def test_two_points_have_a_cmmd_in_closed_form():
    # 1 + 1 - 2 exp(-2 / 200), times 1000
    assert cmmd(np.repeat([[1.0, 0]], 4, 0), np.repeat([[0, 1.0]], 3, 0)) == pytest.approx(2000 * (1 - np.exp(-0.01)))


# Inception score, CLIP score


def test_inception_score_in_closed_form_and_against_scipy():
    assert inception_score(np.eye(10), splits=1) == pytest.approx(10)
    assert inception_score(np.eye(10)[np.arange(100) % 10]) == pytest.approx(10)
    assert inception_score(np.full((20, 5), 0.2)) == pytest.approx(1)
    p = rng.dirichlet(np.ones(6), 24)
    parts = [np.mean([stats.entropy(row, part.mean(0)) for row in part]) for part in (p[:8], p[8:16], p[16:])]
    assert inception_score(p, splits=3) == pytest.approx(np.exp(parts).mean(), rel=1e-12)


@pytest.mark.parametrize("bad", [np.ones((3, 2)), np.ones(3) / 3, [[1.5, -0.5]], np.full((2, 2), np.nan)])
def test_inception_score_refuses(bad):
    with pytest.raises(ValueError, match="probabilities of shape"):
        inception_score(bad, splits=1)
    with pytest.raises(ValueError, match="splits = 11"):
        inception_score(np.eye(10), splits=11)


def test_clip_score_against_scipy():
    a, b = rng.normal(0.3, 1, size=(2, 9, 4))
    cosines = [100 * (1 - cdist([x], [y], "cosine").item()) for x, y in zip(a, b, strict=True)]
    found, expected = clip_score(a, b), stats.ttest_1samp(cosines, 0).confidence_interval()
    assert found.value == pytest.approx(np.mean(cosines))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    several = clip_score(a, b, prompts=list("aabbbcccc"))  # the mean of three prompts' means
    means = [np.mean(cosines[:2]), np.mean(cosines[2:5]), np.mean(cosines[5:])]
    assert (several.value, several.n) == (pytest.approx(np.mean(means)), 3)
    with pytest.raises(ValueError, match="prompts has 2 entries for 9"):
        clip_score(a, b, prompts=["a", "b"])
    for bad in (b[:-1], np.zeros_like(b)):
        with pytest.raises(ValueError, match="one prompt an image"):
            clip_score(a, bad)


# Precision, recall, density, coverage


def loop_neighbours(a, b, k):
    of_a, of_b = (np.sort(cdist(x, x), axis=1)[:, k] for x in (a, b))
    distance = cdist(a, b)
    return (
        np.mean([any(distance[i, j] < of_b[j] for j in range(len(b))) for i in range(len(a))]),
        np.mean([any(distance[i, j] < of_a[i] for i in range(len(a))) for j in range(len(b))]),
        np.mean([sum(distance[i, j] < of_b[j] for j in range(len(b))) for i in range(len(a))]) / k,
        np.mean([min(distance[:, j]) < of_b[j] for j in range(len(b))]),
    )


@pytest.mark.parametrize(("block", "n", "m", "k"), [(7, 30, 40, 5), (512, 30, 40, 3), (7, 41, 23, 1)])
def test_neighbours_against_loops(block, n, m, k, monkeypatch):
    monkeypatch.setattr(quality, "BLOCK", block)
    a, b = rng.normal(size=(n, 3)), rng.normal(0.5, 1.2, size=(m, 3))
    found = neighbours(a, b, k=k)
    assert (found.precision, found.recall, found.density, found.coverage) == pytest.approx(loop_neighbours(a, b, k))


def test_neighbours_of_ties_and_of_equal_sets():
    """Whole numbers, whose distances are exact: a point on a ball's edge is outside."""
    line = np.arange(6.0)[:, None]
    assert neighbours(line, line, k=1).density == 1.0  # only itself; its neighbours are on the edge
    same = neighbours(line, line, k=2)
    assert (same.precision, same.recall, same.coverage) == (1.0, 1.0, 1.0)
    assert neighbours(line + 1000, line) == quality.Neighbours(0.0, 0.0, 0.0, 0.0)


def test_neighbours_find_mode_collapse_and_bad_samples():
    """Four modes: samples of one of them are precise and cover a quarter; one outlier ball raises recall, not coverage."""
    modes = 10 * np.eye(4)[np.arange(200) % 4] + rng.normal(size=(200, 4))
    one = 10 * np.eye(4)[0] + rng.normal(size=(200, 4))
    collapsed = neighbours(one, modes)
    assert collapsed.precision > 0.9 and collapsed.recall < 0.3 and collapsed.coverage < 0.3
    outliers = neighbours(np.concatenate([one, 1000 * np.ones((6, 4)) + rng.normal(size=(6, 4)) * 500]), modes)
    assert outliers.recall > 0.9 and outliers.coverage < 0.3
    assert neighbours(modes + 100, modes).precision == 0


def test_neighbours_refuse_k():
    for k in (0, 5):
        with pytest.raises(ValueError, match=f"k = {k} must be from 1 to 4"):
            neighbours(np.ones((5, 2)), np.ones((9, 2)), k=k)


@pytest.mark.parametrize("bad", [np.zeros((0, 3)), np.zeros(3), np.full((4, 3), np.nan), np.zeros((4, 2))])
@pytest.mark.parametrize("measure", [frechet_distance, kernel_distance, cmmd, clip_score, neighbours])
def test_bad_features_are_refused(measure, bad):
    with pytest.raises(ValueError, match="must be"):
        measure(bad, np.zeros((4, 3)))
