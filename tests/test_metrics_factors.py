"""Known factors: painted discs are read back, the world's own shares have variety 1, decisions against a plain loop."""

import numpy as np
import pytest

from dtviz.metrics import factors
from dtviz.metrics.factors import COLOURS, FACTORS, PLACES, SHARES, SIDE, SIZES


def disc(colour: str, size: str, place: int) -> np.ndarray:
    """A dark disc as large as a drawing's frame, (3, 64, 64)."""
    centre = np.array(
        [SIDE / 2 - 0.5 + factors.CELL * (place // 3 - 1), SIDE / 2 - 0.5 + factors.CELL * (place % 3 - 1)]
    )
    inside = np.linalg.norm(np.indices((SIDE, SIDE)) - centre[:, None, None], axis=0) < SIZES[size] * SIDE / 2 - 1
    return np.where(inside, 0.2, np.array(COLOURS[colour])[:, None, None]).astype(np.float32)


class Means:
    fingerprint = "means"

    def __call__(self, images):
        return images.mean(axis=(2, 3))


def test_painted_discs_are_read_back_in_any_shape():
    truth = np.array([*np.ndindex(*map(len, FACTORS.values()))])
    images = np.stack([disc([*COLOURS][colour], [*SIZES][size], place) for colour, size, place in truth])
    images += np.random.default_rng(0).normal(0, 0.02, images.shape)
    read = factors.read_factors(images)
    for column, (name, labels) in enumerate(read.items()):
        np.testing.assert_array_equal(labels, truth[:, column], err_msg=name)
    steps = factors.read_factors(images.reshape(9, 18, *images.shape[1:]))
    np.testing.assert_array_equal(steps["place"], read["place"].reshape(9, 18))
    assert PLACES[4] == "middle" and PLACES[2] == "top right"
    with pytest.raises(ValueError, match=r"images \(1, 3, 32, 32\) must be \(\.\.\., 3, 64, 64\), of an embedded pair"):
        factors.read_factors(np.ones((1, 3, 32, 32)))


def test_readings_hold_factors_and_features():
    images = np.stack([disc("red", "small", place) for place in range(9)])
    known, features = factors.split_readings(factors.FactorReader(Means())(images))
    assert known["place"].tolist() == [*range(9)] and set(known["colour"]) == {1} and set(known["size"]) == {0}
    np.testing.assert_allclose(features, images.mean(axis=(2, 3)), rtol=1e-6)


def test_a_caption_names_colour_and_size():
    assert factors.named_factors("small rocket on green") == {"size": 0, "colour": [*COLOURS].index("green")}
    assert factors.named_factors("tiger face on white") == {"colour": 0} and factors.named_factors("dog face") == {}


def test_variety_and_coverage_are_one_for_the_worlds_own_pictures():
    rng, n = np.random.default_rng(0), 4000
    known = {name: rng.choice(len(shares), n, p=shares) for name, shares in SHARES.items()}
    for name, labels in known.items():
        assert factors.variety(labels, name) == pytest.approx(1, abs=0.01)  # the standard error is about .003
        effective = np.exp(-(SHARES[name] * np.log(SHARES[name])).sum())
        assert factors.variety(np.zeros(30, dtype=int), name) == pytest.approx(1 / effective)
    few = [factors.coverage({name: labels[i : i + 30] for name, labels in known.items()}) for i in range(0, n, 30)]
    assert np.mean(few) == pytest.approx(1, abs=0.02)  # 134 draws whose deviation is about .06
    assert factors.coverage({name: np.zeros(1, dtype=int) for name in FACTORS}) == pytest.approx(1)


def test_decided_at_against_a_loop():
    labels = np.random.default_rng(0).integers(0, 2, (6, 300))
    expected = [next(step for step in range(1, 7) if (one[step - 1 :] == one[-1]).all()) for one in labels.T]
    np.testing.assert_array_equal(factors.decided_at(labels), expected)
    assert set(expected) == {1, 2, 3, 4, 5, 6}
