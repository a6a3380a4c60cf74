"""dtviz.mind against posteriors whose story is known, simulated calibrated judges and closed forms."""

import numpy as np
import pytest
from scipy.special import expit

from dtviz.mind import Asked, calibration, changes_of_mind, presence, ring


def story(*steps: float) -> np.ndarray:
    """(step, 1, 1), one sample's posterior of one concept."""
    return np.array(steps)[:, None, None]


@pytest.mark.parametrize(
    ("steps", "final", "changed", "level", "step"),
    [
        ((0.1, 0.95, 0.97, 0.92, 0.2), 0.0, True, 0.95, 2),  # shown at steps 1 to 3, best at 2
        ((0.95, 0.92, 0.1, 0.0, 0.0), 0.0, True, 0.92, 0),  # from the very first step
        ((0.1, 0.1, 0.1, 0.9, 0.9), 0.1, True, 0.9, 3),  # until the very last one; both thresholds count
        ((0.9, 0.9, 0.1, 0.99, 0.1), 0.0, True, 0.9, 0),  # the flicker at 3 is higher, but is one
        ((0.9, 0.9, 0.1, 0.99, 0.95), 0.0, True, 0.95, 3),
        ((0.1, 0.99, 0.2, 0.99, 0.1), 0.0, False, 0.2, 1),  # two flickers
        ((0.89, 0.89, 0.89, 0.89, 0.89), 0.0, False, 0.89, 0),  # never shown
        ((0.95, 0.95, 0.95, 0.95, 0.95), 0.97, False, 0.95, 0),  # and still there
        ((0.95, 0.95, 0.5, 0.5, 0.5), 0.11, False, 0.95, 0),  # not gone altogether
    ],
)
def test_changes_of_known_stories(steps, final, changed, level, step):
    found = changes_of_mind(story(*steps), [[final]], shown=0.9, gone=0.1, steps=2)
    assert (found.changed.item(), found.level.item(), found.step.item()) == (changed, level, step)


def test_changes_by_a_loop_over_every_run():
    rng = np.random.default_rng(0)
    posteriors, final = rng.uniform(size=(9, 20, 6)), rng.uniform(size=(20, 6))
    for needed in (1, 2, 3):
        found = changes_of_mind(posteriors, final, shown=0.5, gone=0.4, steps=needed)
        for sample, concept in np.ndindex(20, 6):
            curve = posteriors[:, sample, concept].tolist()
            start = max(range(10 - needed), key=lambda first: min(curve[first : first + needed]))
            run = curve[start : start + needed]
            assert found.level[sample, concept] == min(run)
            assert found.step[sample, concept] == start + run.index(max(run))
            assert found.changed[sample, concept] == (min(run) >= 0.5 and final[sample, concept] <= 0.4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"final": np.zeros((2, 2))}, "do not fit"),
        ({"posteriors": np.zeros((3, 2))}, "do not fit"),
        ({"posteriors": np.full((4, 1, 1), 1.1)}, "posteriors of shape"),
        ({"final": [[np.nan]]}, "final of shape"),
        ({"gone": 0.9}, "gone=0.9 and shown=0.9"),
        ({"shown": 1.2}, "shown=1.2"),
        ({"steps": 5}, "steps=5 must be from 1 to the 4"),
        ({"steps": 0}, "steps=0"),
    ],
)
def test_changes_refuse(given, message):
    with pytest.raises(ValueError, match=message):
        changes_of_mind(**({"posteriors": np.zeros((4, 1, 1)), "final": [[0.0]]} | given))


def test_a_judge_that_draws_the_truth_from_its_posteriors_is_calibrated():
    rng = np.random.default_rng(0)
    posteriors = rng.dirichlet([0.3] * 5, size=20_000)
    truth = (rng.uniform(size=(20_000, 1)) > posteriors.cumsum(axis=1)).sum(axis=1)
    found = calibration(posteriors, truth)
    # The standard error of a share of 20,000 is at most .0035; ten bins' mean absolute error of 2,000 each about .01.
    assert found.accuracy == pytest.approx(found.confidence, abs=0.014)
    assert found.error < 0.02
    sure = np.eye(5)[posteriors.argmax(axis=1)]  # the same first choices, all of them certain
    assert calibration(sure, truth).error == pytest.approx(1 - found.accuracy, abs=1e-12)


def test_calibration_by_hand():
    found = calibration([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.45, 0.55]], [0, 1, 1, 0], bins=2)
    # all four in the upper bin: right two times of four at a mean posterior of .7875
    assert (found.accuracy, found.confidence, found.error, found.n) == pytest.approx((0.5, 0.7875, 0.2875, 4))
    with pytest.raises(ValueError, match="do not fit"):
        calibration([[0.5, 0.5]], [0, 1])
    with pytest.raises(ValueError, match="bins=0"):
        calibration([[0.5, 0.5]], [0], bins=0)


def test_presence_against_one_text_is_a_logistic_curve_and_two_concepts_do_not_compete():
    cosines = np.array([[0.31, 0.31, 0.2], [0.1, 0.2, 0.25]])
    found = presence(cosines, [[0.25], [0.25]])
    np.testing.assert_allclose(found, expit(100 * (cosines - 0.25)), rtol=1e-12)
    assert found[0, 0] == found[0, 1] > 0.99
    np.testing.assert_allclose(presence([0.3], [0.3, 0.3, 0.3]), [1 / 4])  # one of four alike
    for rest in ([], [[0.1]]):
        with pytest.raises(ValueError, match="must be"):
            presence([0.3], rest)


def test_ring_gives_every_concept_each_part_once():
    names = ["a", "b", "c", "d", "e"]
    asked = ring(names)
    assert asked[0] == Asked("a", "b", ("e", "c"))
    assert asked[-1] == Asked("e", "a", ("d", "b"))
    for part in ("first", "second"):
        assert sorted(getattr(one, part) for one in asked) == names
    for place in (0, 1):
        assert sorted(one.others[place] for one in asked) == names
    assert all(len({one.first, one.second, *one.others}) == 4 for one in asked)
    for bad in (["a", "b", "c"], ["a", "b", "c", "a"]):
        with pytest.raises(ValueError, match="at least four different"):
            ring(bad)
