"""dtviz.curves against double loops, closed forms and curves whose answer is seen by eye."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtviz.curves import (
    concept_timeline,
    fraction_of_commitment,
    level_after_first_step,
    similarity_to_final,
    step_of_commitment,
)


def test_similarity_is_one_minus_cosine_of_each_step_and_sample():
    rng = np.random.default_rng(0)
    steps, final = rng.normal(size=(5, 4, 7)).astype(np.float32), rng.normal(size=(4, 7)).astype(np.float32)
    found = similarity_to_final(steps, final)
    for i in range(5):
        for j in range(4):
            a, b = steps[i, j].astype(float), final[j].astype(float)
            # 1e-15: both sides are float64 sums of seven terms of size one
            assert found[i, j] == pytest.approx(1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-15)


def test_similarity_knows_same_opposite_orthogonal_and_ignores_scale():
    final = [[1.0, 0.0]]
    steps = np.array([[[3.0, 0.0]], [[0.0, 0.1]], [[-2.0, 0.0]]])
    assert similarity_to_final(steps, final).tolist() == [[0.0], [1.0], [2.0]]
    np.testing.assert_array_equal(similarity_to_final(7 * steps, final), similarity_to_final(steps, final))


def test_similarity_keeps_digits_next_to_zero():
    angle = 1e-6  # 1 - cos by subtraction has no correct digit left here; angle^2 / 2 to one part in 1e12
    found = similarity_to_final([[[np.cos(angle), np.sin(angle)]]], [[1.0, 0.0]])
    assert found[0, 0] == pytest.approx(angle**2 / 2, rel=1e-9)


@pytest.mark.parametrize(
    ("steps", "final", "message"),
    [
        (np.ones((2, 3, 4)), np.ones((2, 4)), "do not fit"),
        (np.ones((6, 4)), np.ones((3, 4)), "flatten"),
        (np.zeros((2, 3, 4)), np.ones((3, 4)), "step_features"),
        (np.ones((2, 3, 4)), np.full((3, 4), np.nan), "final_features"),
        (np.ones((0, 3, 4)), np.ones((3, 4)), "step_features"),
        (1.0, np.ones((3, 4)), "step_features"),
    ],
)
def test_similarity_refuses(steps, final, message):
    with pytest.raises(ValueError, match=message):
        similarity_to_final(steps, final)


def test_commitment_by_eye():
    distances = np.array([[0.9, 0.2, 0.9], [0.5, 0.8, 0.8], [0.1, 0.1, 0.7]])
    np.testing.assert_array_equal(step_of_commitment(distances, 0.5), [1, 0, np.nan])
    np.testing.assert_array_equal(step_of_commitment(distances, [0.1, 0.1, 0.7]), [2, 2, 2])
    np.testing.assert_allclose(fraction_of_commitment(distances, 0.5), [2 / 3, 1 / 3, np.nan])
    assert step_of_commitment([0.9, 0.5], 0.5) == 1.0  # "within" holds at equality
    assert np.isnan(fraction_of_commitment([0.9, 0.5], 0.4))


def test_figure_5_the_student_commits_in_step_one_the_base_at_thirty_percent():
    student = np.array([[0.3, 0.5], [0.2, 0.2], [0.1, 0.1], [0.0, 0.0]])
    base = np.linspace(0.7, 0.0, 11)[1:]  # .63 .56 .49 .42 .35 ...
    level = level_after_first_step(student)
    assert level == 0.4
    assert fraction_of_commitment(student.mean(axis=1), level) == 0.25
    assert fraction_of_commitment(base, level) == 0.5


@given(st.lists(st.floats(0, 2), min_size=1, max_size=30), st.floats(0, 2))
def test_commitment_against_a_loop(distances, level):
    expected = next((i for i, distance in enumerate(distances) if distance <= level), None)
    found = step_of_commitment(distances, level)
    assert np.isnan(found) if expected is None else found == expected


@pytest.mark.parametrize("distances", [[], [np.nan, 0.1], np.zeros((2, 2, 2)), 0.3])
def test_commitment_refuses_distances(distances):
    for function in (level_after_first_step, lambda d: step_of_commitment(d, 0.1)):
        with pytest.raises(ValueError, match="distances"):
            function(distances)


@pytest.mark.parametrize("level", [np.nan, [0.1, 0.2]])
def test_commitment_refuses_level(level):
    with pytest.raises(ValueError, match="level"):
        step_of_commitment([0.2, 0.1], level)


def test_concept_timeline_against_a_loop():
    rng = np.random.default_rng(0)
    steps, words = rng.normal(size=(3, 2, 5)), rng.normal(size=(4, 5))
    found = concept_timeline(steps, words)
    for i, j, k in np.ndindex(3, 2, 4):
        cosine = steps[i, j] @ words[k] / np.linalg.norm(steps[i, j]) / np.linalg.norm(words[k])
        assert found[i, j, k] == pytest.approx(cosine, abs=1e-15)
    with pytest.raises(ValueError, match="do not fit"):
        concept_timeline(steps, words[:, :4])
