"""dtviz.attributes against closed forms, transformers' own softmax, labels, and readers that are unsure or wrong."""

from pathlib import Path

import numpy as np
import pytest
from scipy import special

from dtviz import drawings, embedder, table
from dtviz.attributes import marginal_entropy, mutual_information, posterior
from dtviz.diversity import entropy
from dtviz.study import PAPER_PROMPTS

LISTED = Path(__file__).parents[1] / "data" / "prompts" / "attributes.csv"


def dirichlet(n, concentration, seed=0):
    return np.random.default_rng(seed).dirichlet(concentration, size=n)


def test_posterior_by_hand():
    """Cosines 1 and 0 at scale log 9: odds of 9; lengths do not count."""
    found = posterior([[5.0, 0.0], [1.0, 1.0]], [[1.0, 0.0], [0.0, 3.0]], scale=np.log(9))
    np.testing.assert_allclose(found, [[0.9, 0.1], [0.5, 0.5]], atol=1e-15)


def test_posterior_of_a_large_scale_does_not_overflow():
    found = posterior(np.eye(3), np.eye(3), scale=1e4)
    np.testing.assert_array_equal(found, np.eye(3))


@pytest.mark.parametrize("bad", [0.0, -1.0, np.inf, np.nan])
def test_posterior_refuses_scales(bad):
    with pytest.raises(ValueError, match="scale = "):
        posterior(np.eye(2), np.eye(2), scale=bad)


@pytest.mark.parametrize(
    ("images", "texts", "message"),
    [
        (np.ones((2, 3)), np.ones((2, 4)), "same width"),
        (np.ones((2, 3)), np.ones((1, 3)), "texts of shape"),
        (np.zeros((2, 3)), np.ones((2, 3)), "images of shape"),
        (np.full((2, 3), np.nan), np.ones((2, 3)), "images of shape"),
        (np.ones(3), np.ones((2, 3)), "images of shape"),
    ],
)
def test_posterior_refuses_features(images, texts, message):
    with pytest.raises(ValueError, match=message):
        posterior(images, texts, scale=100.0)


def test_sure_posteriors_are_labels():
    """One certain value an image: the information is the labels' entropy, Miller and Madow's correction included."""
    labels = np.random.default_rng(1).integers(0, 4, 25)
    found = mutual_information(np.eye(6)[labels])  # two values are never said
    assert found == pytest.approx(entropy(labels), abs=1e-15)
    assert marginal_entropy(np.eye(6)[labels]) == pytest.approx(entropy(labels) - 3 / 50, abs=1e-15)


def test_an_unsure_reader_finds_entropy_and_no_information():
    doubt = np.full((40, 5), 0.2)
    assert marginal_entropy(doubt) == pytest.approx(np.log(5), abs=1e-15)
    assert mutual_information(doubt) == pytest.approx(0, abs=1e-15)
    assert mutual_information(dirichlet(1, np.ones(5)).repeat(40, axis=0)) == pytest.approx(0, abs=1e-15)


def test_two_images_half_told_apart():
    """p and its mirror: the mean is even, log 2, and each is unsure by h(p); the correction is var / mean / n."""
    p = 0.9
    expected = np.log(2) - special.entr([p, 1 - p]).sum() + (p - 0.5) ** 2 / 0.5 / 2
    assert mutual_information([[p, 1 - p], [1 - p, p]]) == pytest.approx(expected, abs=1e-15)


def test_information_is_the_mean_divergence_from_the_mean():
    """The second definition: mean over images of KL(posterior || mean), and symmetric in images and in values."""
    p = dirichlet(30, [0.5, 1.0, 2.0, 3.0])
    correction = (p.var(axis=0) / p.mean(axis=0)).sum() / 60
    divergence = special.rel_entr(p, p.mean(axis=0)).sum(axis=1).mean()
    assert mutual_information(p) == pytest.approx(divergence + correction, abs=1e-14)
    assert mutual_information(p[::-1, ::-1]) == pytest.approx(mutual_information(p), abs=1e-14)


def test_correction_takes_the_bias_of_few_images_away():
    """Dirichlet posteriors, whose expected entropy is known: psi(A + 1) - sum a / A psi(a + 1)."""
    a = np.array([0.3, 0.3, 0.6, 0.8])
    share, total = a / a.sum(), a.sum()
    truth = special.entr(share).sum() - (special.digamma(total + 1) - (share * special.digamma(a + 1)).sum())
    draws = dirichlet(20000, a).reshape(2000, 10, 4)
    corrected = [mutual_information(p) for p in draws]
    plain = [special.rel_entr(p, p.mean(axis=0)).sum(axis=1).mean() for p in draws]
    error = np.std(corrected) / np.sqrt(len(draws))
    assert truth - np.mean(plain) > 10 * error  # ten images: too low by .05
    assert abs(truth - np.mean(corrected)) < 0.25 * (truth - np.mean(plain))


def test_more_values_more_information():
    values = [np.exp(mutual_information(np.eye(8)[np.arange(800) % modes])) for modes in (1, 2, 4, 8)]
    assert values == pytest.approx([1, 2, 4, 8], rel=0.005)  # the correction: 7 / 1600


@pytest.mark.parametrize("bad", [np.ones((2, 2)), [[1.5, -0.5]], [0.5, 0.5], np.zeros((0, 2)), [[np.nan, 1.0]]])
def test_posteriors_that_are_none_are_refused(bad):
    for measure in (marginal_entropy, mutual_information):
        with pytest.raises(ValueError, match="probabilities"):
            measure(bad)


def test_listed_attributes_are_of_the_papers_prompts_and_have_values():
    listed = table.load(LISTED)
    assert set(listed["prompt"]) == set(PAPER_PROMPTS)
    assert (listed.groupby(["prompt", "attribute"])["value"].nunique() >= 2).all()
    assert not listed.duplicated().any()
    assert not listed["value"].str.contains(r"^\s|\s$|  ", regex=True).any()


def test_emoji_clip_reads_what_it_was_taught_and_not_the_artists():
    """Real drawings, whose truth is known: concepts are named, artists, whom no caption names, are not."""
    everything, embed = drawings.load(), embedder("emoji-clip", device="cpu")
    prompts = ["dog face", "sunset", "rocket", "hamburger", "whale"]
    rows = [row for row, prompt in enumerate(everything.prompts) if prompt in prompts]
    images = embed(everything.images[rows])
    for values, truth, right in (
        (prompts, np.array(everything.prompts)[rows], True),
        (sorted(set(everything.artists)), np.array(everything.artists)[rows], False),
    ):
        p = posterior(images, embed.text(values), scale=embed.logit_scale)
        accuracy = (np.array(values)[p.argmax(axis=1)] == truth).mean()
        assert accuracy > 0.95 if right else accuracy < 0.35
        assert (np.exp(mutual_information(p)) > 4) == right
