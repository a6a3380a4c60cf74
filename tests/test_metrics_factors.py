"""Known factors: shapes, captions, and variety 1 of the world's own shares. Painted pictures are read in test_recipes.py."""

import numpy as np
import pytest

from dtviz.metrics import factors
from dtviz.metrics.factors import COLOURS, FACTORS, PLACES, SHARES


def test_images_of_any_shape_are_read_and_others_refused():
    images = np.random.default_rng(0).random((2, 3, 3, 64, 64))
    for name, labels in factors.read_factors(images).items():
        np.testing.assert_array_equal(labels, [factors.read_factors(rows)[name] for rows in images])
    assert PLACES[4] == "middle" and PLACES[2] == "top right"
    with pytest.raises(ValueError, match=r"images \(1, 3, 32, 32\) must be \(\.\.\., 3, 64, 64\), of an embedded pair"):
        factors.read_factors(np.ones((1, 3, 32, 32)))


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
