"""metrics.concepts against cases with known truth, loops, closed forms, and classifiers that are unsure or wrong."""

import numpy as np
import pytest
from scipy import special

from dtviz.metrics import concepts
from dtviz.metrics.concepts import ConceptPair, clearest_steps, mutual_information
from dtviz.metrics.diversity import entropy


@pytest.mark.parametrize(
    ("steps", "level", "step"),
    [
        ((0.1, 0.95, 0.97, 0.92, 0.2), 0.95, 2),  # shown at steps 1 to 3, best at 2
        ((0.95, 0.92, 0.1, 0.0, 0.0), 0.92, 0),  # from the very first step
        ((0.1, 0.1, 0.1, 0.9, 0.9), 0.9, 3),  # until the very last one
        ((0.9, 0.9, 0.1, 0.99, 0.1), 0.9, 0),  # the flicker at 3 is higher, but is one
        ((0.1, 0.99, 0.2, 0.99, 0.1), 0.2, 1),  # two flickers
        ((0.89, 0.89, 0.89, 0.89, 0.89), 0.89, 0),
    ],
)
def test_clearest_steps_of_known_cases(steps, level, step):
    levels, best = clearest_steps(np.array(steps)[:, None, None])
    assert (levels.item(), best.item()) == (level, step)


@pytest.mark.parametrize(
    "bad", [np.zeros((2, 2)), np.zeros((1, 1, 1)), np.full((4, 1, 1), 1.1), np.full((4, 1, 1), np.nan)]
)
def test_clearest_steps_refuse(bad):
    with pytest.raises(ValueError, match="posteriors of shape"):
        clearest_steps(bad)


def test_concept_pairs_use_every_concept_once_in_each_place():
    names = ["a", "b", "c", "d", "e"]
    pairs = concepts.concept_pairs(names)
    assert pairs[0] == ConceptPair("a", "b", ("e", "c"))
    assert pairs[-1] == ConceptPair("e", "a", ("d", "b"))
    for places in zip(*((one.first, one.second, *one.others) for one in pairs), strict=True):
        assert sorted(places) == names
    with pytest.raises(ValueError, match="at least four different"):
        concepts.concept_pairs(["a", "b", "c", "a"])


def test_sure_posteriors_are_labels():
    """One certain value an image: the information is the labels' entropy, its correction included."""
    labels = np.random.default_rng(1).integers(0, 4, 25)
    assert mutual_information(np.eye(6)[labels]) == pytest.approx(entropy(labels), abs=1e-15)  # two are never said
    assert mutual_information(np.full((40, 5), 0.2)) == pytest.approx(0, abs=1e-15)  # unsure: it tells nothing


def test_information_is_the_mean_divergence_from_the_mean():
    """The second definition: mean over images of KL(posterior || mean), and symmetric in images and in values."""
    p = np.random.default_rng(0).dirichlet([0.5, 1.0, 2.0, 3.0], size=30)
    correction = (p.var(axis=0) / p.mean(axis=0)).sum() / 60
    divergence = special.rel_entr(p, p.mean(axis=0)).sum(axis=1).mean()
    assert mutual_information(p) == pytest.approx(divergence + correction, abs=1e-14)
    assert mutual_information(p[::-1, ::-1]) == pytest.approx(mutual_information(p), abs=1e-14)


def test_correction_takes_the_bias_of_few_images_away():
    """Dirichlet posteriors, whose expected entropy is known: psi(A + 1) - sum a / A psi(a + 1)."""
    a = np.array([0.3, 0.3, 0.6, 0.8])
    share, total = a / a.sum(), a.sum()
    truth = special.entr(share).sum() - (special.digamma(total + 1) - (share * special.digamma(a + 1)).sum())
    draws = np.random.default_rng(0).dirichlet(a, size=(2000, 10))
    corrected = [mutual_information(p) for p in draws]
    plain = [special.rel_entr(p, p.mean(axis=0)).sum(axis=1).mean() for p in draws]
    assert truth - np.mean(plain) > 10 * np.std(corrected) / np.sqrt(len(draws))  # ten images: too low by .05
    assert abs(truth - np.mean(corrected)) < 0.25 * (truth - np.mean(plain))


@pytest.mark.parametrize("bad", [np.ones((2, 2)), [[1.5, -0.5]], [0.5, 0.5], np.zeros((0, 2)), [[np.nan, 1.0]]])
def test_posteriors_that_are_none_are_refused(bad):
    with pytest.raises(ValueError, match="posteriors of shape"):
        mutual_information(bad)


def test_windows_cover_every_pixel_and_stay_inside():
    for height, width, size, stride in ((64, 64, 16, 8), (64, 64, 16, 7), (5, 9, 4, 3), (3, 3, 8, 2)):
        count = np.zeros((height, width), int)
        for top, left, bottom, right in concepts.occlusion_windows(height, width, size=size, stride=stride):
            assert 0 <= top < bottom <= min(height, top + size) and 0 <= left < right <= min(width, left + size)
            count[top:bottom, left:right] += 1
        assert count.min() >= 1


@pytest.mark.parametrize("truth", [(16, 24, 40, 48), (0, 0, 16, 16), (40, 8, 64, 24)])
def test_the_box_is_around_what_the_score_sees(truth):
    """The score is the red of one rectangle; a second, paler one elsewhere must not stretch the box."""
    top, left, bottom, right = truth
    image = np.ones((3, 64, 64))
    image[1:, top:bottom, left:right] = 0
    image[1:, 48:64, 48:64] = 0.8
    places = concepts.occlusion_windows(64, 64, size=8, stride=4)
    hidden = concepts.occlude(image, places)
    for (t, x, b, r), one in zip(places, hidden, strict=True):  # a white border: the place is white, the rest the same
        expected = image.copy()
        expected[:, t:b, x:r] = 1
        np.testing.assert_array_equal(one, expected)
    drops = (1 - image[1]).sum() - (1 - hidden[:, 1]).sum(axis=(1, 2))
    # A patch of 8 reaches half of its own size over an edge before half of its drop is gone, and strides are 4.
    assert np.abs(np.subtract(concepts.occlusion_box(drops, places, shape=(64, 64)), truth)).max() <= 4


def test_the_box_is_the_connected_region_of_the_largest_drop():
    places = concepts.occlusion_windows(2, 6, size=2, stride=2)
    assert concepts.occlusion_box([0.6, 0.0, 1.0], places, shape=(2, 6)) == (0, 4, 2, 6)  # the left one is apart
    assert concepts.occlusion_box([0.6, 0.5, 1.0], places, shape=(2, 6)) == (0, 0, 2, 6)
    with pytest.raises(ValueError, match="nothing to box"):
        concepts.occlusion_box([-1.0, 0.0, -0.5], places, shape=(2, 6))
