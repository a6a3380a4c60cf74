"""The shipped drawings: shapes, prompts and artists."""

import numpy as np
import pytest

from dtviz.models import drawings


def test_the_shipped_drawings():
    real = drawings.load()
    assert real.images.shape == (len(real.prompts), 3, 64, 64) and real.images.dtype == np.float32
    assert real.images.min() >= 0 and real.images.max() <= 1
    dog = real.of("dog face")
    assert set(dog.prompts) == {"dog face"} and len(set(dog.artists)) == len(dog.artists) >= 5
    rows = [row for row, prompt in enumerate(real.prompts) if prompt == "dog face"]
    np.testing.assert_array_equal(dog.images, real.images[rows])
    assert len({image.tobytes() for image in dog.images}) == len(dog.images)
    with pytest.raises(ValueError, match="prompt='a dog' is none of the 140 prompts that were drawn"):
        real.of("a dog")


def test_damaged_drawings_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("DTVIZ_DRAWINGS", str(tmp_path))
    (tmp_path / "drawings.csv").write_text("concept,artist,row,column\ndog-face,noto,0,0\n")
    (tmp_path / "drawings.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"drawings.csv or its .png cannot be read"):
        drawings.load.__wrapped__()
