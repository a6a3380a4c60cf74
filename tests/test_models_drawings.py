"""The shipped pictures: shapes, prompts, artists, and factors that are read back."""

import numpy as np
import pytest

from dtviz.metrics.factors import read_factors
from dtviz.models import drawings


def test_the_shipped_drawings():
    real = drawings.load()
    assert real.images.shape == (len(real.prompts), 3, 64, 64) and real.images.dtype == np.float32
    assert real.images.min() >= 0 and real.images.max() <= 1
    dog = real.of("dog face")
    assert set(dog.prompts) == {"dog face"} and len(set(dog.artists)) == len(dog.artists) / 2 >= 5
    rows = [row for row, prompt in enumerate(real.prompts) if prompt == "dog face"]
    np.testing.assert_array_equal(dog.images, real.images[rows])
    assert len({image.tobytes() for image in dog.images}) == len(dog.images)
    for name, labels in read_factors(real.images).items():
        assert np.mean(labels == real.factors[name]) >= 0.95, name  # a few drawings reach the border, or are flat
        np.testing.assert_array_equal(dog.factors[name], real.factors[name][rows])
    with pytest.raises(ValueError, match="prompt='small rocket on green' is none of the 60 prompts that were drawn"):
        real.of("small rocket on green")


def test_damaged_drawings_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("DTVIZ_DRAWINGS", str(tmp_path))
    (tmp_path / "drawings.csv").write_text("concept,artist,row,column\ndog-face,noto,0,0\n")
    (tmp_path / "drawings.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"drawings.csv or its .png cannot be read"):
        drawings.load.__wrapped__()
