"""dtviz.occlusion on images in which what the score sees has a known place."""

import numpy as np
import pytest

from dtviz.occlusion import box, occlude, windows


def test_windows_cover_every_pixel_and_stay_inside():
    for height, width, size, stride in ((64, 64, 16, 8), (64, 64, 16, 7), (5, 9, 4, 3), (3, 3, 8, 2)):
        seen = np.zeros((height, width), int)
        for top, left, bottom, right in windows(height, width, size=size, stride=stride):
            assert 0 <= top < bottom <= height
            assert 0 <= left < right <= width
            assert max(bottom - top, right - left) <= size
            seen[top:bottom, left:right] += 1
        assert seen.min() >= 1
    for stride in (0, 5):
        with pytest.raises(ValueError, match=f"stride={stride} must be from 1 to size=4"):
            windows(8, 8, size=4, stride=stride)


def test_occlude_hides_by_the_borders_colour_and_nothing_else():
    rng = np.random.default_rng(0)
    image = rng.uniform(size=(3, 8, 8)).astype(np.float32)
    image[:, [0, -1]], image[:, :, [0, -1]] = 0.25, 0.25
    places = windows(8, 8, size=4, stride=2)
    for (top, left, bottom, right), hidden in zip(places, occlude(image, places), strict=True):
        assert hidden.dtype == np.float32
        assert (hidden[:, top:bottom, left:right] == 0.25).all()
        hidden[:, top:bottom, left:right] = image[:, top:bottom, left:right]
        np.testing.assert_array_equal(hidden, image)
    with pytest.raises(ValueError, match="must be \\(channel, height, width\\)"):
        occlude(image[None], places)


@pytest.mark.parametrize("truth", [(16, 24, 40, 48), (0, 0, 16, 16), (40, 8, 64, 24)])
def test_the_box_is_around_what_the_score_sees(truth):
    """The score is the red of one rectangle; a second, paler one elsewhere must not stretch the box."""
    top, left, bottom, right = truth
    image = np.ones((3, 64, 64))
    image[1:, top:bottom, left:right] = 0
    image[1:, 48:64, 48:64] = 0.8
    places = windows(64, 64, size=8, stride=4)
    drops = (1 - image[1]).sum() - (1 - occlude(image, places)[:, 1]).sum(axis=(1, 2))
    found = box(drops, places, shape=(64, 64))
    # A patch of 8 reaches half of its own size over an edge before half of its drop is gone, and strides are 4.
    assert np.abs(np.subtract(found, truth)).max() <= 4


def test_box_takes_the_region_of_the_largest_drop():
    places = windows(2, 6, size=2, stride=2)
    assert box([0.6, 0.0, 1.0], places, shape=(2, 6)) == (0, 4, 2, 6)  # the left one counts, but is not connected
    assert box([0.6, 0.5, 1.0], places, shape=(2, 6)) == (0, 0, 2, 6)
    assert box([0.6, 0.5, 1.0], places, shape=(2, 6), share=0.7) == (0, 4, 2, 6)


def test_box_refuses():
    places = windows(4, 4, size=2, stride=2)
    with pytest.raises(ValueError, match="nothing to box"):
        box([-1.0, 0.0, 0.0, -0.5], places, shape=(4, 4))
    with pytest.raises(ValueError, match="drops \\(3,\\)"):
        box([1.0, 0.0, 0.0], places, shape=(4, 4))
    with pytest.raises(ValueError, match="share=0"):
        box([1.0, 0.0, 0.0, 0.0], places, shape=(4, 4), share=0)
