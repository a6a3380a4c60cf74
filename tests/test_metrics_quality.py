"""metrics.quality against torchmetrics, scipy, closed forms, and scenarios with known truth."""

import numpy as np
import pytest
import torch
from scipy import linalg, stats
from scipy.spatial.distance import cdist
from torchmetrics.image.fid import FrechetInceptionDistance

from dtviz.metrics.quality import clip_score, frechet_distance, inception_score

rng = np.random.default_rng(0)


@pytest.mark.parametrize(("n", "m", "d"), [(50, 70, 5), (40, 40, 12), (10, 12, 30), (40, 12, 30), (12, 40, 30)])
def test_frechet_equals_the_formula_with_scipys_matrix_root(n, m, d):
    a, b = rng.normal(size=(n, d)), rng.normal(1.0, 2.0, size=(m, d)) @ rng.normal(size=(d, d))
    s, t = np.cov(a.T), np.cov(b.T)
    root = linalg.sqrtm(s @ t).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s + t - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-5)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9 * expected)


def test_frechet_equals_torchmetrics_on_the_same_features():
    a, b = torch.rand(60, 3, 4, 4), torch.rand(50, 3, 4, 4) ** 2
    metric = FrechetInceptionDistance(feature=torch.nn.Flatten(), normalize=True, input_img_size=(3, 4, 4))
    metric.update(a, real=True)
    metric.update(b, real=False)
    # 1e-5: torchmetrics returns float32
    assert frechet_distance(b.flatten(1), a.flatten(1)) == pytest.approx(float(metric.compute()), rel=1e-5)


def test_inception_score_in_closed_form_and_against_scipy():
    assert inception_score(np.eye(10), splits=1) == pytest.approx(10)
    assert inception_score(np.eye(10)[np.arange(100) % 10]) == pytest.approx(10)
    assert inception_score(np.full((20, 5), 0.2)) == pytest.approx(1)
    p = rng.dirichlet(np.ones(6), 24)
    parts = [np.mean([stats.entropy(row, part.mean(0)) for row in part]) for part in (p[:8], p[8:16], p[16:])]
    assert inception_score(p, splits=3) == pytest.approx(np.exp(parts).mean(), rel=1e-12)
    for bad in (np.ones((3, 2)), np.ones(3) / 3, [[1.5, -0.5]]):
        with pytest.raises(ValueError, match="probabilities of shape"):
            inception_score(bad, splits=1)
    assert inception_score(np.eye(12)) == pytest.approx(12)  # ten parts would hold one image each, which scores 1
    few = rng.dirichlet(np.ones(6), 35)  # three parts of at least ten images
    assert inception_score(few) == inception_score(few, splits=3)
    for n, splits in ((10, 6), (1, None), (10, 0)):
        with pytest.raises(ValueError, match=rf"splits=\d+ must be at least 1, with two or more of the {n} images"):
            inception_score(np.eye(10)[:n], splits=splits)


def test_clip_score_against_scipy():
    a, b = rng.normal(0.3, 1, size=(2, 9, 4))
    cosines = [100 * (1 - cdist([x], [y], "cosine").item()) for x, y in zip(a, b, strict=True)]
    score, expected = clip_score(a, b), stats.ttest_1samp(cosines, 0).confidence_interval()
    assert score.value == pytest.approx(np.mean(cosines))
    assert (score.low, score.high) == pytest.approx((expected.low, expected.high))
    several = clip_score(a, b, prompts=list("aabbbcccc"))  # the mean of three prompts' means
    means = [np.mean(cosines[:2]), np.mean(cosines[2:5]), np.mean(cosines[5:])]
    assert (several.value, several.n) == (pytest.approx(np.mean(means)), 3)
    with pytest.raises(ValueError, match="the same length"):
        clip_score(a, b, prompts=["a", "b"])
    for other, message in ((np.zeros_like(b), "nonzero rows"), (b[1:], "one prompt an image")):
        with pytest.raises(ValueError, match=message):
            clip_score(a, other)


@pytest.mark.parametrize("bad", [np.zeros((0, 3)), np.zeros(3), np.full((4, 3), np.nan), np.zeros((4, 2))])
@pytest.mark.parametrize("measure", [frechet_distance, clip_score])
def test_bad_features_are_refused(measure, bad):
    with pytest.raises(ValueError, match="must be"):
        measure(bad, np.zeros((4, 3)))
