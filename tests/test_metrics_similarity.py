"""metrics.similarity against double loops, closed forms and curves whose answer is seen by eye."""

import numpy as np
import pytest

from dtviz import similarity_to_final
from dtviz.metrics.similarity import concept_timeline, fraction_of_commitment

rng = np.random.default_rng(0)


def cosine(a, b):
    a, b = a.astype(float), b.astype(float)
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_similarity_and_timeline_against_loops():
    steps, final = rng.normal(size=(5, 4, 7)).astype(np.float32), rng.normal(size=(4, 7)).astype(np.float32)
    words = rng.normal(size=(3, 7))
    distances, timeline = similarity_to_final(steps, final), concept_timeline(steps, words)
    for i, j in np.ndindex(5, 4):
        # 1e-15: both sides are float64 sums of seven terms of size one
        assert distances[i, j] == pytest.approx(1 - cosine(steps[i, j], final[j]), abs=1e-15)
        assert timeline[i, j] == pytest.approx([cosine(steps[i, j], word) for word in words], abs=1e-15)


def test_similarity_keeps_digits_next_to_zero():
    angle = 1e-6  # 1 - cos by subtraction has no correct digit left here; angle^2 / 2 to one part in 1e12
    distance = similarity_to_final([[[np.cos(angle), np.sin(angle)]]], [[1.0, 0.0]])
    assert distance[0, 0] == pytest.approx(angle**2 / 2, rel=1e-9)
    steps = [[[3.0, 0.0]], [[0.0, 0.1]], [[-2.0, 0.0]]]  # same, orthogonal, opposite
    assert similarity_to_final(steps, [[1.0, 0.0]]).tolist() == [[0.0], [1.0], [2.0]]


def test_bad_features_are_refused():
    for steps, final, message in (
        (np.ones((2, 3, 4)), np.ones((2, 4)), "must be"),
        (np.zeros((2, 3, 4)), np.ones((3, 4)), "step_features of shape"),
        (np.ones((2, 3, 4)), np.full((3, 4), np.nan), "final_features of shape"),
        (np.ones((0, 3, 4)), np.ones((3, 4)), "step_features of shape"),
        (1.0, np.ones((3, 4)), "step_features of shape"),
    ):
        with pytest.raises(ValueError, match=message):
            similarity_to_final(steps, final)
    with pytest.raises(ValueError, match="text_features"):
        concept_timeline(np.ones((2, 3, 4)), np.ones((2, 5)))


def test_commitment_by_eye():
    assert fraction_of_commitment([0.9, 0.5, 0.1], 0.5) == 2 / 3
    assert fraction_of_commitment([0.2, 0.8, 0.1], 0.5) == 1 / 3  # the first time counts
    assert fraction_of_commitment([0.9, 0.5], 0.5) == 1.0  # at equality too
    assert np.isnan(fraction_of_commitment([0.9, 0.5], 0.4))


def test_figure_5_the_distilled_model_commits_in_step_one():
    distilled = np.array([[0.3, 0.5], [0.2, 0.2], [0.1, 0.1], [0.0, 0.0]])
    base = np.linspace(0.7, 0.0, 11)[1:]  # .63 .56 .49 .42 .35 ...
    curve = distilled.mean(axis=1)
    assert fraction_of_commitment(curve, curve[0]) == 0.25
    assert fraction_of_commitment(base, curve[0]) == 0.5


@pytest.mark.parametrize("distances", [[], [np.nan, 0.1], np.zeros((2, 2)), 0.3])
def test_commitment_refuses(distances):
    with pytest.raises(ValueError, match="distances"):
        fraction_of_commitment(distances, 0.1)
