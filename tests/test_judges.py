"""dtviz.judges: the shipped judges on real drawings, against their own formula, and what they refuse."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy.special import softmax

import dtviz
from dtviz import drawings, judges


@pytest.fixture(scope="module")
def real():
    """The drawings of six prompts."""
    everything = drawings.load()
    return [everything.of(prompt) for prompt in ("dog face", "sunset", "rocket", "red heart", "hamburger", "whale")]


@pytest.mark.parametrize(("kind", "least"), [("artist", 0.7), ("concept", 0.95)])
def test_the_shipped_judges_know_the_drawings_they_were_trained_on(kind, least, real):
    judge = judges.load(kind)
    embed = dtviz.embedder(judge.embedder, device="cpu")
    right = total = 0
    for drawn in real:
        truth = drawn.artists if kind == "artist" else drawn.prompts
        found = judge(embed(drawn.images), among=set(truth) if kind == "artist" else None)
        right, total = right + sum(a == b for a, b in zip(found, truth, strict=True)), total + len(truth)
    assert right / total > least


@pytest.fixture
def judge(monkeypatch, tmp_path):
    """A judge of three artists in the plane, read from a file."""
    monkeypatch.setenv("DTVIZ_MODELS", str(tmp_path))
    (tmp_path / "emoji-judges").mkdir()
    arrays = {"weight": np.array([[1, 0, -1], [0, 1, 0]], np.float32), "bias": np.array([0, 0, 0.5], np.float32)}
    facts = {"classes": json.dumps(["noto", "twemoji", "fxemoji"]), "embedder": "pixels"}
    save_file(arrays, tmp_path / "emoji-judges" / "artist.safetensors", facts)
    return judges.load("artist")


def test_a_judge_is_its_linear_formula(judge):
    features = [[2.0, 1.0], [0.0, 1.0], [-1.0, 1.0]]
    assert judge(features) == ["noto", "twemoji", "fxemoji"]
    assert judge(features, among=["fxemoji", "twemoji"]) == ["twemoji", "twemoji", "fxemoji"]
    assert (judge.kind, judge.embedder) == ("artist", "pixels")


def test_posterior_is_the_softmax_of_the_scores(judge):
    found = judge.posterior([[2.0, 1.0], [0.0, 1.0]])
    odds = np.exp([[2, 1, -1.5], [0, 1, 0.5]])
    np.testing.assert_allclose(found, odds / odds.sum(axis=1, keepdims=True), atol=1e-15)
    two = judge.posterior([[2.0, 1.0]], among=["fxemoji", "noto"])
    np.testing.assert_allclose(two, [[odds[0, 2], odds[0, 0]] / (odds[0, 2] + odds[0, 0])], atol=1e-15)


def test_accuracy_is_the_share_that_is_named_rightly(judge):
    features = [[2.0, 1.0], [0.0, 1.0], [-1.0, 1.0], [3.0, 0.0]]  # noto, twemoji, fxemoji, noto
    assert [judge.accuracy(features, artist) for artist in judge.classes] == [0.5, 0.25, 0.25]
    assert judge.accuracy(features[:1], "noto") == 1


def test_bad_input_is_refused(judge):
    with pytest.raises(ValueError, match="truth='picasso' is not one of the artists that this judge knows: noto"):
        judge.accuracy([[1.0, 2.0]], "picasso")
    with pytest.raises(ValueError, match="hold no image"):
        judge.accuracy(np.zeros((0, 2)), "noto")
    with pytest.raises(ValueError, match=r"shape \(1, 3\) must be \(n, 2\), made by the embedder 'pixels'"):
        judge([[1.0, 2.0, 3.0]])
    for bad in (["picasso"], []):
        with pytest.raises(ValueError, match="one or more of the artists noto, twemoji, fxemoji"):
            judge([[1.0, 2.0]], among=bad)
    with pytest.raises(ValueError, match="kind='colour' is not one of artist, concept, style"):
        judges.load("colour")
    with pytest.raises(dtviz.Unavailable, match="make models"):
        judges.load("concept")


# Plans


@pytest.fixture
def plan_judge(monkeypatch, tmp_path):
    """A judge of two concepts in the plane at two noise levels, read from a file."""
    monkeypatch.setenv("DTVIZ_MODELS", str(tmp_path))
    (tmp_path / "emoji-judges").mkdir()
    arrays = {
        "weight": np.array([[1, 0], [0, 1]], np.float16),
        "bias": np.array([0, 0.5], np.float32),
        "sigmas": np.array([0, 2], np.float32),
        "temperatures": np.array([0.5, 2], np.float32),
    }
    facts = {"classes": json.dumps(["dog", "cat"]), "embedder": "pixels", "shown": "0.8"}
    save_file(arrays, tmp_path / "emoji-judges" / "plan.safetensors", facts)
    return judges.load_plans()


@pytest.mark.parametrize(("sigma", "temperature"), [(0, 0.5), (1, 1.25), (2, 2), (9, 2)])
def test_a_plan_judge_is_a_softmax_at_the_temperature_of_the_noise_level(plan_judge, sigma, temperature):
    features = np.array([[2.0, 1.0], [0.0, 1.0]])
    found = plan_judge(features[None], sigmas=[sigma])[0]
    np.testing.assert_allclose(found, softmax((features + np.array([0, 0.5])) / temperature, axis=1), rtol=1e-12)
    assert (plan_judge.shown, plan_judge.classes) == (0.8, ("dog", "cat"))


def test_a_plan_judge_refuses(plan_judge):
    with pytest.raises(ValueError, match=r"features \(1, 2\) and sigmas \(1,\) must be \(step, n, 2\)"):
        plan_judge([[1.0, 2.0]], sigmas=[0.0])
    with pytest.raises(ValueError, match=r"sigmas \(2,\)"):
        plan_judge([[[1.0, 2.0]]], sigmas=[0.0, 1.0])


def test_the_shipped_plan_judge_knows_unfinished_plans_that_the_clean_judge_misnames():
    """Samples of seeds that no judge has seen; the base's commitment is no question here: guidance 5, one concept."""
    pair, judge, clean = dtviz.load("emoji-dmd"), judges.load_plans(), judges.load("concept")
    embed = dtviz.embedder(judge.embedder, device="cpu")
    right = {"plan": 0, "clean": 0}
    early = slice(3, 8)
    for prompt in ("guitar", "rocket", "whale"):
        trace = dtviz.generate(pair, prompt, method="base", seeds=[100])
        features = embed(dtviz.decode(trace, pair)[early].flatten(0, 1))
        posteriors = judge(features[:, None], sigmas=trace.sigmas[early])
        np.testing.assert_allclose(posteriors.sum(axis=-1), 1, atol=1e-9)
        right["plan"] += sum(judge.classes[column] == prompt for column in posteriors[:, 0].argmax(axis=1))
        right["clean"] += sum(name == prompt for name in clean(features))
    assert right["plan"] >= 12  # of 15
    assert right["plan"] > right["clean"]


def test_a_text_judge_knows_drawings_by_the_embedded_clip():
    """Against the names of the other concepts, as in CLIP's classification without training."""
    concepts = ["guitar", "rocket", "whale"]
    embed, real = dtviz.embedder("emoji-clip", device="cpu"), drawings.load()
    judge = judges.TextJudge.build(embed.text, concepts, template="{}", without=["pizza", "umbrella", "cactus"])
    for place, concept in enumerate(concepts):
        found = judge(embed(real.of(concept).images)[None], sigmas=[0])[0]
        assert found.shape == (len(real.of(concept).artists), 3)
        assert (found[:, place] > 0.5).mean() > 0.8
    with pytest.raises(ValueError, match="template='a photo' must hold"):
        judges.TextJudge.build(embed.text, concepts, template="a photo", without=["pizza"])
