"""Painted pictures as the embedded models were trained on: drawings of known artists, with known factors.

painted = drawings.load()
painted.of("dog face").artists     # ("noto", "noto", "noto-v1", ...)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
from PIL import Image

from ..files import data, reading
from ..metrics.factors import FACTORS, SIDE


@dataclass(frozen=True)
class Drawings:
    """Pictures: `images` (n, 3, 64, 64) float32 in [0, 1], and prompt, artist and factors of each."""

    images: np.ndarray
    prompts: tuple[str, ...]
    artists: tuple[str, ...]
    factors: dict[str, np.ndarray]  # "colour", "size", "place" -> (n,) indices into `metrics.factors.FACTORS`

    def of(self, prompt: str) -> Drawings:
        """Return this prompt's pictures. ValueError: there are none, as of a caption such as "small rocket on green"."""
        rows = [row for row, name in enumerate(self.prompts) if name == prompt]
        if not rows:
            raise ValueError(f"prompt={prompt!r} is none of the {len(set(self.prompts))} prompts that were drawn")
        factors = {name: index[rows] for name, index in self.factors.items()}
        return Drawings(self.images[rows], (prompt,) * len(rows), tuple(self.artists[row] for row in rows), factors)


@cache
def load() -> Drawings:
    """Load all pictures of `data/drawings` or `$DTVIZ_DRAWINGS`. Raise ValueError if they are damaged."""
    folder = data("drawings")
    with reading(f"{folder / 'drawings.csv'} or its .png"):
        index = pd.read_csv(folder / "drawings.csv")
        with Image.open(folder / "drawings.png") as sheet:
            pixels = np.asarray(sheet.convert("RGB"), dtype=np.float32) / 255
        tiles = [pixels[y : y + SIDE, x : x + SIDE] for y, x in SIDE * index[["row", "column"]].to_numpy()]
        prompts = tuple(name.replace("-", " ") for name in index["concept"])
        factors = {name: np.array([values.index(value) for value in index[name]]) for name, values in FACTORS.items()}
        return Drawings(np.stack(tiles).transpose(0, 3, 1, 2), prompts, tuple(index["artist"]), factors)
