"""The real drawings that the embedded models were trained on: the known modes of every prompt.

real = dtviz.drawings.load()
real.of("dog face").artists     # ("noto", "noto-v1", ...)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
from PIL import Image

from .outside import reading
from .places import data

SIZE = 64


@dataclass(frozen=True)
class Drawings:
    """Drawings with their prompt and artist.

    Attributes:
        images: (n, 3, 64, 64) float32 in [0, 1].
        prompts: the prompt of each drawing.
        artists: the artist of each drawing.
    """

    images: np.ndarray
    prompts: tuple[str, ...]
    artists: tuple[str, ...]

    def of(self, prompt: str) -> Drawings:
        """This prompt's drawings.

        Raises:
            ValueError: no drawing has this prompt.
        """
        rows = [row for row, name in enumerate(self.prompts) if name == prompt]
        if not rows:
            raise ValueError(f"prompt={prompt!r} is none of the {len(set(self.prompts))} prompts that were drawn")
        return Drawings(self.images[rows], (prompt,) * len(rows), tuple(self.artists[row] for row in rows))


@cache
def load() -> Drawings:
    """All drawings shipped in `data/drawings` (`$DTVIZ_DRAWINGS` to point elsewhere). ValueError: they are damaged."""
    folder = data("drawings")
    with reading(f"{folder / 'drawings.csv'} or its .png"):
        index = pd.read_csv(folder / "drawings.csv")
        with Image.open(folder / "drawings.png") as sheet:
            pixels = np.asarray(sheet.convert("RGB"), dtype=np.float32) / 255
        tiles = [
            pixels[row * SIZE : (row + 1) * SIZE, column * SIZE : (column + 1) * SIZE].transpose(2, 0, 1)
            for row, column in zip(index["row"], index["column"], strict=True)
        ]
        prompts = tuple(name.replace("-", " ") for name in index["concept"])
        return Drawings(np.stack(tiles), prompts, tuple(index["artist"]))
