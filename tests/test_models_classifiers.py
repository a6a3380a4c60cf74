"""The shipped classifiers on real drawings and x0, against their own formula, and what they refuse."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy.special import expit, softmax

import dtviz
from dtviz.core.decode import decode_latents
from dtviz.models import classifiers, drawings
from dtviz.models.classifiers import load_classifier, load_noisy_x0_classifier


def saved(folder, kind: str, arrays: dict[str, np.ndarray], **header) -> None:
    (folder / "emoji-judges").mkdir()
    header["classes"] = json.dumps(header["classes"])
    save_file(arrays, folder / "emoji-judges" / f"{kind}.safetensors", header | {"embedder": "pixels"})


@pytest.mark.parametrize(("kind", "least"), [("artist", 0.7), ("concept", 0.95)])
def test_the_shipped_classifiers_on_the_drawings_they_were_trained_on(kind, least):
    classifier, right = load_classifier(kind), []
    embed = dtviz.embedder(classifier.embedder, device="cpu")
    for prompt in ("dog face", "sunset", "rocket", "whale"):
        real = drawings.load().of(prompt)
        truth = real.artists if kind == "artist" else real.prompts
        names = classifier(embed(real.images), among=set(truth) if kind == "artist" else None)
        right += [name == true for name, true in zip(names, truth, strict=True)]
    assert np.mean(right) > least


@pytest.fixture
def artist(monkeypatch, tmp_path):
    """A classifier of three artists in the plane, read from a file."""
    monkeypatch.setenv("DTVIZ_MODELS", str(tmp_path))
    arrays = {"weight": np.array([[1, 0, -1], [0, 1, 0]], np.float32), "bias": np.array([0, 0, 0.5], np.float32)}
    saved(tmp_path, "artist", arrays, classes=["noto", "twemoji", "fxemoji"])
    return load_classifier("artist")


def test_a_classifier_is_its_linear_formula(artist):
    features = [[2.0, 1.0], [0.0, 1.0], [-1.0, 1.0]]
    assert artist(features) == ["noto", "twemoji", "fxemoji"]
    assert artist(features, among=["fxemoji", "twemoji"]) == ["twemoji", "twemoji", "fxemoji"]
    assert (artist.kind, artist.embedder) == ("artist", "pixels")
    odds = np.exp([[2, 1, -1.5], [0, 1, 0.5]])
    np.testing.assert_allclose(artist.posterior(features[:2]), odds / odds.sum(axis=1, keepdims=True), atol=1e-15)
    two = artist.posterior(features[:1], among=["fxemoji", "noto"])
    np.testing.assert_allclose(two, [[odds[0, 2], odds[0, 0]] / (odds[0, 2] + odds[0, 0])], atol=1e-15)
    features.append([3.0, 0.0])  # noto, twemoji, fxemoji, noto
    assert [artist.accuracy(features, name) for name in artist.classes] == [0.5, 0.25, 0.25]


def test_bad_input_is_refused(artist):
    with pytest.raises(ValueError, match="truth='picasso' is not one of the artists noto"):
        artist.accuracy([[1.0, 2.0]], "picasso")
    with pytest.raises(ValueError, match=r"features \(1, 3\) must be \(n >= 1, 2\), by the embedder 'pixels'"):
        artist([[1.0, 2.0, 3.0]])
    for bad in (["picasso"], []):
        with pytest.raises(ValueError, match="one or more of the artists noto, twemoji, fxemoji"):
            artist([[1.0, 2.0]], among=bad)
    with pytest.raises(ValueError, match="kind='colour' is not one of artist, concept, style"):
        load_classifier("colour")
    with pytest.raises(dtviz.Unavailable, match="make models"):
        load_classifier("concept")


@pytest.mark.parametrize(("sigma", "temperature"), [(0, 0.5), (1, 1.25), (2, 2), (9, 2)])
def test_a_noisy_x0_classifier_is_a_softmax_at_a_temperature(monkeypatch, tmp_path, sigma, temperature):
    """At that of the noise level."""
    monkeypatch.setenv("DTVIZ_MODELS", str(tmp_path))
    arrays = {"weight": np.eye(2), "bias": [0, 0.5], "sigmas": [0, 2], "temperatures": [0.5, 2]}
    arrays = {name: np.array(array, np.float32) for name, array in arrays.items()}
    saved(tmp_path, "plan", arrays, classes=["dog", "cat"], shown="0.8")
    classifier, features = load_noisy_x0_classifier(), np.array([[2.0, 1.0], [0.0, 1.0]])
    posteriors = classifier(features[None], sigmas=[sigma])[0]
    np.testing.assert_allclose(posteriors, softmax((features + np.array([0, 0.5])) / temperature, axis=1), rtol=1e-12)
    assert (classifier.shown, classifier.classes) == (0.8, ("dog", "cat"))
    with pytest.raises(ValueError, match=r"features \(1, 2\) and sigmas \(1,\) must be \(step, n, 2\)"):
        classifier([[1.0, 2.0]], sigmas=[0.0])
    with pytest.raises(ValueError, match=r"sigmas \(2,\)"):
        classifier([[[1.0, 2.0]]], sigmas=[0.0, 1.0])


def test_the_shipped_noisy_x0_classifier_is_right_on_early_x0_where_the_one_of_drawings_is_not(emoji):
    """Samples of seeds that neither was trained on."""
    noisy, clean = load_noisy_x0_classifier(), load_classifier("concept")
    embed, early, right = dtviz.embedder(noisy.embedder, device="cpu"), slice(3, 8), {"noisy": 0, "clean": 0}
    for prompt in ("guitar", "whale"):
        trace = dtviz.generate(emoji, prompt, method="base", seeds=[100])
        features = embed(decode_latents(trace.x0[early].flatten(0, 1), emoji))
        posteriors = noisy(features[:, None], sigmas=trace.sigmas[early])
        np.testing.assert_allclose(posteriors.sum(axis=-1), 1, atol=1e-9)
        right["noisy"] += sum(noisy.classes[column] == prompt for column in posteriors[:, 0].argmax(axis=1))
        right["clean"] += clean(features).count(prompt)
    assert right["noisy"] >= 8  # of 10
    assert right["noisy"] > right["clean"]


def test_a_text_classifier_knows_drawings_by_the_embedded_clip():
    """Against the names of other concepts, as in CLIP's zero-shot classification."""
    concepts = ["guitar", "rocket", "whale"]
    embed, build = dtviz.embedder("emoji-clip", device="cpu"), classifiers.TextClassifier
    classifier = build(embed.text, concepts, template="{}", without=["pizza", "umbrella", "cactus"])
    for column, concept in enumerate(concepts):
        real = drawings.load().of(concept)
        posteriors = classifier(embed(real.images)[None], sigmas=[0])[0]
        assert posteriors.shape == (len(real.artists), 3)
        assert (posteriors[:, column] > 0.5).mean() > 0.8
    rotate = np.array([[0.25, 0.31], [0.2, 0.1]], np.float32)  # cosines of the two texts with, and of the one without

    def rotated(texts):
        return rotate[:, :1] if len(texts) == 2 else rotate[:1, 1:]

    two = build(rotated, ["a", "b"], template="{}", without=["c"])
    expected = expit(100 * (rotate[:, 0] - rotate[0, 1]))  # concepts do not compete
    np.testing.assert_allclose(two(np.ones((1, 1, 1), np.float32), sigmas=[0]), [[expected]], rtol=1e-4)
