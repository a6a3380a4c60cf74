import numpy as np
import pytest
from scipy import linalg

from dtviz.quality import frechet_distance

rng = np.random.default_rng(0)


@pytest.mark.parametrize(("n", "m", "d"), [(50, 70, 5), (40, 40, 12), (10, 12, 30)])
def test_equals_the_formula_with_scipys_matrix_root(n, m, d):
    a, b = rng.normal(size=(n, d)), rng.normal(1.0, 2.0, size=(m, d)) @ rng.normal(size=(d, d))
    s, t = np.cov(a.T), np.cov(b.T)
    root = linalg.sqrtm(s @ t).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s + t - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-5)


def test_closed_form_of_two_known_gaussians():
    """Diagonal covariances: the sum of squared differences of means and of standard deviations."""
    a = rng.normal([0, 1], [1, 2], size=(1000, 2))
    b = rng.normal([3, 1], [2, 5], size=(1000, 2))
    assert frechet_distance(a, b) == pytest.approx(9 + 1 + 9, rel=0.1)


def test_same_set_is_zero_and_order_does_not_matter():
    a, b = rng.normal(size=(30, 8)), rng.normal(size=(40, 8))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))


@pytest.mark.parametrize("bad", [np.zeros((1, 3)), np.zeros(3), np.full((4, 3), np.nan), np.zeros((4, 2))])
def test_bad_features_are_refused(bad):
    with pytest.raises(ValueError, match="must be"):
        frechet_distance(bad, np.zeros((4, 3)))
